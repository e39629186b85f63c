"""Writes small GGUF and safetensors files for tests; all zeros, valid to the byte."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ALIGN = 32


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    inner = [_value(each) for each in value]
    kind = inner[0][:4]
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(inner)) + b"".join(
        each[4:] for each in inner
    )  # fmt: skip


def write_gguf(
    path: Path,
    meta: Mapping[str, Any],
    tensors: Mapping[str, int | tuple[int, ...]],
    version: int = 3,
) -> Path:
    """A GGUF file with F32 tensors: `tensors` maps names to element counts, or shapes."""
    table, offset = b"", 0
    for name, shape in tensors.items():
        dims = shape if isinstance(shape, tuple) else (shape,)
        size = math.prod(dims)
        table += _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
        offset += -(-size * 4 // _ALIGN) * _ALIGN
    pairs = b"".join(_text(key) + _value(value) for key, value in meta.items())
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(meta)) + pairs + table
    head += b"\0" * (-len(head) % _ALIGN)
    path.write_bytes(head + b"\0" * offset)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, int]) -> Path:
    """A safetensors file with BF16 vectors: `tensors` maps names to element counts."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors.items():
        end = offset + 2 * size
        header[name] = {"dtype": "BF16", "shape": [size], "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * offset)
    return path


LLAMA_META: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 0,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.context_length": 2048,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
}
LLAMA_TENSORS = {
    "token_embd.weight": 640,
    "output.weight": 320,
    "output_norm.weight": 64,
    "rope_freqs.weight": 32,
    "blk.0.attn_q.weight": 100,
    "blk.1.attn_q.weight": 200,
}
HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
HF_TENSORS = {
    "model.embed_tokens.weight": 6400,
    "model.layers.0.self_attn.q_proj.weight": 4096,
    "model.layers.1.mlp.up_proj.weight": 8192,
    "model.norm.weight": 64,
    "lm_head.weight": 6400,
}


def write_folder(folder: Path, shards: int = 1, **changes: Any) -> Path:
    """A model as `save_pretrained` leaves it, its tensors over `shards` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**HF_CONFIG, **changes}))
    words = {
        "chat_template": "{{ messages }}",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", HF_TENSORS)
        return folder
    names = list(HF_TENSORS)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        mine = names[i::shards]
        write_safetensors(folder / file, {name: HF_TENSORS[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    index = {
        "metadata": {"total_size": 2 * sum(HF_TENSORS.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
