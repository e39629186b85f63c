"""The fence before a Docker socket: which calls pass, and which containers may be made."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_launchers.base import LaunchSpec
from engine_launchers.container import Container
from orchestrator.fence.bodies import LIMIT, Yard, created, ours
from orchestrator.fence.calls import Kind, Refused, call_of
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.body import Surroundings, body
from orchestrator.runtimes.docker.labels import INSTALLATION

NETWORK = "x_engines"
YARD = Yard(NETWORK, "65532:65532", ("/var/lib/docker/volumes/x_models/_data", "/srv/models"))
FILTERS = urlencode({"filters": json.dumps({"label": [f"{INSTALLATION}=abc"]})})


def engine(*gpus: str, podman: bool = False, **more: Any) -> dict[str, Any]:
    """What the runtime asks for."""
    spec = LaunchSpec(
        argv=("vllm", "serve", "--model", "m"),
        env={"A": "b"},
        container=Container(image="x:1", gpus=gpus, plan="p"),
    )
    record = HandleRecord(
        name="m-0",
        generation=2,
        spec=spec,
        hold=ContainerHold(container="engineroom-abc-m-0-2"),
        folder=Path("/f"),
        log=Path("/l"),
    )
    mounts = (("/srv/models/m.gguf", "/models/m.gguf"),)
    around = Surroundings("abc", NETWORK, (65532, 65532), 1 << 30, mounts, podman=podman, **more)
    return body(record, around)


ENGINES = [
    engine(),
    engine("GPU-1", "GPU-2"),
    engine("GPU-1", podman=True),
    engine(devices=("/dev/kfd", "/dev/dri"), groups=(44, 105)),
]


def refused(data: object) -> str:
    """Why such a container is not made; a failure where it is."""
    sent = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(Refused) as told:
        created(sent, YARD)
    return str(told.value)


# --- containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ENGINES)
def test_what_the_runtime_makes_may_be_made(wanted: dict[str, Any]) -> None:
    assert json.loads(created(json.dumps(wanted).encode(), YARD)) == wanted


HOST: list[tuple[str, Any]] = [
    ("Privileged", True), ("Privileged", 0), ("NetworkMode", "host"), ("NetworkMode", "bridge"),
    ("IpcMode", "host"), ("IpcMode", "container:x"), ("CapDrop", []), ("CapDrop", ["NET_RAW"]),
    ("SecurityOpt", []), ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
    ("ReadonlyRootfs", False), ("PidsLimit", 0), ("PidsLimit", -1), ("PidsLimit", 10**6),
    ("Memory", 0), ("Memory", "1g"), ("AutoRemove", True), ("RestartPolicy", {"Name": "always"}),
    ("GroupAdd", ["0"]), ("GroupAdd", ["docker"]), ("Init", False),
    ("Devices", [{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/sda",
                  "CgroupPermissions": "rwm"}]),
    ("Devices", [{"PathOnHost": "/dev/dri", "PathInContainer": "/x", "CgroupPermissions": "rwm"}]),
    ("DeviceRequests", [{"Driver": "cdi", "DeviceIDs": ["x"], "Capabilities": [["gpu"]]}]),
    ("Tmpfs", {"/tmp": "rw,exec,suid"}), ("Tmpfs", {"/tmp": "size=1", "/x": "size=1"}),
    ("LogConfig", {"Type": "syslog", "Config": {"syslog-address": "tcp://x"}}),
    ("LogConfig", {"Type": "json-file", "Config": {"max-size": "1", "max-file": "2", "env": "x"}}),
]  # fmt: skip
ADDED = {
    "Binds": ["/:/host"], "CapAdd": ["SYS_ADMIN"], "PidMode": "host", "UsernsMode": "host",
    "UTSMode": "host", "CgroupnsMode": "host", "CgroupParent": "/x", "Runtime": "x",
    "VolumesFrom": ["x"], "MaskedPaths": [], "ReadonlyPaths": [], "Sysctls": {}, "Ulimits": [],
    "PortBindings": {}, "PublishAllPorts": True, "DeviceCgroupRules": ["a *:* rwm"],
    "privileged": True, "NetworkMode\u212a": "host", "Networ\u212aMode": "host", "Links": ["x"],
    "OomScoreAdj": -1000, "VolumeDriver": "x", "StorageOpt": {}, "ExtraHosts": ["a:1.2.3.4"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HOST, ids=lambda value: str(value)[:30])
def test_no_power_is_given_by_another_value(name: str, value: Any) -> None:
    wanted = engine()
    wanted["HostConfig"][name] = value
    assert f"HostConfig.{name}" in refused(wanted)


@pytest.mark.parametrize("name", ADDED)
def test_no_power_is_given_by_another_key(name: str) -> None:
    wanted = engine()
    wanted["HostConfig"][name] = ADDED[name]
    assert "is not in an engine's container" in refused(wanted)


@pytest.mark.parametrize("name", engine()["HostConfig"])
def test_nothing_may_be_left_to_dockers_defaults(name: str) -> None:
    wanted = engine()
    del wanted["HostConfig"][name]
    assert refused(wanted) == f"HostConfig.{name} is missing"


@pytest.mark.parametrize(
    "mount",
    [
        *({"Source": source} for source in (
            "/", "/etc", "/srv", "/srv/models2", "/srv/models/../../etc", "/srv/models/./x",
            "/srv//models", "//srv/models", "srv/models", "/var/lib/docker/volumes/x_models",
            "/var/run/docker.sock", "/root/.ssh", "", None, ["/srv/models"],
        )),
        {"ReadOnly": False}, {"ReadOnly": 1}, {"Type": "volume"}, {"Type": "Bind"},
        {"BindOptions": {"Propagation": "shared"}}, {"VolumeOptions": {"DriverConfig": {}}},
        {"Target": "models"}, {"Target": "/a/../b"},
    ],
    ids=str,
)  # fmt: skip
def test_only_folders_that_others_around_have_are_shown_and_for_reading(
    mount: dict[str, Any],
) -> None:
    wanted = engine()
    wanted["HostConfig"]["Mounts"][0].update(mount)
    assert "HostConfig.Mounts is not that of an engine's container" in refused(wanted)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "0:0"), ("User", ""), ("User", "65532"), ("Labels", {}), ("Labels", None),
        ("Healthcheck", {"Test": ["CMD", "x"]}), ("WorkingDir", "/"), ("Env", "A=b"),
        ("NetworkingConfig", {"EndpointsConfig": {"host": {}}}),
        ("NetworkingConfig", {"EndpointsConfig": {NETWORK: {}, "bridge": {}}}),
        ("NetworkingConfig", {"EndpointsConfig": {NETWORK: {"Links": ["x"]}}}),
        ("HostConfig", None), ("Image", 3), ("Cmd", [3]),
    ],
    ids=str,
)  # fmt: skip
def test_who_and_where_it_runs_is_fixed(name: str, value: Any) -> None:
    assert name in refused({**engine(), name: value})


def test_what_two_parsers_may_read_in_two_ways_is_refused_or_written_anew() -> None:
    text = json.dumps(engine())
    twice = text.replace('"Privileged": false', '"Privileged": false, "Privileged": true')
    assert "a key is written twice" in refused(twice.encode())
    hidden = text.replace('"Privileged": false', '"\\u0050rivileged": true')
    assert "HostConfig.Privileged" in refused(hidden.encode())
    assert "not JSON" in refused(b'{"Image": NaN}')
    assert "not JSON" in refused(b"[" * 100_000)[:60] or "bytes" in refused(b"[" * 100_000)
    assert "bytes" in refused(b" " * LIMIT + b"{}")
    assert "has to be an object" in refused(b"[]")
    assert "not JSON" in refused("\u0000".encode())
    slashes = text.replace("/srv/models", "\\/srv\\/models").encode()
    assert created(slashes, YARD) == text.encode()


_ODD = st.sampled_from(
    [None, True, False, 0, -1, 1 << 70, "", "host", "0", [], {}, ["x"], {"x": 1}]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a body."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(len(value)):
            yield from places(value[number], (*path, number))


# What may be anything of its kind: the engine's own, or a measure of it.
FREE = {"Image", "Entrypoint", "Cmd", "Env", "Labels", "Memory", "MemorySwap", "ShmSize",
        "PidsLimit", "Target", "DeviceIDs"}  # fmt: skip


@given(data=st.data())
@settings(max_examples=300)
def test_whatever_is_changed_is_noticed(data: st.DataObject) -> None:
    wanted = copy.deepcopy(data.draw(st.sampled_from(ENGINES)))
    way = data.draw(st.sampled_from(list(places(wanted))))
    odd = data.draw(_ODD)
    holder = wanted
    for step in way[:-1]:
        holder = holder[step]
    before, holder[way[-1]] = holder[way[-1]], odd
    # An empty list of what is allowed is allowed, and so is a part that may be anything.
    if odd == before or odd == [] or FREE & set(way):
        return
    refused(wanted)


# --- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "query", "kind", "name"),
    [
        ("GET", "/_ping", "", Kind.OPEN, ""),
        ("HEAD", "/v1.41/_ping", "", Kind.OPEN, ""),
        ("GET", "/version", "", Kind.OPEN, ""),
        ("GET", "/v1.53/info", "", Kind.OPEN, ""),
        ("GET", "/v1.41/events", FILTERS + "&since=1", Kind.OPEN, ""),
        ("GET", "/v1.41/containers/json", FILTERS + "&all=1", Kind.OPEN, ""),
        ("GET", f"/v1.41/networks/{NETWORK}", "", Kind.OPEN, ""),
        ("GET", "/v1.41/images/h.example:5000/a/b:1/json", "", Kind.OPEN, ""),
        ("GET", "/v1.41/images/a%40sha256:00ff/json", "", Kind.OPEN, ""),
        ("GET", "/v1.41/containers/a-b.c_d/json", "", Kind.LOOK, "a-b.c_d"),
        ("GET", "/v1.41/containers/json/json", "", Kind.LOOK, "json"),
        ("GET", "/v1.41/containers/x/logs", "stdout=1&follow=1", Kind.ORDER, "x"),
        ("POST", "/v1.41/containers/x/kill", "signal=15", Kind.ORDER, "x"),
        ("DELETE", "/v1.41/containers/x", "force=True&v=True", Kind.ORDER, "x"),
        ("POST", "/v1.41/containers/create", "name=y", Kind.CREATE, ""),
        ("POST", "/v1.41/images/create", "fromImage=x&tag=1", Kind.PULL, ""),
    ],
)
def test_what_a_runtime_calls_passes(
    method: str, path: str, query: str, kind: Kind, name: str
) -> None:
    call = call_of(method, path, query, NETWORK)
    assert (call.kind, call.method, call.name) == (kind, method, name)
    assert call.path == path.replace("%40", "@")
    assert dict(parse_qsl(call.query)) == dict(parse_qsl(query))
    assert call.of("id0").path == call.path.replace(f"/{name}", "/id0", 1) if name else call


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1.23/containers/x/json", "GET /v1.39/info", "GET /v2/info", "GET /info",
        "GET /v1.41/system/df", "POST /v1.41/build", "POST /v1.41/commit?container=x",
        "GET /v1.41/volumes", "POST /v1.41/volumes/create", "GET /v1.41/secrets",
        "POST /v1.41/swarm/init", "GET /v1.41/plugins", "POST /v1.41/containers/prune",
        "POST /v1.41/containers/x/exec", "POST /v1.41/exec/x/start",
        "POST /v1.41/containers/x/attach", "GET /v1.41/containers/x/archive?path=/",
        "PUT /v1.41/containers/x/archive?path=/", "GET /v1.41/containers/x/export",
        "POST /v1.41/containers/x/update", "POST /v1.41/containers/x/rename?name=y",
        "POST /v1.41/images/load", "POST /v1.41/images/create?fromSrc=http://x/",
        "POST /v1.41/images/create?%66romSrc=-", "POST /v1.41/images/create?FromSrc=-",
        "DELETE /v1.41/images/x", "POST /v1.41/networks/create", "DELETE /v1.41/networks/x",
        f"POST /v1.41/networks/{NETWORK}/connect", "GET /v1.41/networks/bridge",
        "GET /v1.41/networks", "POST /session", "GET /v1.41/containers/../info",
        "GET /v1.41/containers/%2e%2e/info", "GET //info", "GET /v1.41/containers/x%2fjson",
        "GET /v1.41/images/x%40%2fy/json", "POST /v1.41/_ping", "TRACE /_ping",
        "GET /v1.41/containers/json", "GET /v1.41/events",
        "GET /v1.41/events?filters=%7B%22label%22%3A%5B%22other%22%5D%7D",
        "GET /v1.41/containers/json?filters=[1]", "GET /v1.41/containers/json?filters=%7B",
        "GET /v1.41/info\n", "GET /v1.41/containers/x/logs?details=1",
    ],
)  # fmt: skip
def test_everything_else_is_refused(line: str) -> None:
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    with pytest.raises(Refused):
        call_of(method, path, query, NETWORK)


def test_only_engines_of_this_network_are_ours() -> None:
    mine = {"Config": {"Labels": {INSTALLATION: "a"}}, "HostConfig": {"NetworkMode": NETWORK}}
    assert ours(mine, NETWORK)
    assert not ours({**mine, "HostConfig": {"NetworkMode": "other"}}, NETWORK)
    assert not ours({**mine, "Config": {"Labels": None}}, NETWORK)
    assert not ours({}, NETWORK)
