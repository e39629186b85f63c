"""Looks at every environment, what was left behind, and the tools: what `engines doctor` tells."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from orchestrator.engines.choosing import refusal, requirement
from orchestrator.engines.findings import Finding
from orchestrator.engines.installing import ASIDE
from orchestrator.engines.locks import try_lock
from orchestrator.engines.removing import GOING, size
from orchestrator.engines.shelf import Installed, Shelf

_CHECK_S = 180.0
_MIB = 2**20


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
        return Finding(about=about, level="wrong", text=why, remedy=f"{again}, or remove it")
    check, listed = row.marker.check, shelf.listed(row)
    if listed:
        need = requirement(shelf.table, row.engine, hardware, row.version, row.flavour)
        check = need.check
    names = {
        "{engine}": str(row.folder / row.marker.program),
        "{python}": str(row.folder / "bin" / "python"),
    }
    for argv in check:
        if why := _run([names.get(word, word) for word in argv], shelf.environment):
            cure = f"remove it and {again}"
            text = f"does not start: {why}"
            return Finding(about=about, level="wrong", text=text, remedy=cure)
    text = f"{row.engine} {row.version} ({row.flavour}) {'starts' if check else 'is not checked'}"
    text += "" if listed else ", no longer in the table"
    return Finding(about=about, level="ok" if check else "note", text=text)


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
    for owner in shelf.table.engines:
        if engine in (None, owner):
            for folder in (
                *shelf.halves(owner),
                *sorted(shelf.folder.glob(f"{GOING}{owner}-*")),
                *sorted(shelf.folder.glob(f"{ASIDE}{owner}-*")),
            ):
                yield _leftover(owner, folder)
    for folder in (shelf.cache / "builds", shelf.cache / "sources"):
        if folder.is_dir():
            text = f"{size(folder) / _MIB:.0f} MiB kept for later builds; may be deleted: {folder}"
            yield Finding(about=f"cache/{folder.name}", level="note", text=text)


def _leftover(owner: EngineName, folder: Path) -> Finding:
    name = folder.name.removeprefix(GOING).removeprefix(ASIDE)
    if _busy(folder.with_name(f"{name}.lock")):
        return Finding(about=name, level="note", text="is being installed or removed now")
    what = "removal" if folder.name.startswith(GOING) else "installation"
    if folder.name == name:
        version = name.removeprefix(f"{owner}-")
        todo = f"install it again, or `engineroom engines remove {owner} --version {version}`"
    else:
        todo = f"the next `engineroom engines install {owner}`, or `remove`, tidies it up"
    text = f"was left by an interrupted {what}, {size(folder) / _MIB:.0f} MiB"
    return Finding(about=folder.name, level="wrong", text=text, remedy=todo)


def _busy(lock: Path) -> bool:
    if not lock.exists():
        return False
    with lock.open() as file:
        return not try_lock(file.fileno())


def _tools(shelf: Shelf) -> Iterator[Finding]:
    uv = shelf.installer().uv
    slow = "pip of this Python is used; uv would be faster"
    yield Finding(about="installer", level="ok" if uv else "note", text=uv or slow)
    path = shelf.environment.get("PATH")
    for about, names, missing in (
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
