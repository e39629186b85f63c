"""Runs a short program that may hang or crash, and gives back what it printed or a note why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_REAP_S = 1.0  # a process stuck inside a driver cannot even be killed; it is left behind


@dataclass(frozen=True)
class Output:
    """What a program printed, or why it printed nothing of use. Exactly one is set."""

    text: str | None = None
    fault: str | None = None


def run(argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None) -> Output:
    """The program's standard output. Never raises for what the program does, never waits longer
    than `timeout_s` and a second.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    except OSError as error:
        return Output(fault=f"could not be started: {error.strerror}")
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _abandon(process)
        return Output(fault=f"did not answer within {timeout_s:g} s")
    if process.returncode < 0:
        return Output(fault=f"ended by {_signal(-process.returncode)}")
    if process.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        return Output(fault=f"ended with status {process.returncode}: {''.join(last)[:200]}")
    return Output(text=out.decode(errors="replace"))


def run_json(
    argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> dict[str, Any] | str:
    """The JSON object on the last line that a program printed, or in words what went wrong."""
    output = run(argv, timeout_s, env)
    if output.text is None:
        return output.fault or "printed nothing"
    lines = output.text.strip().splitlines()
    try:
        document = json.loads(lines[-1] if lines else "")
    except ValueError:
        return "printed no JSON document"
    return document if isinstance(document, dict) else "printed no JSON document"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started, and wait only as long as a healthy kernel needs."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    else:
        process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        return
