"""What the gateway's protocol uses of uvicorn's, which is no public interface of it.

A new uvicorn that changes any of it fails here first, by name.
"""

from __future__ import annotations

import asyncio
import inspect

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

ATTRIBUTES = {
    "cycle", "expect_100_continue", "flow", "headers", "loop", "parser", "pipeline", "scope",
    "server_state", "transport",
}  # fmt: skip
METHODS = {
    "_start_asgi_task": ["cycle", "app"],
    "connection_lost": ["exc"],
    "connection_made": ["transport"],
    "data_received": ["data"],
    "on_body": ["body"],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_message_begin": [],
    "on_message_complete": [],
    "on_response_complete": [],
    "pause_writing": [],
    "resume_writing": [],
    "shutdown": [],
}


async def test_the_protocol_has_what_ours_builds_on() -> None:
    made = HttpToolsProtocol(
        config=Config(app=lambda scope: None, lifespan="off"),
        server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop(),
    )  # fmt: skip
    assert set(vars(made)) >= ATTRIBUTES
    assert vars(made)["cycle"] is None
    assert not made.pipeline
    assert isinstance(made.parser, httptools.HttpRequestParser)
    for name, wanted in METHODS.items():
        found = list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)[1:]
        assert found == wanted, name


def test_it_looks_at_no_more_of_a_cycle_than_ours_has() -> None:
    source = inspect.getsource(HttpToolsProtocol)
    looked = {
        word.split("(")[0].split(")")[0].split(":")[0].split(" ")[0].split("\n")[0]
        for word in source.split("self.cycle.")[1:] + source.split("existing_cycle.")[1:]
    }
    ours = {"response_complete", "disconnected", "message_event.set", "keep_alive"}
    assert looked - {"body", "more_body"} == ours


def test_a_cycle_of_its_own_answers_by_the_callback_that_ours_replaces() -> None:
    assert "on_response" in inspect.signature(RequestResponseCycle).parameters
    assert "on_response=self.on_response_complete" in inspect.getsource(httptools_impl)
    assert inspect.iscoroutinefunction(RequestResponseCycle.run_asgi)
