"""The library over real servers with the fake engine: answers, errors, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orchestrator import AdaptiveInferenceEngine, GenerationResult
from orchestrator.cli.client import ask, find_server
from orchestrator.errors import (
    BadRequest,
    EngineRoomError,
    LaunchFailed,
    ModelInvalid,
    UnknownModel,
    UpstreamBroken,
)
from orchestrator.settings import load_settings
from tests.harness import ROOT, SLACK, clean_env, eventually, processes_of, until

EngineMaker = Callable[..., AdaptiveInferenceEngine]
pytestmark = pytest.mark.slow  # real processes, some seconds each


def command(*knobs: str) -> list[str]:
    return [sys.executable, "-m", "tests.fakes.engineroom_fake", json.dumps(knobs)]


def folders(data: Path) -> list[Path]:
    """The private folders of the servers that run on `data`."""
    return sorted((data / "library").glob("*"))


def row(data: Path, name: str = "demo-0") -> dict[str, Any]:
    """What the only server of `data` tells of an engine."""
    (folder,) = folders(data)
    return ask(find_server(folder), "GET", f"/admin/engines/{name}")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[EngineMaker]:
    """Engines over the fake one: `make_engine("--tps", "20", stop_grace_s=1)`."""
    made: list[AdaptiveInferenceEngine] = []

    def make(*knobs: str, **settings: Any) -> AdaptiveInferenceEngine:
        given = {"stop_grace_s": 2, "probe_interval_s": 0.5, **settings}
        made.append(AdaptiveInferenceEngine(data_dir=tmp_path, command=command(*knobs), **given))
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert processes_of(str(tmp_path)) == []


def test_one_life(make_engine: EngineMaker, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "orchestrator.adaptive")
    engine = make_engine("--tps", "200", context=512)
    plan = engine.load_model("demo", threads=1, force_cpu=True)
    assert (plan.model.id, plan.tuning.max_model_len, plan.tuning.threads) == ("demo", 512, 1)
    assert engine.plan == plan
    assert psutil.Process(row(tmp_path)["pid"]).environ()["CUDA_VISIBLE_DEVICES"] == "-1"
    assert engine.model == "demo"
    assert engine.hardware.cpu_cores >= 1
    steps = [r.getMessage() for r in caplog.records if r.name == "orchestrator.adaptive"]
    assert steps[0].startswith("demo on llama_cpp unknown, tier ")
    assert steps[-1].startswith("demo is ready after ")
    result = engine.generate(prompt="Hi", max_new_tokens=3, temperature=0.7)
    assert isinstance(result, GenerationResult)
    assert str(result) == result.text == result.generated_text == "w0 w1 w2"
    assert (result.token_count, result.finish_reason) == (3, "length")
    assert result.throughput == pytest.approx(3 / result.computation_time, rel=0.01)

    async def stream() -> list[str]:
        return [piece async for piece in engine.generate_stream("Hi", max_new_tokens=4)]

    assert asyncio.run(stream()) == asyncio.run(stream()) == ["w0", " w1", " w2", " w3"]
    for wrong, error, words in (
        ({"prompt": ""}, BadRequest, "prompt"),
        ({"prompt": "x", "temperature": 9}, BadRequest, "temperature"),
        ({"prompt": "x", "stop": ["a"] * 5}, BadRequest, "stop"),
    ):
        with pytest.raises(error, match=words):
            engine.generate(**wrong)
        with pytest.raises(error, match=words):
            asyncio.run(anext(engine.generate_stream(**wrong)))
    (folder,) = folders(tmp_path)
    stranger = ask_without_key(folder)
    assert stranger == "invalid_api_key"
    engine.close()
    engine.close()
    assert folders(tmp_path) == []
    assert processes_of(str(tmp_path)) == []
    assert not load_settings({"data_dir": str(folder)}, {}).run.exists()
    with pytest.raises(UnknownModel):
        engine.generate("Hi")


def ask_without_key(folder: Path) -> str:
    """The error code that another user of this machine gets."""
    url = find_server(folder).gateway
    answer = httpx.post(f"{url}/generate", json={"prompt": "Hi"}, trust_env=False)
    return str(answer.json()["error"]["code"])


async def test_leaving_a_stream_cancels_it_at_the_engine(
    make_engine: EngineMaker, tmp_path: Path
) -> None:
    engine = make_engine("--tps", "20")
    await asyncio.to_thread(engine.load_model, "demo")

    def running(count: int) -> Callable[[], bool]:
        return lambda: row(tmp_path)["in_flight"] == count

    async for piece in engine.generate_stream("Hi", max_new_tokens=100_000):
        assert piece == "w0"
        await eventually(running(1), 5, "it runs")
        break
    await eventually(running(0), 5, "the loop was left")

    async with aclosing(engine.generate_stream("Hi", max_new_tokens=100_000)) as pieces:
        assert await anext(pieces) == "w0"
    await eventually(running(0), 5, "the generator was closed")

    async def read() -> None:
        async for _ in engine.generate_stream("Hi", max_new_tokens=100_000):
            pass

    reading = asyncio.create_task(read())
    await eventually(running(1), 5, "it runs")
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await eventually(running(0), 5, "the task was cancelled")
    async with engine:
        assert (await asyncio.to_thread(engine.generate, "on", 2)).token_count == 2
    assert processes_of(str(tmp_path)) == []


def test_an_event_loop_may_end_in_the_middle_of_a_stream(make_engine: EngineMaker) -> None:
    engine = make_engine("--tps", "50")
    engine.load_model("demo")

    async def first() -> str:
        async for piece in engine.generate_stream("Hi", max_new_tokens=100_000):
            return piece
        raise AssertionError

    async def held() -> tuple[str, object]:
        pieces = engine.generate_stream("Hi", max_new_tokens=100_000)
        return await anext(pieces), pieces

    assert asyncio.run(first()) == "w0"
    assert asyncio.run(held())[0] == "w0"
    assert engine.generate("on", 2).token_count == 2


def test_an_answer_that_breaks_off_raises(make_engine: EngineMaker) -> None:
    engine = make_engine("--tps", "50")
    engine.load_model("demo")

    got: list[str] = []

    async def read(prompt: str) -> None:
        async for piece in engine.generate_stream(prompt, max_new_tokens=50):
            got.append(piece)

    with pytest.raises(UpstreamBroken):
        asyncio.run(read('fake={"cut_after_tokens": 5}'))
    assert len(got) == 5
    with pytest.raises(UpstreamBroken):
        engine.generate('fake={"cut_after_tokens": 5}', 50)


def test_two_side_by_side_and_each_can_be_replaced(
    make_engine: EngineMaker, tmp_path: Path
) -> None:
    one, two = make_engine("--tps", "100"), make_engine("--tps", "100")
    one.load_model("demo")
    two.load_model("demo", quantization="none")
    assert (one.plan.model.quantization, two.plan.model.quantization) == ("Q4_K_M", "F16")
    assert len(folders(tmp_path)) == 2
    one.load_model("demo", context=256)
    assert one.plan.tuning.max_model_len == 256
    assert len(folders(tmp_path)) == 2
    one.close()
    assert two.generate("still", 2).text == "w0 w1"


def test_an_engine_that_nobody_holds_ends(tmp_path: Path) -> None:
    engine = AdaptiveInferenceEngine(data_dir=tmp_path, command=command())
    engine.load_model("demo")
    assert processes_of(str(tmp_path))
    del engine
    gc.collect()
    assert processes_of(str(tmp_path)) == []


PROGRAM = """
import asyncio, os, sys, time
from orchestrator import AdaptiveInferenceEngine

