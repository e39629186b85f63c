"""The PyTorch engine's own server as a real process with the demo model, on a CPU."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_launchers.base import EngineName, EnginePlan, Fit, Listen, Tuning
from engine_launchers.machine import HardwareProfile
from engine_launchers.pytorch import PyTorchLauncher
from orchestrator.models.resolve import resolve
from tests.harness import ROOT, SLACK, clean_env, free_ports, sample, until, within
from tests.series import assert_told_in_our_words

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
DEMO = ROOT / "orchestrator" / "models" / "demo"
SCRIPT = ROOT / "engine_launchers" / "servers" / "pytorch_server.py"
PROMPT = "What products do you recommend?"
LONG: dict[str, Any] = {"ignore_eos": True, "temperature": 0}
KEY = "secret-of-the-test"


class Server:
    """One process of the server."""

    def __init__(self, python: Path, log: Path, *flags: str, env: dict[str, str]) -> None:
        (self.port,) = free_ports(1)
        self.log = log
        argv = [
            str(python), str(SCRIPT), "--host", "127.0.0.1", "--port", str(self.port),
            "--threads", "1", *flags,
        ]  # fmt: skip
        with log.open("w") as out:
            self.process = subprocess.Popen(argv, stderr=out, stdout=out, env=env, cwd=log.parent)
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=600, trust_env=False
        )

    def ready(self) -> Server:
        """Wait until it answers."""

        def healthy() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(httpx.ConnectError):
                return self.http.get("/health").status_code == 200
            return False

        until(healthy, 300, "health")
        return self

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Exit code and last line of the log, once it has ended by itself."""
        code = self.process.wait(SLACK * seconds)
        lines = self.log.read_text().strip().splitlines()
        return code, lines[-1] if lines else ""

    def close(self) -> None:
        """Leave nothing behind."""
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)

    def ask(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": "demo", **body})

    def text(self, prompt: str = PROMPT, **body: Any) -> str:
        answer = self.ask(prompt=prompt, **body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def events(self, path: str = "/v1/completions", **body: Any) -> list[Any]:
        """All events of a stream, without the end mark, which must be there."""
        found = []
        with self.http.stream("POST", path, json={"model": "demo", "stream": True, **body}) as told:
            assert told.status_code == 200, told.read()
            for line in told.iter_lines():
                assert not line or line.startswith("data: ")
                found.append(line[6:]) if line else None
        assert found.pop() == "[DONE]"
        return [json.loads(each) for each in found]

    def metric(self, name: str) -> float:
        return sample(self.http.get("/metrics").text, f"pytorch_engine_{name} ", {})


@pytest.fixture(scope="module")
def pytorch_python(installed: Callable[[EngineName], Any]) -> Path:
    return Path(installed("pytorch").program)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a bytecode cache for all servers of this file: torch is imported in half the time."""
    return {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pyc")), **clean_env()}


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(
    pytorch_python: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    servers: list[Server] = []

    def started(*flags: str, model: Path = DEMO, **more: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        words = ("--model", str(model), "--served-model-name", "demo", *flags)
        server = Server(pytorch_python, log, *words, env={**env, **more})
        servers.append(server)
        return server

    yield started
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    """The one that most tests share: 8 places, in 32 bit so that batches round alike."""
    return start(
        "--dtype", "float32", "--max-model-len", "2048", "--served-model-name", "also"
    ).ready()


def run_code(python: Path, env: dict[str, str], code: str, *words: str) -> Any:
    """What a program in the engine's environment prints as JSON."""
    done = subprocess.run(
        [python, "-c", code, *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


REFERENCE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
torch.set_num_threads(1)
tok = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
out = []
for prompt in prompts:
    ids = tok(prompt)["input_ids"]
    new = model.generate(torch.tensor([ids]), max_new_tokens=48, do_sample=False)[0, len(ids):]
    out.append([len(ids), len(new), tok.decode(new, skip_special_tokens=True)])
json.dump(out, sys.stdout)
"""
PROMPTS = [
    PROMPT, "What is your return policy?", "Tell me about shipping.", "Hello", "The kettle",
    "Do you sell lamps?", "How long does delivery take?", "Grüße aus Köln", "1 2 3 4", "Thanks!",
]  # fmt: skip


def test_greedy_text_and_counts_are_those_of_generate(
    server: Server, pytorch_python: Path, env: dict[str, str]
) -> None:
    rows = run_code(pytorch_python, env, REFERENCE, str(DEMO), json.dumps(PROMPTS))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda p: server.ask(prompt=p, max_tokens=48, temperature=0).json(), PROMPTS)
        )
    for (count, new, said), answer in zip(rows, answers, strict=True):
        assert answer["choices"][0]["text"] == said
        used = answer["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == (count, new)
    counted = server.http.post("/tokenize", json={"model": "demo", "prompt": PROMPTS[0]})
    assert counted.json() == {"count": rows[0][0]}


def test_a_stream_says_what_a_whole_answer_says(server: Server) -> None:
    ask: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0.9, "seed": 5}
    whole = server.ask(**ask).json()
    *parts, last = server.events(**ask, stream_options={"include_usage": True})
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert parts[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(part["choices"][0]["finish_reason"] is None for part in parts[:-1])
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len({part["id"] for part in [*parts, last]}) == 1


def test_chats_follow_the_template(server: Server) -> None:
    ask: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPT}], "temperature": 0,
    }  # fmt: skip
    whole = server.http.post("/v1/chat/completions", json={"model": "also", **ask}).json()
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert whole["choices"][0]["finish_reason"] == "stop"
    parts = server.events("/v1/chat/completions", **ask)
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(each.get("content", "") for each in deltas) == message["content"]
    assert message["content"]


def test_no_max_tokens_is_16_for_a_completion_and_the_room_for_a_chat(server: Server) -> None:
    answer = server.ask(prompt=PROMPT, **LONG).json()
    assert answer["usage"]["completion_tokens"] == 16
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **LONG}
    with server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as told:
        lines = (line for line in told.iter_lines() if line)
        assert len([next(lines) for _ in range(40)]) == 40


def test_text_is_cut_before_a_stop_string_wherever_tokens_end(server: Server) -> None:
    whole = server.text(max_tokens=60, temperature=0)
    for stop in ("wool", "e, the wo", "lamp.", "I", " Would you"):
        ask: dict[str, Any] = {
            "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stop": [stop, "never"],
        }  # fmt: skip
        answer = server.ask(**ask).json()
        choice = answer["choices"][0]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        streamed = "".join(each["choices"][0]["text"] for each in server.events(**ask))
        assert streamed == choice["text"]
    until(lambda: server.metric("requests_running") == 0, 5, "stopped requests leave the batch")


def test_seeds_repeat_and_temperature_varies(server: Server) -> None:
    hot: dict[str, Any] = {"max_tokens": 24, "temperature": 3.0}
    first = server.text(**hot, seed=1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # neighbours do not matter
        crowd = list(pool.map(lambda seed: server.text(**hot, seed=seed), [1, 2, 3, 1]))
    assert crowd[0] == crowd[3] == first
    assert len(set(crowd)) == 3
    assert len({server.text(**hot) for _ in range(3)}) == 3
    cold = server.text(max_tokens=24, temperature=0)
    assert cold == server.text(max_tokens=24, temperature=0, seed=9)
    assert cold == server.text(**hot, top_k=1)
    assert cold == server.text(**hot, top_p=1e-6)
    assert cold == server.text(**hot, min_p=1.0)
    assert cold == server.text(max_tokens=24, temperature=1e-3, seed=4)


def test_penalties_have_an_effect(server: Server) -> None:
    plain = server.text(max_tokens=100, **LONG)
    for field, value in (
        ("repetition_penalty", 5.0), ("presence_penalty", 2.0), ("frequency_penalty", 2.0),
    ):  # fmt: skip
        more: dict[str, Any] = {field: value}
        assert server.text(max_tokens=100, **LONG, **more) != plain


def test_draws_follow_the_shares(pytorch_python: Path, env: dict[str, str]) -> None:
    code = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from pytorch_bodies import Sampling
from pytorch_sampling import Row, apply
logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
out = {}
for name, rules in {"plain": {}, "hot": {"temperature": 2.0}, "top_k": {"top_k": 2},
                    "top_p": {"top_p": 0.7}, "min_p": {"min_p": 0.2}}.items():
    rows = [Row(Sampling(seed=s, **rules), s % 7, [], []) for s in range(20000)]
    picks = apply(logits.repeat(len(rows), 1), rows).argmax(-1)
    out[name] = (torch.bincount(picks, minlength=4) / len(rows)).tolist()
out["want"] = torch.softmax(logits, 0).tolist()
out["want_hot"] = torch.softmax(logits / 2, 0).tolist()
json.dump(out, sys.stdout)
"""
    got = run_code(pytorch_python, env, code, str(SCRIPT.parent))
    want = got["want"]
    assert got["plain"] == pytest.approx(want, abs=0.015)
    assert got["hot"] == pytest.approx(got["want_hot"], abs=0.015)
    two = [want[0] / (want[0] + want[1]), want[1] / (want[0] + want[1]), 0, 0]
    assert got["top_k"] == pytest.approx(two, abs=0.015)
    assert got["top_p"] == pytest.approx(two, abs=0.015)
    assert got["min_p"] == pytest.approx(two, abs=0.015)


def test_parallel_streams_are_faster_than_one_after_another(server: Server) -> None:
    ask: dict[str, Any] = {"max_tokens": 100, **LONG}
    server.text(**ask)

    def gain() -> float:
        """How much sooner all of them are done at once."""
        began = time.monotonic()
        for _ in range(8):
            server.text(**ask)
        serial = time.monotonic() - began
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda _: server.text(**ask), range(8)))
        assert len(set(texts)) == 1
        return serial / (time.monotonic() - began)

    assert any(gain() > 1.5 for _ in range(3))  # others may take the processors in one of them


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_within_a_second(server: Server, stream: bool) -> None:
    body = {"model": "demo", "prompt": "Hi", "max_tokens": 1900, "stream": stream, **LONG}
    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(raw)}\r\n\r\n".encode()
            + raw
        )
        until(lambda: server.metric("requests_running") == 1, 10, "it runs")
    until(lambda: server.metric("requests_running") == 0, 1, "its place is free")
    steps = server.metric("iterations_total")
    server.text(max_tokens=4, **LONG)
    assert server.metric("iterations_total") - steps < 30, "nobody computes for the one who left"


