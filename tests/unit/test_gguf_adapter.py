"""A LoRA adapter in a GGUF file: what it says, and what is refused before an engine sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ModelInvalid
from orchestrator.models.gguf_adapter import read_gguf_adapter
from orchestrator.models.gguf_spec import model_spec
from tests.fakes.model_files import LLAMA_META, LLAMA_TENSORS, write_gguf

META: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}
PAIRS: dict[str, int | tuple[int, ...]] = {
    "blk.0.attn_q.weight.lora_a": (64, 8),
    "blk.0.attn_q.weight.lora_b": (8, 64),
    "blk.1.ffn_down.weight.lora_a": (128, 4),
    "blk.1.ffn_down.weight.lora_b": (4, 64),
}


def test_it_is_described(tmp_path: Path) -> None:
    base = model_spec(write_gguf(tmp_path / "m.gguf", LLAMA_META, LLAMA_TENSORS), "m")
    found = read_gguf_adapter(write_gguf(tmp_path / "a.gguf", META, PAIRS), base)
    assert (found.rank, found.alpha, found.architecture) == (8, 16.0, "llama")
    assert found.weight_bytes == 4 * (2 * 512 + 512 + 256)
    named = found.adapter("garden", always=True)
    assert (named.name, named.format, named.rank, named.always) == ("garden", "gguf", 8, True)
    assert named.path == str(tmp_path / "a.gguf")
    assert named.weight_bytes == found.weight_bytes


@pytest.mark.parametrize(
    ("meta", "tensors", "words"),
    [
        ({"general.type": "model"}, {}, "not a LoRA adapter"),
        ({"adapter.type": "control"}, {}, "not a LoRA adapter"),
        ({"general.architecture": "qwen2"}, {}, "an adapter for qwen2 models, m is llama"),
        ({}, {"blk.0.attn_k.weight.lora_a": (64, 8)}, "blk.0.attn_k.weight has no pair"),
        ({}, {"blk.0.attn_k.weight.lora_b": (8, 64)}, "has no .lora_a beside it"),
        (
            {},
            {"blk.0.attn_k.weight.lora_a": (64, 8), "blk.0.attn_k.weight.lora_b": (4, 64)},
            "of rank 8 and 4",
        ),
        (
            {},
            {"blk.2.attn_k.weight.lora_a": (64, 8), "blk.2.attn_k.weight.lora_b": (8, 64)},
            "it changes layer 3, m has 2",
        ),
        (
            {},
            {"blk.0.attn_q.weight.lora_a": (96, 8), "blk.0.attn_q.weight.lora_b": (8, 96)},
            "a hidden size of 96, m has 64",
        ),
    ],
)
def test_what_an_engine_would_refuse_is_refused_in_words(
    tmp_path: Path, meta: dict[str, Any], tensors: dict[str, tuple[int, ...]], words: str
) -> None:
    base = model_spec(write_gguf(tmp_path / "m.gguf", LLAMA_META, LLAMA_TENSORS), "m")
    path = write_gguf(tmp_path / "a.gguf", {**META, **meta}, {**PAIRS, **tensors})
    with pytest.raises(ModelInvalid, match=words):
        read_gguf_adapter(path, base)


def test_missing_empty_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="cannot be read: No such file"):
        read_gguf_adapter(tmp_path / "none.gguf")
    with pytest.raises(ModelInvalid, match="holds no pair"):
        read_gguf_adapter(write_gguf(tmp_path / "empty.gguf", META, {}))
    whole = write_gguf(tmp_path / "whole.gguf", META, PAIRS).read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelInvalid, match="truncated download"):
        read_gguf_adapter(tmp_path / "half.gguf")
