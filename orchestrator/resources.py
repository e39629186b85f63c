"""Where the files that ship with Engine Room lie, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def config_path(name: str) -> Path:
    """Path of a shipped file of `configs/`, e.g. "tiers.yaml"."""
    installed = _PACKAGE / "_configs" / name
    return installed if installed.exists() else _PACKAGE.parent / "configs" / name


def demo_dir() -> Path:
    """Folder of the built-in model: safetensors, tokenizer and GGUF files."""
    return _PACKAGE / "models" / "demo"
