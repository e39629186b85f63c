"""What is a container's: its policy, its network, how it ends by others' hands, what is left."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from engine_launchers.base import CrashCause, ExitResult
from engine_launchers.diagnosing import diagnosed
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import ContainerHold, Handle
from orchestrator.runtimes.docker.labels import INSTALLATION, NAME
from orchestrator.runtimes.docker.runtime import DockerRuntime
from tests.containers import PACKAGES, PYTHON, Engine, engine_beside
from tests.contract.stands import ENGINE, FOREVER, Stand, docker_stand, up
from tests.harness import ROOT, eventually, within

pytestmark = [pytest.mark.docker, pytest.mark.slow]
Make = Callable[..., AbstractAsyncContextManager[Stand]]


@pytest.fixture
def make(tmp_path: Path, docker_engine: Engine, python_image: str) -> Make:
    def made(**more: Any) -> AbstractAsyncContextManager[Stand]:
        folder = tmp_path / secrets.token_hex(3)
        folder.mkdir()
        return docker_stand(folder, docker_engine, python_image, **more)

    return made


@pytest.fixture
async def stand(make: Make) -> AsyncIterator[Stand]:
    async with make() as stand:
        yield stand


def id_of(handle: Handle) -> str:
    """The id of a handle's container."""
    hold = handle.record.hold
    assert isinstance(hold, ContainerHold)
    assert hold.id is not None
    return hold.id


def installation_of(engine: Engine, handle: Handle) -> str:
    """Whose it is, as its label says."""
    return str(engine.client.inspect_container(id_of(handle))["Config"]["Labels"][INSTALLATION])


async def started(stand: Stand) -> Handle:
    handle = await stand.runtime.start(stand.order(FOREVER))
    await up(handle)
    return handle


# --- the policy ---------------------------------------------------------------------------------


