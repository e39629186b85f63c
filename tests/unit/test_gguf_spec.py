"""What a GGUF header says of a model: parts, caches, split files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_launchers.model import ModelSpec
from orchestrator.errors import ModelInvalid
from orchestrator.models.gguf_spec import model_spec
from tests.fakes.model_files import LLAMA_META, LLAMA_TENSORS, write_gguf


def spec(tmp_path: Path, meta: dict[str, Any], tensors: dict[str, int] | None = None) -> ModelSpec:
    return model_spec(write_gguf(tmp_path / "m.gguf", meta, tensors or LLAMA_TENSORS), "m")


def arch(name: str, **keys: Any) -> dict[str, Any]:
    """A header of another architecture; `attention__key` means `attention.key`."""
    meta = {k.replace("llama", name): v for k, v in LLAMA_META.items()}
    meta |= {f"{name}.{k.replace('__', '.')}": v for k, v in keys.items()}
    return {**meta, "general.architecture": name}


def test_parts_are_exact(tmp_path: Path) -> None:
    model = spec(tmp_path, LLAMA_META)
    assert model.weights
    assert model.weights.model_dump() == {
        "embedding": 2560, "output": 1280, "layers": (400, 800), "other": 384, "experts": 0,
    }  # fmt: skip
    assert model.weights.total == model.weight_bytes
    assert (model.hidden, model.intermediate, model.tied_embeddings) == (64, 128, False)
    assert model.caches == ()
    headless = {k: v for k, v in LLAMA_TENSORS.items() if k != "output.weight"}
    assert spec(tmp_path, LLAMA_META, headless).tied_embeddings


def test_version_2_reads_alike(tmp_path: Path) -> None:
    old = write_gguf(tmp_path / "old.gguf", LLAMA_META, LLAMA_TENSORS, version=2)
    assert model_spec(old, "m").params == sum(LLAMA_TENSORS.values())


def test_experts(tmp_path: Path) -> None:
    tensors = {**LLAMA_TENSORS, "blk.0.ffn_up_exps.weight": 800}
    model = spec(tmp_path, {**LLAMA_META, "llama.expert_count": 8, "llama.expert_used_count": 2},
                 tensors)  # fmt: skip
    assert model.weights
    assert model.weights.experts == 3200
    assert (model.experts, model.experts_used) == (8, 2)
    assert model.active_params == model.params - 600


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (arch("gemma3", block_count=12, attention__sliding_window=512),
         [("full", 2, 0, 2), ("sliding", 10, 0, 2)]),
        (arch("gpt-oss", block_count=4, attention__sliding_window=128),
         [("full", 2, 0, 2), ("sliding", 2, 0, 2)]),
        # llama.cpp keeps everything for these, whatever the file says
        (arch("phi3", attention__sliding_window=2048), [("full", 2, 0, 2)]),
        (arch("gemma4", block_count=4, attention__sliding_window=512,
              attention__sliding_window_pattern=[True, True, False, True],
              attention__head_count_kv=[2, 2, 1, 2], attention__shared_kv_layers=1),
         [("full", 1, 0, 1), ("sliding", 2, 0, 2)]),
        (arch("deepseek2", attention__head_count_kv=1, attention__kv_lora_rank=512,
              attention__key_length=576, attention__value_length=512,
              attention__key_length_mla=192, rope__dimension_count=64),
         [("latent", 2, 576, 0)]),
        # before latent caches: all heads, keys wider than values
        (arch("deepseek2", attention__kv_lora_rank=512, attention__key_length=192,
              attention__value_length=128),
         [("full", 2, 0, 2)]),
        (arch("nemotron_h", block_count=4, attention__head_count_kv=[0, 2, 0, 0],
              ssm__state_size=16, ssm__inner_size=64, ssm__conv_kernel=4, ssm__group_count=1),
         [("full", 1, 0, 2), ("state", 3, 0, 0)]),
        (arch("qwen35", block_count=8, ssm__state_size=16, ssm__inner_size=64,
              ssm__conv_kernel=4, ssm__group_count=1),
         [("full", 2, 0, 2), ("state", 6, 0, 0)]),
        (arch("mamba2", attention__head_count=0, attention__head_count_kv=0, ssm__state_size=16,
              ssm__inner_size=64, ssm__conv_kernel=4),
         [("state", 2, 0, 0)]),
    ],
)  # fmt: skip
def test_caches(
    tmp_path: Path, meta: dict[str, Any], expected: list[tuple[str, int, int, int]]
) -> None:
    model = spec(tmp_path, meta)
    found = [(g.kind, g.layers, g.latent_dim, g.kv_heads) for g in model.cache_groups]
    assert found == expected


def test_state_bytes_are_llama_cpps(tmp_path: Path) -> None:
    model = spec(tmp_path, arch("mamba2", attention__head_count=0, attention__head_count_kv=0,
                                ssm__state_size=16, ssm__inner_size=64, ssm__conv_kernel=4,
                                ssm__group_count=2))  # fmt: skip
    assert model.cache_groups[0].state_bytes == 4 * (3 * (64 + 2 * 2 * 16) + 64 * 16)


def split(tmp_path: Path, count: int = 3) -> list[Path]:
    names = list(LLAMA_TENSORS)
    made = []
    for i in range(count):
        meta: dict[str, Any] = {"split.no": i, "split.count": count}
        mine = {name: LLAMA_TENSORS[name] for name in names[i::count]}
        path = tmp_path / f"big-{i + 1:05}-of-{count:05}.gguf"
        made.append(write_gguf(path, {**(LLAMA_META if i == 0 else {}), **meta}, mine))
    return made


def test_any_part_stands_for_the_whole(tmp_path: Path) -> None:
    parts = split(tmp_path)
    whole = spec(tmp_path, LLAMA_META)
    for part in parts:
        model = model_spec(part, "m")
        assert model.source == str(parts[0])
        assert model.weights == whole.weights


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(ModelInvalid, match=r"big-00002-of-00003\.gguf is missing"):
        model_spec(parts[0], "m")
    alone = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelInvalid, match="one of 3 parts"):
        model_spec(alone, "m")
    with pytest.raises(ModelInvalid, match="number 9 of 3"):
        model_spec(tmp_path / "x-00009-of-00003.gguf", "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": 2_000_000_000}, "no model has as many"),
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.embedding_length": "wide"}, "embedding_length"),
        ({"general.type": "adapter"}, "LoRA adapter"),
    ],
)
def test_absurd_headers_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelInvalid, match=message):
        spec(tmp_path, {**LLAMA_META, **changes})
