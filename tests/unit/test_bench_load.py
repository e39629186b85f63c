"""What the bench sends and when, and how it reads answers: the parts that do no I/O."""

from __future__ import annotations

import contextlib
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench.answers import Illegible, Said, read_answer, read_event
from orchestrator.bench.arrivals import schedule
from orchestrator.bench.crew import Pace, share_out
from orchestrator.bench.lengths import Length, parse_length
from orchestrator.bench.orders import Asking, Order, order_line, read_order
from orchestrator.bench.parse import parse_duration, parse_prefix, parse_slo
from orchestrator.bench.sse import SseReader, TooLong
from orchestrator.bench.targets import body, parse_target, request_bytes
from orchestrator.bench.workload import Workload
from orchestrator.cli.bench_options import fields_of, load_of, read_key
from orchestrator.errors import ConfigError

WORK = Workload(1, Length("fixed", 20), Length("fixed", 8))
ASKING = Asking(parse_target("http://host:8000", None), "m", "secret-key")


# --- arrivals ---


@given(st.floats(0.1, 1000), st.integers(1, 200), st.integers())
def test_a_schedule_keeps_its_count_and_order(rate: float, count: int, seed: int) -> None:
    for kind in ("constant", "poisson"):
        due = schedule(kind, rate, random.Random(seed).random, count, None)
        assert len(due) == count
        assert due == sorted(due)
        assert due == schedule(kind, rate, random.Random(seed).random, count, None)


@given(st.floats(0.1, 100), st.floats(0.01, 20), st.integers())
def test_a_schedule_ends_with_its_time(rate: float, duration: float, seed: int) -> None:
    due = schedule("poisson", rate, random.Random(seed).random, None, duration)
    assert all(0 <= at < duration for at in due)
    constant = schedule("constant", rate, random.random, None, duration)
    assert len(constant) == pytest.approx(rate * duration, abs=1.001)


def test_poisson_gaps_are_exponential() -> None:
    due = schedule("poisson", 50.0, random.Random(7).random, 20_000, None)
    spaces = [b - a for a, b in pairwise(due)]
    mean = sum(spaces) / len(spaces)
    assert mean == pytest.approx(0.02, rel=0.03)
    # Of an exponential distribution 1 - 1/e lie below the mean.
    assert sum(each < mean for each in spaces) / len(spaces) == pytest.approx(0.632, abs=0.02)


@given(
    st.integers(1, 9), st.integers(1, 40), st.none() | st.integers(1, 60), st.integers(-50, 10**8)
)
def test_workers_share_a_closed_loop(
    size: int, users: int, requests: int | None, first: int
) -> None:
    orders = share_out(ASKING, WORK, Pace(users, requests, None), first, size)
    assert sum(order.users for order in orders) == users
    assert all(order.users for order in orders)
    if requests is not None:
        numbers = [n for order in orders for n in range(order.first, order.end or 0, order.step)]
        assert sorted(numbers) == list(range(first, first + requests))


@given(st.integers(1, 9), st.lists(st.floats(0, 100), max_size=50).map(sorted))
def test_workers_share_an_open_loop(size: int, due: list[float]) -> None:
    orders = share_out(ASKING, WORK, Pace(due=tuple(due)), 5, size)
    seen = {
        order.first + place * order.step: at
        for order in orders
        for place, at in enumerate(order.due or ())
    }
    assert seen == dict(enumerate(due, 5))


def test_an_order_survives_its_pipe_and_keeps_the_key_out_of_print() -> None:
    order = Order(ASKING, WORK, 1.5, first=3, step=2, due=[0.1, 0.2])
    assert read_order(order_line(order)) == order
    assert "secret-key" not in repr(order)


# --- lengths, prompts ---


@given(st.integers(1, 500), st.integers(0, 500), st.integers())
def test_lengths_stay_in_their_range(low: int, more: int, seed: int) -> None:
    draw = random.Random(seed).random
    uniform = parse_length(f"{low}-{low + more}", "--x")
    assert all(low <= uniform.sample(draw) <= low + more for _ in range(50))
    assert parse_length(str(low), "--x").sample(draw) == low
    assert parse_length(str(uniform), "--x") == uniform
    for text in (f"normal:{low}:{more}", f"lognormal:{low}:1.5"):
        assert all(parse_length(text, "--x").sample(draw) >= 1 for _ in range(50))


