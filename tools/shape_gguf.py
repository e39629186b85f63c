"""Write a GGUF file of random weights in the shape of a known model: `demo` is too small to time.

    python -m tools.shape_gguf llama-1b OUT.gguf      # 0.8 GB, vocabulary 128256, tied table
    python -m tools.shape_gguf mistral-7b OUT.gguf    # 4.4 GB, vocabulary 32000

Needs the standard library only, and as long as the disk takes. Sizes and types are those of the
file that llama.cpp's quantizer makes as Q4_K_M; the blocks are random but valid (finite, scales of
a trained model's size), one pool of them repeated. What such a model says is nonsense, what it
costs is not.

The vocabulary is ASCII only: from the first piece that is not valid UTF-8 on, the server holds its
stream back and decodes the whole tail anew for every token.
"""

from __future__ import annotations

import argparse
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_ALIGN = 32
_F32, _Q4_K, _Q6_K = 0, 12, 14  # ggml.h
_BLOCK = {_F32: (1, 4), _Q4_K: (256, 144), _Q6_K: (256, 210)}  # elements, bytes
_U32, _FLOAT, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5  # value types of GGUF
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # token types
_Q4_K_M = 15  # general.file_type
_POOL_BLOCKS = 16_384
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SPACE = "\u0120"  # byte-level BPE writes a space so
_SPECIAL = ("<s>", "</s>", "<unk>")
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of one llama-like model; `tied`: the token table serves as output layer too."""

    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    rope_base: float
    tied: bool = False


SHAPES = {
    "llama-1b": Shape(128_256, 2048, 8192, 16, 32, 8, 131_072, 500_000.0, tied=True),
    "tinyllama-1b": Shape(32_000, 2048, 5632, 22, 32, 4, 2048, 10_000.0),
    "mistral-7b": Shape(32_000, 4096, 14_336, 32, 32, 8, 32_768, 1_000_000.0),
}


def words(count: int) -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE over ASCII: `count` tokens, special ones first.

    After the single characters, every token is a shorter one and a letter, shortest first.
    """
    others = [chr(code) for code in range(33, 127) if chr(code) not in _LETTERS]
    tokens = [*_SPECIAL, *others, "\u010a", "\u0109"]  # newline, tab
    merges: list[str] = []
    level = [_SPACE, *_LETTERS]
    tokens += level
    while len(tokens) < count:
        pairs = [(head, letter) for head in level for letter in _LETTERS]
        pairs = pairs[: count - len(tokens)]
        merges += [f"{head} {letter}" for head, letter in pairs]
        level = [head + letter for head, letter in pairs]
        tokens += level
    return tokens[:count], merges


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, dimensions with the row length first, type) in the order of llama.cpp's own files."""
    hidden, inner, kv = shape.hidden, shape.feed_forward, _kv_width(shape)
    yield "token_embd.weight", (hidden, shape.vocab), _Q6_K if shape.tied else _Q4_K
    for layer in range(shape.layers):
        better = _Q6_K if _more_bits(layer, shape.layers) else _Q4_K
        rows: tuple[tuple[str, tuple[int, ...], int], ...] = (
            ("attn_norm", (hidden,), _F32),
            ("attn_q", (hidden, hidden), _Q4_K),
            ("attn_k", (hidden, kv), _Q4_K),
            ("attn_v", (hidden, kv), better),
            ("attn_output", (hidden, hidden), _Q4_K),
            ("ffn_norm", (hidden,), _F32),
            ("ffn_gate", (hidden, inner), _Q4_K),
            ("ffn_up", (hidden, inner), _Q4_K),
            ("ffn_down", (inner, hidden), better),
        )
        for name, size, kind in rows:
            yield f"blk.{layer}.{name}.weight", size, kind
    yield "output_norm.weight", (hidden,), _F32
    if not shape.tied:
        yield "output.weight", (hidden, shape.vocab), _Q6_K


