"""The real `llama-server`, started by the launcher's own command: what the launcher promises."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import mul
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from engine_launchers.base import EngineName, EnginePlan, Fit, Listen, Served, Tuning
from engine_launchers.llama_server import LlamaServerLauncher
from engine_launchers.model import ModelSpec
from orchestrator.hardware import probe
from orchestrator.models.gguf_adapter import read_gguf_adapter
from orchestrator.models.gguf_spec import model_spec
from orchestrator.resources import demo_dir
from tests.harness import SLACK, free_ports, sample, until
from tests.integration.test_gateway_alone import before
from tests.series import assert_told_in_our_words
from tools.shape_gguf import SHAPES, write

_TRIES = 3
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]
QUESTION = "What products do you recommend?"
LONG = "Tell me a long story about the shop."
LAUNCHER = LlamaServerLauncher()
Program = Callable[[EngineName], Any]


class Server:
    """One running engine and its plan."""

    def __init__(self, plan: EnginePlan, process: subprocess.Popen[bytes], log: Path) -> None:
        self.plan, self.process, self.log = plan, process, log
        # No connection is kept: the server may close it just when the next request begins.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(timeout=300, trust_env=False, limits=limits)
        self.url = ""

    def complete(self, prompt: str, **fields: Any) -> httpx.Response:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 40, "temperature": 0, **fields}
        return self.http.post(f"{self.url}/v1/completions", json=body)

    def text(self, prompt: str, **fields: Any) -> str:
        answer = self.complete(prompt, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The parsed chunks of a stream; the last payload has to be `[DONE]`."""
        with self.http.stream("POST", self.url + path, json={**body, "stream": True}) as answer:
            data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(each) for each in data]

    def metric(self, name: str) -> float:
        return sample(self.http.get(f"{self.url}/metrics").text, f"llamacpp:{name}", {})

    def count(self, text: str) -> int:
        answer = self.http.post(f"{self.url}/tokenize", json={"content": text, "add_special": True})
        return len(answer.json()["tokens"])

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def filled(self, tokens: int, start: str) -> str:
        """A prompt of nearly `tokens` tokens, never more."""
        words = tokens
        while (count := self.count(start + " a" * words)) > tokens:
            words -= max(1, (count - tokens) // 2)
        return start + " a" * words


def planned(model: ModelSpec, **wish: Any) -> EnginePlan:
    hardware = probe().model_copy(update={"gpus": (), "links": ()})
    pinned = frozenset(wish)
    fit = LAUNCHER.fit(model, hardware, Tuning(**{"max_concurrency": 4, **wish}), pinned)
    assert isinstance(fit, Fit), fit
    return EnginePlan(
        id="x", engine=LAUNCHER.name, engine_version=LAUNCHER.version, tier="CPU_ONLY",
        model=model, tuning=fit.tuning, estimate=fit.estimate,
    )  # fmt: skip


@contextmanager
def serving(plan: EnginePlan, program: str, folder: Path, *flags: str) -> Iterator[Server]:
    listen = Listen(port=free_ports(1)[0])
    spec = LAUNCHER.command(plan, listen).with_engine(program)
    log = folder / "engine.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*spec.argv, *flags], stdout=out, stderr=out, env=spec.env)
    server = Server(plan, process, log)
    server.url = listen.base_url
    try:
        until(lambda: healthy(server), 120, f"ready: {log.read_text()[-500:]}")
        yield server
    finally:
        server.http.close()
        process.kill()
        process.wait()


def healthy(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text()[-2000:]
    try:
        status = server.http.get(f"{server.url}/health").status_code
    except httpx.ConnectError:
        return False
    assert status in (200, 503)  # 503 while the model is loaded
    return status == 200


def demo(quantization: str = "Q4_K_M") -> ModelSpec:
    return model_spec(demo_dir() / f"demo.{quantization}.gguf", "demo")


@pytest.fixture(scope="module")
def program(installed: Program) -> str:
    return str(installed("llama_server").program)


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llama-server")
    with serving(planned(demo(), max_model_len=1000), program, folder) as running:
        yield running


def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of the prompt, of the answer, of both."""
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def test_streaming_equals_not_streaming_and_usage_is_the_tokenizers(server: Server) -> None:
    body = {"model": "demo", "prompt": QUESTION, "max_tokens": 40, "temperature": 0}
    whole = server.complete(QUESTION).json()
    chunks = server.events("/v1/completions", body)
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["text"]
    assert counts(chunks[-1]) == counts(whole)  # without being asked
    assert counts(whole)[0] == server.count(QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    chat = {"model": "demo", "messages": messages, "max_tokens": 40, "temperature": 0}
    answer = server.http.post(f"{server.url}/v1/chat/completions", json=chat).json()
    silent = server.events("/v1/chat/completions", chat)
    assert not any(chunk.get("usage") for chunk in silent)
    asked = {**chat, "stream_options": {"include_usage": True}}
    told = server.events("/v1/chat/completions", asked)
    assert told[-1]["choices"] == []
    assert counts(told[-1]) == counts(answer)
    parts = (choice["delta"].get("content") or "" for c in told for choice in c["choices"])
    assert "".join(parts) == answer["choices"][0]["message"]["content"]


def test_seeds_stop_strings_and_penalties_reach_it(server: Server) -> None:
    hot: dict[str, Any] = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 60}
    one, same, *others = (server.text(LONG, seed=seed, **hot) for seed in (1, 1, 2, 3, 4))
    assert one == same
    assert {*others, one} != {one}
    plain = server.text(LONG)
    word = plain.split()[3]
    stopped = server.complete(LONG, stop=[word]).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == plain[: plain.index(word)]
    assert server.text(LONG, repeat_penalty=5.0) != plain


def test_four_streams_run_at_the_same_time_and_say_what_one_says_alone(server: Server) -> None:
    prompts = [f"{LONG} Number {at}." for at in range(4)]
    alone = [server.text(prompt, max_tokens=200) for prompt in prompts]
    busiest = 0.0
    for _ in range(3):  # they are quick: the look at them may come when they are over
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(server.text, prompt, max_tokens=200) for prompt in prompts]
            while not all(each.done() for each in asked):
                busiest = max(busiest, server.metric("requests_processing"))
            together = [each.result() for each in asked]
        assert together == alone
        if busiest >= 2:
            break
    assert busiest >= 2


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    before = server.metric("tokens_predicted_total")
    body = {"prompt": LONG, "max_tokens": 900, "temperature": 1.5, "stream": True,
            "logit_bias": [[2, False]]}  # fmt: skip
    with server.http.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    until(lambda: server.metric("requests_processing") == 0, 20, "slot free")
    assert server.metric("tokens_predicted_total") - before < 900


def test_every_slot_has_the_promised_context_and_not_one_token_more(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        prompts = [server.filled(990, f"{at} once") for at in range(4)]
        sizes = [server.count(prompt) for prompt in prompts]
        assert min(sizes) >= 980
        answers = list(pool.map(lambda p: server.complete(p, max_tokens=100).json(), prompts))
    for size, answer in zip(sizes, answers, strict=True):
        used = answer["usage"]
        assert used["prompt_tokens"] == size
        assert used["total_tokens"] <= 1000
    long = server.filled(1200, "too long")
    for stream in (False, True):
        refused = server.complete(long, stream=stream)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["type"] == "exceed_context_size_error"
        assert error["n_ctx"] == 1000


def test_its_metrics_are_told_in_our_words(server: Server) -> None:
    def generate() -> int:
        answer = server.complete(LONG, ignore_eos=True).json()
        return int(answer["usage"]["completion_tokens"])

    def read() -> str:
        return server.http.get(f"{server.url}/metrics").text

    assert_told_in_our_words(LAUNCHER.watch.series, read, generate)


def test_it_says_nothing_to_web_pages_and_keeps_its_slots_to_itself(server: Server) -> None:
    answer = server.http.get(f"{server.url}/health", headers={"Origin": "https://a.example"})
    assert answer.headers.get("access-control-allow-origin") in (None, "")
    assert server.http.get(f"{server.url}/slots").status_code != 200
    assert "<html" not in server.http.get(f"{server.url}/").text.lower()


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "f32"])
def test_cache_types_run_and_take_what_is_planned(program: str, tmp_path: Path, dtype: str) -> None:
    plan = planned(demo(), max_model_len=2048, kv_cache_dtype=dtype)
    with serving(plan, program, tmp_path) as server:
        assert len(server.text(QUESTION)) > 10


def names(plan: EnginePlan) -> dict[str, Served]:
    return {each.name: each for each in LAUNCHER.served(plan)}


def test_adapters_are_switched_by_request(program: str, tmp_path: Path) -> None:
    base = demo("F16")
    files = sorted((demo_dir() / "adapters").glob("*.gguf"))
    assert files
    adapters = tuple(read_gguf_adapter(file, base).adapter(file.stem) for file in files)
    plan = planned(base.model_copy(update={"adapters": adapters}), max_model_len=1024)
    with serving(planned(base, max_model_len=1024), program, tmp_path) as bare:
        plain = bare.text(QUESTION)
    told = {name: served.fields for name, served in names(plan).items()}
    with serving(plan, program, tmp_path) as server:
        first = {name: server.text(QUESTION, **fields) for name, fields in told.items()}
        assert first["demo"] == plain
        assert len(set(first.values())) == len(told)
        # One slot, so that each request finds what another adapter has cached.
        for name, fields in [*told.items(), *reversed(told.items())]:
            assert server.text(QUESTION, id_slot=0, **fields) == first[name], name
        order = [name for name in told for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            mixed = list(pool.map(lambda name: server.text(QUESTION, **told[name]), order))
        assert mixed == [first[name] for name in order]


@pytest.mark.parametrize(("shape", "context", "slots"), [
    ("demo", 2048, 1), ("demo", 2048, 4), ("demo", 4096, 2), ("llama-1b", 512, 2),
])  # fmt: skip
def test_it_takes_the_memory_that_is_planned(
    program: str, tmp_path: Path, shape: str, context: int, slots: int
) -> None:
    path = demo_dir() / "demo.Q4_K_M.gguf"
    if shape != "demo":
        path = tmp_path / "shape.gguf"
        write(SHAPES[shape], path, shape)
    wish = {"max_model_len": context, "max_concurrency": slots}
    plan = planned(model_spec(path, "demo"), **wish)
    with serving(plan, program, tmp_path) as server:
        prompts = [server.filled(context - 4, f"{at} full") for at in range(slots)]
        with ThreadPoolExecutor(slots) as pool:
            list(pool.map(lambda prompt: server.complete(prompt, max_tokens=3), prompts))
        held = server.memory()
    if shape != "demo":
        path.unlink()
    # The small model's 40 MB are to a good part what its threads' allocators keep.
    near = max(0.02 * held, 4_000_000) if shape == "demo" else 0.02 * held
    assert plan.estimate[-1].total == pytest.approx(held, abs=near)


def test_it_ends_in_order_when_idle(program: str, tmp_path: Path) -> None:
    with serving(planned(demo(), max_model_len=4096), program, tmp_path) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20 * SLACK) == 0


def test_it_ends_in_order_with_a_stream_open(program: str, tmp_path: Path) -> None:
    """Mostly: once in a while it stands still then, and its shim has to kill it."""
    for number in range(_TRIES):
        with serving(planned(demo(), max_model_len=4096), program, tmp_path) as server:
            try:
                assert _ended_under_a_stream(server) == 0
            except subprocess.TimeoutExpired:
                assert number < _TRIES - 1, "it never ends by itself"
            else:
                return


def _ended_under_a_stream(server: Server) -> int:
    """TERM while a stream runs: the exit code. TimeoutExpired: it had to be killed."""
    body = {"prompt": LONG, "max_tokens": 4000, "stream": True, "logit_bias": [[2, False]]}
    began = threading.Event()

    def read() -> str:
        text = ""
        with server.http.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            try:
                for line in answer.iter_lines():
                    began.set()
                    text += line
            except (httpx.RemoteProtocolError, httpx.ReadError):
                return text
        return text

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            assert began.wait(30 * SLACK)
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(40)
        finally:
            server.process.kill()  # else its reader would wait for ever
        assert "[DONE]" not in reading.result(30 * SLACK)
    return code


def test_embeddings_of_a_server_that_makes_them(program: str, tmp_path: Path) -> None:
    flags = ("--embeddings", "--pooling", "mean")
    with (
        serving(planned(demo(), max_model_len=512), program, tmp_path, *flags) as server,
        before(server.url, "demo", "--engine", "llama_server") as (_, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        texts = ["The shop opens at nine.", "The shop opens at nine!", "Rain"]
        made = client.embeddings.create(model="demo", input=texts)
        assert made.model == "demo"
        vectors = [each.embedding for each in made.data]
        assert len({len(each) for each in vectors}) == 1
        near, far = (sum(map(mul, vectors[0], each)) for each in vectors[1:])
        assert near > far
        text, labels = server.http.get(f"{url}/metrics").text, {"direction": "prompt"}
        used = sample(text, "engineroom_key_tokens_total", labels)
        assert used == made.usage.prompt_tokens > 0
