"""The proxy before the Docker socket: what a runtime needs passes, everything else is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from engine_launchers.base import LaunchSpec
from engine_launchers.container import Container
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.body import Surroundings, body
from orchestrator.runtimes.docker.labels import INSTALLATION
from tests.docker.policy import violations
from tests.docker.stack import Stack, name_of, run, works
from tests.harness import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

_CALLS = """
import http.client, json, socket, sys
class Wire(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect("/run/docker-api/docker.sock")
told = []
for method, path, body in json.loads(sys.argv[1]):
    wire = Wire("proxy")
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
    """Status and body of each call, by what the supervisor has."""
    out = stack.with_volume("docker-api", "/run/docker-api", _CALLS, json.dumps(calls))
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
    label = f"{INSTALLATION}={wanted['Labels'][INSTALLATION]}"
    ours = urlencode({"filters": json.dumps({"label": [label]})})
    calls: dict[Call, int] = {}
    for call, status in (
        (("GET", "/_ping", None), 200),
        (("GET", "/version", None), 200),
        (("GET", "/v1.41/info", None), 200),
        (("GET", f"/v1.41/events?since=1&until=2&{ours}", None), 200),
        (("GET", f"/v1.41/containers/json?all=1&{ours}", None), 200),
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


def test_what_is_refused_is_said_and_logged(proxy: Stack) -> None:
    create = "/v1.41/containers/create"
    powers = engine(proxy, "x")
    powers["HostConfig"]["Privileged"] = True
    calls: list[tuple[Call, str]] = [
        (("POST", "/v1.41/volumes/create", {"Name": "x"}), "a runtime for containers does not"),
        (("POST", create, powers), "HostConfig.Privileged is not that of an engine's container"),
        (("POST", create, {**engine(proxy, "x"), "User": "0:0"}), "User is not that of"),
        (("POST", "/v1.41/images/create?fromSrc=-", None), "no parameter fromSrc"),
        (("GET", "/v1.41/containers/json?all=1", None), "name one installation"),
        (("POST", "/v1.23/containers/x/start", {"Binds": ["/:/h"]}), "does not need it"),
    ]
    told = ask(proxy, *(call for call, _ in calls))
    for (status, said), (_, why) in zip(told, calls, strict=True):
        assert status == 403
        assert why in json.loads(said)["message"]
    logged = logs(proxy.container("socket-proxy")["Id"])
    assert all(why in logged for _, why in calls)


def test_a_folder_that_nobody_around_has_is_not_shown(proxy: Stack) -> None:
    for source in ("/", "/etc", "/root/.ssh", "/var/run/docker.sock", "/var/lib/docker"):
        wanted = engine(proxy, "x")
        wanted["HostConfig"]["Mounts"][0]["Source"] = source
        ((status, body),) = ask(proxy, ("POST", "/v1.41/containers/create", wanted))
        assert (status, "HostConfig.Mounts" in body) == (403, True), source


def test_containers_of_others_are_none_of_its_business(proxy: Stack) -> None:
    other = run("docker", "create", "-e", "SECRET=x", name_of("gateway")).strip()
    try:
        told = ask(
            proxy,
            ("GET", f"/v1.41/containers/{other}/json", None),
            ("GET", f"/v1.41/containers/{other}/logs?stdout=1", None),
            ("POST", f"/v1.41/containers/{other}/start", None),
            ("DELETE", f"/v1.41/containers/{other}?force=1", None),
            ("POST", f"/v1.41/containers/{proxy.container('gateway')['Id']}/kill", None),
        )
        assert [status for status, _ in told] == [403] * 5
        assert "SECRET" not in json.dumps(told)
    finally:
        run("docker", "rm", "-f", other)
    # What stands around may be looked at: a supervisor looks for itself.
    gateway = proxy.container("gateway")["Id"]
    ((status, _),) = ask(proxy, ("GET", f"/v1.41/containers/{gateway}/json", None))
    assert status == 200


def test_a_socket_that_may_not_be_used_is_said_with_what_to_do(proxy: Stack) -> None:
    words = ("--rm", "-d", "--network", "none", "-e", "FENCE_NETWORK=x", "-e", "FENCE_PROJECT=x")
    made = run("docker", "run", *words, name_of("socket-proxy")).strip()  # it is given no socket
    look = ("python3", "/opt/engineroom/healthcheck.py", "/run/docker-api/docker.sock", "0")
    try:
        until(lambda: "for x" in logs(made), 30, "it listens")
        until(lambda: not works("docker", "exec", made, *look, "/_ping"), 30, "it answers")
        until(lambda: "DOCKER_GID" in logs(made), 30, "it says what to do")
        assert "the Docker Engine cannot be reached through /var/run/docker.sock" in logs(made)
    finally:
        run("docker", "rm", "-f", made)


def logs(id: str) -> str:
    """Both outputs of a container."""
    done = subprocess.run(["docker", "logs", id], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_nothing_else_reaches_it(proxy: Stack) -> None:
    told = proxy.container("socket-proxy")
    assert list(told["NetworkSettings"]["Networks"]) == ["none"]
    volume = proxy.network("docker-api")
    holders = {
        each["Config"]["Labels"]["com.docker.compose.service"]
        for each in proxy.containers()
        if volume in [mount.get("Name") for mount in each["Mounts"]]
    }
    assert holders == {"socket-proxy"}  # and the supervisor of its profile, which is not up here
