"""The proxy before the Docker socket: what a runtime needs passes, everything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docker.policy import violations
from tests.docker.stack import Stack, name_of

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


def test_what_a_runtime_needs_passes(proxy: Stack) -> None:
    name = f"{proxy.project}-engine"
    label = f"com.docker.compose.project={proxy.project}"
    wanted = {
        "Image": name_of("gateway"),
        "Entrypoint": ["python3", "-c", "print('it ran')"],
        "Labels": dict([label.split("=")]),
        "HostConfig": {
            "CapDrop": ["ALL"],
            "ReadonlyRootfs": True,
            "Memory": 1 << 28,
            "NetworkMode": proxy.network("engines"),
            "Mounts": [
                {"Type": "volume", "Source": proxy.network("models"), "Target": "/models",
                 "ReadOnly": True}
            ],
            "DeviceRequests": [],
        },
    }  # fmt: skip
    one = f"/v1.41/containers/{name}"
    calls: dict[Call, int] = {}
    for call, status in (
        (("GET", "/_ping", None), 200),
        (("GET", "/version", None), 200),
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
    assert "it ran" in told[9][1]


REFUSED: list[Call] = [
    ("GET", "/info", None),
    ("GET", "/v1.41/system/df", None),
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
    ("POST", "/v1.41/_ping", None),
    ("HEAD", "/v1.41/containers/x/archive?path=/", None),
]


def test_everything_else_is_refused(proxy: Stack) -> None:
    told = ask(proxy, *REFUSED)
    passed = [call for call, (status, _) in zip(REFUSED, told, strict=True) if status != 403]
    assert passed == []


def body(**host: Any) -> str:
    """A container with these powers."""
    return json.dumps({"Image": "x", "HostConfig": host})


POWERS = [
    body(Privileged=True),
    body(Privileged=True).replace(" ", ""),
    body(privileged=True),
    body(Privileged=True).replace("Priv", "\\u0050riv"),
    body(NetworkMode="host"),
    body(PidMode="host"),
    body(IpcMode="container:x"),
    body(UsernsMode="host"),
    body(CapAdd=["SYS_ADMIN"]),
    body(SecurityOpt=["seccomp=unconfined"]),
    body(Devices=[{"PathOnHost": "/dev/sda"}]),
    body(Binds=["/:/host"]),
    body(Binds=["/etc:/host:ro"]),
    body(Binds=["/var/run/docker.sock:/s"]),
    body(Binds=["/var/lib/docker:/d"]),
    body(Mounts=[{"Type": "bind", "Source": "/", "Target": "/host"}]),
    body(Mounts=[{"Type": "bind", "Source": "/root", "Target": "/host"}]),
    body(CgroupParent="/x"),
    body(Runtime="x"),
    body(VolumesFrom=["x"]),
    body(Binds=["x:/y"] * 10_000),
]


def test_no_container_with_powers_is_created(proxy: Stack) -> None:
    calls: list[Call] = [("POST", "/v1.41/containers/create", each) for each in POWERS]
    told = ask(proxy, *calls)
    statuses = zip(POWERS, told, strict=True)
    passed = [each[:80] for each, (status, _) in statuses if status not in (403, 413)]
    assert passed == []


def test_the_gateway_does_not_reach_it(proxy: Stack) -> None:
    networks = proxy.container("socket-proxy")["NetworkSettings"]["Networks"]
    assert list(networks) == [proxy.network("docker-api")]
    assert (
        proxy.network("docker-api") not in proxy.container("gateway")["NetworkSettings"]["Networks"]
    )