async def main(engine):
    async for piece in engine.generate_stream("Hi", max_new_tokens=100_000):
        print(piece, flush=True)

engine = AdaptiveInferenceEngine(data_dir=sys.argv[1], command=sys.argv[2:], stop_grace_s=2)
engine.load_model("demo")
if os.fork() == 0:  # holds every pipe of its parent, and lives on
    print("fork", os.getpid(), flush=True)
    time.sleep(600)
    os._exit(0)
asyncio.run(main(engine))
"""


def test_a_killed_interpreter_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path), *command("--tps", "20")]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_env()
    ) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline().strip() for _ in range(4)]
        fork = psutil.Process(int(next(x for x in lines if x.startswith("fork")).split()[1]))
        assert len(processes_of(str(tmp_path / "library"))) >= 3  # supervisor, engine, gateway
        program.send_signal(signal.SIGKILL)
        program.wait(10 * SLACK)
        until(lambda: not processes_of(str(tmp_path / "library")), 15, "all of it ends")
        assert fork.is_running()
        fork.kill()
        program.stdout.read()


def test_ctrl_c_is_for_the_interpreter_which_ends_in_order(tmp_path: Path) -> None:
    program = PROGRAM.replace("os.fork() == 0", "False")
    argv = [sys.executable, "-c", program, str(tmp_path), *command("--tps", "20")]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_env(),
        start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline()
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60 * SLACK)  # at most a drain and two graces
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert processes_of(str(tmp_path / "library")) == []
    assert folders(tmp_path) == []


def test_a_failed_start_raises_the_reason_and_leaves_nothing(
    make_engine: EngineMaker, tmp_path: Path
) -> None:
    with pytest.raises(ModelInvalid, match=r"'/no/model\.gguf': no such file"):
        make_engine().load_model("/no/model.gguf")
    assert folders(tmp_path) == []
    broken = make_engine("--fail-on-start", "1", restart_limit=0)
    with pytest.raises(LaunchFailed, match=r"demo-0 could not be started: .*\(log: (.*)\)") as told:
        broken.load_model("demo")
    assert Path(str(told.value).rsplit("log: ", 1)[1].rstrip(")")).exists()
    with pytest.raises(LaunchFailed, match="ended with code 1 before it was ready: nothing to say"):
        AdaptiveInferenceEngine(
            data_dir=tmp_path,
            command=[sys.executable, "-c", "import sys; sys.exit('nothing to say')"],
        ).load_model("demo")
    with pytest.raises(LaunchFailed, match="/no/such could not be started"):
        AdaptiveInferenceEngine(data_dir=tmp_path, command=["/no/such"]).load_model("demo")
    assert processes_of(str(tmp_path)) == []


def test_a_killed_server_is_told_and_its_engine_ends(
    make_engine: EngineMaker, tmp_path: Path
) -> None:
    engine = make_engine(lease_s=1.5)
    engine.load_model("demo")
    (folder,) = folders(tmp_path)
    sockets = load_settings({"data_dir": str(folder)}, {}).run
    assert sockets.exists()
    os.kill(int((folder / "supervisor.lock").read_text()), signal.SIGKILL)
    with pytest.raises(LaunchFailed, match="ended with code -9 while it was asked"):
        assert engine.plan
    until(lambda: not processes_of(str(tmp_path)), 15, "the lease ends engine and gateway")
    with pytest.raises(LaunchFailed, match="in the middle of a request"):
        engine.generate("Hi")
    with pytest.raises(EngineRoomError, match="in the middle of a stream"):
        asyncio.run(anext(engine.generate_stream("Hi")))
    assert engine.load_model("demo")
    assert not folder.exists()
    assert not sockets.exists()
    assert engine.generate("Hi", 1).text == "w0"
