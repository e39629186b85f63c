"""Where the files that ship with Engine Room lie, and what this process may use."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h
_PACKAGE = Path(__file__).resolve().parent


def config_path(name: str) -> Path:
    """Path of a shipped file of `configs/`, e.g. "tiers.yaml"."""
    installed = _PACKAGE / "_configs" / name
    return installed if installed.exists() else _PACKAGE.parent / "configs" / name


def demo_dir() -> Path:
    """Folder of the built-in model: safetensors, tokenizer and GGUF files."""
    return _PACKAGE / "models" / "demo"


def default_data_dir(env: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/engineroom`, else `~/.local/share/engineroom`."""
    base = env.get("XDG_DATA_HOME")
    return Path(base) / "engineroom" if base else Path.home() / ".local/share/engineroom"


def one_arena() -> None:
    """Have all threads of this process take memory from one heap; only glibc has more.

    Each thread that works once in a while would grow a heap of its own, some megabytes each, which
    is never given back.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def processors() -> int:
    """How many processors this process may use; at least one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
