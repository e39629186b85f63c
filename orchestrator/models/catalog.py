"""From what a person typed to a ModelSpec: `demo`, or the path of a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.models.gguf_spec import model_spec

DEMO = "demo"

# What the documents' QUANTIZATION words mean for GGUF files: the file types that satisfy each.
_SATISFIES = {
    "4bit": ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4"),
    "8bit": ("Q8_0",),
    "none": ("F16", "BF16", "F32"),
}
_DEMO_FILES = {"Q4_K_M": "demo.Q4_K_M.gguf", "F16": "demo.F16.gguf"}


def resolve(name: str, demo: Path, quantization: str | None) -> ModelSpec:
    """Describe the model called `name`.

    `demo` is the folder of the built-in model. `quantization` is 4bit, 8bit, none, or None for the
    hardware's wish (4-bit where there is a choice). Raises ModelInvalid where the model cannot be
    read, ConfigError where the wanted quantization does not exist.
    """
    if name == DEMO:
        return _demo(demo, quantization)
    path = Path(name).expanduser()
    if not path.exists():
        hint = "" if "/" in name or name.endswith(".gguf") else ", and it is not `demo`"
        raise ModelInvalid(f"model {name!r}: no such file{hint}; give the path of a GGUF file")
    if not path.is_file() and not path.is_dir():
        raise ModelInvalid(f"{path}: not a regular file; give the path of a GGUF file")
    if path.is_dir():
        raise ModelInvalid(f"{path}: a folder; this version serves GGUF files: give one of them")
    spec = model_spec(path, model_name(path))
    allowed = _SATISFIES.get(quantization or "")
    if allowed and spec.quantization not in allowed:
        raise ConfigError(
            f"quantization {quantization} was asked for but {path.name} is {spec.quantization}: "
            "leave it unset, or give a file of that quantization"
        )
    return spec


def _demo(folder: Path, quantization: str | None) -> ModelSpec:
    wanted = _SATISFIES[quantization or "4bit"]
    for kind in wanted:
        if kind in _DEMO_FILES:
            return model_spec(folder / _DEMO_FILES[kind], DEMO)
    have = ", ".join(_DEMO_FILES)
    raise ConfigError(f"quantization {quantization}: the demo model comes as {have} only")


def model_name(path: Path) -> str:
    """A name for clients from a file name: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(".gguf")).strip("-.") or "model"
