"""Random weights in a known shape: valid files, of the size that the quantizer would make."""

from __future__ import annotations

import itertools
from pathlib import Path

from engine_launchers import llama_memory
from engine_launchers.llama_memory import Run
from engine_launchers.model import ModelSpec
from orchestrator.models.gguf_spec import model_spec
from tools.shape_gguf import SHAPES, Shape, tensors, words, write


def small(vocab: int = 400, tied: bool = False, folder: Path = Path()) -> ModelSpec:
    path = folder / "small.gguf"
    write(Shape(vocab, 256, 512, 9, 4, 2, 4096, 10_000.0, tied), path)
    return model_spec(path, "small")


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    spec = small(folder=tmp_path)
    assert (spec.vocab, spec.layers, spec.hidden, spec.kv_heads) == (400, 9, 256, 2)
    assert (spec.quantization, spec.tied_embeddings, spec.bos_token) == ("Q4_K_M", False, "<s>")
    assert small(tied=True, folder=tmp_path).tied_embeddings


def test_merges_join_known_tokens() -> None:
    tokens, merges = words(3000)
    assert len(tokens) == len(set(tokens)) == 3000
    known = set(tokens)
    for merge in merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


def test_the_7b_has_the_published_weights() -> None:
    total = 0
    for _, dims, _ in tensors(SHAPES["mistral-7b"]):
        size = 1
        for each in dims:
            size *= each
        total += size
    assert total == 7_241_732_096


def test_overhead_grows_with_vocabulary_and_context(tmp_path: Path) -> None:
    found = [
        llama_memory.host_overhead(small(vocab, folder=tmp_path), Run(context, gpu_layers=0))
        for vocab, context in itertools.product((400, 4000, 40_000), (512, 2048, 32_768))
    ]
    assert all(each > 0 for each in found)
    by_vocab = [found[at::3] for at in range(3)]
    assert all(row == sorted(row) for row in by_vocab)
    assert all(found[at : at + 3] == sorted(found[at : at + 3]) for at in (0, 3, 6))


def test_logits_that_nobody_asks_for_take_no_memory(tmp_path: Path) -> None:
    host, _ = llama_memory.buffers(
        small(100_000, folder=tmp_path), Run(512, gpu_layers=0, devices=0)
    )
    assert host.compute > 512 * 100_000 * 4
    assert host.compute - host.idle < 512 * 10_000 * 4
