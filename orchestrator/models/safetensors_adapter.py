"""Whether a PEFT adapter belongs to a model, from the names and shapes of its matrices.

Engines find out late: after loading the model, with a message that blames the model's files.
"""

from __future__ import annotations

import re
from pathlib import Path

from engine_launchers.model import ModelSpec
from orchestrator.errors import ModelInvalid
from orchestrator.models.safetensors import read_shapes

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_READS_HIDDEN = re.compile(r"\.(q|k|v|qkv|gate|up|gate_up)_proj\.lora_A\.")


def check_base(folder: Path, base: ModelSpec) -> None:
    """Raises ModelInvalid where the adapter in `folder` was made for a model of another shape."""
    file = folder / "adapter_model.safetensors"
    shapes = read_shapes(file)
    deepest = max((int(n[1]) for n in map(_LAYER.search, shapes) if n), default=-1)
    if deepest >= base.layers:
        raise ModelInvalid(
            f"{folder}: it changes layer {deepest + 1}, {base.id} has {base.layers}: give an "
            "adapter that was trained on it"
        )
    wide = next((shape for name, shape in shapes.items() if _READS_HIDDEN.search(name)), None)
    if wide is not None and len(wide) == 2 and base.hidden and wide[1] != base.hidden:
        raise ModelInvalid(
            f"{folder}: made for a hidden size of {wide[1]}, {base.id} has {base.hidden}: give an "
            "adapter that was trained on it"
        )
