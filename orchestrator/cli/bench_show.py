"""How a benchmark shows itself on a terminal: progress, then tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from orchestrator.bench import crew, words
from orchestrator.bench.load import Load
from orchestrator.cli.show import pairs, print_plain

_QUIET_STEP_S = 5.0


class Watching:
    """Told of progress: a bar on a terminal, a line every five seconds elsewhere."""

    def __init__(self, notes: Console, load: Load) -> None:
        self._notes, self._load = notes, load
        self._began: dict[str, float] = {}
        self._said_at = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(), console=notes, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Watching:
        if self._notes.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._notes.is_terminal:
            self._bar.stop()

    def __call__(self, what: str, progress: crew.Progress) -> None:
        """The latest of one phase."""
        now = time.monotonic()
        began = self._began.setdefault(what, now - 0.2)  # the first word comes that late
        told = f"{progress.done} done"
        if seconds := now - began:
            told += f", {progress.tokens / seconds:.0f} tokens/s"
        if progress.failed:
            told += f", {progress.failed} failed"
        if self._notes.is_terminal:
            share = self._share(what, progress, now - began)
            if what not in self._tasks:
                for task in self._tasks.values():
                    self._bar.update(task, completed=1, visible=False)
                self._tasks[what] = self._bar.add_task(what, total=1, told="")
            self._bar.update(self._tasks[what], completed=share, told=told)
        elif now - self._said_at >= _QUIET_STEP_S:
            self._said_at = now
            print_plain(self._notes, f"{what}: {told}")

    def _share(self, what: str, progress: crew.Progress, seconds: float) -> float:
        load = self._load
        if what.startswith("warm-up"):
            return progress.done / max(1, load.warmup)
        shares = [0.0]
        if load.requests_a_round:
            shares.append(progress.done / load.requests_a_round)
        if load.duration:
            shares.append(seconds * load.rounds / load.duration)
        return min(1.0, max(shares))


def show(console: Console, report: dict[str, Any]) -> None:
    """The report as tables."""
    targets = report["targets"]
    for index, target in enumerate(targets):
        found = target["figures"]
        requests = found["requests"]
        table = pairs()
        letter = f"{'AB'[index]}  " if len(targets) == 2 else ""
        model = f", model {target['model']}" if target["model"] else ""
        table.add_row("target", Text(f"{letter}{target['url']}{model}, {target['path']}"))
        table.add_row(
            "throughput",
            f"{found['output_tokens_per_s']:.1f} output tokens/s, "
            f"{found['requests_per_s']:.3g} requests/s",
        )
        table.add_row("requests", Text(f"{requests['ok']} whole of {requests['sent']} sent, in "
                                       f"{found['window_s']:.2f} s"))  # fmt: skip
        for problem in words.problem_words(found):
            table.add_row("", Text(problem, style="red"))
        if found["goodput"]:
            good = found["goodput"]
            told = f"{good['requests_per_s']:.3g} requests/s, {good['share']:.1%} "
            table.add_row("goodput", told + words.slo_words(good["slo"]))
        table.add_row("tokens", words.token_words(found))
        console.print(table)
        _rows(console, words.LATENCY_HEAD, words.latency_rows(found))
    if report["comparison"]:
        console.print(Text("B over A, round by round", style="bold"))
        _rows(console, words.RATIO_HEAD, words.ratio_rows(report["comparison"]))
    table = pairs()
    table.add_row("load", words.load_words(report["load"]) + f"; seed {report['load']['seed']}")
    table.add_row("client", words.client_words(report["client"]))
    for told in report["warnings"]:
        table.add_row(Text("mind", style="yellow"), Text(told))
    console.print(table)


def _rows(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
