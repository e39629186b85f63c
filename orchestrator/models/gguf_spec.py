"""From the header of a GGUF file, or of all its parts, to a ModelSpec."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from engine_launchers.model import CacheGroup, ModelSpec, WeightParts
from orchestrator.errors import ModelInvalid
from orchestrator.models.gguf import FILE_TYPES, Header, read_header
from orchestrator.models.tensor_parts import parts_of

_MAX_LAYERS = 4096
_MAX_PARTS = 1000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

# Architectures of which llama.cpp keeps a window: every n-th layer is a full one.
_FULL_EVERY = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma4": 6, "gpt-oss": 2, "gpt_oss": 2, "cohere2": 4,
    "exaone4": 4, "llama4": 4, "smallthinker": 4,
}  # fmt: skip
_STATE_EVERY = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


def part_names(name: str) -> tuple[str, ...]:
    """The names of all files of the model that `name` is a part of. Raises ModelInvalid."""
    found = _PART.fullmatch(name)
    if found is None:
        return (name,)
    count = int(found["count"])
    if not 1 <= count <= _MAX_PARTS or not 1 <= int(found["number"]) <= count:
        raise ModelInvalid(f"{name}: a part's name says number {int(found['number'])} of {count}")
    return tuple(f"{found['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1))


def part_paths(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` is a part of, the first one first.

    Raises ModelInvalid naming a part that is missing.
    """
    names = part_names(path.name)
    for name in names[1:] if path.name == names[0] else names:
        if not (path.parent / name).is_file():
            raise ModelInvalid(f"{path}: the part {name} is missing; put it beside this one")
    return tuple(path.parent / name for name in names)


def model_spec(path: Path, model_id: str) -> ModelSpec:
    """Describe the GGUF model that `path` is the whole or a part of. Raises ModelInvalid."""
    paths = part_paths(path)
    header = read_header(paths[0])
    count = header.metadata.get("split.count", 1)
    if count not in (0, 1) and count != len(paths):
        raise ModelInvalid(
            f"{path}: it is one of {count} parts; keep their names, which end in -00001-of-NNNNN"
        )
    for other in paths[1:]:
        header.tensors += read_header(other).tensors
    return _Reader(paths[0], header).spec(model_id)


