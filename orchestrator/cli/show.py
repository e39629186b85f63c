"""What the commands print for people. Every function takes values and writes to a console."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from engine_launchers.base import EnginePlan, LaunchSpec
from engine_launchers.machine import HardwareProfile


def gib(size: int) -> str:
    """Bytes as GiB, or MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def hardware(console: Console, profile: HardwareProfile) -> None:
    """The machine."""
    table = _pairs()
    table.add_row("platform", profile.platform)
    table.add_row("cores", f"{profile.cpu_cores} physical, usable")
    table.add_row("isa", " ".join(profile.isa) or "unknown")
    table.add_row("memory", f"{gib(profile.ram_available)} available of {gib(profile.ram_total)}")
    for gpu in profile.gpus:
        free = f"{gib(gpu.vram_free)} free of {gib(gpu.vram_total)}"
        table.add_row(f"gpu {gpu.index}", f"{gpu.name}, {free}")
    if not profile.gpus:
        table.add_row("gpu", "none")
    for note in profile.notes:
        table.add_row("note", f"[dim]{note}[/dim]")
    console.print(table)


def plan(console: Console, chosen: EnginePlan, spec: LaunchSpec) -> None:
    """The plan with its reasons, what was refused, and the exact command."""
    tuning = chosen.tuning
    table = _pairs()
    table.add_row("plan", chosen.id)
    table.add_row("tier", chosen.tier)
    table.add_row("engine", f"{chosen.engine} {chosen.engine_version}")
    model = chosen.model
    table.add_row("model", f"{model.id}: {model.params / 1e6:,.1f} M weights, {model.quantization}")
    table.add_row("context", f"{tuning.max_model_len} tokens")
    table.add_row("threads", str(tuning.threads))
    for part in chosen.estimate:
        parts = f"weights {gib(part.weights)}, KV {gib(part.kv)}, compute {gib(part.activations)}"
        table.add_row(part.device, f"{gib(part.total)}: {parts}, overhead {gib(part.overhead)}")
    if chosen.expected.tokens_per_second:
        low, high = chosen.expected.tokens_per_second
        table.add_row("expected", f"{low:g}-{high:g} tokens/s ({chosen.expected.source})")
    for reason in chosen.reasons:
        table.add_row("because", reason)
    for refused in chosen.rejected:
        table.add_row("rejected", f"{refused.what}: {refused.why}")
    console.print(table)
    console.print("[bold]command[/bold] (the port is chosen at launch)")
    print_plain(console, "  " + shlex.join(spec.argv))


_COLUMNS = ("ID", "STATE", "PID", "UP", "RESTARTS", "RUN", "WAIT", "MODEL", "ENGINE", "URL")
_COLOURS = {"ready": "green", "failed": "red", "stopped": "dim"}


def engines(console: Console, rows: list[dict[str, Any]]) -> None:
    """One line per engine and gateway, never cut: a terminal may wrap, a pipe gets it whole."""
    cells = [
        (
            row["id"],
            row["state"],
            str(row["pid"] or "-"),
            "-" if row["uptime_s"] is None else duration(row["uptime_s"]),
            str(row["restarts"]),
            str(row["in_flight"]),
            str(row["waiting"]),
            row["model"] or "-",
            row["engine"] or "-",
            row["url"] or "-",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (_COLUMNS, *cells)) for i in range(len(_COLUMNS))]
    for line in (_COLUMNS, *cells):
        padded = [word.ljust(width) for word, width in zip(line, widths, strict=True)]
        colour = "bold" if line is _COLUMNS else _COLOURS.get(line[1], "yellow")
        padded[1] = f"[{colour}]{padded[1]}[/{colour}]"
        console.print("  ".join(padded).rstrip(), highlight=False, soft_wrap=True)
    for row in rows:
        if row["state"] not in {"ready", "starting"}:
            print_plain(console, f"{row['id']}: {row['why']}")


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h10m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def print_plain(console: Console, text: str) -> None:
    """Text as it is: no wrapping, no markup; what is printed can be pasted."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
