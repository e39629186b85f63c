"""What the commands print for people. Every function takes values and writes to a console."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine_launchers.machine import Gpu, HardwareProfile


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
    table.add_row("platform", Text(profile.platform))
    table.add_row("processor", Text(profile.cpu_name or "unknown"))
    nodes = f", {profile.numa_nodes} NUMA nodes" if profile.numa_nodes > 1 else ""
    table.add_row("cores", f"{profile.cpu_cores} physical, usable{nodes}")
    table.add_row("isa", " ".join(profile.isa) or "unknown")
    table.add_row("memory", f"{gib(profile.ram_available)} available of {gib(profile.ram_total)}")
    if profile.memory_bandwidth:
        rate = f"{profile.memory_bandwidth / 1e9:.1f} GB/s read, measured with all usable cores"
        table.add_row("bandwidth", rate)
    for gpu in profile.gpus:
        table.add_row(f"gpu {gpu.index}", Text(f"{gpu.name}, {_gpu_facts(gpu)}"))
        for process in gpu.processes:
            held = gib(process.used) if process.used is not None else "an unknown amount"
            told = f"{process.name or 'a process'} (pid {process.pid}): {held}"
            table.add_row("", Text(told, style="dim"))
    if not profile.gpus:
        table.add_row("gpu", "none")
    for link in profile.links:
        lanes = f" x{link.lanes}" if link.lanes else ""
        table.add_row("link", f"gpu {link.a} - gpu {link.b}: {link.kind}{lanes}")
    for note in profile.notes:
        table.add_row("note", Text(note, style="dim"))
    console.print(table)


def _gpu_facts(gpu: Gpu) -> str:
    told = [f"{gib(gpu.vram_free)} free of {gib(gpu.vram_total)}"]
    if gpu.compute_capability:
        told.append(f"compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}")
    for name, value in (("driver", gpu.driver), ("runtime", gpu.runtime_version)):
        if value:
            told.append(f"{name} {value}")
    if gpu.link:
        told.append(gpu.link)
    return ", ".join(told)


_COLUMNS = (
    *("ID", "STATE", "MODEL", "ENGINE", "RUNG", "PLANNED", "HELD", "TOK/S", "RUN", "WAIT"),
    *("UP", "RESTARTS", "PID"),
)
_COLOURS = {"ready": "green", "failed": "red", "stopped": "dim", "sleeping": "dim"}


def engines(console: Console, rows: list[dict[str, Any]]) -> None:
    """One line per engine and gateway, never cut: a terminal may wrap, a pipe gets it whole."""
    columns(
        console,
        [_COLUMNS, *(_engine(row) for row in rows)],
        lambda row: _COLOURS.get(row[1], "yellow"),
    )
    for row in rows:
        if load := row["loading"]:
            done = "" if load["percent"] is None else f", {load['percent']:.0f} %"
            told = f"{load['phase'] or 'starting'}{done}, {duration(load['seconds'])}"
            print_plain(console, f"{row['id']}: {told}")
        elif row["state"] not in {"ready", "starting"} or row["restarts"]:
            why = row["why"] if row["state"] != "ready" else f"last restart after {row['cause']}"
            print_plain(console, f"{row['id']}: {why}")


def _engine(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        row["state"],
        row["model"] or "-",
        row["engine"] or "-",
        "-" if row["rung"] is None else str(row["rung"]),
        _memory(row["memory_planned"]),
        _memory(row["memory_measured"]),
        f"{row['tokens_per_second']:.0f}" if row["tokens_per_second"] else "-",
        str(row["in_flight"]),
        str(row["waiting"]),
        "-" if row["uptime_s"] is None else duration(row["uptime_s"]),
        str(row["restarts"]),
        str(row["pid"] or "-"),
    )


def _memory(devices: dict[str, int]) -> str:
    """All devices together; "-" where nothing is known."""
    return gib(sum(devices.values())) if any(devices.values()) else "-"


def columns(
    console: Console,
    rows: Sequence[Sequence[str]],
    colour: Callable[[Sequence[str]], str] | None = None,
) -> None:
    """A table that is never cut; the first row is its head, `colour` that of a second cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        style = "bold" if row is rows[0] else colour(row) if colour else ""
        text = Text()
        for at, (word, width) in enumerate(zip(row, widths, strict=True)):
            tinted = style if row is rows[0] or at == 1 else ""
            text.append(word.ljust(width) + "  ", style=tinted)
        text.rstrip()
        console.print(text, soft_wrap=True)


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