BAD: list[tuple[dict[str, Any], int, str | None]] = [
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({}, 400, "prompt"),
    ({"prompt": [1, 10**6]}, 400, "prompt"),
    ({"prompt": "Hi", "max_tokens": 2048}, 400, "max_tokens"),
    ({"prompt": "word " * 5000}, 400, "prompt"),
    ({"prompt": "Hi", "temperature": "hot"}, 400, "temperature"),
    ({"prompt": "Hi", "max_tokens": 0}, 400, "max_tokens"),
    ({"prompt": "Hi", "logprobs": 5}, 400, "logprobs"),
    ({"prompt": "Hi", "n": 2}, 400, "n"),
    ({"prompt": "Hi", "model": "other"}, 404, "model"),
]


def test_what_cannot_be_computed_is_refused_and_the_server_lives(server: Server) -> None:
    for body, status, param in BAD:
        answer = server.ask(**body)
        assert answer.status_code == status, body
        error = answer.json()["error"]
        assert error["param"] == param
        assert error["message"]
        assert set(error) == {"message", "type", "code", "param"}
    long = server.ask(prompt="Hi", max_tokens=2048).json()["error"]
    assert long["code"] == "context_length_exceeded"
    assert "2048" in long["message"]
    for path, method, status in (
        ("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405),
    ):  # fmt: skip
        answer = server.http.request(method, path)
        assert (answer.status_code, set(answer.json())) == (status, {"error"})
    for raw in (b"", b"{", b"[1]", b'"x"', b"\xff\xfe"):
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
            answer = server.http.post(path, content=raw)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_json"
    assert server.http.get("/health").status_code == 200
    assert server.text(max_tokens=4, temperature=0)
    assert "Traceback" not in server.log.read_text()
    assert "Hi" not in server.log.read_text()


def test_the_longest_request_that_fits_is_computed(server: Server) -> None:
    count = server.ask(prompt="Hi", max_tokens=1).json()["usage"]["prompt_tokens"]
    used = server.ask(prompt="Hi", max_tokens=2048 - count, **LONG).json()["usage"]
    assert used["total_tokens"] == 2048


def test_models_and_metrics(server: Server) -> None:
    rows = server.http.get("/v1/models").json()["data"]
    assert [(row["id"], row["max_model_len"]) for row in rows] == [("demo", 2048), ("also", 2048)]
    before = server.metric("generation_tokens_total"), server.metric("iterations_total")
    prompts = server.metric("prompt_tokens_total")
    used = server.ask(prompt=PROMPT, max_tokens=8, **LONG).json()["usage"]
    assert server.metric("generation_tokens_total") == before[0] + 8
    assert server.metric("iterations_total") >= before[1] + 8
    assert server.metric("prompt_tokens_total") == prompts + used["prompt_tokens"]
    assert server.metric("time_to_first_token_seconds_count") > 0
    assert server.metric("kv_blocks") == 8 * 2048 / 64


def test_its_metrics_are_told_in_our_words(server: Server) -> None:
    def generate() -> int:
        answer = server.ask(prompt=PROMPT, max_tokens=8, **LONG).json()
        return int(answer["usage"]["completion_tokens"])

    rules = PyTorchLauncher().watch.series
    assert_told_in_our_words(rules, lambda: server.http.get("/metrics").text, generate)


def test_key_and_line_and_drain(start: Start) -> None:
    server = start(
        "--max-num-seqs", "1", "--max-queue-size", "2", "--shutdown-timeout", "120",
        ENGINE_API_KEY=KEY,
    ).ready()  # fmt: skip
    assert server.ask(prompt="Hi").status_code == 401
    assert server.http.get("/v1/models").status_code == 401
    server.http.headers["authorization"] = f"Bearer {KEY}x"
    assert server.ask(prompt="Hi").status_code == 401
    server.http.headers["authorization"] = f"Bearer {KEY}"
    assert server.text("Hi", max_tokens=2)
    assert KEY not in " ".join(psutil.Process(server.process.pid).cmdline())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask: dict[str, Any] = {"prompt": "Hi", "max_tokens": 200, **LONG}
        first = pool.submit(server.ask, **ask)
        until(lambda: server.metric("requests_running") == 1, 10, "one runs")
        waiting = [pool.submit(server.ask, **ask) for _ in range(2)]
        until(lambda: server.metric("requests_waiting") == 2, 10, "two wait")
        refused = server.ask(prompt="Hi")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask(prompt="Hi").json()["error"]["type"] == "unavailable_error", 5, "")
        for each in (first, *waiting):
            assert each.result(60 * SLACK).json()["usage"]["completion_tokens"] == 200
    assert server.end() == (0, "INFO: stopped")


