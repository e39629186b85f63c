"""Convert the demo model from Hugging Face format to GGUF (F16) and quantize it to Q4_K_M.

The two steps may run in two environments: ``f16`` needs gguf, numpy, torch and safetensors,
``quantize`` needs llama_cpp only.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
from pathlib import Path
from typing import Any

NORMAL, CONTROL = 1, 3  # token types of GGUF
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def gguf_name(name: str) -> str:
    """Translate the name of a tensor."""
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return f"{OUTER[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleave(matrix: Any, heads: int) -> Any:
    """Reorder the rows of a q or k matrix [heads * head_dim, hidden].

    Hugging Face rotates element i together with i + head_dim / 2, llama.cpp's "llama" rotates
    elements 2 i and 2 i + 1.
    """
    rows, cols = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def add_tokenizer(writer: Any, source: Path) -> None:
    """Write vocabulary, merges, special ids and chat template."""
    data = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {entry["content"] for entry in data["added_tokens"]}
    vocab: dict[str, int] = data["model"]["vocab"]
    tokens = sorted(vocab, key=lambda text: vocab[text])
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if text in special else NORMAL for text in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab[config["bos_token"]])
    writer.add_eos_token_id(vocab[config["eos_token"]])
    writer.add_eot_token_id(vocab[config["eos_token"]])
    writer.add_pad_token_id(vocab[config["pad_token"]])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(config["chat_template"])


def write_f16(source: Path, target: Path) -> None:
    """Write the GGUF file: matrices as F16, norms as F32."""
    gguf = importlib.import_module("gguf")
    numpy = importlib.import_module("numpy")
    safetensors = importlib.import_module("safetensors.torch")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_name("demo")
    writer.add_description("Small language model for tests and first steps")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, source)
    for name, tensor in safetensors.load_file(str(source / "model.safetensors")).items():
        array = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = interleave(array, heads if ".q_proj." in name else kv_heads)
        kind = numpy.float32 if array.ndim == 1 else numpy.float16
        writer.add_tensor(gguf_name(name), numpy.ascontiguousarray(array.astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path) -> None:
    """Quantize an F16 file to Q4_K_M with llama.cpp."""
    llama_cpp = importlib.import_module("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = 1
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise SystemExit(f"llama_model_quantize returned {status}")


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["f16", "quantize"])
    parser.add_argument("source", type=Path, help="folder (f16) or F16 file (quantize)")
    parser.add_argument("target", type=Path, help="GGUF file to write")
    args = parser.parse_args()
    if args.step == "f16":
        write_f16(args.source, args.target)
    else:
        quantize(args.source, args.target)


if __name__ == "__main__":
    main()
