"""The Docker Engine itself: reached from inside a container, stopped, killed, standing still."""

from __future__ import annotations

import json
import os
import secrets
import signal
from pathlib import Path

import pytest

from engine_launchers.base import ExitResult
from tests.containers import PACKAGES, PYTHON, Engine, engine_beside
from tests.contract.stands import (
    FOREVER,
    docker_stand,
    started,
)
from tests.harness import ROOT, eventually, within

pytestmark = [pytest.mark.docker, pytest.mark.slow]


# --- a supervisor in a container ----------------------------------------------------------------

_INSIDE = """
import asyncio, json, os, sys, urllib.request
from pathlib import Path
from tests.contract.stands import Container, DockerOptions, DockerRuntime, Stand
from tests.containers import PYTHON

async def main():
    image, installation = sys.argv[1:]
    data = Path("/data")
    (data / "logs").mkdir()
    options = DockerOptions(data / "i", data / "logs", installation, None, 1 << 20, 1)
    runtime = DockerRuntime(options, os.environ, lambda *a, **k: None)
    stand = Stand(runtime, PYTHON, Container(image=image))
    handle = await runtime.start(stand.engine())
    at = handle.record.reached.base_url
    for _ in range(200):
        try:
            urllib.request.urlopen(at + "/health", timeout=5)
            break
        except OSError:
            await asyncio.sleep(0.05)
    exit = await handle.stop(3)
    print(json.dumps({"at": at, "exit": str(exit), "child": handle.record.child is None}))
    await runtime.close()

asyncio.run(main())
"""


def test_from_inside_a_container_it_joins_the_network_and_calls_engines_by_name(
    tmp_path: Path, docker_engine: Engine, python_image: str
) -> None:
    client, installation = docker_engine.client, secrets.token_hex(6)
    socket = (docker_engine.address or "unix:///var/run/docker.sock").removeprefix("unix://")
    binds = [f"{tmp_path}:/data", f"{ROOT}:/repo:ro", f"{PACKAGES}:/packages:ro"]
    made = client.create_container(
        python_image,
        [PYTHON, "-c", _INSIDE, python_image, installation],
        environment={"PYTHONPATH": "/repo:/packages", "PYTHONDONTWRITEBYTECODE": "1"},
        working_dir="/repo",
        host_config=client.create_host_config(
            binds=[*binds, f"{socket}:/var/run/docker.sock"],
            tmpfs={"/tmp": ""},
        ),
    )
    try:
        client.start(made["Id"])
        client.wait(made["Id"])
        said = client.logs(made["Id"]).decode()
    finally:
        client.remove_container(made["Id"], force=True, v=True)
        for each in docker_engine.containers(installation):
            client.remove_container(each["Id"], force=True)
    assert f"engineroom-{installation}" not in [each["Name"] for each in client.networks()]
    told = json.loads(said.splitlines()[-1]) if said.endswith("}\n") else said
    assert told == {
        "at": f"http://engineroom-{installation}-child-1:8000",
        "exit": "ended by SIGTERM",
        "child": True,
    }


# --- the Docker Engine itself -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["TERM", "KILL"])
async def test_with_live_restore_nothing_ends_and_the_log_goes_on(tmp_path: Path, how: str) -> None:
    with engine_beside("--live-restore") as engine:
        async with docker_stand(tmp_path, engine, engine.image()) as stand:
            handle = await started(stand)
            child = handle.record.child
            engine.end(signal.Signals[f"SIG{how}"])
            await eventually(lambda: stand.notes, 10, "it is told that the engine is away")
            engine.up()
            with within(5, "it is back"):
                await eventually(lambda: len(stand.notes) == 2, 10, "it is told that it is back")
            (lost, why), (back, told) = stand.notes
            assert (lost, back) == ("runtime.lost", "runtime.back")
            assert "does not answer" in why["why"]
            assert (told["running"], told["ended"]) == (1, 0)
            handle.detach()
            again = await stand.runtime.recover(handle.record)
            assert again is not None
            assert again.record.child == child
            assert await again.stop(2) == ExitResult(signal=15)


@pytest.mark.parametrize("how", ["TERM", "KILL"])
async def test_without_live_restore_the_end_is_told_when_it_is_back(
    tmp_path: Path, how: str
) -> None:
    with engine_beside() as engine:
        async with docker_stand(tmp_path, engine, engine.image()) as stand:
            handle = await started(stand)
            engine.end(signal.Signals[f"SIG{how}"])
            engine.up()
            with within(5, "the end is told"):
                exit = await handle.wait()
            assert exit.signal in {9, 15}
            again = await stand.runtime.start(stand.order(FOREVER, generation=2))
            await again.stop(2)


async def test_one_that_stands_still_ends_nothing(tmp_path: Path) -> None:
    with engine_beside() as engine:
        async with docker_stand(tmp_path, engine, engine.image()) as stand:
            handle = await started(stand)
            os.kill(engine.pid, signal.SIGSTOP)
            try:
                await eventually(lambda: stand.notes, 20, "a call had its time")
            finally:
                os.kill(engine.pid, signal.SIGCONT)
            await eventually(lambda: len(stand.notes) == 2, 20, "it is back")
            assert stand.notes[1][1]["running"] == 1
            assert await handle.stop(2) == ExitResult(signal=15)
