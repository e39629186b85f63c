"""The catalog: its file is sound, its figures are the published ones, its names resolve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, ModelInvalid, PullFailed
from orchestrator.models.catalog import Catalog
from orchestrator.models.hub import Hub
from orchestrator.models.resolve import Resolved, load_catalog, resolve
from orchestrator.resources import demo_dir
from tests.fakes.model_files import LLAMA_META, LLAMA_TENSORS, write_folder, write_gguf

CATALOG = load_catalog()
NOWHERE = Hub(Path("/nowhere"), "http://127.0.0.1:9", offline=True)


def ask(name: str, quantization: str | None = None, hub: Hub = NOWHERE) -> Resolved:
    return resolve(name, demo_dir(), quantization, catalog=lambda: CATALOG, hub=lambda: hub)


def precisions(found: tuple[ModelSpec, ...]) -> list[str]:
    return [each.quantization for each in found]


# Billions of weights as the makers publish them (without separate draft heads).
PUBLISHED = {
    "mistral-7b-instruct-v0.3": 7.248, "mixtral-8x7b-instruct-v0.1": 46.70, "starcoder2-3b": 3.03,
    "starcoder2-7b": 7.17, "starcoder2-15b": 15.96, "llama-3.1-8b-instruct": 8.03,
    "llama-3.1-70b-instruct": 70.55, "llama-3.1-405b-instruct": 405.85,
    "llama-3.2-1b-instruct": 1.236, "llama-3.2-3b-instruct": 3.213, "llama-3.3-70b-instruct": 70.55,
    "tinyllama-1.1b-chat-v1.0": 1.10, "smollm2-135m-instruct": 0.1345,
    "smollm2-360m-instruct": 0.3618, "smollm2-1.7b-instruct": 1.711, "qwen2.5-0.5b-instruct": 0.494,
    "qwen2.5-1.5b-instruct": 1.544, "qwen2.5-3b-instruct": 3.086, "qwen2.5-7b-instruct": 7.616,
    "qwen2.5-14b-instruct": 14.77, "qwen2.5-32b-instruct": 32.76, "qwen2.5-72b-instruct": 72.71,
    "qwen3-0.6b": 0.596, "qwen3-1.7b": 1.721, "qwen3-4b": 4.022, "qwen3-8b": 8.191,
    "qwen3-14b": 14.77, "qwen3-32b": 32.76, "qwen3-30b-a3b": 30.53, "qwen3-235b-a22b": 235.09,
    "gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83, "gemma-2-2b-it": 2.614, "gemma-2-9b-it": 9.242,
    "gemma-2-27b-it": 27.23, "gemma-3-1b-it": 1.0, "gemma-3-4b-it": 4.3, "gemma-3-12b-it": 12.19,
    "gemma-3-27b-it": 27.43, "phi-3-mini-4k-instruct": 3.821, "phi-4": 14.66,
    "phi-4-mini-instruct": 3.836, "deepseek-r1": 671.03, "mistral-small-3.2-24b-instruct": 24.01,
    "llama-4-scout-17b-16e-instruct": 107.77,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_are_those_of_the_published_models(name: str) -> None:
    match = CATALOG.find(name)
    assert match
    first = CATALOG.spec(match.artefacts[0])
    assert first.params / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


def test_every_artefact_can_be_planned_with() -> None:
    assert len(CATALOG.names()) >= 36
    for name in CATALOG.names():
        for spec in CATALOG.variants(name):
            assert spec.id == name
            assert spec.weights
            assert spec.weights.total == spec.weight_bytes > 0
            assert len(spec.weights.layers) == spec.layers
            assert spec.context_max >= 2048
            kept = sum(group.layers for group in spec.cache_groups)
            assert 0 < kept <= spec.layers
            assert spec.source.startswith("hf://")
            assert (spec.format == "gguf") == spec.source.endswith(".gguf")


def test_stated_sizes_agree_with_derived_ones() -> None:
    """What a hub states must be what the config implies, or more where there are extra towers."""
    for name in CATALOG.names():
        match = CATALOG.find(name)
        assert match
        for artefact in match.artefacts:
            stated = artefact.variant.weight_bytes
            if stated is None or artefact.quantization not in ("BF16", "FP8"):
                continue
            silent = artefact.variant.model_copy(update={"weight_bytes": None})
            try:
                derived = CATALOG.spec(replace(artefact, variant=silent)).weight_bytes
            except ModelInvalid:  # a config too short to derive from
                continue
            assert 0.995 < stated / derived < 1.12, artefact.address


@pytest.mark.parametrize(
    "name",
    [
        "mistral-7b-instruct-v0.3", "starcoder2-3b", "starcoder2-7b", "starcoder2-15b",
        "llama-3.1-8b", "llama-3.2-1b", "llama-3.3-70b", "qwen2.5-0.5b", "qwen2.5-72b",
        "qwen2.5-coder-7b", "qwen2.5-coder-32b", "qwen3.5-27b", "qwen3.6-35b-a3b", "gemma-4-31b",
        "phi-3-mini", "phi-4", "phi-4-mini", "mixtral-8x7b", "mistral-small-3.2",
        "deepseek-r1-distill-llama-8b", "deepseek-r1-distill-qwen-7b", "tinyllama-1.1b", "smollm2",
    ],
)  # fmt: skip
def test_logical_names_stand_for_all_their_variants(name: str) -> None:
    found = ask(name)
    assert not found.pinned
    assert len(found.variants) >= 2
    assert len({(each.source) for each in found.variants}) == len(found.variants)


@pytest.mark.parametrize(
    ("name", "model", "precision", "format"),
    [
        ("mistral-7b-instruct-v0.3-awq", "mistral-7b-instruct-v0.3", "AWQ", "safetensors"),
        ("mistral-7b-instruct-v0.3.Q4_K_M.gguf", "mistral-7b-instruct-v0.3", "Q4_K_M", "gguf"),
        ("starcoder2-3b-awq", "starcoder2-3b", "AWQ", "safetensors"),
        ("starcoder2-3b.Q4_K_M.gguf", "starcoder2-3b", "Q4_K_M", "gguf"),
        ("starcoder2-3b-Q8_0.gguf", "starcoder2-3b", "Q8_0", "gguf"),
        ("solidrust/Mistral-7B-Instruct-v0.3-AWQ", "mistral-7b-instruct-v0.3", "AWQ",
         "safetensors"),
        ("hf://Qwen/Qwen3-8B-FP8", "qwen3-8b", "FP8", "safetensors"),
        ("second-state/StarCoder2-3B-GGUF/starcoder2-3b-Q5_K_M.gguf", "starcoder2-3b", "Q5_K_M",
         "gguf"),
    ],
)  # fmt: skip
def test_a_name_can_pin_one_artefact(name: str, model: str, precision: str, format: str) -> None:
    found = ask(name)
    assert (found.name, found.pinned, len(found.variants)) == (model, True, 1)
    assert (found.variants[0].quantization, found.variants[0].format) == (precision, format)
    everything = {each.source for each in ask(model).variants}
    assert {each.source for each in (*found.variants, *found.others)} == everything


def test_the_originals_repository_stands_for_all_and_a_collection_for_its_files() -> None:
    original = ask("bigcode/starcoder2-3b")
    assert not original.pinned
    assert original.variants[0].source == "hf://bigcode/starcoder2-3b"
    assert {"BF16", "AWQ", "Q4_K_M"} <= set(precisions(original.variants))
    files = ask("second-state/StarCoder2-3B-GGUF")
    assert precisions(files.variants) == ["Q4_K_M", "Q5_K_M", "Q8_0"]
    assert not files.pinned


def test_a_quantization_narrows_the_choice() -> None:
    assert set(precisions(ask("qwen3-8b", "4bit").variants)) == {"AWQ", "Q4_K_M"}
    assert set(precisions(ask("qwen3-8b", "8bit").variants)) == {"FP8", "Q8_0"}
    assert precisions(ask("qwen3-8b", "none").variants) == ["BF16"]
    with pytest.raises(ConfigError, match="comes as FP8 only"):
        ask("minimax-m2.7", "4bit")


def test_windows_are_kept_by_vllm_and_not_by_llama_cpp() -> None:
    kinds = {each.format: each.cache_groups[0].kind for each in ask("starcoder2-3b").variants}
    assert kinds == {"safetensors": "sliding", "gguf": "full"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mistral-7b-instruct-v03", "did you mean mistral-7b-instruct-v0.3"),
        ("llama-3.1-8b-instrct", "did you mean llama-3.1-8b-instruct"),
        ("wholly unknown", "give `demo`, a path, a name of the catalog"),
        ("models/none.gguf", "no such file"),
        ("./none", "no such file"),
        ("acme/none/x.gguf", "engineroom pull acme/none/x.gguf"),
    ],
)
def test_unknown_names_get_help(name: str, message: str) -> None:
    with pytest.raises(ModelInvalid, match=message):
        ask(name)


def test_an_unknown_repository_offline() -> None:
    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE is set"):
        ask("acme/unheard-of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "models.m.colour"),
        ({"variants": []}, "models.m.variants"),
        ({"variants": [{"source": "no-owner", "quantization": "BF16"}]}, "variants.0.source"),
        ({"variants": [{"source": "a/b", "quantization": "Q9"}]}, "precision 'Q9' is not known"),
        ({"variants": [{"source": "a/b"}]}, "either quantization or quantizations"),
        ({"variants": [{"source": "a/b", "quantizations": ["Q8_0"]}]}, "need a file"),
        (
            {"variants": [{"source": "a/b", "quantization": "Q8_0", "file": "../x.gguf"}]},
            "variants.0.file",
        ),
        ({"config": "none"}, "models.m.config"),
    ],
)
def test_a_bad_key_is_named(change: dict[str, Any], message: str) -> None:
    entry = {"config": {}, "variants": [{"source": "a/b", "quantization": "BF16"}], **change}
    with pytest.raises(ConfigError, match=message):
        Catalog.load({"models": {"m": entry}})


def cached(cache: Path, repository: str) -> Path:
    """The folder that the hub's cache would keep this repository's newest commit in."""
    base = cache / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text("abc")
    folder = base / "snapshots/abc"
    folder.mkdir(parents=True)
    return folder


def test_what_lies_in_the_cache_is_described_from_there(tmp_path: Path) -> None:
    hub = Hub(tmp_path, offline=True)
    folder = write_folder(cached(tmp_path, "mistralai/Mistral-7B-Instruct-v0.3"))
    repository = "MaziyarPanahi/Mistral-7B-Instruct-v0.3-GGUF"
    file = cached(tmp_path, repository) / "Mistral-7B-Instruct-v0.3.Q4_K_M.gguf"
    write_gguf(file, {**LLAMA_META, "general.file_type": 15}, LLAMA_TENSORS)
    found = ask("mistral-7b-instruct-v0.3", hub=hub)
    local = {each.quantization: each for each in found.variants if each.source.startswith("/")}
    assert {key: each.source for key, each in local.items()} == {
        "BF16": str(folder),
        "Q4_K_M": str(file),
    }
    assert {each.id for each in found.variants} == {"mistral-7b-instruct-v0.3"}
    assert local["Q4_K_M"].params == sum(LLAMA_TENSORS.values())
    incomplete = cached(tmp_path, "solidrust/Mistral-7B-Instruct-v0.3-AWQ")
    (incomplete / "config.json").write_text(json.dumps({}))
    assert ask("mistral-7b-instruct-v0.3-awq", hub=hub).variants[0].source.startswith("hf://")


def test_a_repository_outside_the_catalog_is_found_in_the_cache(tmp_path: Path) -> None:
    folder = write_folder(cached(tmp_path, "acme/thing"))
    found = ask("acme/thing", hub=Hub(tmp_path, offline=True))
    assert (found.variants[0].source, found.pinned) == (str(folder), True)


def test_a_folder_by_its_path(tmp_path: Path) -> None:
    found = ask(str(write_folder(tmp_path / "mine", 2)))
    assert (found.name, found.variants[0].format) == ("mine", "safetensors")


def test_the_environment_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_file\n")
    hub = Hub.from_env({"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://mirror/"})
    assert (hub.cache, hub.endpoint, hub.offline) == (tmp_path / "hub", "http://mirror", False)
    assert hub.token == "hf_file"
    assert "hf_file" not in repr(hub)
    other = Hub.from_env(
        {"HF_HUB_CACHE": "/c", "HF_TOKEN": "t", "HF_HUB_OFFLINE": "1", "HOME": "/h"}
    )
    assert (other.cache, other.offline, other.token) == (Path("/c"), True, "t")
    assert Hub.from_env({"HOME": "/h"}).cache == Path("/h/.cache/huggingface/hub")
