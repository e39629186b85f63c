"""Looks at every environment, what was left behind, and the tools: what `engines doctor` tells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from engine_launchers.value import Value
from orchestrator.engines.choosing import refusal, requirement
from orchestrator.engines.locks import try_lock
from orchestrator.engines.marker import read_marker
from orchestrator.engines.removing import size
from orchestrator.engines.shelf import Installed, Shelf

_CHECK_S = 180.0
_MIB = 2**20


class Finding(Value):
    """One thing that was looked at; `wrong` needs doing something, which `text` names."""

    about: str
    level: Literal["ok", "note", "wrong"]
    text: str


def examine(
    shelf: Shelf, hardware: HardwareProfile, engine: EngineName | None = None
) -> Iterator[Finding]:
    """Every finding, as it is made: a check may take many seconds."""
    for row in shelf.installed():
        if engine in (None, row.engine):
            yield _environment(shelf, row, hardware)
    yield from _leftovers(shelf, engine)
    yield from _tools(shelf)
    yield from _accelerators(shelf, hardware, engine)


def _environment(shelf: Shelf, row: Installed, hardware: HardwareProfile) -> Finding:
    about = row.folder.name
    again = f"run `engineroom engines install {row.engine} --version {row.version}`"
    if why := shelf.objection(row, hardware):
        return Finding(about=about, level="wrong", text=f"{why}: {again}, or remove it")
    need = requirement(shelf.table, row.engine, hardware, row.version, row.flavour)
    names = {
        "{engine}": str(row.folder / need.program),
        "{python}": str(row.folder / "bin" / "python"),
    }
    for argv in need.check:
        if why := _run([names.get(word, word) for word in argv], shelf.environment):
            return Finding(
                about=about, level="wrong", text=f"does not start: {why}: remove it and {again}"
            )
    return Finding(
        about=about, level="ok", text=f"{row.engine} {row.version} ({row.flavour}) starts"
    )


def _run(argv: list[str], environment: dict[str, str]) -> str:
    """Why a command failed, in its own last line; empty where it did not."""
    try:
        answer = subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_CHECK_S:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    lines = answer.stdout.decode(errors="replace").strip().splitlines()
    return "" if answer.returncode == 0 else (lines or [f"exit code {answer.returncode}"])[-1]


def _leftovers(shelf: Shelf, engine: EngineName | None) -> Iterator[Finding]:
    for folder in sorted(shelf.folder.iterdir()) if shelf.folder.is_dir() else []:
        name = folder.name.removeprefix(".removing-")
        owner = next((each for each in shelf.table.engines if name.startswith(f"{each}-")), None)
        if owner is None or not folder.is_dir() or engine not in (None, owner):
            continue
        if read_marker(folder) and folder.name == name:
            continue
        if _busy(folder.with_name(f"{name}.lock")):
            yield Finding(about=name, level="note", text="is being installed now")
            continue
        yield Finding(
            about=folder.name,
            level="wrong",
            text=f"was left by an interrupted installation, {size(folder) / _MIB:.0f} MiB: install "
            f"{owner} again, or remove {folder}",
        )
    for folder in (shelf.cache / "builds", shelf.cache / "sources"):
        if folder.is_dir():
            text = f"{size(folder) / _MIB:.0f} MiB kept for later builds; may be deleted: {folder}"
            yield Finding(about=f"cache/{folder.name}", level="note", text=text)


def _busy(lock: Path) -> bool:
    if not lock.exists():
        return False
    with lock.open() as file:
        return not try_lock(file.fileno())


def _tools(shelf: Shelf) -> Iterator[Finding]:
    path = shelf.environment.get("PATH")
    for about, names, missing in (
        ("installer", ("uv",), "pip of this Python is used; uv would be faster"),
        ("C++ compiler", ("c++", "g++", "clang++"), "missing: llama.cpp cannot be built here"),
        ("CUDA compiler", ("nvcc",), "missing: llama.cpp cannot be built for NVIDIA GPUs"),
    ):
        found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
        yield Finding(about=about, level="ok" if found else "note", text=found or missing)


def _accelerators(
    shelf: Shelf, hardware: HardwareProfile, engine: EngineName | None
) -> Iterator[Finding]:
    """What keeps an engine from the GPUs of this machine."""
    vendors = {"nvidia": "cuda", "amd": "rocm", "apple": "metal"}
    here = {vendors.get(gpu.vendor) for gpu in hardware.gpus}
    for name, entry in shelf.table.engines.items():
        for flavour in entry.default.flavours:
            if engine in (None, name) and flavour in here:
                why = refusal(name, entry.default, flavour, hardware)
                text = why or f"{name} {entry.default.version} runs on the GPUs here"
                yield Finding(about=f"{name} ({flavour})", level="note" if why else "ok", text=text)
