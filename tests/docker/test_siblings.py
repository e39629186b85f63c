"""The profile `siblings`: engines in containers beside their supervisor, behind the proxy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.runtimes.docker.labels import NAME
from tests.docker.policy import violations
from tests.docker.stack import Stack, composes, have_docker, images, name_of, run
from tests.harness import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
SUPERVISOR = "supervisor-siblings"


@pytest.fixture(scope="module")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, proxy and supervisor, and a model that is ready."""
    assert have_docker(), "no Docker Engine answers: run `make e2e-docker`"
    images()
    made = Stack(composes()[0], tmp_path_factory.mktemp("secrets"), "siblings")
    try:
        made.up("gateway", "socket-proxy", SUPERVISOR)
        until(lambda: ready(made), 90, "a model is ready")
        yield made
    finally:
        made.down()


def ready(stack: Stack) -> bool:
    """Whether a model can be asked, and the gateway is told of what changes."""
    told = stack.http.get("/health").json()["supervisor"]
    return told == "connected" and stack.http.get("/health/ready").status_code == 200


def generates(stack: Stack) -> httpx.Response:
    """The answer to a short request."""
    return stack.http.post("/generate", json={"prompt": "Hi", "max_new_tokens": 4})


def engine_ids(stack: Stack) -> list[str]:
    """The engines' containers."""
    mine = ("--filter", f"network={stack.network('engines')}", "--filter", f"label={NAME}")
    return run("docker", "ps", "-aq", "--no-trunc", *mine).split()


def engines(stack: Stack) -> list[dict[str, Any]]:
    """The same, as `docker inspect` tells of them."""
    ids = engine_ids(stack)
    return list(json.loads(run("docker", "inspect", *ids))) if ids else []


def test_it_serves_from_a_container_of_its_own(siblings: Stack) -> None:
    assert generates(siblings).json()["token_count"] == 4
    assert siblings.chats("What products do you recommend?")
    (row,) = json.loads(siblings.inside(SUPERVISOR, "engineroom", "ps", "--json"))
    (engine,) = engines(siblings)
    assert row["engine"] == "llama_server"
    assert row["url"] == f"http://{engine['Name'].removeprefix('/')}:8000"
    assert engine["Config"]["Image"] == name_of("all-in-one")
    assert engine["Config"]["User"] == "65532:65532"
    assert list(engine["NetworkSettings"]["Networks"]) == [siblings.network("engines")]
    assert not engine["HostConfig"]["PortBindings"]
    assert engine["HostConfig"]["ReadonlyRootfs"]
    assert engine["HostConfig"]["CapDrop"] == ["ALL"]
    assert [each["RW"] for each in engine["Mounts"]] == [False]
    assert violations(siblings.container(SUPERVISOR)) == []


def test_a_stream_and_its_engine_outlive_the_supervisor(siblings: Stack) -> None:
    (before,) = engines(siblings)
    supervisor = siblings.container(SUPERVISOR)["Id"]
    asked = {"prompt": "Once", "max_new_tokens": 1500, "temperature": 1.9}
    with siblings.http.stream("POST", "/generate_stream", json=asked) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line)
        run("docker", "kill", supervisor)
        rest = [line for line in lines if line]
    assert first.startswith("data: {")
    assert rest[-1] == "data: [DONE]"
    assert "error" not in json.loads(rest[-2].removeprefix("data: "))
    assert generates(siblings).status_code == 200
    run("docker", "start", supervisor)
    until(lambda: ready(siblings), 60, "the supervisor is back")
    assert generates(siblings).status_code == 200
    assert [each["Id"] for each in engines(siblings)] == [before["Id"]]


def test_an_engine_that_is_killed_is_replaced(siblings: Stack) -> None:
    (before,) = engines(siblings)
    run("docker", "kill", before["Id"])

    def replaced() -> bool:
        return before["Id"] not in engine_ids(siblings) and ready(siblings)

    until(replaced, 60, "another one is ready")
    assert generates(siblings).status_code == 200


def test_the_supervisors_stop_leaves_no_engine(siblings: Stack) -> None:
    siblings.compose("stop", SUPERVISOR)
    assert siblings.container(SUPERVISOR)["State"]["ExitCode"] == 0
    assert engines(siblings) == []
