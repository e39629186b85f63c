"""`engineroom bench` and `test-streaming` as commands, against servers whose figures are known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fakes.odd_server import Asked, odd_server
from tests.harness import ROOT, SLACK, Room, clean_env, eventually, until

KEY = "sk-very-secret-123"
FakeMaker = Callable[..., str]


@pytest.fixture
def fake() -> Iterator[FakeMaker]:
    """`fake("--tps", "50")`: the address of a fake engine that runs."""
    running: list[subprocess.Popen[str]] = []

    def start(*knobs: str) -> str:
        command = [sys.executable, "-u", str(ROOT / "tests/fakes/engine.py"), "--port", "0"]
        process = subprocess.Popen([*command, *knobs], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process.stdout.readline().split()[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Done:
    """A command's end."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def report(self) -> dict[str, Any]:
        """What `--json -` printed."""
        return dict(json.loads(self.out))

    @property
    def figures(self) -> dict[str, Any]:
        return dict(self.report["targets"][0]["figures"])

    @property
    def sentence(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("engineroom: ")]
        assert len(lines) == 1, self.err
        return lines[0]


async def run(*words: str, expect: int = 0, env: dict[str, str] | None = None) -> Done:
    """Run a command in the test's own loop's time, so that a server of the test can answer it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator", *words, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=clean_env(**(env or {})),
    )  # fmt: skip
    out, err = await process.communicate()
    done = Done(process.returncode or 0, out.decode(), err.decode())
    assert done.code == expect, (done.code, done.out, done.err)
    assert "Traceback" not in done.out + done.err
    return done


# --- figures against what the engine was told to do ---


async def test_figures_are_what_the_engine_was_told(fake: FakeMaker) -> None:
    """20 tokens/s a stream after 0.4 s, 4 users, 20 tokens: each figure has one true value.

    The engine paces by absolute times, so a busy machine delays events but adds nothing up.
    """
    url = fake("--tps", "20", "--prefill-s", "0.4", "--usage-in-stream")
    done = await run(
        "bench", url, "--users", "4", "--requests", "16", "--output-tokens", "20",
        "--prompt-tokens", "30", "--slo", "ttft=5s,e2e=30s", "--json", "-",
    )  # fmt: skip
    found = done.figures
    assert found["requests"] == {
        "sent": 16, "ok": 16, "failed": 0, "rejected": {"429": 0, "503": 0}, "errors": {},
    }  # fmt: skip
    assert (found["output_tokens"], found["tokens_counted_by"]) == (16 * 20, "usage")
    assert found["prompt_tokens"] == 16 * 30
    assert 0.4 <= found["ttft_s"]["p50"] <= 0.4 + 0.4 * SLACK
    assert found["tpot_s"]["p50"] == pytest.approx(0.05, rel=0.15)
    assert found["itl_s"]["p50"] == pytest.approx(0.05, rel=0.15)
    assert found["itl_s"]["mean"] == pytest.approx(0.05, rel=0.25)
    assert found["itl_s"]["count"] == 16 * 19
    alone = 0.4 + 19 * 0.05
    assert alone <= found["e2e_s"]["p50"] <= alone * 1.6
    ideal = 4 * 20 / alone  # every user gets its 20 tokens in `alone` seconds
    assert 0.5 * ideal <= found["output_tokens_per_s"] <= ideal
    assert found["requests_per_s"] == pytest.approx(found["output_tokens_per_s"] / 20)
    assert found["in_flight_mean"] == pytest.approx(4, rel=0.4)
    assert found["goodput"]["share"] == 1.0
    client = done.report["client"]
    assert 0 < client["cpu_share_max"] < 0.7
    assert client["lag_max_s"] >= client["lag_p99_s"] > 0


async def test_an_open_loop_waits_for_nobody(fake: FakeMaker) -> None:
    """All are sent within a second, and the first is answered after three."""
    url = fake("--tps", "100", "--prefill-s", "3")
    done = await run(
        "bench", url, "--rate", "20", "--arrivals", "constant", "--duration", "1s",
        "--output-tokens", "4", "--warmup", "0", "--processes", "2", "--json", "-",
    )  # fmt: skip
    found = done.figures
    assert found["requests"]["ok"] == 20
    assert found["tokens_counted_by"] == "events"
    assert found["window_s"] >= 19 / 20 + 2.8  # two processes, which begin apart
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{url}/stats")).json()["max_running"] == 20
    assert done.report["client"]["processes"] == 2


@pytest.mark.slow
async def test_two_targets_in_turns(fake: FakeMaker, tmp_path: Path) -> None:
    slow, quick = fake("--tps", "25", "--usage-in-stream"), fake("--tps", "50", "--usage-in-stream")
    page = tmp_path / "r.html"
    done = await run(
        "bench", slow, "--compare", f"{quick}/v1/chat/completions", "--api", "completions",
        "--users", "2", "--requests", "9", "--rounds", "3", "--json", "-", expect=78,
    )  # fmt: skip
    assert "--api says completions" in done.sentence
    done = await run(
        "bench", slow, "--compare", f"{quick}/v1/chat/completions", "--users", "2",
        "--requests", "9", "--rounds", "3", "--output-tokens", "10", "--json", "-",
        "--html", str(page),
    )  # fmt: skip
    rows = {row["figure"]: row for row in done.report["comparison"]}
    assert rows["tpot.p50"]["ratio"] == pytest.approx(0.5, rel=0.25)
    assert rows["output_rate"]["ratio"] == pytest.approx(2, rel=0.35)
    assert len(rows["ttft.p50"]["rounds"]) == 3
    assert [len(target["rounds"]) for target in done.report["targets"]] == [3, 3]
    assert "B over A" in page.read_text()


@pytest.mark.slow
async def test_through_the_gateway(make_room: Callable[..., Room]) -> None:
    room = await asyncio.to_thread(make_room("--tps", "100", serial=False).start)
    for more in (["--api", "generate"], ["--no-stream"]):
        done = await run(
            "bench", room.url, "--users", "2", "--requests", "4", "--output-tokens", "10",
            "--prompt-tokens", "10", *more, "--json", "-",
        )  # fmt: skip
        assert done.figures["requests"]["ok"] == 4
        assert done.figures["output_tokens"] == 40
        assert (done.figures["ttft_s"] is None) == (more == ["--no-stream"])
    data = {"ENGINEROOM_DATA_DIR": str(room.data)}
    here = await run("bench", "--users", "1", "--requests", "2", "--json", "-", env=data)
    assert here.report["targets"][0]["url"] == room.url
    done = await run("test-streaming", "--api", "generate", env=data)
    assert done.out.startswith("tokens arrive as they are made")


# --- what goes wrong is counted by its class ---


async def test_failures_by_class() -> None:
    """The two trial requests pass; then one answer of each kind in turn."""

    async def answer(asked: Asked) -> None:
        kind = (asked.number - 2) % 8 if asked.number >= 2 else 7
        if kind in (0, 1, 2):
            asked.reply((429, 503, 500)[kind], {"error": {"message": "no"}})
            return
        if kind == 6:
            asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            asked.send(b"content-length: 9999\r\n\r\n")
        else:
            asked.begin()
        asked.token()
        if kind == 3:
            asked.send(b'data: {"error": {"message": "engine died"}}\n\n')
        elif kind == 4:
            asked.send(b"data: {nonsense\n\n")
        elif kind == 5:
            asked.send(b"data: [DONE]\n\n")
        elif kind == 7:
            asked.token(finish="stop")
        await asyncio.sleep(0)
        asked.writer.close()

    async with odd_server(answer) as url:
        done = await run(
            "bench", url, "--users", "1", "--requests", "16", "--warmup", "0", "--json", "-"
        )
    requests = done.figures["requests"]
    assert requests["rejected"] == {"429": 2, "503": 2}
    assert requests["errors"] == {
        "HTTP 500": 2, "error inside the answer": 2, "illegible: no JSON": 2,
        "stream ended early": 2, "connection lost": 2,
    }  # fmt: skip
    assert (requests["ok"], requests["failed"]) == (2, 10)
    assert "14 of 16 requests got no whole answer" in " ".join(done.report["warnings"])


async def test_no_whole_answer_is_a_failure_of_the_command() -> None:
    async def answer(asked: Asked) -> None:
        asked.begin()
        asked.token()
        if asked.number < 2:
            asked.token(finish="length")
        asked.writer.close()

    async with odd_server(answer) as url:
        done = await run("bench", url, "--users", "2", "--requests", "4", expect=1)
    assert "4 x stream ended early" in done.out


async def test_a_stale_connection_is_no_failure() -> None:
    """A server may close a kept connection at any time; the request is sent again."""

    async def answer(asked: Asked) -> None:
        value = {"choices": [{"text": "w"}], "usage": {"completion_tokens": 1, "prompt_tokens": 1}}
        asked.reply(200, value)
        if asked.number % 2:
            asked.writer.close()

    async with odd_server(answer) as url:
        done = await run(
            "bench", url, "--no-stream", "--users", "1", "--requests", "10", "--json", "-"
        )
    assert done.figures["requests"]["ok"] == 10


# --- keys and wrong input ---


@pytest.mark.slow
async def test_the_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    seen: list[str] = []

    async def answer(asked: Asked) -> None:
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            asked.reply(401, {"error": {"message": "who are you?"}})
            return
        for each in psutil.process_iter():
            try:
                seen.append(" ".join(each.cmdline()))
            except psutil.Error:
                continue
        if asked.path == "/v1/models":
            asked.reply(200, {"data": [{"id": "odd"}]})
        else:
            asked.reply(200, {"choices": [{"text": "w"}]})

    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    words = ("--no-stream", "--users", "1", "--requests", "2", "--json", "-")
    async with odd_server(answer) as url:
        for more, env in (
            ((), {"BENCH_API_KEY": KEY}),
            (("--key-env", "MY_KEY"), {"MY_KEY": KEY}),
            (("--key-file", str(file)), {}),
        ):
            done = await run("bench", url, *words, *more, env=env)
            assert done.figures["requests"]["ok"] == 2
            assert KEY not in done.out + done.err
        assert any("orchestrator.bench.worker" in line for line in seen)
        assert not any(KEY in line for line in seen)
        wrong = await run("bench", url, *words, expect=77, env={"BENCH_API_KEY": "wrong-one"})
        assert "refused the key (HTTP 401)" in wrong.sentence
        assert "BENCH_API_KEY" in wrong.sentence
        assert "wrong-one" not in wrong.out + wrong.err


@pytest.mark.slow
async def test_wrong_input_is_one_sentence(make_room: Callable[..., Room], tmp_path: Path) -> None:
    room = await asyncio.to_thread(make_room().start)

    async def told(code: int, *words: str) -> str:
        return (await run("bench", *words, expect=code)).sentence

    assert "connection refused" in await told(69, "http://127.0.0.1:1")
    assert "no model 'dmo'" in (line := await told(77, room.url, "--model", "dmo"))
    assert "did you mean demo?" in line
    assert "did you mean ttft?" in await told(78, room.url, "--slo", "tfft=1s")
    assert "there is no folder" in await told(78, room.url, "--html", "/nowhere/x.html")
    assert "that is a flag" in await told(78, room.url, "--json", "--stream")
    assert "wibble" in await told(77, room.url, "--field", "wibble=1")
    assert (
        "start one with"
        in (
            await run("bench", expect=69, env={"ENGINEROOM_DATA_DIR": str(tmp_path / "none")})
        ).sentence
    )


async def test_no_server_of_that_kind() -> None:
    async def answer(asked: Asked) -> None:
        asked.reply(404, b"<html>not here</html>", "text/html")

    async with odd_server(answer) as url:
        done = await run("bench", url, "--model", "odd", expect=77)
        assert "not here" in done.sentence
        done = await run("bench", url + "/elsewhere", expect=77)
    assert "lists no models (HTTP 404" in done.sentence


# --- nothing is left behind ---


def workers(pid: int) -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process(pid).children(recursive=True)
        if "orchestrator.bench.worker" in each.cmdline()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
async def test_the_load_ends_with_its_command(fake: FakeMaker, blow: signal.Signals) -> None:
    url = fake("--tps", "20")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator", "bench", url, "--duration", "10m", "--processes", "2",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, env=clean_env(),
    )  # fmt: skip
    found = await asyncio.to_thread(until, lambda: workers(process.pid)[1:], 30, "two workers")
    found = workers(process.pid)
    assert len(found) == 2
    os.kill(process.pid, blow)
    _, err = await process.communicate()
    assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL)
    assert b"Traceback" not in err

    def gone() -> bool:
        return not any(each.is_running() and each.status() != "zombie" for each in found)

    await eventually(gone, 10, "no worker is left")


# --- do tokens arrive as they are made? ---


async def test_streaming_of_a_paced_engine(fake: FakeMaker) -> None:
    url = fake("--tps", "100", "--prefill-s", "0.1")
    done = await run("test-streaming", url, "--json")
    found = json.loads(done.out)
    assert (found["verdict"], found["events"]) == ("streamed", 64)
    assert found["gap_p50_s"] == pytest.approx(0.01, rel=0.6)


async def test_streaming_of_a_server_that_holds_back() -> None:
    """Tokens take 10 ms each to make and are sent all at once, or sixteen at a time."""

    async def held(asked: Asked, every: int) -> None:
        asked.begin()
        wanted = json.loads(asked.body)["max_tokens"]
        for number in range(wanted):
            if number % every == 0:
                await asyncio.sleep(0.01 * min(every, wanted))
            asked.token()
        asked.token(finish="length")
        asked.writer.close()

    async with odd_server(lambda asked: held(asked, 64)) as url:
        done = await run("test-streaming", url, expect=1)
    assert "do not arrive as they are made" in done.out
    async with odd_server(lambda asked: held(asked, 16)) as url:
        done = await run("test-streaming", url, expect=1)
    assert "in lumps" in done.out


async def test_streaming_of_short_answers(fake: FakeMaker) -> None:
    url = fake("--tps", "0")
    done = await run("test-streaming", url, "--tokens", "8", expect=75)
    assert "too short to tell" in done.out