def test_sigterm_ends_open_streams_with_an_error_and_exits_0(start: Start) -> None:
    server = start().ready()
    body = {"model": "demo", "prompt": "Hi", "max_tokens": 4000, "stream": True, **LONG}
    with server.http.stream("POST", "/v1/completions", json=body) as told:
        lines = (line for line in told.iter_lines() if line)
        next(lines)
        with within(5, "its end"):
            server.process.send_signal(signal.SIGTERM)
            last = list(lines)[-1]
            assert server.end(10)[0] == 0
    assert json.loads(last[6:])["error"]["code"] == "engine_stopped"


def test_it_ends_at_once_with_its_reason_when_the_loop_dies(start: Start) -> None:
    """The loop runs out of memory for real: the process may map no more than it has now."""
    server = start("--max-batch-tokens", "4000").ready()
    small = server.text("Hi", max_tokens=2)
    assert small is not None
    process = psutil.Process(server.process.pid)
    now = process.memory_info().vms
    process.rlimit(psutil.RLIMIT_AS, (now, now))
    ask: dict[str, Any] = {"prompt": [5] * 3900, "max_tokens": 10, "temperature": 0}
    answer = server.ask(**ask)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "engine_died"
    code, last = server.end(10)
    assert code == 70
    assert "the batching loop died: RuntimeError: " in last