async def test_every_container_keeps_the_policy(
    stand: Stand, docker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-a-secret")
    monkeypatch.setenv("ENGINEROOM_API_KEYS", "canary-of-a-secret")
    handle = await stand.runtime.start(stand.engine())
    await up(handle)
    found = docker_engine.client.inspect_container(id_of(handle))
    host, mounts = found["HostConfig"], found["Mounts"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert 0 < host["PidsLimit"] <= 4096
    assert 0 < host["Memory"] == host["MemorySwap"]
    assert host["Init"] is True
    assert not host["PortBindings"]
    assert not host["PublishAllPorts"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert {host[key] for key in ("PidMode", "UTSMode", "UsernsMode")} == {""}
    assert host["IpcMode"] == "private"
    assert host["LogConfig"]["Config"]["max-size"]
    assert [(each["Source"], each["RW"]) for each in mounts] == [(str(ENGINE), False)]
    (network,) = found["NetworkSettings"]["Networks"]
    assert docker_engine.client.inspect_network(network)["Internal"] is True
    assert "canary-of-a-secret" not in json.dumps(found)
    assert {each.split("=")[0] for each in found["Config"]["Env"]} <= {
        "HOME", "TMPDIR", "USER", "PATH", *("LANG", "GPG_KEY", "PYTHON_VERSION"),
    }  # fmt: skip
    assert found["Config"]["Labels"][NAME] == "child"
    assert found["Config"]["Labels"]["engineroom.plan"] == "a-plan"
    await handle.stop(2)


_REACH = (
    "import socket, sys\n"
    "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)\n"
    "except OSError: sys.exit(7)\n"
)


async def test_no_port_of_it_can_be_reached_from_the_default_network(
    stand: Stand, docker_engine: Engine, python_image: str
) -> None:
    handle = await stand.runtime.start(stand.engine())
    await up(handle)
    at = handle.record.reached
    assert at is not None
    network = next(iter(_networks(docker_engine, handle)))

    def reached_from(where: str) -> int:
        client = docker_engine.client
        command = [PYTHON, "-c", _REACH, at.host, str(at.port)]
        config = client.create_host_config(network_mode=where)
        made = client.create_container(python_image, command, host_config=config)
        try:
            client.start(made["Id"])
            return int(client.wait(made["Id"])["StatusCode"])
        finally:
            client.remove_container(made["Id"], force=True)

    assert reached_from("bridge") == 7
    assert reached_from(network) == 0
    await handle.stop(2)


def _networks(engine: Engine, handle: Handle) -> dict[str, Any]:
    return dict(engine.client.inspect_container(id_of(handle))["NetworkSettings"]["Networks"])


async def test_nothing_can_be_written_but_in_tmp(stand: Stand) -> None:
    code = (
        "import os\n"
        "for path in ('/x', '/etc/x', '/tmp/x'):\n"
        "    try: open(path, 'w').close(); print(path, 'written')\n"
        "    except OSError as error: print(path, error.strerror)\n"
        "try: os.setuid(12345); print('changed')\n"
        "except OSError as error: print(error.strerror)\n"
    )
    handle = await stand.runtime.start(stand.order(code))
    assert await handle.wait() == ExitResult(code=0)
    assert handle.record.log.read_text().splitlines() == [
        "/x Read-only file system", "/etc/x Read-only file system", "/tmp/x written",
        "Operation not permitted",
    ]  # fmt: skip


async def test_a_network_that_is_open_is_refused(make: Make, docker_engine: Engine) -> None:
    docker_engine.client.create_network("engineroom-test-open")
    try:
        async with make(network="engineroom-test-open") as stand:
            found = await stand.runtime.check()
            assert not found.usable
            assert "is not internal" in found.why
            with pytest.raises(LaunchFailed, match="is not internal"):
                await stand.runtime.start(stand.order(FOREVER))
    finally:
        docker_engine.client.remove_network("engineroom-test-open")


# --- launches that fail -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": ("GPU-0",)}, "install nvidia-container-toolkit"),
        ({"image": "engineroom-test/absent:1"}, "No such image.*set engine_image"),
    ],
)
async def test_a_refused_start_says_what_to_do_and_leaves_nothing(
    stand: Stand, docker_engine: Engine, change: dict[str, Any], words: str
) -> None:
    record = stand.order(FOREVER)
    assert record.spec.container is not None
    container = record.spec.container.model_copy(update=change)
    spec = record.spec.model_copy(update={"container": container})
    with pytest.raises(LaunchFailed, match=words):
        await stand.runtime.start(record.model_copy(update={"spec": spec}))
    assert isinstance(stand.runtime, DockerRuntime)
    assert docker_engine.containers(stand.runtime.options.installation) == []


async def test_a_file_that_is_not_there_is_named(stand: Stand) -> None:
    with pytest.raises(LaunchFailed, match="/does/not/exist: is not there"):
        await stand.runtime.start(stand.order(FOREVER, files=("/does/not/exist",)))


async def test_an_image_that_cannot_be_had_is_named(stand: Stand) -> None:
    record = stand.order(FOREVER)
    assert record.spec.container is not None
    wrong = record.spec.container.model_copy(update={"image": "127.0.0.1:1/none:1"})
    told: list[tuple[str, float]] = []
    with pytest.raises(LaunchFailed, match=r"127\.0\.0\.1:1/none:1 is not here and could not"):
        await stand.runtime.prepare(
            record.spec.model_copy(update={"container": wrong}), lambda *step: told.append(step)
        )
    assert told[0] == ("pulling 127.0.0.1:1/none:1", 0.0)
    await stand.runtime.prepare(record.spec, lambda *step: told.append(step))
    assert len(told) == 1


async def test_an_engine_that_is_not_there_is_named(tmp_path: Path, docker_engine: Engine) -> None:
    nobody = Engine("unix:///does/not/exist.sock")
    async with docker_stand(tmp_path, docker_engine, "any") as stand:
        assert isinstance(stand.runtime, DockerRuntime)
        options = stand.runtime.options
    runtime = DockerRuntime(options, nobody.env, stand.note)
    found = await runtime.check()
    assert not found.usable
    assert "unix:///does/not/exist.sock does not answer" in found.why
    assert "DOCKER_HOST" in found.why
    await runtime.close()


# --- other people's hands -----------------------------------------------------------------------


async def test_docker_kill_is_told_within_two_seconds(stand: Stand, docker_engine: Engine) -> None:
    handle = await started(stand)
    with within(2, "the end is told"):
        docker_engine.client.kill(id_of(handle))
        assert await handle.wait() == ExitResult(signal=9)


async def test_a_removed_container_is_told_within_two_seconds(
    stand: Stand, docker_engine: Engine
) -> None:
    handle = await started(stand)
    with within(2, "the end is told"):
        docker_engine.client.remove_container(id_of(handle), force=True)
        exit = await handle.wait()
    assert diagnosed(exit, [], ()) is CrashCause.KILLED


async def test_a_paused_container_can_be_stopped(stand: Stand, docker_engine: Engine) -> None:
    handle = await started(stand)
    docker_engine.client.pause(id_of(handle))
    with within(4, "it is stopped"):
        assert await handle.stop(1) == ExitResult(signal=15)


async def test_a_child_killed_for_memory_is_not_the_engines_end(stand: Stand) -> None:
    code = (
        "import os, sys\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        "    eaten = []\n"
        "    while True: eaten.append(b'x' * (1 << 20))\n"
        "os.waitpid(child, 0)\n"
        "sys.exit(5)\n"
    )
    handle = await stand.runtime.start(stand.order(code, memory_max=64 << 20))
    assert await handle.wait() == ExitResult(code=5)


# --- what is left -------------------------------------------------------------------------------


async def test_leftovers_are_removed_after_the_grace_and_others_are_not(
    make: Make, docker_engine: Engine, python_image: str
) -> None:
    async with make() as other, make(leftover_s=1) as stand:
        stranger, held = await started(other), await started(stand)
        whose = installation_of(docker_engine, held)
        client = docker_engine.client
        left = client.create_container(python_image, ["x"], labels={INSTALLATION: whose})

        def names() -> set[str]:
            return {each["Id"] for each in docker_engine.containers()}

        await eventually(lambda: left["Id"] not in names(), 15, "it is removed")
        assert {id_of(stranger), id_of(held)} <= names()
        assert [type for type, _ in stand.notes] == ["runtime.leftover"]
        await held.stop(1)
        await stranger.stop(1)


async def test_a_launch_makes_way_for_itself(stand: Stand, docker_engine: Engine) -> None:
    first = await started(stand)
    first.detach()
    second = await stand.runtime.start(stand.order(FOREVER, generation=2))
    whose = installation_of(docker_engine, second)
    assert [each["Id"] for each in docker_engine.containers(whose)] == [id_of(second)]
    await second.stop(1)


async def test_another_installations_container_is_not_adopted(make: Make) -> None:
    async with make() as one, make() as other:
        handle = await started(one)
        record = handle.record
        handle.detach()
        assert await other.runtime.recover(record) is None
        again = await one.runtime.recover(record)
        assert again is not None
        await again.stop(1)


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