def write(shape: Shape, path: Path, name: str = "random", seed: int = 1) -> None:
    """Write the whole file; an existing one is replaced. Raises OSError."""
    pairs = [*_metadata(shape, name)]
    table = [*tensors(shape)]
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(table), len(pairs)))
        file.writelines(pairs)
        offset = 0
        for label, dims, kind in table:
            file.write(_text(label) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", kind, offset))
            offset += _aligned(_size(dims, kind))
        pools = {kind: _pool(kind, random.Random(seed)) for kind in _BLOCK}
        file.write(bytes(-file.tell() % _ALIGN))
        for _, dims, kind in table:
            _fill(file, pools[kind], _size(dims, kind))


def _metadata(shape: Shape, name: str) -> Iterator[bytes]:
    tokens, merges = words(shape.vocab)
    kinds = [_CONTROL, _CONTROL, _UNKNOWN] + [_NORMAL] * (len(tokens) - len(_SPECIAL))
    texts = {"general.architecture": "llama", "general.name": name, "tokenizer.ggml.model": "gpt2",
             "tokenizer.ggml.pre": "gpt-2", "tokenizer.chat_template": _TEMPLATE}  # fmt: skip
    numbers = {
        "general.file_type": _Q4_K_M,
        "general.quantization_version": 2,
        "llama.vocab_size": shape.vocab,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        **{f"tokenizer.ggml.{word}_token_id": at for at, word in enumerate(("bos", "eos"))},
    }
    floats = {
        "llama.rope.freq_base": shape.rope_base,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, text in texts.items():
        yield _text(key) + struct.pack("<I", _STRING) + _text(text)
    for key, number in numbers.items():
        yield _text(key) + struct.pack("<II", _U32, number)
    for key, value in floats.items():
        yield _text(key) + struct.pack("<If", _FLOAT, value)
    yield _text("tokenizer.ggml.add_bos_token") + struct.pack("<I?", _BOOL, True)
    for key, listed in (("tokens", tokens), ("merges", merges)):
        head = struct.pack("<IIQ", _ARRAY, _STRING, len(listed))
        yield _text(f"tokenizer.ggml.{key}") + head + b"".join(map(_text, listed))
    head = struct.pack("<IIQ", _ARRAY, _I32, len(kinds))
    yield _text("tokenizer.ggml.token_type") + head + struct.pack(f"<{len(kinds)}i", *kinds)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _kv_width(shape: Shape) -> int:
    return shape.hidden // shape.heads * shape.kv_heads


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of the layers whose V and down projections are kept in Q6_K."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _size(dims: tuple[int, ...], kind: int) -> int:
    elements, size = _BLOCK[kind]
    count = 1
    for each in dims:
        count *= each
    return count // elements * size


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _pool(kind: int, rng: random.Random) -> bytes:
    """Random blocks whose values spread by about 0.02, as weights of such models do.

    Q4_K: value = d x scale x q - dmin x minimum (6-bit scale and minimum, 4-bit q), d and dmin in
    the first four bytes. Q6_K: value = d x scale x (q - 32), 8-bit scale, d in the last two.
    """
    if kind == _F32:
        return struct.pack("<f", 1.0) * _POOL_BLOCKS
    _, size = _BLOCK[kind]
    pool = bytearray(rng.randbytes(size * _POOL_BLOCKS))
    if kind == _Q4_K:
        step = 0.02 / (36 * 4.6)  # the scale's root mean square times q's deviation
        fixed = struct.pack("<2e", step, 7.5 * step)
        places = range(4)
    else:
        fixed = struct.pack("<e", 0.02 / (74 * 18.5))
        places = range(size - 2, size)
    for place, byte in zip(places, fixed, strict=True):
        pool[place::size] = bytes([byte]) * _POOL_BLOCKS
    return bytes(pool)


def _fill(file: BinaryIO, pool: bytes, size: int) -> None:
    whole, rest = divmod(size, len(pool))
    for _ in range(whole):
        file.write(pool)
    file.write(pool[:rest])
    file.write(bytes(_aligned(size) - size))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a GGUF file of random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    write(SHAPES[asked.shape], asked.out, asked.shape)
    print(f"{asked.out}: {asked.out.stat().st_size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