def test_blocks_are_bounded_and_preempted_requests_come_back(start: Start) -> None:
    """Six requests over blocks for two: all end right, and memory stays where it was."""
    server = start(
        "--dtype", "float32", "--max-model-len", "512", "--num-blocks", "16"
    ).ready()  # fmt: skip
    ask: dict[str, Any] = {"max_tokens": 450, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    alone = server.text(**ask)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda _: server.text(**ask), range(6)))
    assert crowd.count(alone) == 6
    assert process.memory_info().rss - before < 300 * 2**20
    assert server.metric("kv_blocks") == 16
    assert server.http.get("/health").status_code == 200


# --- loading ---


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "/no/such/folder"], 1, "model: /no/such/folder is no folder"),
        (["--model", str(DEMO), "--n_ctx", "5"], 2, "unrecognized arguments: --n_ctx 5"),
        (["--model", str(DEMO), "--quantization", "nf3"], 2, "invalid choice: 'nf3'"),
        (["--model", str(DEMO), "--adapter", "x=/no/such"], 1, "adapter x: /no/such holds no"),
        (["--model", str(DEMO), "--max-model-len", "9000"], 1, "max-model-len: 9000"),
        (["--model", str(DEMO), "--num-blocks", "2"], 1, "kv: 2 blocks hold 128 tokens"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_the_last_line(
    pytorch_python: Path, env: dict[str, str], tmp_path: Path,
    flags: list[str], code: int, said: str,
) -> None:  # fmt: skip
    server = Server(pytorch_python, tmp_path / "log", *flags, env=env)
    try:
        ended, last = server.end(120)
        assert ended == code
        assert said in last
    finally:
        server.close()


def test_a_damaged_model_is_no_model(start: Start, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    weights = (DEMO / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    code, last = start(model=tmp_path).end(120)
    assert code == 1
    assert "model: " in last
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    (tmp_path / "model.safetensors").write_bytes(weights)
    code, last = start(model=tmp_path).end(120)
    assert code == 1
    assert "tensors are not in the files" in last


def test_a_taken_port_is_told_before_anything_is_loaded(
    pytorch_python: Path, env: dict[str, str], tmp_path: Path, server: Server
) -> None:
    words = ("--model", str(DEMO), "--port", str(server.port))
    other = Server(pytorch_python, tmp_path / "log", *words, env=env)
    try:
        with within(5, "its end"):
            code, last = other.end(20)
        assert code == 3
        assert "[Errno 98]" in last
    finally:
        other.close()


def test_a_unix_socket_serves_too(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # as a server that was killed leaves it
    server = start("--uds", str(path))

    def listens() -> bool:
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        with socket.socket(socket.AF_UNIX) as client:
            return path.exists() and client.connect_ex(str(path)) == 0

    until(listens, 300, "it listens")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
        assert client.get("/health").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end(10)[0] == 0
    assert not path.exists()


def test_compile_serves_the_same_text(start: Start, server: Server) -> None:
    """With a C++ compiler, which this needs on a processor, all three layers are compiled."""
    assert shutil.which("g++") or shutil.which("clang++"), "install a C++ compiler for this test"
    compiled = start("--compile", "--dtype", "float32").ready()
    said = [line for line in compiled.log.read_text().splitlines() if "compile: " in line]
    assert len(said) == 1
    assert re.fullmatch(r"INFO: compile: 3 parts, first in \d+\.\d s", said[0]), said
    for prompt in PROMPTS[:3]:
        ask: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
        assert compiled.text(prompt, **ask) == server.text(prompt, **ask)


def test_compile_without_a_compiler_says_why_and_serves(
    start: Start, server: Server, tmp_path: Path
) -> None:
    none = start(
        "--compile", "--dtype", "float32", CXX="/no/such/compiler", PATH=str(tmp_path),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    ).ready()  # fmt: skip
    said = [line for line in none.log.read_text().splitlines() if "compile: " in line]
    assert len(said) == 1
    assert "WARNING: compile: off: InductorError: InvalidCxxCompiler: No working C++" in said[0]
    ask: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    assert none.text(PROMPT, **ask) == server.text(PROMPT, **ask)


def test_the_planned_cache_is_the_servers(start: Start) -> None:
    """What the launcher says: blocks as planned, so full contexts of all requests do not count."""
    (model,) = (each for each in resolve("demo", DEMO).variants if each.format == "safetensors")
    machine = HardwareProfile(
        ram_total=2**33, ram_available=2**32, cpu_cores=1, platform="linux-x86_64"
    )
    wish = Tuning(max_model_len=3000, max_concurrency=5)
    launcher = PyTorchLauncher()
    fit = launcher.fit(model, machine, wish)
    assert isinstance(fit, Fit)
    plan = EnginePlan(
        id="x", engine="pytorch", engine_version="1", tier="CPU_ONLY", model=model,
        tuning=fit.tuning, estimate=fit.estimate,
    )  # fmt: skip
    argv = launcher.command(plan, Listen(port=8100)).argv
    server = start(*argv[argv.index("--dtype") : argv.index("--shutdown-timeout")]).ready()
    blocks = sum(part.kv for part in fit.estimate) // (64 * 3 * 2 * 2 * 64 * 2)
    assert blocks == 47 + 4 * 16
    assert f"{blocks} KV blocks of 64 tokens, 3000 tokens a sequence" in server.log.read_text()
    assert server.metric("kv_blocks") == blocks


ADAPTERS = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:3]
for seed, name in enumerate(("one", "two")):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"])
    peft = get_peft_model(model, lora)
    for part, weights in peft.named_parameters():
        if "lora_" in part:
            torch.nn.init.normal_(weights, std=0.2)
    peft.save_pretrained(f"{out}/{name}")
print("{}")
"""


@pytest.fixture(scope="module")
def adapters(
    pytorch_python: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two random LoRA adapters of the demo model, strong enough to change every answer."""
    folder = tmp_path_factory.mktemp("adapters")
    run_code(pytorch_python, env, ADAPTERS, str(DEMO), str(folder))
    return folder


def test_adapters_answer_to_their_names_and_take_turns(
    start: Start, server: Server, adapters: Path
) -> None:
    words = [f"--adapter=v1.{name}={adapters / name}" for name in ("one", "two")]
    lora = start("--dtype", "float32", *words).ready()
    rows = lora.http.get("/v1/models").json()["data"]
    names = [row["id"] for row in rows]
    assert names == ["demo", "v1.one", "v1.two"]
    ask: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}

    def said(name: str) -> str:
        answer = lora.ask(**ask, model=name)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    alone = {name: said(name) for name in names}
    assert len(set(alone.values())) == 3
    assert alone["demo"] == server.text(max_tokens=40, temperature=0)
    order = names * 8
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        crowd = list(pool.map(said, order))
    assert crowd == [alone[name] for name in order]
    default = start(
        "--dtype", "float32", *words, "--default-adapter", "v1.two"
    ).ready()  # fmt: skip
    assert default.text(max_tokens=40, temperature=0) == alone["v1.two"]


def test_a_stranger_adapter_is_refused(start: Start, adapters: Path, tmp_path: Path) -> None:
    config = json.loads((adapters / "one" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    weights = (adapters / "one" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    code, last = start(f"--adapter=x={tmp_path}").end(120)
    assert code == 1
    assert "adapter x: " in last
    assert "the shapes of its tensors are not those of this model" in last


BIG = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
folder = sys.argv[1]
torch.manual_seed(0)
config = AutoConfig.from_pretrained(folder)
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(folder)
json.dump({}, sys.stdout)
"""
FOOTPRINT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pytorch_flags import parse
from pytorch_model import load
words = ["--model", sys.argv[2], "--dtype", "bfloat16", "--threads", "1"]
found = {}
for packing in sys.argv[3:]:
    loaded = load(parse(words + (["--quantization", packing] if packing != "none" else [])))
    found[packing] = loaded.model.get_memory_footprint()
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def big(
    pytorch_python: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four random layers of a 2048-wide Llama with the demo's tokenizer, 16 bit."""
    folder = tmp_path_factory.mktemp("big")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    config = json.loads((DEMO / "config.json").read_text())
    config |= {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    run_code(pytorch_python, env, BIG, str(folder))
    return folder


def test_packed_weights_take_what_they_should(
    start: Start, big: Path, pytorch_python: Path, env: dict[str, str]
) -> None:
    packings = ("none", "nf4", "int8")
    takes = run_code(pytorch_python, env, FOOTPRINT, str(SCRIPT.parent), str(big), *packings)
    held: dict[str, tuple[int, int]] = {}
    for packing in packings:
        words = () if packing == "none" else ("--quantization", packing)
        server = start("--dtype", "bfloat16", "--max-model-len", "512", *words, model=big).ready()
        rss = psutil.Process(server.process.pid).memory_info().rss
        assert (
            server.ask(prompt=PROMPT, max_tokens=8, **LONG).json()["usage"]["completion_tokens"]
            == 8
        )
        server.close()
        held[packing] = takes[packing], rss
    plain, plain_rss = held["none"]
    assert held["nf4"][0] <= 0.35 * plain
    assert held["int8"][0] <= 0.6 * plain
    for packing in ("nf4", "int8"):
        saved = plain - held[packing][0]
        assert plain_rss - held[packing][1] > 0.4 * saved