class _Reader:
    """One header, its keys looked up under the architecture's name."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header, self.meta = path, header, header.metadata
        arch = self.meta.get("general.architecture")
        if not isinstance(arch, str):
            raise ModelInvalid(f"{path}: not a model: the key general.architecture is missing")
        if self.meta.get("general.type") == "adapter":
            raise ModelInvalid(f"{path}: a LoRA adapter, not a model: give the base model's file")
        self.arch = arch
        self.layers = self.number("block_count")
        if self.layers > _MAX_LAYERS:
            raise ModelInvalid(f"{path}: {arch}.block_count is {self.layers}: no model has as many")

    def number(self, key: str, default: int | None = None) -> int:
        """A count; of an array (one per layer) the largest."""
        value = self.meta.get(f"{self.arch}.{key}", default)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            value = max(value)
        if not isinstance(value, int) or value < 0:
            raise ModelInvalid(
                f"{self.path}: not a language model: the key {self.arch}.{key} is missing"
            )
        return value

    def per_layer(self, key: str, default: int) -> list[int]:
        """A count for each layer, whether the file has one for all or an array."""
        value = self.meta.get(f"{self.arch}.{key}", default)
        if isinstance(value, list):
            known = [each for each in value if isinstance(each, int)][: self.layers]
            return known + [known[-1] if known else default] * (self.layers - len(known))
        return [value if isinstance(value, int) else default] * self.layers

    def spec(self, model_id: str) -> ModelSpec:
        """All of it."""
        heads = self.number("attention.head_count")
        groups = self.groups(heads)
        if heads == 0 and not any(group.kind == "state" for group in groups):
            raise ModelInvalid(f"{self.path}: {self.arch}.attention.head_count is 0")
        parts = self.parts()
        tokens = self.meta.get("tokenizer.ggml.tokens")
        tokens = tokens if isinstance(tokens, list) else []
        kind, template = self.meta.get("general.file_type"), self.meta.get(
            "tokenizer.chat_template"
        )  # fmt: skip
        experts, used = self.number("expert_count", 0), self.number("expert_used_count", 0)
        windows = [group.window for group in groups if group.window]
        return ModelSpec(
            id=model_id,
            source=str(self.path.absolute()),
            format="gguf",
            architecture=self.arch,
            params=self.header.params,
            active_params=self.active(experts, used),
            layers=self.layers,
            hidden=self.number("embedding_length"),
            intermediate=self.number("feed_forward_length", 0)
            or self.number("expert_feed_forward_length", 0),
            heads=heads,
            kv_heads=self.number("attention.head_count_kv", heads),
            head_dim=self.head_dim(heads),
            context_max=self.number("context_length"),
            vocab=len(tokens) or self.number("vocab_size", 0),
            caches=groups,
            sliding_window=windows[0] if windows else None,
            experts=experts or None,
            experts_used=used or None,
            tied_embeddings=parts.output == 0,
            quantization=FILE_TYPES.get(kind, "unknown") if isinstance(kind, int) else "unknown",
            weight_bytes=self.header.weight_bytes,
            weights=parts,
            chat_template=template if isinstance(template, str) else None,
            bos_token=_token(self.meta, tokens, "bos"),
            eos_token=_token(self.meta, tokens, "eos"),
        )

    def head_dim(self, heads: int) -> int:
        """Width of one key head."""
        if heads == 0:
            return 0
        return self.number("attention.key_length", self.number("embedding_length") // heads)

    def parts(self) -> WeightParts:
        """Exact bytes by place, from the tensor table."""
        return parts_of(((each.name, each.size) for each in self.header.tensors), self.layers)

    def active(self, experts: int, used: int) -> int | None:
        """Weights that one token passes through; None for a dense model."""
        if not experts:
            return None
        routed = sum(each.elements for each in self.header.tensors if "_exps." in each.name)
        return self.header.params - routed + routed * min(used, experts) // experts

    def groups(self, heads: int) -> tuple[CacheGroup, ...]:
        """What llama.cpp keeps per layer; empty where all layers keep full K and V alike."""
        kinds = self.kinds(heads)
        kv_heads = self.per_layer("attention.head_count_kv", heads)
        counts = Counter((kind, kv_heads[i]) for i, kind in enumerate(kinds) if kind)
        found = tuple(self.group(kind, kv, n, heads) for (kind, kv), n in sorted(counts.items()))
        simple = len(found) == 1 and found[0].kind == "full" and found[0].layers == self.layers
        dim = self.head_dim(heads)
        if simple and (found[0].head_dim, found[0].v_head_dim) == (dim, dim):
            return ()
        return found

    def kinds(self, heads: int) -> list[str]:
        """A word per layer; empty for a layer that keeps nothing."""
        kv_heads = self.per_layer("attention.head_count_kv", heads)
        state = self.number("ssm.state_size", 0) > 0
        every = self.number("full_attention_interval", _STATE_EVERY.get(self.arch, 0))
        slides = self.slides()
        own = self.layers - self.number("attention.shared_kv_layers", 0)
        latent = self.number("attention.kv_lora_rank", 0) and self.number(
            "attention.key_length_mla", 0
        )
        found = []
        for i in range(self.layers):
            if state and (kv_heads[i] == 0 or heads == 0 or (every and (i + 1) % every)):
                found.append("state")
            elif kv_heads[i] == 0 or i >= own:
                found.append("")
            elif latent:
                found.append("latent")
            else:
                found.append("sliding" if slides[i] else "full")
        return found

    def slides(self) -> list[bool]:
        """Whether each layer looks back on a window only."""
        if self.number("attention.sliding_window", 0) == 0:
            return [False] * self.layers
        pattern = self.meta.get(f"{self.arch}.attention.sliding_window_pattern")
        if isinstance(pattern, list) and pattern:
            known = [bool(each) for each in pattern[: self.layers]]
            return known + [known[-1]] * (self.layers - len(known))
        every = _FULL_EVERY.get(self.arch, 1)
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            every = pattern
        return [bool((i + 1) % every) for i in range(self.layers)]

    def group(self, kind: str, kv_heads: int, layers: int, heads: int) -> CacheGroup:
        """One group; sizes of a state are in llama.cpp's 32 bit."""
        if kind == "state":
            kernel, inner = self.number("ssm.conv_kernel", 1), self.number("ssm.inner_size", 0)
            state, groups = self.number("ssm.state_size"), self.number("ssm.group_count", 0)
            conv = max(0, kernel - 1) * (inner + 2 * groups * state)
            return CacheGroup(layers=layers, kind="state", state_bytes=4 * (conv + inner * state))
        if kind == "latent":
            rank, rope = self.number("attention.kv_lora_rank"), self.number("rope.dimension_count")
            return CacheGroup(layers=layers, kind="latent", latent_dim=rank + rope)
        key = self.head_dim(heads)
        value = self.number("attention.value_length", key)
        if kind == "full":
            return CacheGroup(layers=layers, kv_heads=kv_heads, head_dim=key, v_head_dim=value)
        return CacheGroup(
            layers=layers,
            kind="sliding",
            kv_heads=kv_heads,
            head_dim=self.number("attention.key_length_swa", key),
            v_head_dim=self.number("attention.value_length_swa", value),
            window=self.number("attention.sliding_window"),
        )


def _token(meta: dict[str, Any], tokens: list[Any], which: str) -> str | None:
    index = meta.get(f"tokenizer.ggml.{which}_token_id")
    return str(tokens[index]) if isinstance(index, int) and 0 <= index < len(tokens) else None
