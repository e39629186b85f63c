"""What `engineroom serve` shows while it starts, and once it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from orchestrator import __version__
from orchestrator.cli.progress import InstallationLine
from orchestrator.cli.show import gib, print_plain
from orchestrator.engines.choosing import Requirement
from orchestrator.serve import Addresses
from orchestrator.startup import Decision

QUESTION = "What products do you recommend?"


class Screen:
    """Tells a person, on standard error and output, or a program: one JSON line when it is ready.

    With `steps` a program is told what happens before, too, in lines `{"step": text, "seconds"}`.
    """

    def __init__(self, out: Console, notes: Console, as_json: bool, steps: bool = False) -> None:
        self._out, self._notes, self._json = out, notes, as_json
        self._steps = steps and as_json
        self._several = False
        self._line = InstallationLine(notes, "the engine", self._step)

    def offer(self, need: Requirement) -> bool:
        """Ask a person at a terminal whether to install an engine; programs decline."""
        if self._json or not (sys.stdin.isatty() and self._notes.is_terminal):
            return False
        size = gib(need.disk_bytes)
        question = f"{need.engine} {need.version} is not installed (up to {size} of disk). Install"
        return typer.confirm(question, default=True, err=True)

    def begin(self, decisions: Sequence[Decision], failed: str = "") -> None:
        """Before anything is started; `failed` says why it is begun again."""
        self._notes.print(f"[bold]Engine Room[/bold] {__version__}")
        self._several = len(decisions) > 1
        if failed:
            self._say(failed)
        for each in decisions:
            plan = each.plan
            need = gib(sum(part.total for part in plan.estimate))
            line = f"{plan.model.id} on {plan.engine} {plan.engine_version}, tier {plan.tier}, "
            self._say(f"{line}context {plan.tuning.max_model_len}, about {need} of memory")
            if each.second:
                self._say(each.second)

    def _say(self, line: str) -> None:
        print_plain(self._notes, line)
        self._step(line, 0)

    def installing(self, line: str, seconds: float) -> None:
        """One line that is rewritten on a terminal, a line every ten seconds elsewhere."""
        self._line(line, seconds)

    def _step(self, text: str, seconds: float) -> None:
        if self._steps:
            self._tell({"step": text, "seconds": round(seconds, 3)})

    def _tell(self, value: dict[str, object]) -> None:
        self._out.file.write(json.dumps(value) + "\n")
        self._out.file.flush()

    def ready(self, addresses: Addresses, seconds: float) -> None:
        """Where it listens, and a line to paste."""
        self._line.end()
        if self._json:
            took = round(seconds, 3)
            self._tell({**addresses.__dict__, "start_seconds": took, "version": __version__})
            return
        named = {"model": addresses.model} if self._several else {}
        body = json.dumps({"prompt": QUESTION, **named})
        print_plain(
            self._out,
            f"ready after {seconds:.1f} s\n"
            f"  gateway  {addresses.gateway}  (OpenAI API under /v1)\n"
            f"  admin    {addresses.admin}/docs  (token in {addresses.token_file})\n"
            "try:\n"
            f"  curl -s {addresses.gateway}/generate -H 'content-type: application/json' "
            f"-d '{body}'\n"
            "stop with Ctrl-C",
        )
        self._out.file.flush()
