"""What the commands print for people. Every function takes values and writes to a console."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from engine_launchers.machine import HardwareProfile


def gib(size: int) -> str:
    """Bytes as GiB, or MiB below one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def pairs() -> Table:
    """A table of names and values, without lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def hardware(console: Console, profile: HardwareProfile) -> None:
    """The machine."""
    table = pairs()
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
