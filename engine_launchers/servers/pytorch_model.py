"""Loading: model, tokenizer, adapters, and the sizes that follow from them.

Everything comes from local folders; nothing is fetched and no code of a model folder is run. What
fails is told in one line: `model: …`, `adapter NAME: …`, `kv: …`, `device: …`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_flags import Adapter, Options
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

log = logging.getLogger("pytorch_server")
_MASK_BYTES = 256 * 2**20  # the library holds a mask of batch tokens x all cached tokens
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class LoadFailed(Exception):
    """What cannot be served, in one line."""


@dataclass(frozen=True)
class Loaded:
    """All that generation needs.

    `adapters` maps the names that clients use to PEFT's, which may hold no dot. `max_model_len` is
    tokens of prompt and answer, `vocabulary` the number of token ids that the model takes, `eos`
    the ids that end a text; `num_blocks` of `block_size` tokens is the KV cache, `batch_tokens` the
    most that one forward pass takes, `compile` whether torch.compile is wanted.
    """

    model: Any
    tokenizer: Any
    adapters: dict[str, str]
    max_model_len: int
    vocabulary: int
    eos: tuple[int, ...]
    num_blocks: int
    block_size: int
    batch_tokens: int
    compile: bool


def first_line(error: BaseException) -> str:
    """An exception in one line: its type, and what it says first."""
    if "ignore_mismatched_sizes" in str(error):  # the library's words are about its own argument
        return "the shapes of its tensors are not those of this model"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def load(options: Options) -> Loaded:
    """Everything in memory, except the KV cache; LoadFailed where it cannot be."""
    folder = Path(options.model)
    device = _device(options)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise LoadFailed(f"model: {first_line(error)}") from error
    _untruncated(tokenizer)
    context = _context(options, config)
    model = _model(options, folder, device)
    names = {each.name: f"a{at}" for at, each in enumerate(options.adapters)}
    if options.quantization:
        _let_go(model)
    if options.adapters:
        log.info("loading adapters")
    for adapter in options.adapters:
        _add_adapter(model, adapter, names[adapter.name])
    if names:
        activate(model, "")
    blocks = _blocks(options, context)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        adapters=names,
        max_model_len=context,
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        eos=_eos(model, tokenizer),
        num_blocks=blocks,
        block_size=options.block_size,
        batch_tokens=_batch_tokens(options, blocks, device),
        compile=options.compile,
    )


def trim() -> None:
    """Give the allocator's free memory back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it, others do without
        ctypes.CDLL(None).malloc_trim(0)


def activate(model: Any, adapter: str) -> None:
    """Make this adapter, by PEFT's name, the only one; "" is the base model without any."""
    if adapter:
        model.enable_adapters()
        model.set_adapter(adapter)
    else:
        model.disable_adapters()


def _device(options: Options) -> str:
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise LoadFailed("device: no CUDA GPU is visible to torch")
    device = "cuda" if there and options.device != "cpu" else "cpu"
    if device == "cuda" and options.gpu_memory_bytes:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(options.gpu_memory_bytes / whole, 1.0))
    if device == "cpu" and options.cpu_offload_bytes:
        log.warning("cpu-offload-bytes: no effect without a GPU")
    return device


def _untruncated(tokenizer: Any) -> None:
    """A tokenizer file may hold a truncation that would silently shorten prompts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.model_max_length = 10**9  # else a warning about what is refused anyway


def _context(options: Options, config: Any) -> int:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    asked = options.max_model_len
    context = asked or longest
    if context is None:
        raise LoadFailed("model: config.json names no context length; give --max-model-len")
    if longest and context > longest:
        raise LoadFailed(f"max-model-len: {context} was asked for, the model has {longest}")
    return int(context)


def _blocks(options: Options, context: int) -> int:
    each = -(-context // options.block_size)
    if options.num_blocks is None:
        return each * options.max_num_seqs
    if options.num_blocks < each:
        holds = options.num_blocks * options.block_size
        raise LoadFailed(
            f"kv: {options.num_blocks} blocks hold {holds} tokens, max-model-len is {context}"
        )
    return options.num_blocks


def _batch_tokens(options: Options, blocks: int, device: str) -> int:
    if options.max_batch_tokens is not None:
        return options.max_batch_tokens
    most = 512 if device == "cpu" else 2048
    within = _MASK_BYTES // (2 * blocks * options.block_size)
    return max(min(most, within), 16, options.max_num_seqs)


def _model(options: Options, folder: Path, device: str) -> Any:
    dtype = _TYPES.get(options.dtype, "auto")
    more: dict[str, Any] = {"device_map": {"": device}}
    offload = options.cpu_offload_bytes if device == "cuda" else 0
    if offload:
        weights = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
        more = {"device_map": "auto", "max_memory": {0: max(weights - offload, 1), "cpu": weights}}
    if options.quantization == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    elif options.quantization == "int8":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=bool(offload)
        )
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    except Exception as error:
        raise LoadFailed(f"model: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise LoadFailed(f"model: {len(missing)} tensors are not in the files, as {missing[0]}")
    return model


def _let_go(model: Any) -> None:
    """Give back what packing needed: the files' pages, and free memory.

    Layers that stay 16 bit would keep the whole mapped file alive, packed layers' pages included.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()
    trim()


def _add_adapter(model: Any, adapter: Adapter, name: str) -> None:
    try:
        told = model.load_adapter(adapter.path, adapter_name=name)
    except Exception as error:
        raise LoadFailed(f"adapter {adapter.name}: {first_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in getattr(told, what))
        wrong = [key for key in keys if what != "missing_keys" or f".{name}" in key]
        if wrong:
            count = f"{len(wrong)} {what.replace('_', ' ')}"
            raise LoadFailed(f"adapter {adapter.name}: {count} for this model, as {wrong[0]}")


def _eos(model: Any, tokenizer: Any) -> tuple[int, ...]:
    told = model.generation_config.eos_token_id
    if told is None:
        told = tokenizer.eos_token_id
    if told is None:
        return ()
    return tuple(told) if isinstance(told, list | tuple) else (int(told),)
