"""Recorded machines: `machines()` gives the HardwareProfile of every folder in fixtures/machines.

A folder holds the raw material in its real formats, and what it must come to:

    machine.json    system, architecture, environment, affinity; `about` says what it stands for
    files.json      path to text, of /proc, /sys and /dev
    cpuinfo.txt     /proc/cpuinfo; with `topology` in machine.json, one block that stands for all
    nvml.json       the document of `nvml_child.py`
    sysctl.txt      a Mac's `sysctl -a`, shortened
    displays.json   a Mac's `system_profiler SPDisplaysDataType -json`
    expected.json   written by hand; see tests/unit/test_machines.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine_launchers.machine import HardwareProfile
from orchestrator.hardware.facts import Facts, assemble
from orchestrator.hardware.files import Recorded, cpu_list

FOLDER = Path(__file__).parent / "fixtures" / "machines"


def names() -> list[str]:
    """The recorded machines' names."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def machines() -> dict[str, HardwareProfile]:
    """Every recorded machine's profile by its name, through the same assembly as `probe()`."""
    return {name: assemble(facts(name)) for name in names()}


def expected(name: str) -> dict[str, Any]:
    """What the recording must come to."""
    document: dict[str, Any] = json.loads((FOLDER / name / "expected.json").read_text())
    return document


def facts(name: str) -> Facts:
    """One recording as `probe.collect` would have read it there."""
    folder = FOLDER / name
    machine = json.loads((folder / "machine.json").read_text())
    texts: dict[str, str] = json.loads(_text(folder / "files.json") or "{}")
    cpuinfo = _text(folder / "cpuinfo.txt")
    if cpuinfo:
        shape = machine.get("topology")
        texts["/proc/cpuinfo"] = _repeated(cpuinfo, shape) if shape else cpuinfo
    nvml = _text(folder / "nvml.json")
    allowed = machine.get("allowed")
    return Facts(
        files=Recorded(texts),
        system=machine["system"],
        machine=machine["machine"],
        nvml=json.loads(nvml) if nvml else machine.get("nvml", "no NVIDIA driver library"),
        ram=tuple(machine.get("ram", (0, 0))),
        env=machine.get("env", {}),
        allowed=None if allowed is None else cpu_list(allowed),
        cores=machine.get("cores"),
        isa=tuple(machine.get("isa", ())),
        sysctl=_text(folder / "sysctl.txt"),
        displays=_text(folder / "displays.json"),
    )


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _repeated(block: str, shape: dict[str, int]) -> str:
    """The block once per logical processor, numbered as Linux does: siblings after all cores."""
    sockets, cores, threads = shape["sockets"], shape["cores"], shape["threads"]
    found: list[str] = []
    for number in range(sockets * cores * threads):
        socket, core = number // cores % sockets, number % cores
        own = {"processor": number, "physical id": socket, "core id": core}
        lines = (line.partition(":") for line in block.strip().splitlines())
        found.append(
            "\n".join(f"{key}: {own.get(key.strip(), value.strip())}" for key, _, value in lines)
        )
    return "\n\n".join(found) + "\n"
