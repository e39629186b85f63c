"""All engines for real, through the whole server: the same model gives the same answers on each.

The recorded answers are those of llama.cpp with 16-bit weights; the smallest margin between the
first and the second token of any step is 1.6, far more than rounding to bfloat16 moves a logit.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from engine_launchers import ENGINES
from engine_launchers.base import EngineName
from orchestrator.engines.shelf import Engine
from tests.conftest import real_room
from tests.harness import ROOT, SLACK, Room, processes_of, within

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]
DEMO = ROOT / "orchestrator" / "models" / "demo"
ADAPTERS = DEMO / "adapters"
FIXTURES = ROOT / "tests" / "fixtures"
GREEDY: list[dict[str, Any]] = json.loads((FIXTURES / "demo_greedy.json").read_text())["F16"]
TUNED: dict[str, list[dict[str, Any]]] = json.loads(
    (FIXTURES / "demo_lora_greedy.json").read_text()
)
QUESTION = "What products do you recommend?"
LONG = "Tell me a long story about the shop."
Installed = Callable[[EngineName], Engine]

NAMES = ("garden", "pirate")


def with_adapters(engine: EngineName) -> list[str]:
    """Flags that serve every adapter of the demo model by its name."""
    if engine == "llama_cpp":
        return []  # one, applied always: see below
    ending = ".gguf" if engine == "llama_server" else ""
    return [word for n in NAMES for word in ("--adapter", f"{n}={ADAPTERS / (n + ending)}")]


@pytest.fixture(scope="module", params=list(ENGINES))
def room(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    installed: Installed,
    engines_dir: Path,
) -> Iterator[Room]:
    """One server on each engine in turn, 16-bit weights."""
    engine: EngineName = request.param
    installed(engine)
    folder = tmp_path_factory.mktemp(engine)
    flags = ["--engine", engine, "--quantization", "none", "--alias", "gpt-shop"]
    made = real_room(folder / "data", engines_dir, *flags, *with_adapters(engine))
    yield made.start(240)
    made.close()
    assert processes_of(str(folder)) == []


@pytest.fixture(scope="module")
def count(installed: Installed) -> Iterator[Callable[[str], int]]:
    """Tokens of a text by the model's own tokenizer, bos not counted."""
    code = (
        "import sys, json\n"
        "from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "for line in sys.stdin:\n"
        "    print(len(t(json.loads(line), add_special_tokens=False)['input_ids']), flush=True)\n"
    )
    argv = [installed("pytorch").program, "-c", code, str(DEMO)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    ask, told = process.stdin, process.stdout

    def counted(text: str) -> int:
        ask.write(json.dumps(text) + "\n")
        ask.flush()
        return int(told.readline())

    yield counted
    ask.close()
    process.wait(20)
    told.close()


def engine_of(room: Room) -> str:
    return str(room.http.get(f"{room.url}/models").json()["models"][0]["engine"])


@pytest.mark.parametrize("entry", GREEDY, ids=lambda e: f"{e['kind']}-{str(e.get('prompt'))[:24]}")
def test_greedy_text_is_the_same_on_all(room: Room, entry: dict[str, Any]) -> None:
    body: dict[str, Any] = {"max_tokens": entry["max_tokens"], "temperature": 0}
    if entry["kind"] == "completion":
        path, body["prompt"] = "/v1/completions", entry["prompt"]
    else:
        path, body["messages"] = "/v1/chat/completions", entry["messages"]
    answer = room.http.post(room.url + path, json=body).json()
    choice = answer["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert (text, choice["finish_reason"]) == (entry["text"], entry["finish_reason"])


def test_token_counts_are_the_tokenizers(room: Room, count: Callable[[str], int]) -> None:
    for limit in (1, 7, 40):
        body = {"prompt": LONG, "max_tokens": limit, "temperature": 0}
        answer = room.http.post(f"{room.url}/v1/completions", json=body).json()
        usage = answer["usage"]
        assert usage["completion_tokens"] == count(answer["choices"][0]["text"]) == limit
        assert usage["prompt_tokens"] == count(LONG) + 1  # the bos
        assert usage["total_tokens"] == usage["prompt_tokens"] + limit


def test_a_stream_says_what_the_whole_answer_says(room: Room) -> None:
    whole = room.generate(LONG, max_new_tokens=30, do_sample=False).json()
    with room.stream(LONG, max_new_tokens=30, do_sample=False) as events:
        told = [json.loads(each) for each in events if each != "[DONE]"]
    assert "".join(each["token"] for each in told[:-1]) == whole["generated_text"]
    last = told[-1]
    assert (last["generated_text"], last["token_count"]) == (whole["generated_text"], 30)


def test_the_openai_client_streams_with_usage(room: Room) -> None:
    client = openai.OpenAI(base_url=f"{room.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], max_tokens=20,
        temperature=0, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 20
    assert {chunk.model for chunk in chunks} == {"demo"}


def test_stop_strings_end_the_text_before_them(room: Room) -> None:
    whole = room.generate(QUESTION, max_new_tokens=40, do_sample=False).json()["generated_text"]
    stop = " and the "
    assert stop in whole
    cut = room.generate(QUESTION, max_new_tokens=40, do_sample=False, stop=stop).json()
    assert (cut["generated_text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    with room.stream(QUESTION, max_new_tokens=40, do_sample=False, stop=stop) as events:
        told = [json.loads(each) for each in events if each != "[DONE]"]
    assert "".join(each["token"] for each in told[:-1]) == cut["generated_text"]


def test_seeds_repeat_and_sampling_varies(room: Room) -> None:
    def sampled(seed: int) -> str:
        answer = room.generate(LONG, max_new_tokens=40, temperature=2.0, top_p=1.0, seed=seed)
        return str(answer.json()["generated_text"])

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_many_at_once_all_answer(room: Room) -> None:
    def ask(number: int) -> int:
        return int(room.generate(LONG, max_new_tokens=20, do_sample=False).json()["token_count"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [20] * 8


def test_who_leaves_frees_the_engine(room: Room) -> None:
    for _ in range(3):
        with room.stream(LONG, max_new_tokens=1500, do_sample=False) as events:
            next(events)
    with within(5, "the next one is served"):
        assert room.generate("Hello!", max_new_tokens=2).status_code == 200


def test_what_no_engine_can_answer_is_refused_and_it_lives_on(room: Room) -> None:
    context = room.http.get(f"{room.url}/v1/models").json()["data"][0]["max_model_len"]
    too_long = room.http.post(
        f"{room.url}/v1/completions", json={"prompt": "shop " * (context + 10), "max_tokens": 1}
    )
    assert too_long.status_code == 400, too_long.text
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    empty = room.http.post(f"{room.url}/v1/completions", json={"prompt": "", "max_tokens": 1})
    assert empty.status_code == 400
    assert room.generate("Hello!", max_new_tokens=2).status_code == 200


def test_an_alias_is_the_model(room: Room) -> None:
    answers = [
        room.generate(QUESTION, max_new_tokens=12, do_sample=False, model=name).json()
        for name in ("demo", "gpt-shop")
    ]
    assert answers[0]["generated_text"] == answers[1]["generated_text"]
    assert [a["model"] for a in answers] == ["demo", "gpt-shop"]
    assert room.generate("x", model="gpt-4").status_code == 404


def test_adapters_are_models_of_their_own(room: Room) -> None:
    listed = {row["id"] for row in room.http.get(f"{room.url}/v1/models").json()["data"]}
    if engine_of(room) == "llama_cpp":
        assert listed == {"demo", "gpt-shop"}
        return
    assert listed == {"demo", "gpt-shop", *NAMES}

    def ask(entry: dict[str, Any], name: str) -> str:
        limit = entry["max_tokens"]
        answer = room.generate(entry["prompt"], max_new_tokens=limit, do_sample=False, model=name)
        return str(answer.json()["generated_text"])

    with ThreadPoolExecutor(4) as pool:  # at once: one name's requests must not see another's
        for rows in zip(*(TUNED[name] for name in ("base", *NAMES)), strict=True):
            names = ["demo", *NAMES, "demo"]
            wanted = [*rows, rows[0]]
            got = list(pool.map(ask, wanted, names))
            assert got == [row["text"] for row in wanted]


def test_the_serial_server_applies_its_one_adapter_always(
    installed: Installed, tmp_path: Path, engines_dir: Path
) -> None:
    installed("llama_cpp")
    flags = ["--engine", "llama_cpp", "--quantization", "none"]
    flags += ["--adapter-path", str(ADAPTERS / "garden.gguf")]
    made = real_room(tmp_path / "data", engines_dir, *flags)
    try:
        made.start()
        entry = TUNED["garden"][0]
        for name in ("demo", "garden"):
            answer = made.generate(
                entry["prompt"], max_new_tokens=entry["max_tokens"], do_sample=False, model=name
            )
            assert answer.json()["generated_text"] == entry["text"]
    finally:
        made.close()
    assert processes_of(str(tmp_path)) == []


@pytest.mark.timeout(1200)
def test_two_workers_serve_die_as_one_and_come_back(
    installed: Installed, tmp_path: Path, engines_dir: Path
) -> None:
    installed("vllm")
    flags = ["--engine", "vllm", "--quantization", "none", "--tensor-parallel-size", "2"]
    made = real_room(tmp_path / "data", engines_dir, *flags)
    entry = GREEDY[0]

    def answer() -> str:
        limit = entry["max_tokens"]
        told = made.generate(entry["prompt"], max_new_tokens=limit, do_sample=False)
        return str(told.json()["generated_text"])

    try:
        made.start(240)
        assert answer() == entry["text"]
        before = made.engine()
        leader = psutil.Process(before["pid"])
        tree = [leader, *leader.children(recursive=True)]
        workers = [each for each in tree if each.cmdline()[0].startswith("VLLM::Worker")]
        assert len(workers) == 2
        workers[1].kill()
        _, alive = psutil.wait_procs(tree, timeout=15 * SLACK)
        assert alive == []
        made.wait_generation(before["generation"] + 1)
        made.wait_state("ready", seconds=240)
        assert made.engine()["pid"] != leader.pid
        assert (
            made.metric("engineroom_engine_restarts_total", replica="demo-0", cause="killed") == 1
        )
        assert answer() == entry["text"]
    finally:
        made.close()
    assert processes_of(str(tmp_path)) == []


def test_its_tokenizer_can_be_asked(room: Room, count: Callable[[str], int]) -> None:
    text = "The shop opens at nine."
    asked = {"model": "gpt-shop", "prompt": text, "add_special_tokens": False}
    told = room.http.post(f"{room.url}/tokenize", json=asked)
    if room.command[room.command.index("--engine") + 1] == "pytorch":
        assert (told.status_code, told.json()["error"]["code"]) == (404, "not_found")
        return
    if told.status_code == 400:  # llama_cpp's own
        assert told.json()["error"]["param"] == "add_special_tokens"
        del asked["add_special_tokens"]
        told = room.http.post(f"{room.url}/tokenize", json=asked)
    tokens = told.json()["tokens"]
    assert told.json()["count"] == len(tokens)
    assert len(tokens) - count(text) == ("add_special_tokens" not in asked)
    back = room.http.post(f"{room.url}/detokenize", json={"tokens": tokens}).json()
    assert text in back["prompt"]
    vectors = room.http.post(f"{room.url}/v1/embeddings", json={"input": "x"})
    assert (vectors.status_code, vectors.json()["error"]["code"]) == (404, "not_found")
    assert room.generate("on", max_new_tokens=1).status_code == 200
