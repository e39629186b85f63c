"""The flags of the PyTorch engine's server. Standard library only.

Every flag has two dashes; an unknown or abbreviated one ends the program with code 2. The API key
is no flag: it comes from the environment variable ENGINE_API_KEY and never stands in an argv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: the model name that it answers to, and its PEFT folder."""

    name: str
    path: str


@dataclass(frozen=True)
class Options:
    """The flags as given; None where the default depends on the model or the device.

    Sizes ending in `_bytes` are bytes, `block_size` and the `max_*_len/tokens` are tokens,
    `shutdown_timeout` is seconds.
    """

    model: str
    served: tuple[str, ...]
    host: str
    port: int
    uds: str | None
    dtype: str
    quantization: str | None
    max_model_len: int | None
    max_num_seqs: int
    max_queue_size: int
    threads: int | None
    num_blocks: int | None
    block_size: int
    max_batch_tokens: int | None
    cpu_offload_bytes: int
    gpu_memory_bytes: int | None
    device: str
    compile: bool
    adapters: tuple[Adapter, ...]
    default_adapter: str | None
    seed: int | None
    shutdown_timeout: float


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return number


def _amount(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return number


def _adapter(text: str) -> Adapter:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return Adapter(name, path)


def parser() -> argparse.ArgumentParser:
    """The command line, for `--help` and for `parse`."""
    p = argparse.ArgumentParser(
        prog="pytorch_server.py",
        description="OpenAI-compatible server over transformers' continuous batching.",
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--model", required=True, help="folder with config.json, safetensors and tokenizer")
    add("--served-model-name", action="extend", nargs="+", default=[], metavar="NAME")
    add("--host", default="127.0.0.1")
    add("--port", type=_port, default=8000)
    add("--uds", help="listen on this Unix socket instead of host and port")
    add("--dtype", choices=DTYPES, default="auto")
    add("--quantization", choices=("nf4", "int8"), help="pack the weights while loading")
    add("--max-model-len", type=_positive, help="tokens of prompt and answer (model's own)")
    add("--max-num-seqs", type=_positive, default=8, help="requests computed together")
    add("--max-queue-size", type=_positive, help="requests that may wait (4 x max-num-seqs)")
    add("--threads", type=_positive, help="CPU threads of torch")
    add("--num-blocks", type=_positive, help="KV blocks (enough for all sequences)")
    add("--block-size", type=_positive, default=64, help="tokens of a KV block")
    add("--max-batch-tokens", type=_positive, help="tokens of one forward pass")
    add("--cpu-offload-bytes", type=_amount, default=0, help="weights kept in RAM beside a GPU")
    add("--gpu-memory-bytes", type=_positive, help="most that this process takes of the GPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true", help="torch.compile")
    add("--adapter", type=_adapter, action="append", default=[], metavar="NAME=PATH")
    add("--default-adapter", metavar="NAME", help="applied where the base model is asked for")
    add("--seed", type=int, help="makes requests without a seed repeatable, in order of arrival")
    add("--shutdown-timeout", type=_seconds, default=0.0, metavar="SECONDS")
    return p


def parse(argv: Sequence[str]) -> Options:
    """The flags; SystemExit(2) with usage on stderr where one is wrong."""
    p = parser()
    args = p.parse_args(argv)
    served = tuple(dict.fromkeys(args.served_model_name)) or (args.model,)
    names = [adapter.name for adapter in args.adapter]
    for name in names:
        if names.count(name) > 1 or name in served:
            p.error(f"argument --adapter: the name {name!r} is used twice")
    if args.default_adapter is not None and args.default_adapter not in names:
        p.error(f"argument --default-adapter: no --adapter is named {args.default_adapter!r}")
    if args.block_size < 4:
        p.error("argument --block-size: less than 4 tokens")
    if args.max_batch_tokens is not None and args.max_batch_tokens < args.max_num_seqs:
        p.error("argument --max-batch-tokens: less than --max-num-seqs, one token for each")
    return Options(
        model=args.model,
        served=served,
        host=args.host,
        port=args.port,
        uds=args.uds,
        dtype=args.dtype,
        quantization=args.quantization,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_queue_size=args.max_queue_size or max(16, 4 * args.max_num_seqs),
        threads=args.threads,
        num_blocks=args.num_blocks,
        block_size=args.block_size,
        max_batch_tokens=args.max_batch_tokens,
        cpu_offload_bytes=args.cpu_offload_bytes,
        gpu_memory_bytes=args.gpu_memory_bytes,
        device=args.device,
        compile=args.compile,
        adapters=tuple(args.adapter),
        default_adapter=args.default_adapter,
        seed=args.seed,
        shutdown_timeout=args.shutdown_timeout,
    )
