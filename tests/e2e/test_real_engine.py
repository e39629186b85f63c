"""Every endpoint against real llama.cpp with the demo model, by hand-made HTTP and by clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.harness import ROOT, SLACK, Room, clean_env, eventually, until, within
from tests.streams import Answer, ask, request_bytes

pytestmark = [pytest.mark.real, pytest.mark.slow]
RoomMaker = Callable[..., Room]
QUESTION = "What products do you recommend?"
LONG = "Tell me a long story about the shop."
GREEDY: list[dict[str, Any]] = json.loads(
    (ROOT / "tests" / "fixtures" / "demo_greedy.json").read_text()
)["Q4_K_M"]


@pytest.fixture(scope="module")
def count(engines_dir: Path) -> Iterator[Callable[[str], int]]:
    """Tokens of a text by the model's own tokenizer, in a process of the engine's environment."""
    code = (
        "import sys, json, llama_cpp\n"
        "m = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)\n"
        "for line in sys.stdin:\n"
        "    t = json.loads(line)\n"
        "    print(len(m.tokenize(t.encode(), add_bos=False, special=True)), flush=True)\n"
    )
    python = next(engines_dir.glob("llama_cpp-*/bin/python"))
    model = ROOT / "orchestrator" / "models" / "demo" / "demo.Q4_K_M.gguf"
    process = subprocess.Popen(
        [python, "-c", code, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
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


@pytest.mark.parametrize("entry", GREEDY, ids=lambda e: f"{e['kind']}-{str(e.get('prompt'))[:24]}")
def test_greedy_text_is_the_recorded_one(real: Room, entry: dict[str, Any]) -> None:
    limit = entry["max_tokens"]
    if entry["kind"] == "completion":
        answer = real.generate(entry["prompt"], max_new_tokens=limit, do_sample=False).json()
        got = answer["generated_text"], answer["token_count"], answer["finish_reason"]
    else:
        body = {"messages": entry["messages"], "max_tokens": limit, "temperature": 0}
        answer = real.http.post(f"{real.url}/v1/chat/completions", json=body).json()
        choice = answer["choices"][0]
        tokens = answer["usage"]["completion_tokens"]
        got = choice["message"]["content"], tokens, choice["finish_reason"]
    ends = entry["finish_reason"] == "stop"  # the server counts the token that ended the text
    assert got == (entry["text"], entry["tokens"] + ends, entry["finish_reason"])


def test_it_answers_in_readable_english(real: Room) -> None:
    answer = real.generate(QUESTION).json()
    words = answer["generated_text"].split()
    assert len(words) >= 5
    assert all(word.strip(".,?!'").replace("-", "").isalnum() for word in words)
    assert set(answer) == {
        "generated_text", "token_count", "computation_time", "throughput", "model",
        "finish_reason",
    }  # fmt: skip
    assert answer["throughput"] == pytest.approx(
        answer["token_count"] / answer["computation_time"], rel=0.01
    )


def test_token_counts_are_the_tokenizers(real: Room, count: Callable[[str], int]) -> None:
    for limit in (1, 7, 60):
        answer = real.generate(LONG, max_new_tokens=limit, do_sample=False).json()
        assert answer["token_count"] == count(answer["generated_text"]) == limit
    with real.stream(QUESTION, do_sample=False) as events:
        last = [json.loads(e) for e in events if e != "[DONE]"][-1]
    assert last["finish_reason"] == "stop"
    assert last["token_count"] == count(last["generated_text"]) + 1  # and the end of text
    body = {"prompt": QUESTION, "temperature": 0}
    usage = real.http.post(f"{real.url}/v1/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == count(QUESTION) + 1  # the bos


def test_usage_is_what_the_engine_itself_would_say(real: Room) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}]
    for path, body in (
        ("/v1/completions", {"prompt": QUESTION, "temperature": 0, "max_tokens": 12}),
        ("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 12}),
    ):
        ours = real.http.post(real.url + path, json=body).json()["usage"]
        theirs = real.http.post(real.engine()["url"] + path, json=body).json()["usage"]
        assert {**ours, "prompt_tokens_details": None} == {**theirs, "prompt_tokens_details": None}


def test_a_stream_is_tokens_then_one_done_event_then_done(real: Room) -> None:
    with real.stream(QUESTION, do_sample=False) as events:
        got = list(events)
    assert got[-1] == "[DONE]"
    assert got.count("[DONE]") == 1
    tokens, last = [json.loads(e) for e in got[:-2]], json.loads(got[-2])
    assert [t["index"] for t in tokens] == list(range(len(tokens)))
    assert last["done"] is True
    assert last["generated_text"] == "".join(t["token"] for t in tokens)
    assert 0 < last["ttft"] <= last["computation_time"] + 1
    same = real.generate(QUESTION, do_sample=False).json()
    assert same["generated_text"] == last["generated_text"]
    by_flag = real.http.post(
        f"{real.url}/generate", json={"prompt": QUESTION, "stream": True, "do_sample": False}
    )
    assert by_flag.headers["content-type"].startswith("text/event-stream")
    assert by_flag.text.count("data: [DONE]") == 1


def test_sampling_parameters_reach_the_engine(real: Room) -> None:
    fields = {"temperature": 2.0, "top_p": 1.0, "max_new_tokens": 60}
    one, same, *others = (
        real.generate(LONG, seed=seed, **fields).json()["generated_text"]
        for seed in (1, 1, 2, 3, 4, 5)
    )
    assert one == same
    assert {*others, one} != {one}
    stopped = real.generate(LONG, do_sample=False, stop=["small"]).json()
    assert stopped["finish_reason"] == "stop"
    assert "small" not in stopped["generated_text"]
    assert stopped["generated_text"]


def test_the_openai_client_works_unmodified(real: Room) -> None:
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    chat = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert "recommend" in (chat.choices[0].message.content or "")
    assert chat.usage is not None
    assert chat.usage.total_tokens > 20
    stream = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == chat.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == chat.usage.total_tokens
    plain = client.completions.create(model="demo", prompt="def add(a, b):", temperature=0)
    assert "return" in plain.choices[0].text
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="demo", prompt="x", extra_body={"n_discard": -5})
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "n_discard")
    client.close()


def test_a_prompt_beyond_the_context_is_refused_by_its_code(real: Room) -> None:
    for path, body in (
        ("/generate", {"prompt": "word " * 4000}),
        ("/generate_stream", {"prompt": "word " * 4000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 4000}]}),
    ):
        answer = real.http.post(real.url + path, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_small_endpoints(real: Room) -> None:
    get = real.http.get
    assert get(f"{real.url}/models").json()["models"][0]["ready"] is True
    health = get(f"{real.url}/health").json()
    assert (health["status"], health["supervisor"]) == ("ok", "connected")
    assert get(f"{real.url}/health/live").status_code == 200
    assert get(f"{real.url}/health/ready").json() == {"ready": True}
    assert "engineroom_requests_total" in get(f"{real.url}/metrics").text
    assert get(f"{real.url}/nothing").json()["error"]["code"] == "not_found"
    assert get(f"{real.url}/generate").json()["error"]["code"] == "method_not_allowed"
    for path in ("/v1/audio/speech", "/docs", "/extras/tokenize", "/v1/models/../../docs"):
        assert real.http.post(real.url + path, json={}).status_code in (404, 405)


def test_admin_endpoints(real: Room) -> None:
    assert real.http.get(real.ready["admin"] + "/admin/engines").status_code == 401
    assert real.admin("GET", "/admin/engines").json()["engines"][0]["state"] == "ready"
    assert "--metrics" in real.engine()["injected"]
    assert real.admin("GET", "/admin/models/demo/plan").json()["engine"] == "llama_server"
    assert real.admin("GET", "/admin/hardware").json()["cpu_cores"] >= 1
    assert real.admin("GET", "/admin/events").json()["events"]
    assert "llama" in real.admin("GET", "/admin/engines/demo-0/logs?tail=500").text.lower()
    assert real.admin("GET", "/admin/engines/none").json()["error"]["code"] == "not_found"
    assert real.admin("POST", "/admin/models/x/stop").json()["error"]["code"] == "model_not_found"
    bad = real.admin("POST", "/admin/models/demo/restart", json={"drain": 1})
    assert bad.status_code == 400
    assert 'engineroom_engine_state{replica="demo-0",state="ready"} 1.0' in (
        real.admin("GET", "/metrics").text
    )
    labels = {"model": "demo", "engine": "llama_server", "replica": "demo-0"}
    until(
        lambda: real.metric("engineroom_engine_prompt_tokens_total", **labels) > 0,
        20,
        "the real engine's own metrics are read and shown",
    )
    openapi = real.http.get(real.ready["admin"] + "/openapi.json").json()
    assert "/admin/models/{model}/restart" in openapi["paths"]
    assert (real.data / "admin.token").stat().st_mode & 0o777 == 0o600


def test_the_log_can_be_followed(real: Room) -> None:
    headers = {"authorization": f"Bearer {real.token}"}
    url = real.ready["admin"] + "/admin/engines/demo-0/logs?tail=0&follow=true"
    over = threading.Event()

    def work() -> None:
        """So that there are lines whenever the following begins."""
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not over.wait(0.2):
                body = {"prompt": "Hi", "max_new_tokens": 1}
                assert client.post(f"{real.url}/generate", json=body).status_code == 200

    with (
        ThreadPoolExecutor(1) as beside,
        httpx.stream("GET", url, headers=headers, timeout=20 * SLACK) as answer,
    ):
        working = beside.submit(work)
        try:
            assert any("slot" in text for text in answer.iter_text())
        finally:
            over.set()
        working.result()


def test_fifty_at_once_are_answered_in_order_of_arrival(make_real_room: RoomMaker) -> None:
    """One engine, one request at a time: nobody is lost, nobody is interrupted."""
    real = make_real_room("--engine", "llama_cpp").start()
    order: list[int] = []
    data = request_bytes(LONG, max_new_tokens=20, do_sample=False)

    async def one(number: int) -> dict[str, Any]:
        answer = await ask(real.port, data)
        order.append(number)  # in one loop, which sees bytes in the order of their arrival
        return dict(json.loads(answer.body))

    async def all_of_them() -> list[dict[str, Any]]:
        asked = []
        for number in range(50):
            asked.append(asyncio.create_task(one(number)))
            await eventually(lambda n=number: arrived(real) > n, 20, "it has arrived")  # type: ignore[misc]
        return await asyncio.gather(*asked)

    answers = asyncio.run(all_of_them())
    assert order == list(range(50))
    assert {each["token_count"] for each in answers} == {20}
    assert len({each["generated_text"] for each in answers}) == 1


def arrived(room: Room) -> int:
    """Requests of the test above that the gateway has seen so far, answered ones included."""
    text = room.http.get(f"{room.url}/metrics").text
    lines = [x for x in text.splitlines() if not x.startswith("#")]

    def total(name: str) -> int:
        return int(sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(name)))

    base = int(room.ready.setdefault("answered_before", total("engineroom_requests_total")))
    busy = total("engineroom_in_flight") + total("engineroom_waiting")
    return busy + total("engineroom_requests_total") - base


def test_past_the_bound_they_are_refused_with_retry_after(make_real_room: RoomMaker) -> None:
    room = make_real_room("--max-queue", "2").start()
    data = request_bytes(LONG, max_new_tokens=150, do_sample=False)

    async def at_once() -> list[Answer]:
        return await asyncio.gather(*(ask(room.port, data) for _ in range(20)))

    results = asyncio.run(at_once())
    codes = [each.status for each in results]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 3
    for refused in (each for each in results if each.status == 429):
        assert refused.code == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
    served = [json.loads(each.body) for each in results if each.status == 200]
    assert {each["token_count"] for each in served} == {150}


def test_a_killed_engine_mid_stream(make_real_room: RoomMaker) -> None:
    room = make_real_room().start()
    before = room.engine()
    with room.stream(LONG, max_new_tokens=1500, do_sample=False) as events:
        next(events)
        os.kill(before["pid"], signal.SIGKILL)
        with within(1, "the end is told"):
            rest = list(events)
    assert "[DONE]" not in rest
    assert json.loads(rest[-1])["error"]["code"] == "engine_died"
    assert sum("error" in json.loads(e) for e in rest) == 1
    assert room.generate(QUESTION).status_code == 200
    assert room.metric("engineroom_engine_restarts_total", replica="demo-0", cause="killed") == 1


def test_a_killed_supervisor_mid_stream_then_adoption_then_the_end(
    make_real_room: RoomMaker,
) -> None:
    room = make_real_room().start()
    before = room.engine()
    with room.stream(LONG, max_new_tokens=400, do_sample=False) as events:
        next(events)
        room.kill()
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["token_count"] == 400
    room.start()
    assert room.ready["start_seconds"] < 2 * SLACK
    assert room.engine()["pid"] == before["pid"]
    assert room.generate(QUESTION).status_code == 200
    assert room.stop() == 0
    assert not psutil.pid_exists(before["pid"])
    assert room.processes() == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(room.url + "/health")


def test_a_client_that_leaves_frees_the_engine(real: Room) -> None:
    # Without its end tokens it cannot finish before the client has left.
    body = json.dumps(
        {"prompt": LONG, "max_tokens": 1900, "logit_bias": {"1": -100, "2": -100}}
    ).encode()
    host, port = real.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: real.engine()["in_flight"] == 1, 10, "the engine works on it")
        leaving.settimeout(0.01)
        with pytest.raises(TimeoutError):
            leaving.recv(1)
    until(lambda: real.engine()["in_flight"] == 0, 3, "the lease is given back")
    with within(2, "the next one is served"):
        assert real.generate("Hi", max_new_tokens=1).status_code == 200


def test_a_second_start_is_quick(make_real_room: RoomMaker) -> None:
    make_real_room().start().stop()
    room = make_real_room()
    with within(5, "start and first token"):
        room.start()
        with room.stream(QUESTION) as events:
            next(events)


def test_the_other_quantization_and_a_path(make_real_room: RoomMaker) -> None:
    room = make_real_room("--quantization", "none").start()
    assert room.engine()["plan"] == "llama-server-f16-tp1"
    room.stop()
    path = ROOT / "orchestrator" / "models" / "demo" / "demo.F16.gguf"
    named = make_real_room(str(path), "--context", "512").start()
    assert named.ready["model"] == "demo.F16"
    assert named.http.get(f"{named.url}/v1/models").json()["data"][0]["max_model_len"] == 512
    assert named.generate(QUESTION, model="demo.F16").status_code == 200


def test_the_command_line_speaks_to_a_running_server(real: Room) -> None:
    def engineroom(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator", *words, "--data-dir", str(real.data)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60 * SLACK,
            env=clean_env(),
            check=False,
        )

    assert "demo-0" in engineroom("ps").stdout
    assert json.loads(engineroom("ps", "--json").stdout)[0]["state"] == "ready"
    assert engineroom("logs", "--tail", "3").stdout.count("\n") == 3
    asked = engineroom("chat", "Hello!", "--temperature", "0")
    assert asked.stdout == "Hello! Welcome to the shop. How can I help you today?\n"
    value = json.loads(engineroom("chat", "Hello!", "--temperature", "0", "--json").stdout)
    assert value["choices"][0]["message"]["content"] + "\n" == asked.stdout
    wrong = engineroom("stop", "nothing")
    assert wrong.returncode == 1
    assert "no model of that name" in wrong.stderr