def test_distributions_have_their_middle() -> None:
    draw = random.Random(3).random
    normal = [parse_length("normal:200:20", "--x").sample(draw) for _ in range(4000)]
    assert sum(normal) / len(normal) == pytest.approx(200, rel=0.01)
    log = sorted(parse_length("lognormal:200:0.5", "--x").sample(draw) for _ in range(4000))
    assert log[2000] == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "many", "uniform:5", "uniform:9:3", "normal:nan:1", "gamma:1:2", "1:2:3:4"],
)
def test_a_wrong_length_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--prompt-tokens"):
        parse_length(text, "--prompt-tokens")


def test_the_same_seed_asks_the_same_and_a_salt_only_other_words() -> None:
    many = Workload(5, Length("uniform", 5, 50), Length("uniform", 1, 9), share=0.5)
    other = Workload(5, many.prompt, many.output, share=0.5, salt="second")
    for number in range(-3, 40):
        prompt, tokens = many.request(number)
        assert (prompt, tokens) == many.request(number)
        their_prompt, their_tokens = other.request(number)
        assert (len(their_prompt.split()), their_tokens) == (len(prompt.split()), tokens)
        assert their_prompt != prompt


def test_shared_prefixes() -> None:
    work = Workload(
        9, Length("fixed", 40), Length("fixed", 1), share=1.0, prefix_tokens=30, groups=2
    )
    heads = {" ".join(work.request(n)[0].split()[:30]) for n in range(40)}
    assert len(heads) == 2
    assert len({work.request(n)[0] for n in range(40)}) == 40
    half = Workload(9, Length("fixed", 40), Length("fixed", 1), share=0.5)
    first = [half.request(n)[0].split()[:20] for n in range(400)]
    common = max(first.count(each) for each in first[:20])
    assert common / 400 == pytest.approx(0.5, abs=0.1)


# --- the flags' small languages ---


def test_durations_and_objectives() -> None:
    assert [parse_duration(t, "--d") for t in ("500ms", "30", "1.5s", "2m", "1h")] == [
        0.5, 30, 1.5, 120, 3600,
    ]  # fmt: skip
    assert parse_slo("ttft=500ms, itl=50ms,e2e=2") == {"ttft": 0.5, "itl": 0.05, "e2e": 2.0}
    assert parse_prefix("0.8") == (0.8, None, 1)
    assert parse_prefix("1:512:4") == (1.0, 512, 4)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("tfft=1s", "did you mean ttft"), ("ttft", "needs a limit"), ("itl=fast", "no duration"),
     ("ttft=0", "longer than nothing"), ("", "empty"), ("ttft=1,ttft=2", "twice")],
)  # fmt: skip
def test_a_wrong_objective_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_slo(text)


@pytest.mark.parametrize("text", ["2", "x", "0.5:0", "0.5:10:0", "1:2:3:4"])
def test_a_wrong_prefix(text: str) -> None:
    with pytest.raises(ConfigError, match="--shared-prefix"):
        parse_prefix(text)


def test_users_and_rate_exclude_each_other() -> None:
    def load(**more: object) -> object:
        given: dict[str, object] = dict.fromkeys(
            ("users", "rate", "requests", "duration", "shared_prefix", "warmup", "rounds", "seed")
        )
        given |= {"arrivals": "poisson", "prompt_tokens": "8", "output_tokens": "8",
                  "processes": 1, "compares": False, **more}  # fmt: skip
        return load_of(**given)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="exclude"):
        load(users=3, rate=2.0)
    with pytest.raises(ConfigError, match="--arrivals"):
        load(rate=2.0, arrivals="gauss")
    with pytest.raises(ConfigError, match="--rounds"):
        load(requests=2, compares=True)


def test_fields_are_json_or_text() -> None:
    assert fields_of(["a=1", 'b={"c": [true]}', "d=plain", "e="]) == {
        "a": 1, "b": {"c": [True]}, "d": "plain", "e": "",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        fields_of(["nothing"])


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " k1 ")
    assert read_key("SOME_KEY", None, "USUAL") == "k1"
    assert read_key(None, None, "USUAL") is None
    file = tmp_path / "key"
    file.write_text("# mine\n\nk2\n")
    file.chmod(0o600)
    assert read_key(None, file, "USUAL") == "k2"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(None, file, "USUAL")
    with pytest.raises(ConfigError, match="NOT_THERE is not set"):
        read_key("NOT_THERE", None, "USUAL")
    monkeypatch.setenv("SOME_KEY", "k\r\nx: y")
    with pytest.raises(ConfigError, match="no HTTP header"):
        read_key("SOME_KEY", None, "USUAL")


# --- targets ---


