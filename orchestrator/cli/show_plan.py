"""What `engineroom plan` prints for people: bars of memory, speeds, reasons, refusals."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from engine_launchers.base import EnginePlan, Expected, LaunchSpec, MemoryEstimate, Rejection
from engine_launchers.machine import HardwareProfile
from orchestrator.advice import Line
from orchestrator.cli.show import columns, gib, pairs, print_plain

_WIDTH = 44
_SEVEN_B = (5e9, 10e9)  # weights of the models that the guide gives figures for
_FEW = 5  # rejected plans that are shown without --explain
_PARTS = (  # field, sign, colour, name
    ("weights", "█", "blue", "weights"),
    ("kv", "▓", "green", "KV cache"),
    ("activations", "▒", "yellow", "activations"),
    ("overhead", "░", "magenta", "overhead"),
    ("others", "x", "red", "others' memory"),
)


def plan(console: Console, chosen: EnginePlan, spec: LaunchSpec, explain: bool = False) -> None:
    """The plan: what, where, how fast, why, why not otherwise, and the exact command."""
    tuning, model = chosen.tuning, chosen.model
    table = pairs()
    table.add_row("plan", Text(chosen.id, style="bold cyan"))
    table.add_row("tier", chosen.tier)
    table.add_row("engine", f"{chosen.engine} {chosen.engine_version}")
    table.add_row(
        "model", Text(f"{model.id}: {_weights(model.params)} weights, {model.quantization}")
    )
    table.add_row("from", Text(model.source))
    table.add_row("context", f"{tuning.max_model_len} tokens, {_at_once(tuning.max_concurrency)}")
    if tuning.threads:
        table.add_row("threads", str(tuning.threads))
    for name, part in _alike(chosen.estimate):
        table.add_row(name, bar(part))
        table.add_row("", amounts(part))
    table.add_row("", legend())
    table.add_row("expected", Text(speed(chosen.expected)))
    if chosen.guide and (explain or _SEVEN_B[0] <= model.params <= _SEVEN_B[1]):
        table.add_row("guide", Text(speed(chosen.guide)))
    for reason in chosen.reasons:
        table.add_row("because", Text(reason))
    refused = _worth_telling(chosen.rejected)
    shown = refused if explain else refused[:_FEW]
    for item in shown:
        table.add_row("rejected", Text(f"{item.what}: {item.why}"))
    if len(shown) < len(refused):
        table.add_row("", f"[dim]and {len(refused) - len(shown)} more: --explain[/dim]")
    if explain:
        for step in chosen.ladder:
            table.add_row("if memory runs out", Text(step))
    console.print(table)
    console.print("[bold]command[/bold] (the port is chosen at launch)")
    env = " ".join(f"{name}={shlex.quote(value)}" for name, value in spec.env.items())
    print_plain(console, "  " + (f"{env} " if env else "") + shlex.join(spec.argv))


def _alike(estimate: Sequence[MemoryEstimate]) -> list[tuple[str, MemoryEstimate]]:
    """Devices with equal figures under one name: `gpu:0 gpu:1`, or `gpu:0 .. gpu:7`."""
    groups: dict[MemoryEstimate, list[str]] = {}
    for part in estimate:
        groups.setdefault(part.model_copy(update={"device": ""}), []).append(part.device)
    return [
        (" ".join(names) if len(names) < 3 else f"{names[0]} .. {names[-1]}", part)
        for part, names in groups.items()
    ]


def bar(part: MemoryEstimate) -> Text:
    """One device's memory as a bar; what does not fit is not drawn beyond its end."""
    whole = max(part.capacity, part.total + part.others, 1)
    text, drawn, seen = Text("["), 0, 0
    for field, sign, colour, _ in _PARTS:
        seen += getattr(part, field)
        upto = min(_WIDTH, round(seen / whole * _WIDTH))
        text.append(sign * (upto - drawn), style=colour)
        drawn = max(drawn, upto)
    text.append("·" * (_WIDTH - drawn), style="dim")
    text.append(f"] {gib(part.total)} of {gib(whole)}")
    return text


def amounts(part: MemoryEstimate) -> Text:
    """The same in figures, free memory last."""
    told = [
        f"{name} {gib(getattr(part, field))}"
        for field, _, _, name in _PARTS
        if getattr(part, field)
    ]
    free = max(0, part.capacity - part.total - part.others)
    return Text(", ".join([*told, f"free {gib(free)}"]), style="dim")


def legend() -> Text:
    """Which sign means what."""
    text = Text(style="dim")
    for _, sign, colour, name in _PARTS:
        text.append(sign, style=colour).append(f" {name}  ")
    return text.append("· free")


def speed(expected: Expected) -> str:
    """One line of figures and their source."""
    if expected.tokens_per_second is None:
        return f"unknown: {expected.source}"
    low, high = expected.tokens_per_second
    rate = _figure(low) if low == high else f"{_figure(low)}-{_figure(high)}"
    told = [f"{rate} tokens/s for one stream"]
    if expected.batch_tokens_per_second:
        told.append(f"{_figure(expected.batch_tokens_per_second)} tokens/s for all")
    if expected.ttft_seconds:
        first, last = expected.ttft_seconds
        of = f" of {expected.prompt_tokens} tokens" if expected.prompt_tokens else ""
        told.append(f"TTFT {_seconds(first)}-{_seconds(last)} for a prompt{of}")
    return f"{', '.join(told)} ({expected.source})"


def ranking(
    console: Console, hardware: HardwareProfile, lines: Sequence[Line], explain: bool = False
) -> None:
    """`--all`: what runs here, the largest first, and what does not."""
    names = ", ".join(gpu.name for gpu in hardware.gpus) or "no GPU"
    ram = gib(hardware.ram_available)
    print_plain(console, f"{names}; {hardware.cpu_cores} cores; {ram} of RAM available")
    rows = [("MODEL", "PLAN", "CONTEXT", "MEMORY", "TOKENS/S")]
    for line in lines:
        if line.plan is not None:
            found = line.plan
            held = sum(part.total for part in found.estimate)
            context = str(found.tuning.max_model_len)
            rows.append((line.name, found.id, context, gib(held), _rate(found.expected)))
    columns(console, rows)
    refused = [line for line in lines if line.plan is None]
    if not refused:
        return
    console.print(f"[bold]does not fit[/bold] ({len(refused)})", highlight=False)
    if not explain:
        print_plain(console, ", ".join(line.name for line in refused) + "; why: --explain")
        return
    for line in refused:
        print_plain(console, f"{line.name}: {line.why}")


def line_as_json(line: Line) -> dict[str, Any]:
    """One model of the ranking."""
    found = line.plan.model_dump(mode="json") if line.plan else None
    return {"model": line.name, "plan": found, "why": line.why or None}


def _rate(expected: Expected) -> str:
    pair = expected.tokens_per_second
    return f"{_figure(sum(pair) / 2)}" if pair else "?"


def _weights(params: int) -> str:
    return f"{params / 1e9:,.1f} B" if params >= 1e9 else f"{params / 1e6:,.1f} M"


def _at_once(sequences: int | None) -> str:
    return "one request at a time" if sequences == 1 else f"up to {sequences} requests at a time"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _worth_telling(rejected: Sequence[Rejection]) -> list[Rejection]:
    """Refusals with numbers first, then the rest."""
    return sorted(rejected, key=lambda item: item.need is None)
