"""Names of precisions, in the order of what they keep of a model. Pure."""

from __future__ import annotations

import re
from typing import Literal

Precision = Literal["16bit", "8bit", "4bit"]

_SIXTEEN = frozenset({"BF16", "FP16", "FP32", "F16", "F32"})
_NAMED_BITS = {
    "FP8": 8, "INT8": 8, "AWQ": 4, "GPTQ": 4, "INT4": 4, "NVFP4": 4, "MXFP4": 4, "NF4": 4,
}  # fmt: skip
# What the documents' QUANTIZATION words mean, in bits per weight: [from, to].
WORDS: dict[str, tuple[int, int]] = {"4bit": (4, 4), "8bit": (8, 8), "none": (16, 32)}


def bits(quantization: str) -> int:
    """Nominal bits per weight; 16 for what is not quantized, 0 for unknown names."""
    name = quantization.upper()
    if name in _SIXTEEN:
        return 16
    if name in _NAMED_BITS:
        return _NAMED_BITS[name]
    found = re.match(r"(?:UD-)?[IT]?Q(\d)", name)
    return int(found.group(1)) if found else 0


def precision(quantization: str) -> Precision:
    """The class that speeds are known for."""
    width = bits(quantization)
    return "16bit" if width >= 16 else "8bit" if width >= 8 else "4bit"


def satisfies(quantization: str, word: str | None) -> bool:
    """Whether an artefact is what a word, or a precision's name, asks for; None asks for nothing.

    A precision that is not known satisfies no word.
    """
    if word is None:
        return True
    if word not in WORDS:
        return quantization.upper() == word.upper()
    low, high = WORDS[word]
    return low <= bits(quantization) <= high


def distance(quantization: str, wish: str) -> int:
    """Steps from the wished precision: 0 the same, 1 the same width, then down, then up.

    Down comes first for 16 bit, where nothing is above. From fewer bits, up comes first: a model
    that keeps more and fits is no loss.
    """
    if quantization.upper() == wish.upper() or (bits(quantization) == bits(wish) == 16):
        return 0
    have, wanted = bits(quantization), bits(wish)
    if have == wanted:
        return 1
    if have > wanted:
        return 1 + (have - wanted)
    return (1 if wanted >= 16 else 20) + (wanted - have)


def label(quantization: str, dtype: str | None) -> str:
    """The precision as a plan's id names it: 16-bit artefacts go by what they are computed in."""
    if bits(quantization) == 16 and dtype in {"float16", "bfloat16"}:
        return "fp16" if dtype == "float16" else "bf16"
    return quantization.lower().replace("_", "-")
