"""One line an event, whatever is in it: for people, or one JSON object."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from orchestrator.observability.logs import Form, configure, told

_log = logging.getLogger("engineroom.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(form: Form, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What comes of a few records."""
    configure("info", form)
    _log.debug("unseen")
    _log.info("state", extra=told(engine="demo-0", why="it was asked", none=None, number=3))
    _log.warning("odd \x1b[31m\u2028 %s", "a\nb")
    try:
        raise ValueError("no")
    except ValueError:
        _log.exception("failed")
    return capsys.readouterr().err.splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *rest = lines("text", capsys)
    assert first.endswith("INFO    engineroom.test state engine=demo-0 why='it was asked' number=3")
    assert second.endswith(r"odd \x1b[31m\u2028 a\nb")
    assert rest[0].endswith("ERROR   engineroom.test failed")
    assert rest[-1] == "ValueError: no"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (json.loads(line) for line in lines("json", capsys))
    at = first.pop("at")
    assert at.endswith("+00:00")
    assert first == {
        "level": "info", "logger": "engineroom.test", "message": "state", "engine": "demo-0",
        "why": "it was asked", "number": 3,
    }  # fmt: skip
    assert second["message"] == "odd \x1b[31m\u2028 a\nb"
    assert third["level"] == "error"
    assert third["error"].endswith("ValueError: no")
