"""A fake LLM engine: a real process that misbehaves on demand, for fault tests.

It speaks enough of the OpenAI protocol to stand in for llama_cpp.server or vLLM. Token 0 is "w0",
token i is " wi"; `max_tokens` (default 16) of them end with finish_reason "length". In a prompt,
`stop=K` ends after K tokens with "stop", and `echo=WORD` makes every token " WORD".
N counts the tokens already made: a fault at 0 strikes before the first event, -1 is off, and a
fault beyond the end of the generation never fires.

GET /health, /docs, /v1/models, /metrics, /stats; POST /v1/completions, /v1/chat/completions,
/extras/tokenize/count. Once all is quiet, requests = finished + failed + aborted in /stats.

SIGUSR1: no HTTP request is answered any more. SIGUSR2: every generation stands still, everything
else goes on (a stopped core behind a living server); the next one lets them go on.

Process knobs
  --host, --port, --model       where to listen (port 0: any free one) and what name to show
  --load-s S                    time before ready; a progress line each 0.2 s
  --load-until FILE             after that, wait until FILE exists
  --silent-load                 no progress lines
  --load-burns                  the load computes all the time
  --bind-late | --bind-early    listen after loading (default), or before it and answer 503
  --fail-on-start CODE          exit halfway through the load (CODE -9: die of that signal)
  --fail-text TEXT|@FILE        what that failure prints on stderr
  --fail-while FILE             fail on start only while FILE exists
  --oom-after K                 K generations go well, the next dies half-way: traceback, exit 1
  --oom-text WHICH              whose traceback: vllm, llama_cpp or pytorch
  --serial                      one generation at a time, FIFO; queued streams get their headers
  --lock-all                    /v1/models and the token count wait in that line too (llama_cpp)
  --interrupt                   like --serial, and a stream ends early ([DONE], no finish_reason)
                                after its next token while another generation waits
  --no-health                   404 on /health (/docs still answers 200)
  --hang-health                 accept /health and /docs, never answer
  --ignore-sigterm              SIGTERM does nothing
  --graceful-exit-0             exit 0 after SIGTERM; the default is to die of SIGTERM (-15)
  --term-waits                  SIGTERM first waits for running plain (non-stream) answers
  --term-waits-for-all          SIGTERM waits for every open request, however long (llama.cpp)
  --swallow-terms N             the first N SIGTERMs do nothing (vLLM, while it starts)
  --fork-grandchild             daemon in a session of its own that holds stdout, for ten minutes;
                                prints `grandchild PID`
  --vital-child TITLE           a child with that command line, which lives as long as its parent;
                                prints `vital PID`. Nothing here notices its end
  --can-sleep                   POST /sleep?level=N and /wake_up; asleep, generations get 503
  --sleep-status, --wake-status CODE   what those answer instead, doing nothing
  --print-env                   print `environment: [...]`, the sorted names, as JSON
  --log-flood BYTES_PER_S       write that much to stdout once ready
  --log-line BYTES              write one line of that length once ready
  --log-binary                  make both contain NUL, ESC and broken UTF-8

Generation knobs; one request can set its own by a header `X-Fake: {"tps": 10}` or by
`fake={"tps": 10}` inside the prompt (the names with underscores; the prompt wins)
  --tps R                       tokens per second; 0 is as fast as possible
  --most-tokens N               end with finish_reason "length" there, whatever was asked for
  --prefill-s S                 wait before the first token
  --prefill-burns               that wait is spent computing
  --prefill-counts              a counter of /metrics moves meanwhile
  --header-delay-s S            wait before the status line
  --keepalive-s S               an SSE comment every S seconds, whatever else happens
  --status CODE                 refuse with this status and an OpenAI error
  --retry-after S               the Retry-After of that refusal, seconds; 0 sends none
  --trickle-s S                 send the status line byte by byte, one every S seconds
  --hang-after-tokens N         stop for ever there; the rest of the engine goes on
  --exit-after-tokens N         the process kills itself with SIGKILL there
  --eat-after-tokens N          the process takes memory from there on until it is killed for it
  --exit-code-after-tokens N:CODE   the process exits there; CODE as for --fail-on-start
  --error-after-tokens N        send an error event there and end (plain answer: status 500)
  --done-after-error            send [DONE] after that event
  --cut-after-tokens N          break the answer there, in the way of --cut-how:
    fin         close in the middle of the body      rst         reset the connection
    short-chunk close inside a chunk                 half-frame  half an event, then a proper end
    bad-utf8    an event with invalid bytes, then a proper end
    html        an HTML page, then a proper end (with N=0 the whole answer is text/html)
    no-json | array | no-choices | odd-choice   an event of that kind, then a proper end
    done        [DONE], and nothing before it says that the answer is finished
    pings       comments for ever, and no event      endless     an event that never ends
    garbage     bytes that are no chunk              half-line   half a chunk's length, then FIN
  --no-done                     no [DONE] at the end
  --no-finish                   no chunk with a finish_reason, but [DONE]
  --usage-in-stream             honour stream_options.include_usage
  --no-cancel                   a plain answer goes on when its client has left

Exit codes: 2 bad arguments, 3 port in use, -15 SIGTERM, 0 SIGINT.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

OFF = -1
SWITCHES = (
    "silent_load bind_early serial lock_all interrupt no_health hang_health ignore_sigterm "
    "graceful_exit_0 term_waits term_waits_for_all fork_grandchild print_env log_binary load_burns "
    "can_sleep"
)
PROCESS_KNOBS: dict[str, Any] = (
    {"host": "127.0.0.1", "port": 8000, "model": "fake", "load_s": 0.0}
    | {
        "load_until": "",
        "fail_on_start": OFF,
        "fail_text": "RuntimeError: engine failed",
        "fail_while": "",
        "sleep_status": 200,
        "wake_status": 200,
    }
    | {
        "oom_after": OFF,
        "oom_text": "vllm",
        "vital_child": "",
        "log_flood": 0,
        "log_line": 0,
        "swallow_terms": 0,
    }
    | dict.fromkeys(SWITCHES.split(), False)
)
COUNTS = (
    "most_tokens hang_after_tokens exit_after_tokens eat_after_tokens error_after_tokens "
    "cut_after_tokens"
)
ENDINGS = "done_after_error no_done no_finish usage_in_stream no_cancel"
PREFILL = "prefill_burns prefill_counts"
GENERATION_KNOBS: dict[str, Any] = (
    {"tps": 0.0, "prefill_s": 0.0, "header_delay_s": 0.0, "keepalive_s": 0.0, "status": 0}
    | {"exit_code_after_tokens": "", "cut_how": "fin", "retry_after": 0, "trickle_s": 0.0}
    | dict.fromkeys(COUNTS.split(), OFF)
    | dict.fromkeys(f"{ENDINGS} {PREFILL}".split(), False)
)
ODD_EVENTS = {
    "no-json": b"data: {not json}\n\n",
    "array": b"data: [1, 2]\n\n",
    "no-choices": b'data: {"object": "text_completion"}\n\n',
    "odd-choice": b'data: {"choices": [7]}\n\n',
    "done": b"data: [DONE]\n\n",
}
PLAIN_CUTS = {"fin", "rst", "short-chunk", "half-frame", "bad-utf8", "html"}
CUTS = PLAIN_CUTS | set(ODD_EVENTS) | {"pings", "endless", "garbage", "half-line"}
HTML = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>\n"
CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total "
    "capacity of 23.56 GiB of which 312.81 MiB is free. Including non-PyTorch memory, this process "
    "has 23.24 GiB memory in use.\n"
)
CORE = "(EngineCore pid=4711) ERROR [core.py:1131] "
OOM = {
    "vllm": f"{CORE}EngineCore encountered a fatal error.\n{CORE}Traceback (most recent call last):"
    f'\n{CORE}  File "vllm/v1/engine/core.py", line 1129, in run_engine_core\n'
    f"{CORE}    engine_core.run_busy_loop()\n{CORE}{CUDA_OOM}"
    "(APIServer pid=4700) ERROR [async_llm.py:699] vllm.v1.engine.exceptions.EngineDeadError: "
    "EngineCore encountered an issue. See stack trace (above) for the root cause.\n",
    "llama_cpp": "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 1187.00 MiB on device 0: "
    "cudaMalloc failed: out of memory\n"
    "ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer of size 1244659712\n"
    "CUDA error: out of memory\n  current device: 0, in function alloc at ggml-cuda.cu:503\n",
    "pytorch": 'Traceback (most recent call last):\n  File "torch/nn/modules/linear.py", line 125, '
    f"in forward\n    return F.linear(input, self.weight, self.bias)\n{CUDA_OOM}",
}


class Breakage(Exception):
    """The generation ends here in an unusual way: "error", "cut" or "interrupt"."""


def check(knobs: Namespace) -> Namespace:
    """ValueError where a word is not one of those a knob knows."""
    if knobs.cut_how not in CUTS:
        raise ValueError(f"no such cut_how: {knobs.cut_how}")
    if not re.fullmatch(r"(\d+:-?\d+)?", knobs.exit_code_after_tokens):
        raise ValueError("exit_code_after_tokens must look like N:CODE")
    return knobs


def override(knobs: Namespace, changes: object) -> Namespace:
    """The knobs with some set from JSON; ValueError for anything that is not a knob."""
    if not isinstance(changes, dict):
        raise ValueError("fake knobs must be a JSON object")
    for name, value in changes.items():
        kind = type(GENERATION_KNOBS.get(name))
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"no such fake knob: {name}={value!r}")
    return check(Namespace(**vars(knobs) | changes))


def say(text: str | bytes, fd: int = 1) -> None:
    """Write past Python's buffers: no line is lost in a crash, and a dead reader kills nobody."""
    data = memoryview(text.encode() if isinstance(text, str) else text)
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]


