"""How fast an engine is, as data for the roofline."""

from __future__ import annotations

from pydantic import Field

from engine_launchers.value import Value


class CpuTraits(Value):
    """What differs where an engine runs on the processor alone.

    `decode_flops` is what each core reaches with one token at a time, where every weight is
    unpacked for a single product, by instruction set; the first that the processor has counts, and
    where it has none only the memory does. The overheads replace those of `SpeedTraits`, which hold
    launches on a GPU.
    """

    decode_flops: dict[str, float] = Field(default_factory=dict)
    seconds_per_layer: float
    seconds_per_token: float


class SpeedTraits(Value):
    """How fast one engine turns bytes into tokens, as data for the roofline.

    `bandwidth_share` is the part of a device's memory bandwidth that decode reaches, by precision
    ("16bit", "8bit", "4bit"); `memory_share` multiplies it by kind of memory ("hbm", "gddr",
    "unified", "ram"; 1 where it is not named). Each layer of each token costs `seconds_per_layer`
    on top, each token `seconds_per_token`. `compute_share` is the part of the FLOP/s that prefill
    reaches. `batching`: requests share the weights that are read; `splits_layers`: tensor parallel
    ranks read at the same time, otherwise several devices take turns. `cpu` holds what differs on
    processors, None where nothing was measured.
    """

    bandwidth_share: dict[str, float]
    memory_share: dict[str, float] = Field(default_factory=dict)
    seconds_per_layer: float = 0.0
    seconds_per_token: float = 0.0
    compute_share: float = 0.5
    batching: bool = False
    splits_layers: bool = False
    cpu: CpuTraits | None = None


class TokenizerTraits(Value):
    """How an engine is asked for tokens, as data.

    `tokenize` and `detokenize` are paths; `asks` is the field of the text, `special` that which
    says whether to add what begins a prompt, `tells` the answer's field of a text.
    """

    tokenize: str = "/tokenize"
    detokenize: str = "/detokenize"
    asks: str = "prompt"
    special: str | None = "add_special_tokens"
    tells: str = "prompt"
