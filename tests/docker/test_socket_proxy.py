"""The proxy before the Docker socket: what a runtime needs passes, everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_launchers.base import LaunchSpec
from engine_launchers.container import Container
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.body import Surroundings, body
from tests.docker.policy import violations
from tests.docker.stack import Stack, name_of, run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_CALLS = """
import http.client, json, sys
told = []
for method, path, body in json.loads(sys.argv[1]):
    wire = http.client.HTTPConnection("socket-proxy", 2375, timeout=60)
    text = None if body is None else body if isinstance(body, str) else json.dumps(body)
    wire.putrequest(method, path, skip_accept_encoding=True)
    wire.putheader("Content-Type", "application/json")
    wire.putheader("Content-Length", str(len(text.encode()) if text else 0))
    wire.endheaders(text.encode() if text else None)
    answer = wire.getresponse()
    told.append([answer.status, answer.read(65536).decode(errors="replace")])
print(json.dumps(told))
"""
Call = tuple[str, str, Any]


def ask(stack: Stack, *calls: Call) -> list[tuple[int, str]]:
    """Status and body of each call, from where the supervisor stands."""
    out = stack.beside(stack.network("docker-api"), _CALLS, json.dumps(calls))
    return [(status, body) for status, body in json.loads(out)]


@pytest.fixture(scope="module")
def proxy(stack: Stack) -> Stack:
    """The stack, with the proxy up."""
    stack.up("socket-proxy")
    return stack


def test_it_keeps_the_policy(proxy: Stack) -> None:
    assert violations(proxy.container("socket-proxy"), socket_allowed=True) == []


def engine(stack: Stack, *argv: str) -> dict[str, Any]:
    """What the runtime would create for such an engine, with a model in the volume of models."""
    network = stack.network("engines")
    models = ("volume", "inspect", "--format", "{{.Mountpoint}}", stack.network("models"))
    record = HandleRecord(
        name="engine-0",
        generation=1,
        spec=LaunchSpec(argv=argv, container=Container(image=name_of("gateway"), plan="a-plan")),
        hold=ContainerHold(container="engine"),
        folder=Path("/none"),
        log=Path("/none"),
    )
    mounts = ((run("docker", *models).strip(), "/models"),)
    return body(record, Surroundings("0123456789ab", network, (65532, 65532), 1 << 28, mounts))


def test_what_a_runtime_needs_passes(proxy: Stack) -> None:
    name = f"{proxy.project}-engine"
    wanted = engine(proxy, "python3", "-c", "print('it ran')")
    wanted["Labels"]["com.docker.compose.project"] = proxy.project  # it is looked for by that
    one = f"/v1.41/containers/{name}"
    calls: dict[Call, int] = {}
    for call, status in (
        (("GET", "/_ping", None), 200),
        (("GET", "/version", None), 200),
        (("GET", "/v1.41/info", None), 200),
        (("GET", "/v1.41/events?since=1&until=2", None), 200),
        (("GET", "/v1.41/containers/json?all=1", None), 200),
        (("GET", f"/v1.41/images/{name_of('gateway')}/json", None), 200),
        (("POST", f"/v1.41/containers/create?name={name}", wanted), 201),
        (("GET", f"{one}/json", None), 200),
        (("POST", f"{one}/start", None), 204),
        (("POST", f"{one}/wait", None), 200),
        (("GET", f"{one}/logs?stdout=1", None), 200),
        (("POST", f"{one}/kill", None), 409),  # it has ended: the engine says so, not the proxy
        (("DELETE", f"{one}?force=1", None), 204),
        (("POST", "/v1.41/images/create?fromImage=127.0.0.1:9/none&tag=1", None), 500),
        (("GET", f"/v1.41/networks/{proxy.network('engines')}", None), 200),
    ):
        calls[(call[0], call[1], json.dumps(call[2]) if call[2] else None)] = status
    told = ask(proxy, *calls)
    assert [status for status, _ in told] == list(calls.values()), told
    assert "it ran" in told[[call[1] for call in calls].index(f"{one}/logs?stdout=1")][1]


REFUSED: list[Call] = [
    ("GET", "/v1.41/system/df", None),
    ("GET", "/v1.41/info/x", None),
    ("POST", "/v1.41/build", None),
    ("POST", "/v1.41/commit?container=x", None),
    ("GET", "/v1.41/volumes", None),
    ("POST", "/v1.41/volumes/create", {"Name": "x"}),
    ("GET", "/v1.41/secrets", None),
    ("POST", "/v1.41/swarm/init", {}),
    ("GET", "/v1.41/plugins", None),
    ("POST", "/v1.41/containers/prune", None),
    ("POST", "/v1.41/containers/x/exec", {"Cmd": ["sh"]}),
    ("POST", "/v1.41/exec/x/start", {}),
    ("POST", "/v1.41/containers/x/attach", None),
    ("GET", "/v1.41/containers/x/archive?path=/", None),
    ("PUT", "/v1.41/containers/x/archive?path=/", None),
    ("GET", "/v1.41/containers/x/export", None),
    ("POST", "/v1.41/containers/x/update", {"Memory": 0}),
    ("POST", "/v1.41/containers/x/rename?name=y", None),
    ("POST", "/v1.41/images/load", None),
    ("POST", "/v1.41/images/create?fromSrc=http://x/", None),
    ("DELETE", "/v1.41/images/x", None),
    ("POST", "/v1.41/networks/create", {"Name": "x"}),
    ("DELETE", "/v1.41/networks/x", None),
    ("POST", "/session", None),
    ("GET", "/v1.41/containers/../info", None),
    ("GET", "/v1.41/containers/%2e%2e/info", None),
    ("GET", "//info", None),
    ("GET", "/v1.41/containers/x%2fjson", None),
    ("GET", "/v1.41/images/x%40%2fy/json", None),
    ("POST", "/v1.41/_ping", None),
    ("POST", "/v1.20/containers/x/start", {"Binds": ["/:/host"]}),
    ("HEAD", "/v1.41/containers/x/archive?path=/", None),
]


def test_everything_else_is_refused(proxy: Stack) -> None:
    told = ask(proxy, *REFUSED)
    passed = [call for call, (status, _) in zip(REFUSED, told, strict=True) if status != 403]
    assert passed == []


_FENCE = {"SecurityOpt": ["no-new-privileges"]}


def with_powers(**host: Any) -> str:
    """A container with these powers, and nothing else to be refused for."""
    wanted = {"Image": "none", "User": "65532:65532", "HostConfig": {**_FENCE, **host}}
    return json.dumps(wanted)


def of_user(**user: Any) -> str:
    """A container whose user is said so."""
    return json.dumps({"Image": "none", **user, "HostConfig": _FENCE})


def with_folder(source: str, **more: Any) -> str:
    """A container that sees this folder of the machine, for reading unless it is said otherwise."""
    mount = {"Type": "bind", "Source": source, "Target": "/host", "ReadOnly": True}
    return with_powers(Mounts=[{**mount, **more}])


DOCKER = "/var/lib/docker"
FINE = "/srv/models"
ALLOWED = [
    with_powers(),
    *map(with_folder, (FINE, "/home/me/models/a", "/root/engineroom/demo", "/home/me/.cache/hub")),
    *map(
        with_folder,
        (f"{DOCKER}/volumes/x/_data", f"{DOCKER}/volumes/x/_data/a", "/etcetera", "/various"),
    ),
    *map(with_folder, (f"{DOCKER}/100.100/volumes/x/_data", "/opt/x/.hidden", "/library/usr")),
]
POWERS = [
    with_powers(Privileged=True),
    with_powers(Privileged=True).replace(" ", ""),
    with_powers(privileged=True),
    with_powers(Privileged=True).replace("Priv", "\\u0050riv"),
    with_powers(PublishAllPorts=True).replace("hAllPorts", "hAllPort\u017f"),
    with_powers(NetworkMode="host"),
    with_powers(PidMode="host"),
    with_powers(IpcMode="container:x"),
    with_powers(UsernsMode="host"),
    with_powers(CapAdd=["SYS_ADMIN"]),
    with_powers(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]),
    with_powers(SecurityOpt=["no-new-privileges", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']),
    with_powers(SecurityOpt=["no-new-privileges=false"]),
    with_powers(SecurityOpt=[]),
    with_powers(securityopt=None),
    json.dumps({"Image": "none", "User": "1:1", "x": {"HostConfig": _FENCE}}),
    with_powers()[:-1] + ', "hostconfig": null}',
    *(of_user(User=user) for user in ("0", "0:0", "00:1", "root", "", "65532", "65532:0", None)),
    of_user(),
    of_user(User="1:1", user="0"),
    of_user(Labels={"User": "1:1"}),
    with_powers(MaskedPaths=[]),
    with_powers(PortBindings={"80/tcp": [{"HostPort": "80"}]}),
    with_powers(Devices=[{"PathOnHost": "/dev/sda"}]),
    with_powers(Binds=["/:/host"]),
    with_powers(Binds=["/etc:/host:ro"]),
    with_powers(Binds=["/srv/models:/host:ro"]),
    with_powers(binds=["/root/.ssh:/host"]),
    with_powers(Binds=["/var/run/docker.sock:/s"]),
    with_powers(Binds=["/var/lib/docker:/d"]),
    *map(with_folder, ("/", "/root", "/.", "//etc", "/a/../etc", "/etc/.", "/var/lib", "x")),
    *map(with_folder, ("/etc/cron.d", "/etc/shadow", "/root/.ssh", "/proc/1/root/x", "/usr/bin")),
    *map(with_folder, ("/home", "/home/me", "/home/me/.ssh/id", "/home/me/.aws", "/dev/shm")),
    *map(with_folder, ("/var/spool/cron", "/var", "/var/log/x", "/lib64/x", "/sbin", "/run/x")),
    *map(with_folder, (f"{DOCKER}/containers/x", f"{DOCKER}/volumes", f"{DOCKER}/volumes/x")),
    *map(with_folder, (f"{DOCKER}/volumes/x/_data/../../y", f"{DOCKER}/volumes/x/_data2")),
    with_folder("/etc").replace("/", "\\/"),
    with_folder("/etc").replace("Source", "source"),
    with_folder(FINE, ReadOnly=False),
    with_folder(FINE, readonly=False),
    with_folder(FINE).replace(', "ReadOnly": true', ""),
    with_folder(FINE).replace("true", "1"),
    with_folder(FINE, BindOptions={"Propagation": "shared"}),
    with_folder(FINE, Type="volume", VolumeOptions={"DriverConfig": {"Name": "local"}}),
    with_folder(FINE, Type="volume"),
    with_powers(mounts=[{"Type": "bind", "Source": FINE, "Target": "/host"}]),
    with_powers(
        Mounts=[*json.loads(with_folder(FINE))["HostConfig"]["Mounts"] * 200, {"Type": "bind"}]
    ),
    with_powers(DriverConfig={"Options": {"device": "/"}}),
    with_powers(CgroupParent="/x"),
    with_powers(Runtime="x"),
    with_powers(VolumesFrom=["x"]),
    with_powers(Env=["x" * 50_000]),
]


def test_what_has_none_is_left_to_the_engine(proxy: Stack) -> None:
    """Which has neither such an image nor such folders; else nothing could be seen refused."""
    told = ask(proxy, *(("POST", "/v1.41/containers/create", each) for each in ALLOWED))
    assert {status for status, _ in told} == {400, 404}, told


def test_no_container_with_powers_is_created(proxy: Stack) -> None:
    calls: list[Call] = [("POST", "/v1.41/containers/create", each) for each in POWERS]
    told = ask(proxy, *calls)
    statuses = zip(POWERS, told, strict=True)
    passed = [each[:80] for each, (status, _) in statuses if status not in (403, 413)]
    assert passed == []


_REACHES = """
import json, socket, sys
found = []
for host in sys.argv[1:]:
    try:
        socket.create_connection((host, 2375), 2).close()
        found.append(host)
    except OSError:
        pass
print(json.dumps(found))
"""


def test_only_the_supervisors_network_reaches_it(proxy: Stack) -> None:
    networks = proxy.container("socket-proxy")["NetworkSettings"]["Networks"]
    own = proxy.network("docker-api")
    assert list(networks) == [own]
    places = ("socket-proxy", networks[own]["IPAddress"])
    assert json.loads(proxy.beside(own, _REACHES, *places)) == list(places)
    for service in ("gateway", "supervisor"):
        told = proxy.inside(service, "python3", "-", *places, input=_REACHES)
        assert json.loads(told) == [], service
