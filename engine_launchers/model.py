"""What one model artefact is: its shape, what it caches per token, and what its weights take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine_launchers.value import Value

ModelFormat = Literal["safetensors", "gguf"]
CacheKind = Literal["full", "sliding", "latent", "state"]


class CacheGroup(Value):
    """A number of layers that cache alike.

    `full` keeps K and V of every token: `kv_heads` x (`head_dim` + `v_head_dim`) elements each.
    `sliding` keeps the last `window` tokens of that. `latent` (MLA) keeps `latent_dim` elements a
    token, the same on every rank. `state` (Mamba, linear attention) keeps `state_bytes` per
    sequence and layer, however long it is.
    """

    layers: int = Field(ge=0)
    kind: CacheKind = "full"
    kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    window: int | None = None
    latent_dim: int = 0
    state_bytes: int = 0


class WeightParts(Value):
    """Bytes of the weights by place.

    `layers` holds one figure per repeating layer, in order; `experts` is the share of their sum
    that lies in routed experts. `embedding` is the token table, `output` the language model head
    (0 where it is the token table), `other` everything else: final norm, rope factors, vision.
    """

    embedding: int = Field(ge=0)
    output: int = Field(ge=0)
    layers: tuple[int, ...]
    other: int = Field(0, ge=0)
    experts: int = Field(0, ge=0)

    @property
    def total(self) -> int:
        """All of it."""
        return self.embedding + self.output + sum(self.layers) + self.other


class Adapter(Value):
    """A LoRA adapter on a model: a PEFT folder, or a GGUF file for llama.cpp.

    `name` is what clients call the model with it. `always`: the model's own name means the model
    with this adapter, and there is no other way to ask for it. `path` is absolute.
    """

    name: str
    path: str
    format: ModelFormat
    rank: int = 0
    weight_bytes: int = 0
    always: bool = False


class ModelSpec(Value):
    """One servable artefact: a GGUF file or a folder of safetensors.

    `source` is an absolute path, or `hf://owner/name[/file]` for what lies on a hub. `params`
    counts weights, `active_params` those that one token uses. `weight_bytes` is the size of all
    tensors on disk. `quantization` names the artefact's precision: a GGUF file type (Q4_K_M, F16),
    or FP32, FP16, BF16, FP8, INT8, AWQ, GPTQ, NVFP4, MXFP4, NF4. `caches` is empty where all layers
    cache alike: one `full` group is meant. `dtype` is what activations are computed in.
    `vision_heads` is that of the vision tower. `chat_template`, `bos_token` and `eos_token` come
    from the artefact, None where it has none.
    """

    id: str
    source: str
    format: ModelFormat
    architecture: str
    params: int
    active_params: int | None = None
    layers: int
    hidden: int = 0
    intermediate: int = 0
    heads: int
    kv_heads: int
    head_dim: int
    context_max: int
    vocab: int = 0
    caches: tuple[CacheGroup, ...] = ()
    sliding_window: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    tied_embeddings: bool = False
    vision_heads: int | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantization: str
    weight_bytes: int
    weights: WeightParts | None = None
    adapters: tuple[Adapter, ...] = ()
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """`caches`, or the one group that an empty tuple means."""
        if self.caches:
            return self.caches
        uniform = CacheGroup(
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
        )
        return (uniform,)

    @property
    def hybrid(self) -> bool:
        """Whether some layers keep a state per sequence instead of a cache per token."""
        return any(group.kind == "state" for group in self.caches)