def die(code: int) -> None:
    """End at once as a crash does; a negative code is the signal to die of."""
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


async def pass_time(seconds: float, burn: bool) -> None:
    """Wait, or compute for as long."""
    if not burn:
        await asyncio.sleep(seconds)
        return
    ends, block = time.monotonic() + seconds, bytes(1 << 22)
    while time.monotonic() < ends:
        await asyncio.to_thread(hashlib.sha256, block)


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def eat() -> None:
    """Take memory, and use it, until somebody puts an end to it."""
    eaten = []
    while True:
        eaten.append(b"x" * (1 << 22))


def openai_error(message: str, code: int) -> dict[str, Any]:
    kind = "invalid_request_error" if code < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


class Reader(asyncio.StreamReader):
    """A stream reader that calls `on_gone` when the client leaves."""

    gone = False
    on_gone: Callable[[], object] | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self.leave()

    def set_exception(self, exc: Any) -> None:
        super().set_exception(exc)
        self.leave()

    def leave(self) -> None:
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


class Request(NamedTuple):
    route: str
    headers: dict[str, str]
    body: bytes
    query: str = ""


class Connection:
    """One client: reads requests, writes answers, whole or broken."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.over = reader, writer, False

    async def request(self) -> Request | None:
        """The next request, or None when there is no (legible) one."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, version = head[0].split(" ")
            pairs = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            if "chunked" in headers.get("transfer-encoding", ""):
                body = await self.chunked()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            return None
        self.over = headers.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        path, _, query = target.partition("?")
        return Request(f"{method} {path}", headers, body, query)

    async def chunked(self) -> bytes:
        body = b""
        while size := int((await self.reader.readline()).partition(b";")[0], 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        while (await self.reader.readline()).strip():
            pass
        return body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def head(self, status: int, kind: str, framing: str) -> bytes:
        close = "Connection: close\r\n" if self.over else ""
        lines = f"HTTP/1.1 {status} Fake\r\nContent-Type: {kind}\r\n{framing}\r\n{close}\r\n"
        return lines.encode()

    async def reply(
        self, status: int, body: object, kind: str = "application/json", more: str = ""
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(self.head(status, kind, f"{more}Content-Length: {len(data)}") + data)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def drop(self, how: str) -> None:
        """Close, by FIN or by RST; the pause lets the client read what came before."""
        self.over = True
        if how == "rst":
            await asyncio.sleep(0.05)
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        self.writer.close()

    async def cut(self, how: str, bad: bytes, stream: bool) -> None:
        """Break an answer; `bad` is an event or a plain body whose text is one NUL."""
        half = bad[: len(bad) // 2]
        spoilt = {"html": HTML, "half-frame": half, **ODD_EVENTS}
        spoilt["bad-utf8"] = bad.replace(b"\\u0000", b"\xc3\x28\xff")
        if how in spoilt and stream:
            await self.chunk(spoilt[how])
            await self.chunk(b"")
        elif how in ("pings", "endless") and stream:
            piece = b": ping\n\n" if how == "pings" else b"data: " + b"x" * 65_536
            while True:
                await self.chunk(piece)
                await asyncio.sleep(0.02)
        elif how in spoilt:
            await self.reply(200, spoilt[how], "text/html" if how == "html" else "application/json")
        else:
            if not stream:
                head = self.head(200, "application/json", f"Content-Length: {len(bad)}")
                await self.send(head + half)
            elif how in ("short-chunk", "garbage", "half-line"):
                raw = {"garbage": b"\x00\xffnonsense\r\n\r\n", "half-line": b"1"}
                await self.send(raw.get(how, b"%x\r\n%b" % (len(bad), half)))
            await self.drop(how)


def prompt_text(body: dict[str, Any], chat: bool) -> str:
    """The prompt as one string, whatever of the OpenAI forms it came in."""
    if not chat:
        prompt = body.get("prompt", "")
        return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)
    texts = []
    for message in body["messages"]:
        content = message.get("content") or ""
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [str(part.get("text", "")) for part in parts]
    return "\n".join(texts)


class Job:
    """One generation: what to make, in which shape, and how to fail at it."""

    def __init__(self, request: Request, knobs: Namespace, model: str, number: int) -> None:
        """ValueError (or a relative of it) when the request is not one we understand."""
        body = json.loads(request.body)
        self.chat = request.route.endswith("/chat/completions")
        self.stream = body.get("stream") is True
        self.prompt = prompt_text(body, self.chat)
        if header := request.headers.get("x-fake"):
            knobs = override(knobs, json.loads(header))
        if (mark := self.prompt.find("fake={")) >= 0:
            knobs = override(knobs, json.JSONDecoder().raw_decode(self.prompt, mark + 5)[0])
        self.knobs = knobs
        asked = body.get("max_tokens", body.get("max_completion_tokens"))
        self.length: int = 16 if asked is None else asked
        if type(self.length) is not int or self.length < 0:
            raise ValueError(f"max_tokens must be a natural number, not {asked!r}")
        stop = re.search(r"stop=(\d+)", self.prompt)
        self.finish = "stop" if stop and int(stop[1]) <= self.length else "length"
        self.length = min(self.length, int(stop[1])) if stop else self.length
        if self.knobs.most_tokens != OFF:
            self.length = min(self.length, self.knobs.most_tokens)
        self.usage_wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        self.oom_at = OFF
        name = "chat.completion" if self.chat else "text_completion"
        self.envelope = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-fake-{number}",
            "object": name + ".chunk" if self.chat and self.stream else name,
            "created": int(time.time()),
            "model": str(body.get("model") or model),
        }

    def answer(self, shown: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish}
        return self.envelope | {"choices": [choice | shown]}

    def part(self, text: str = "", finish: str | None = None) -> bytes:
        """One event of the stream."""
        delta = {"delta": {"content": text} if text else {}}
        return event(self.answer(delta if self.chat else {"text": text}, finish))

    def opening(self) -> list[bytes]:
        role = {"delta": {"role": "assistant", "content": ""}}
        return [event(self.answer(role))] if self.chat else []

    def whole(self, text: str) -> dict[str, Any]:
        """The plain answer."""
        message = {"message": {"role": "assistant", "content": text}}
        return self.answer(message if self.chat else {"text": text}, self.finish) | self.usage()

    def usage(self) -> dict[str, Any]:
        words, made = len(self.prompt.split()), self.length
        counts = {"prompt_tokens": words, "completion_tokens": made, "total_tokens": words + made}
        return {"usage": counts}


class Engine:
    """The server: its life from load to exit, its routes, the line of generations."""

    def __init__(self, settings: Namespace, knobs: Namespace) -> None:
        self.settings, self.knobs = settings, knobs
        self.ready = False
        self.turn = asyncio.Lock()
        self.connections: set[asyncio.Task[Any]] = set()
        self.plain_work: set[asyncio.Task[Any]] = set()
        self.order: deque[str] = deque(maxlen=10_000)
        self.requests = self.waiting = self.running = self.max_running = self.started = 0
        self.finished = self.failed = self.aborted = self.tokens = self.iterations = 0
        self.swallowed = 0
        self.mute = False
        self.asleep = 0
        self.going = asyncio.Event()
        self.going.set()

    async def live(self) -> int:
        """Load, serve, stop at the first signal; returns the exit code."""
        loop, me = asyncio.get_running_loop(), this_task()
        codes: list[int] = []

        def on_signal(code: int) -> None:
            codes.append(code)
            if len(codes) == 1:
                me.cancel()

        def on_term(code: int) -> None:
            if self.swallowed < self.settings.swallow_terms:
                self.swallowed += 1
                say("SIGTERM swallowed\n")
                return
            on_signal(code)

        loop.add_signal_handler(signal.SIGINT, on_signal, 0)
        loop.add_signal_handler(signal.SIGUSR1, setattr, self, "mute", True)
        loop.add_signal_handler(signal.SIGUSR2, self.stand_still)
        if not self.settings.ignore_sigterm:
            code = 0 if self.settings.graceful_exit_0 else -int(signal.SIGTERM)
            loop.add_signal_handler(signal.SIGTERM, on_term, code)
        with contextlib.suppress(asyncio.CancelledError):
            await self.serve()
        return codes[0]

    def stand_still(self) -> None:
        """Or go on."""
        if self.going.is_set():
            self.going.clear()
        else:
            self.going.set()

    async def serve(self) -> None:
        server = await self.listen() if self.settings.bind_early else None
        await self.load()
        server = server or await self.listen()
        try:
            self.ready = True
            port = server.sockets[0].getsockname()[1]
            say(f"listening on http://{self.settings.host}:{port}\n")
            await self.chatter()
        finally:
            server.close()
            kept = self.plain_work if self.settings.term_waits else set()
            if self.settings.term_waits_for_all:
                kept = self.connections if self.running else set()
            for task in self.connections - kept:
                task.cancel()
            if kept:
                await asyncio.wait(kept)
            for task in self.connections:
                task.cancel()
            await asyncio.gather(*self.connections)

    async def load(self) -> None:
        settings, start = self.settings, time.monotonic()
        fails = settings.fail_on_start != OFF
        fails = fails and (not settings.fail_while or Path(settings.fail_while).exists())
        until = settings.load_s / 2 if fails else settings.load_s
        while (spent := time.monotonic() - start) < until:
            if not settings.silent_load:
                say(f"Loading weights: {100 * spent / settings.load_s:3.0f}% after {spent:.1f} s\n")
            await pass_time(min(0.2, until - spent), settings.load_burns)
        while settings.load_until and not Path(settings.load_until).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if fails:
            text = settings.fail_text
            say((Path(text[1:]).read_text() if text.startswith("@") else text) + "\n", fd=2)
            die(settings.fail_on_start)

    async def listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            reader = Reader(limit=1 << 20)
            return asyncio.StreamReaderProtocol(
                reader, lambda _, writer: self.serve_client(Connection(reader, writer)), loop=loop
            )

        try:
            address = self.settings.host, self.settings.port
            return await loop.create_server(protocol, *address, backlog=2048)
        except OSError as error:
            say(f"{error}\n", fd=2)
            die(3)
            raise

    async def chatter(self) -> None:
        """The unasked-for log output; never returns."""
        noise = b"\x1b[31m\x00\xff\xc3(" if self.settings.log_binary else b""
        if size := self.settings.log_line:
            say((noise + b"x" * size)[:size] + b"\n")
        start, written, line = time.monotonic(), 0, noise + b"flood " * 16 + b"\n"
        while self.settings.log_flood:
            due = int((time.monotonic() - start) * self.settings.log_flood) - written
            written += due // len(line) * len(line)
            say(line * (due // len(line)))
            await asyncio.sleep(0.05)
        await asyncio.Event().wait()

    async def serve_client(self, connection: Connection) -> None:
        task = this_task()
        self.connections.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while not connection.over and (request := await connection.request()):
                await self.answer(connection, request)
        self.connections.discard(task)
        connection.writer.close()

    async def answer(self, connection: Connection, request: Request) -> None:
        settings, route = self.settings, request.route
        if self.mute:
            with self.until_gone(connection):
                await asyncio.Event().wait()
        if route in ("GET /health", "GET /docs") and settings.hang_health:
            with self.until_gone(connection):
                await asyncio.Event().wait()
        elif route == "GET /health" and not settings.no_health:
            status = "ok" if self.ready else "loading"
            await connection.reply(200 if self.ready else 503, {"status": status})
        elif route == "GET /stats":
            names = "requests waiting running max_running finished failed aborted tokens asleep"
            stats = {name: getattr(self, name) for name in names.split()}
            await connection.reply(200, stats | {"order": list(self.order)})
        elif not self.ready:
            await connection.reply(503, openai_error("The model is still loading", 503))
        elif route == "GET /metrics":
            told = f"fake_tokens_total {self.tokens}\nfake_iterations_total {self.iterations}\n"
            await connection.reply(200, told.encode(), "text/plain")
        elif route in ("POST /sleep", "POST /wake_up") and settings.can_sleep:
            down = route == "POST /sleep"
            status = settings.sleep_status if down else settings.wake_status
            if status == 200:
                self.asleep = int(request.query.removeprefix("level=")) if down else 0
            await connection.reply(status, {"asleep": self.asleep})
        elif route == "GET /docs":
            await connection.reply(200, b"<html><title>fake engine</title></html>", "text/html")
        elif route == "GET /v1/models":
            async with self.in_line(settings.lock_all):
                card = {"id": settings.model, "object": "model", "created": 0, "owned_by": "fake"}
                await connection.reply(200, {"object": "list", "data": [card]})
        elif route == "POST /extras/tokenize/count":
            async with self.in_line(settings.lock_all):
                try:
                    count = len(str(json.loads(request.body)["input"]).split())
                    await connection.reply(200, {"count": count})
                except (ValueError, LookupError, TypeError):
                    await connection.reply(400, openai_error("input is missing", 400))
        elif route in ("POST /v1/completions", "POST /v1/chat/completions"):
            await self.generation(connection, request)
        else:
            await connection.reply(404, {"detail": "Not Found"})

    @contextlib.contextmanager
    def until_gone(self, connection: Connection) -> Iterator[None]:
        """Cancel the connection's task when its client leaves meanwhile."""
        task = this_task()
        connection.reader.on_gone = task.cancel
        if connection.reader.gone:
            task.cancel()
        try:
            yield
        finally:
            connection.reader.on_gone = None

    async def generation(self, connection: Connection, request: Request) -> None:
        """Run one generation and count how it ended; a client that leaves ends it."""
        try:
            job = Job(request, self.knobs, self.settings.model, self.requests + 1)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            await connection.reply(400, openai_error(f"Bad request: {error}", 400))
            return
        self.requests += 1
        deaf = job.knobs.no_cancel and not job.stream
        task = this_task()
        if not job.stream:
            self.plain_work.add(task)
        try:
            with contextlib.nullcontext() if deaf else self.until_gone(connection):
                run = self.stream if job.stream else self.plain
                if await self.refuse(connection, job) or not await run(connection, job):
                    self.failed += 1
                else:
                    self.finished += 1
        except (OSError, asyncio.CancelledError):
            self.aborted += 1
            connection.over = True
        finally:
            self.plain_work.discard(task)

    @contextlib.asynccontextmanager
    async def in_line(self, lock: bool) -> AsyncIterator[None]:
        """Wait for our turn where turns are taken."""
        if not lock:
            yield
            return
        self.waiting += 1
        try:
            await self.turn.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.turn.release()

    async def make(self, job: Job, emit: Callable[[str], Awaitable[None]]) -> None:
        """Make the tokens of one generation when its turn comes."""
        async with self.in_line(self.settings.serial or self.settings.interrupt):
            self.started += 1
            self.running += 1
            self.max_running = max(self.max_running, self.running)
            self.order.append(job.prompt[:64])
            if OFF != self.settings.oom_after < self.started:
                job.oom_at = (job.length + 1) // 2
            try:
                await self.make_tokens(job, emit)
            finally:
                self.running -= 1

    async def make_tokens(self, job: Job, emit: Callable[[str], Awaitable[None]]) -> None:
        knobs = job.knobs
        word = re.search(r"echo=(\w+)", job.prompt)
        await self.prefill(knobs)
        start = time.monotonic()
        for i in range(job.length + 1):
            await self.misbehave(job, i)
            if i == job.length:
                return
            due = start + i / knobs.tps if knobs.tps > 0 else 0.0
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.going.wait()
            self.tokens += 1
            self.iterations += 1
            await emit(f" {word[1]}" if word else f" w{i}" if i else "w0")

    async def prefill(self, knobs: Namespace) -> None:
        ends = time.monotonic() + knobs.prefill_s
        while (left := ends - time.monotonic()) > 0:
            await pass_time(min(0.1, left), knobs.prefill_burns)
            self.iterations += knobs.prefill_counts

    async def misbehave(self, job: Job, made: int) -> None:
        """What is due after `made` tokens."""
        knobs = job.knobs
        exit_at, _, exit_code = knobs.exit_code_after_tokens.partition(":")
        if made == job.oom_at:
            say(OOM[self.settings.oom_text], fd=2)
            die(1)
        if made == knobs.exit_after_tokens:
            die(-signal.SIGKILL)
        if exit_at and made == int(exit_at):
            die(int(exit_code))
        if made == knobs.eat_after_tokens:
            eat()
        if made == knobs.hang_after_tokens:
            await asyncio.Event().wait()
        if made == knobs.error_after_tokens:
            raise Breakage("error")
        if made == knobs.cut_after_tokens:
            raise Breakage("cut")
        if made and job.stream and self.settings.interrupt and self.waiting:
            raise Breakage("interrupt")

    async def refuse(self, connection: Connection, job: Job) -> bool:
        """The answers that are wrong from their first byte on; False if there is none."""
        await asyncio.sleep(job.knobs.header_delay_s)
        for letter in b"HTTP/1.1 200 Fake" if job.knobs.trickle_s else b"":
            await connection.send(bytes([letter]))
            await asyncio.sleep(job.knobs.trickle_s)
        if status := 503 if self.asleep else job.knobs.status:
            say(f"told to answer {status}\n", fd=2)
            more = f"Retry-After: {job.knobs.retry_after}\r\n" if job.knobs.retry_after else ""
            told = openai_error(f"Told to answer {status}", status)
            await connection.reply(status, told, more=more)
        elif (job.knobs.cut_after_tokens, job.knobs.cut_how) == (0, "html"):
            await connection.reply(200, HTML, "text/html")
        else:
            return False
        return True

    async def plain(self, connection: Connection, job: Job) -> bool:
        """Answer in one JSON body; False if it was made to fail."""
        texts: list[str] = []

        async def emit(text: str) -> None:
            texts.append(text)

        try:
            await self.make(job, emit)
        except Breakage as breakage:
            if str(breakage) == "cut":
                bad = json.dumps(job.whole("\0")).encode()
                await connection.cut(job.knobs.cut_how, bad, stream=False)
            else:
                await connection.reply(500, openai_error("The engine failed", 500))
            return False
        await connection.reply(200, job.whole("".join(texts)))
        return True

    async def stream(self, connection: Connection, job: Job) -> bool:
        """Answer in events; False if it was made to fail."""
        framing = "Transfer-Encoding: chunked"
        await connection.send(connection.head(200, "text/event-stream", framing))
        opening, ending = job.opening(), "finished"

        async def emit(text: str) -> None:
            await connection.chunk(b"".join(opening) + job.part(text))
            opening.clear()

        async def ping(every: float) -> None:
            while every > 0:
                await asyncio.sleep(every)
                await connection.chunk(b": ping - %d\n\n" % time.time())

        pings = asyncio.create_task(ping(job.knobs.keepalive_s))
        try:
            await self.make(job, emit)
        except Breakage as breakage:
            ending = str(breakage)
        finally:
            pings.cancel()
            await asyncio.gather(pings, return_exceptions=True)
        if ending == "cut":
            await connection.cut(job.knobs.cut_how, job.part("\0"), stream=True)
        else:
            last = self.last_events(job, ending)
            await connection.chunk(b"".join(opening + last if ending == "finished" else last))
            await connection.chunk(b"")
        return ending == "finished"

    def last_events(self, job: Job, ending: str) -> list[bytes]:
        knobs, done = job.knobs, [event(b"[DONE]")]
        if ending == "interrupt":
            return done
        if ending == "error":
            failure = event(openai_error("The engine failed", 500))
            return [failure] + (done if knobs.done_after_error else [])
        last = [] if knobs.no_finish else [job.part(finish=job.finish)]
        if knobs.usage_in_stream and job.usage_wanted:
            last.append(event(job.envelope | {"choices": []} | job.usage()))
        return last + ([] if knobs.no_done else done)


def fork_grandchild() -> None:
    """Leave a daemon behind that no process group of ours reaches."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if grandchild := os.fork():
        say(f"grandchild {grandchild}\n")
        os._exit(0)
    time.sleep(600)
    os._exit(0)


def vital_child(title: str) -> None:
    """A shell that waits for the end of its input, which is ours."""
    script = 'echo "vital $$" >&2; read -r line; exit "${line:-1}"'
    subprocess.Popen((title, "-c", script), executable="/bin/sh", stdin=subprocess.PIPE)


def parse_args() -> tuple[Namespace, Namespace]:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage="engine.py [--KNOB [VALUE]]...", allow_abbrev=False)
    parser.description, parser.formatter_class = __doc__, raw
    for name, default in (PROCESS_KNOBS | GENERATION_KNOBS).items():
        flag, quiet = "--" + name.replace("_", "-"), argparse.SUPPRESS
        if default is False:
            parser.add_argument(flag, action="store_true", help=quiet)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=quiet)
    late = parser.add_argument("--bind-late", dest="bind_early", action="store_false", help=quiet)
    late.default = False
    given = vars(parser.parse_args())
    try:
        settings = Namespace(**{name: given[name] for name in PROCESS_KNOBS})
        knobs = check(Namespace(**{name: given[name] for name in GENERATION_KNOBS}))
        if settings.oom_text not in OOM:
            raise ValueError(f"no such oom_text: {settings.oom_text}")
    except ValueError as error:
        parser.error(str(error))
    return settings, knobs


def main() -> int:
    settings, knobs = parse_args()
    if settings.print_env:
        say(f"environment: {json.dumps(sorted(os.environ))}\n")
    if settings.fork_grandchild:
        fork_grandchild()
    if settings.vital_child:
        vital_child(settings.vital_child)
    if settings.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = asyncio.run(Engine(settings, knobs).live())
    if code < 0:
        die(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
