"""Folders of safetensors: sizes, missing shards, hostile headers, adapters."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ModelInvalid
from orchestrator.models.folder import folder_spec
from orchestrator.models.gguf_spec import model_spec
from orchestrator.models.safetensors import folder_tensors, read_adapter, read_json, read_tensors
from orchestrator.resources import demo_dir
from tests.fakes.model_files import HF_TENSORS, write_folder, write_safetensors


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_folder_is_described(tmp_path: Path, shards: int) -> None:
    model = folder_spec(write_folder(tmp_path / "m", shards), "m")
    assert (model.format, model.quantization, model.layers) == ("safetensors", "BF16", 2)
    assert model.source == str(tmp_path / "m")
    assert model.weight_bytes == 2 * sum(HF_TENSORS.values())
    assert model.weights
    assert model.weights.layers == (8192, 16384)
    assert (model.weights.embedding, model.weights.output, model.weights.other) == (
        12800,
        12800,
        128,
    )
    assert (model.chat_template, model.bos_token) == ("{{ messages }}", "<s>")
    assert model.eos_token == "</s>"


def test_the_demo_folder() -> None:
    model = folder_spec(demo_dir(), "demo")
    assert model.weights
    assert model.weights.total == model.weight_bytes == 2 * model.params
    assert model.tied_embeddings


def test_a_template_file_beats_the_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("newer")
    assert folder_spec(folder, "m").chat_template == "newer"
    (folder / "chat_template.jinja").unlink()
    several = {
        "chat_template": [{"name": "tool", "template": "a"}, {"name": "default", "template": "b"}]
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(several))
    assert folder_spec(folder, "m").chat_template == "b"


def test_quantization_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    beside = {"quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    assert folder_spec(folder, "m").quantization == "FP8"


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ModelInvalid, match=r"model-00002-of-00003\.safetensors and 1 more missing"):
        folder_spec(folder, "m")
    write_safetensors(folder / "model-00002-of-00003.safetensors", {"other": 4})
    write_safetensors(folder / "model-00003-of-00003.safetensors", {"another": 4})
    with pytest.raises(ModelInvalid, match="in none of its files"):
        folder_tensors(folder)


@pytest.mark.parametrize("cut", [0, 7, 20, 200, 5000])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    whole = write_safetensors(tmp_path / "whole", HF_TENSORS).read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[:cut])
    with pytest.raises(ModelInvalid, match=r"model\.safetensors"):
        read_tensors(path)


def file(tmp_path: Path, header: object, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode()
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"t": 1},
        {"t": {"data_offsets": [4, 2]}},
        {"t": {"data_offsets": [-4, 2]}},
        {"t": {"data_offsets": [0]}},
        {"t": {"data_offsets": [0, 1 << 70]}},
        {str(i): {"data_offsets": [0, 64]} for i in range(200)},
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelInvalid):
        read_tensors(file(tmp_path, header, b"\0" * 64))


def test_a_huge_header_length_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(ModelInvalid, match="cut off in its header"):
        read_tensors(path)
    path.write_bytes(struct.pack("<Q", 20_000) + b"[" * 20_000)
    with pytest.raises(ModelInvalid, match="not JSON"):
        read_tensors(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    try:
        read_tensors(path)
    except ModelInvalid:
        return


@pytest.mark.parametrize("name", ["../x.safetensors", "a/b.safetensors", ".hidden"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "m")
    index = {"weight_map": {"t": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match="outside its own folder"):
        folder_tensors(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "without config.json"),
        ({"adapter_config.json": "{}"}, "LoRA adapter"),
        ({"a.gguf": ""}, r"e\.g\. a\.gguf"),
        ({"config.json": "{}"}, "convert them"),
        ({"config.json": "[", "model.safetensors": ""}, "cut off"),
    ],
)
def test_other_folders_are_refused_with_the_reason(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelInvalid, match=message):
        folder_spec(tmp_path, "m")


def test_json_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ModelInvalid, match="not JSON"):
        read_json(path)
    with pytest.raises(ModelInvalid, match="larger than"):
        read_json(path, 1 << 10)


def adapter(tmp_path: Path, **changes: Any) -> Path:
    config = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.3",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": 10, "b": 20})
    return tmp_path


def test_an_adapter_is_described(tmp_path: Path) -> None:
    found = read_adapter(adapter(tmp_path))
    assert (found.rank, found.alpha, found.target_modules) == (16, 32.0, ("q_proj", "v_proj"))
    assert found.base_model == "mistralai/Mistral-7B-Instruct-v0.3"
    assert found.weight_bytes == 60
    assert read_adapter(adapter(tmp_path, target_modules="all-linear")).target_modules == (
        "all-linear",
    )


@pytest.mark.parametrize("changes", [{"r": None}, {"r": 0}, {"r": 1 << 30}, {"peft_type": "IA3"}])
def test_what_is_no_adapter_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid):
        read_adapter(adapter(tmp_path, **changes))


@pytest.mark.parametrize(("name", "rank"), [("garden", 8), ("pirate", 4)])
def test_the_demos_adapters(name: str, rank: int) -> None:
    found = read_adapter(demo_dir() / "adapters" / name)
    assert (found.rank, found.alpha, found.base_model) == (rank, 2 * rank, "demo")
    assert found.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    with pytest.raises(ModelInvalid, match="a LoRA adapter, not a model"):
        model_spec(demo_dir() / "adapters" / f"{name}.gguf", name)


def test_an_adapter_without_weights_is_refused(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelInvalid, match="adapter_model"):
        read_adapter(tmp_path)
    with pytest.raises(ModelInvalid, match="adapter_config"):
        read_adapter(tmp_path / "none")
