"""What is a container's: its policy, its network, how it ends by others' hands, what is left."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from engine_launchers.base import CrashCause, ExitResult
from engine_launchers.diagnosing import diagnosed
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes import remains
from orchestrator.runtimes.base import ContainerHold, Handle
from orchestrator.runtimes.docker.labels import INSTALLATION, NAME
from orchestrator.runtimes.docker.runtime import DockerRuntime
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime
from orchestrator.runtimes.shim.leaf import BLAME_S
from tests.containers import PYTHON, Engine
from tests.contract.stands import (
    COUNTING,
    ENGINE,
    FOREVER,
    LOG_BYTES,
    LOSING,
    Stand,
    docker_stand,
    lines_of,
    started,
    up,
)
from tests.harness import eventually, within

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
        "HOME", "TMPDIR", "USER", "NVIDIA_VISIBLE_DEVICES",
        "PATH", *("LANG", "GPG_KEY", "PYTHON_VERSION"),
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
    words = (
        "the Docker Engine at unix:///does/not/exist.sock does not answer ([Errno 2] No such file "
        "or directory): start it, let this user reach it (group docker), or name another with "
        "DOCKER_HOST"
    )
    async with docker_stand(tmp_path, docker_engine, "any") as stand:
        assert isinstance(stand.runtime, DockerRuntime)
        options = stand.runtime.options
    runtime = DockerRuntime(options, nobody.env, stand.note)
    found = await runtime.check()
    assert not found.usable
    assert found.why == words
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


async def test_a_child_killed_for_memory_long_before_is_not_the_cause(stand: Stand) -> None:
    late = LOSING + f"time.sleep({BLAME_S + 1}); os.kill(os.getpid(), 9)"
    handle = await stand.runtime.start(stand.order(late, memory_max=64 << 20))
    assert await handle.wait() == ExitResult(signal=9)


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


async def test_a_start_keeps_what_is_kept_of_containers_whose_processes_are_not_seen(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As by a supervisor in a container: the runtime of processes sweeps the same folder."""
    monkeypatch.setattr("orchestrator.runtimes.docker.runtime.leader", lambda init, id: None)
    monkeypatch.setattr("orchestrator.runtimes.docker.runtime.visible", lambda state, id: False)
    assert isinstance(stand.runtime, DockerRuntime)
    folder = stand.runtime.options.folder
    options = ProcessOptions(folder, tmp_path, tmp_path, 30, 1, LOG_BYTES, 2)
    first = await stand.runtime.start(stand.order(COUNTING))
    await eventually(lambda: len(lines_of(first)) > 100, 20, "a hundred lines")
    first.detach()
    seen = len(lines_of(first))
    kept = first.record.folder / "saved.json"
    kept.write_text("a copy of the record")
    gone = folder / "gone-0" / "7"
    gone.mkdir(parents=True)
    remains.note_container(gone, "engineroom-gone-0-7", None)
    assert (await ProcessRuntime(options, {}).check()).usable
    assert gone.exists()
    assert (await stand.runtime.check()).usable
    assert not gone.exists()
    assert kept.exists()
    second = await stand.runtime.recover(first.record)
    assert second is not None
    assert second.record.child is None
    await eventually(lambda: len(lines_of(second)) > seen + 200, 20, "more lines")
    await second.stop(1)
    assert lines_of(second) == [str(n) for n in range(len(lines_of(second)))]
    assert not kept.exists()
