"""The GGUF reader: the demo files, and hostile headers that must be refused before they cost."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError, ModelInvalid
from orchestrator.models.gguf import parse, read_header
from orchestrator.models.gguf_spec import model_spec
from orchestrator.models.names import model_name
from orchestrator.models.resolve import resolve
from orchestrator.resources import demo_dir

DEMO = demo_dir() / "demo.Q4_K_M.gguf"
WHOLE = DEMO.read_bytes()


def test_the_demo_is_described() -> None:
    spec = model_spec(DEMO, "demo")
    assert (spec.architecture, spec.format, spec.quantization) == ("llama", "gguf", "Q4_K_M")
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (4, 2, 64)
    assert spec.context_max >= 2048
    assert spec.params > 1_000_000
    assert 0 < spec.weight_bytes < DEMO.stat().st_size
    assert spec.chat_template
    assert (spec.bos_token, spec.eos_token) == ("<s>", "</s>")
    assert model_spec(demo_dir() / "demo.F16.gguf", "x").quantization == "F16"


@pytest.mark.parametrize("kept", [0, 3, 23, 100, 5_000, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_truncated_file_is_refused_with_a_reason(tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(WHOLE[:kept])
    with pytest.raises(ModelInvalid, match=r"cut\.gguf"):
        model_spec(cut, "cut")


def header(tensors: int = 0, pairs: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


@pytest.mark.parametrize(
    "data",
    [
        b"GGML" + b"\0" * 40,
        header(version=1) + b"\0" * 40,
        header(tensors=2**62) + b"\0" * 40,
        header(pairs=2**62) + b"\0" * 40,
        header(pairs=1, rest=struct.pack("<Q", 2**62)),
        header(pairs=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99)),
        header(pairs=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60)),
        header(pairs=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) * 9),
        header(tensors=1, rest=struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9)),
        header(tensors=1, rest=struct.pack("<QcIQIQ", 1, b"t", 1, 2**60, 0, 0)),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ModelInvalid):
        parse(data, "x")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40_000), st.binary(min_size=1, max_size=16))
def test_any_damage_is_refused_or_read_but_never_crashes(at: int, junk: bytes) -> None:
    data = WHOLE[:at] + junk + WHOLE[at + len(junk) :]
    try:
        parse(data, "x")
    except ModelInvalid:
        return


def test_a_header_without_a_model_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(header() + b"\0" * 32)
    assert read_header(empty).params == 0
    with pytest.raises(ModelInvalid, match=r"general\.architecture"):
        model_spec(empty, "x")


def test_names(tmp_path: Path) -> None:
    every = resolve("demo", demo_dir(), None)
    assert [each.quantization for each in every.variants] == ["Q4_K_M", "F16", "BF16"]
    assert [each.format for each in every.variants] == ["gguf", "gguf", "safetensors"]
    assert not every.pinned
    assert [s.quantization for s in resolve("demo", demo_dir(), "none").variants] == ["F16", "BF16"]
    own = resolve(str(DEMO), demo_dir(), "4bit")
    assert (own.name, own.pinned, len(own.variants)) == ("demo.Q4_K_M", True, 1)
    assert model_name("My model (v2).gguf") == "My-model-v2"
    assert model_name("big-00001-of-00003.gguf") == "big"
    with pytest.raises(ConfigError, match="demo comes as Q4_K_M, F16, BF16 only"):
        resolve("demo", demo_dir(), "8bit")
    with pytest.raises(ConfigError, match="is Q4_K_M"):
        resolve(str(DEMO), demo_dir(), "none")
    with pytest.raises(ModelInvalid, match="no such file"):
        resolve("/none.gguf", demo_dir(), None)
    with pytest.raises(ModelInvalid, match="a folder"):
        resolve(str(tmp_path), demo_dir(), None)
