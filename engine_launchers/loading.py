"""An artefact as it lies in memory: 32-bit weights are halved when they are computed in 16 bit."""

from __future__ import annotations

from engine_launchers.model import ModelSpec, WeightParts

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_STORED = {"FP32": 4, "FP16": 2, "BF16": 2}


def loaded(model: ModelSpec, dtype: str | None) -> ModelSpec:
    """`model` with the bytes that its weights take in `dtype`; as it is where it is quantized."""
    stored, wanted = _STORED.get(model.quantization), _WIDTHS.get(dtype or "")
    if stored is None or wanted is None or stored == wanted:
        return model
    parts = model.weights
    scaled = parts and WeightParts(
        embedding=parts.embedding * wanted // stored,
        output=parts.output * wanted // stored,
        layers=tuple(layer * wanted // stored for layer in parts.layers),
        other=parts.other * wanted // stored,
        experts=parts.experts * wanted // stored,
    )
    size = model.weight_bytes * wanted // stored
    return model.model_copy(update={"weight_bytes": size, "weights": scaled})
