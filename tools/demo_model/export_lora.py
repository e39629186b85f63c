"""Convert a LoRA adapter of the demo model from PEFT's format to GGUF (F16) for llama.cpp.

Needs gguf, numpy, torch and safetensors. Every matrix A is [rank, inputs], B is [outputs, rank].
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from tools.demo_model.export_gguf import gguf_name, interleave

_PREFIX = "base_model.model."
_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b"}


def lora_name(name: str) -> str:
    """Translate the name of a matrix: the base's tensor, then ``.lora_a`` or ``.lora_b``."""
    module, part, _ = name.removeprefix(_PREFIX).rsplit(".", 2)
    return f"{gguf_name(module)}.{_PARTS[part]}"


def write_lora(base: Path, source: Path, target: Path) -> None:
    """Write the adapter in the folder ``source`` as one GGUF file.

    The rows of q and k are in another order in GGUF; they are the rows of B, while A reads the
    hidden state, whose order is the same. Raises SystemExit where float16 cannot hold a number.
    """
    gguf = importlib.import_module("gguf")
    numpy = importlib.import_module("numpy")
    safetensors = importlib.import_module("safetensors.torch")
    shape = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": shape["num_attention_heads"], "k_proj": shape["num_key_value_heads"]}
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(f"demo {source.name}")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    matrices = safetensors.load_file(str(source / "adapter_model.safetensors"))
    for name, tensor in sorted(matrices.items()):
        module, part = name.split(".")[-3:-1]
        array = tensor.float().numpy()
        if part == "lora_B" and module in heads:
            array = interleave(array, heads[module])
        half = numpy.ascontiguousarray(array.astype(numpy.float16))
        if not numpy.array_equal(half.astype(numpy.float32), array):
            raise SystemExit(f"{name}: some of its numbers are not float16 numbers")
        writer.add_tensor(lora_name(name), half)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Convert one adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="folder of the demo model in Hugging Face format")
    parser.add_argument("source", type=Path, help="folder of the adapter in PEFT's format")
    parser.add_argument("target", type=Path, help="GGUF file to write")
    args = parser.parse_args()
    write_lora(args.base, args.source, args.target)


if __name__ == "__main__":
    main()