@pytest.mark.parametrize(
    ("url", "dialect", "path"),
    [
        ("localhost:8001", None, "/v1/completions"),
        ("http://h:1/", "chat", "/v1/chat/completions"),
        ("http://h/v1", None, "/v1/completions"),
        ("https://h/base/v1/chat/completions", None, "/base/v1/chat/completions"),
        ("http://h:8001/generate", None, "/generate_stream"),
        ("http://[::1]:8001", "generate", "/generate_stream"),
    ],
)
def test_where_requests_go(url: str, dialect: str | None, path: str) -> None:
    target = parse_target(url, dialect)
    assert target.path(stream=True) == path
    head = request_bytes(target, "POST", target.path(True), "k", {"a": "é"}).split(b"\r\n\r\n")[0]
    assert head.startswith(f"POST {path} HTTP/1.1\r\nhost: ".encode())
    assert b"content-length: 11" in head
    assert b"authorization: Bearer k" in head


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://u:p@h",
        "http://h/?key=1",
        "http://h/a b",
        "ö",
    ],
)
def test_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_target(url, None)


def test_a_path_and_a_flag_that_disagree() -> None:
    with pytest.raises(ConfigError, match="--api says chat"):
        parse_target("http://h/v1/completions", "chat")


def test_bodies() -> None:
    plain, chat = parse_target("http://h", None), parse_target("http://h", "chat")
    ours = parse_target("http://h", "generate")
    assert body(plain, "m", "p", 5, True, {"fields": {"ignore_eos": True}}) == {
        "model": "m", "prompt": "p", "max_tokens": 5, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip
    assert "stream_options" not in body(chat, None, "p", 5, True, {"usage": False})
    assert body(chat, None, "p", 5, False, {})["messages"] == [{"role": "user", "content": "p"}]
    assert body(ours, None, "p", 5, True, {}) == {
        "prompt": "p", "max_new_tokens": 5, "do_sample": False,
    }  # fmt: skip
    assert body(ours, None, "p", 5, True, {"temperature": 0.5})["temperature"] == 0.5


# --- answers ---

payload = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(payload, max_size=8), st.sampled_from(["\n", "\r\n"]), st.data())
def test_events_do_not_depend_on_how_bytes_are_split(
    texts: list[str], end: str, data: st.DataObject
) -> None:
    whole = "".join(
        f": ping{end}{end}event: x{end}data: {text}{end}data: more{end}{end}" for text in texts
    ).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    reader, found = SseReader(), []
    for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += reader.feed(whole[a:b])
    assert found == [f"{text}\nmore".encode() for text in texts]


def test_an_event_without_end_is_given_up() -> None:
    reader = SseReader()
    for _ in range(4):
        assert reader.feed(b"x" * 1_000_000) == []
    with pytest.raises(TooLong):
        reader.feed(b"x" * 1_000_000)


def test_what_events_say() -> None:
    def event(dialect: str, value: object) -> Said:
        return read_event(dialect, json.dumps(value).encode())

    text = {"choices": [{"text": "a", "finish_reason": None}]}
    assert event("completions", text) == Said(text=True)
    last = {"choices": [{"text": "", "finish_reason": "stop"}]}
    assert event("completions", last) == Said(finished=True)
    usage = {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 3}}
    assert event("chat", usage) == Said(tokens=7, prompt_tokens=3)
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    assert event("chat", role) == Said()
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    assert event("chat", thought) == Said(text=True)
    assert event("generate", {"token": "a", "index": 0}) == Said(text=True)
    assert event("generate", {"done": True, "token_count": 4}) == Said(finished=True, tokens=4)
    assert event("chat", {"error": {"message": "broken"}}).error == "broken"
    assert read_event("chat", b"[DONE]") == Said()
    for bad in (b"{", b"[1]", b"{}", b'{"choices": [7]}'):
        with pytest.raises(Illegible):
            read_event("completions", bad)


def test_plain_answers() -> None:
    good = b'{"choices": [{"text": "a"}], "usage": {"completion_tokens": 2}}'
    assert read_answer("completions", good) == Said(text=True, finished=True, tokens=2)
    ours = b'{"generated_text": "a", "token_count": 2}'
    assert read_answer("generate", ours) == Said(text=True, finished=True, tokens=2)
    for bad in (b"", b"{}", b'{"choices": []}'):
        with pytest.raises(Illegible):
            read_answer("completions", bad)


@given(st.binary(max_size=200), st.sampled_from(["completions", "chat", "generate"]))
def test_no_bytes_break_the_reader(data: bytes, dialect: str) -> None:
    for read in (read_event, read_answer):
        with contextlib.suppress(Illegible):
            assert isinstance(read(dialect, data), Said)
