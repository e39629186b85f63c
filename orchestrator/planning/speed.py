"""Expected speed by roofline: bytes over bandwidth for decode, FLOPs for prefill. Pure.

Decode reads every weight that a token uses, and the cache, once per token:

    seconds = sum over devices of bytes / (bandwidth x share) + layers x c1 + c2

with the shares and constants of the engine (`SpeedTraits`); on processors the reading, or unpacking
and multiplying at the cores' speed, whichever takes longer. Devices of one engine take turns,
unless its tensor parallel ranks read at the same time. Prefill computes 2 FLOPs per weight and
token. Batching engines share the weights that are read among all requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine_launchers.base import Expected, MemoryEstimate, Tuning
from engine_launchers.caches import bytes_per_token
from engine_launchers.machine import Gpu, HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.precision import precision
from engine_launchers.traits import CpuTraits, SpeedTraits
from orchestrator.planning.gpus import GpuSpec

PROMPT = 512  # tokens of the prompt that the time to the first token is given for
_CONTEXT = 512  # tokens that are cached while decode is timed
_ASSUMED_RAM = 40e9  # bytes per second where nothing was measured: two channels of DDR4
# FLOP/s of one core, of which engines reach their `compute_share`. Prefill of 1B in Q4_K_M came to
# 84 to 136 GFLOP/s on a core of one server with AVX-512, to 219 on another's.
_PER_CORE = (("AMX", 340e9), ("AVX-512", 340e9), ("AVX2", 100e9), ("NEON", 60e9))
_SLOW_CORE = 12e9
_PCIE = 12e9  # bytes per second of weights on their way to a GPU: half of 4.0 x16
_HBM = ("H100", "H200", "H20", "H800", "A100", "A800", "A30", "V100", "P100", "B200", "B300",
        "GH200", "GB200", "GB300", "MI")  # fmt: skip
_SPREAD = 0.2  # published figures of one card and model lie this far apart


@dataclass(frozen=True)
class _Device:
    """One place where weights lie: what it holds, how fast it reads, how fast it computes."""

    held: float
    cache: float
    bandwidth: float
    flops: float
    in_ram: bool = False


def expect(
    model: ModelSpec,
    tuning: Tuning,
    estimate: tuple[MemoryEstimate, ...],
    hardware: HardwareProfile,
    known: Mapping[str, GpuSpec | None],
    traits: SpeedTraits,
    spilled: int = 0,
) -> Expected:
    """The roofline of one plan.

    `hardware` holds just the GPUs that it uses, `known` the published figures by uuid, `spilled`
    the bytes of layers that stay in RAM beside them. Unknown cards give an Expected without figures
    that says so.
    """
    specs = {f"gpu:{gpu.index}": (gpu, known.get(gpu.uuid)) for gpu in hardware.gpus}
    unknown = [g.name for g, s in specs.values() if s is None and not g.memory_bandwidth]
    if unknown:
        return Expected(source=f"no published figures for {unknown[0]}")
    kind = precision(tuning.quantization or model.quantization)
    devices = _devices(model, estimate, hardware, specs, traits, kind, spilled)
    if not devices:
        return Expected(source="nothing to read")
    active = model.active_params or model.params
    cpu = None if hardware.gpus else traits.cpu
    beside = cpu or traits
    fixed = model.layers * beside.seconds_per_layer + beside.seconds_per_token
    ranks = tuning.tensor_parallel or 1
    if ranks > 1:
        fixed += model.layers * 2 * _hop(hardware)
    step = _turns([(d.held + d.cache) / d.bandwidth for d in devices], ranks, traits)
    unpacking = _decode_flops(cpu, hardware)
    if unpacking:  # a core unpacks while it reads: the slower counts
        products = active if model.tied_embeddings else active - model.vocab * model.hidden
        most = min(unpacking * hardware.cpu_cores, _cpu_flops(hardware))
        step = max(step, 2.0 * products / most)
    decode = step + fixed
    ttft = _prefill(model, devices, ranks, traits) + decode
    rate = 1 / decode
    assumed = "" if hardware.gpus or hardware.memory_bandwidth else "; RAM at 40 GB/s assumed"
    return Expected(
        tokens_per_second=(rate * (1 - _SPREAD), rate * (1 + _SPREAD)),
        batch_tokens_per_second=_batch(model, tuning, fixed, traits, devices),
        ttft_seconds=(ttft * (1 - _SPREAD), ttft * (1 + _SPREAD)),
        prompt_tokens=PROMPT,
        source=f"roofline: bytes per token over memory bandwidth{assumed}",
    )


def _turns(seconds: list[float], ranks: int, traits: SpeedTraits) -> float:
    """Seconds of all devices: ranks work together, stages and spread layers one after the other."""
    if traits.splits_layers:
        return max(seconds) * len(seconds) / ranks
    return sum(seconds)


def _prefill(model: ModelSpec, devices: list[_Device], ranks: int, traits: SpeedTraits) -> float:
    """Seconds until a prompt is computed, each device its share of the layers.

    Of the prompt only the last token's logits are computed, and the token table is looked up. What
    lies in RAM beside GPUs is computed there, or sent to a GPU for the batch, whichever is faster.
    """
    active = model.active_params or model.params
    tables = model.vocab * model.hidden * (1 if model.tied_embeddings else 2)
    work = 2.0 * max(0, active - tables) * PROMPT
    whole = sum(device.held for device in devices) or 1.0
    fastest = max(device.flops for device in devices)
    more = _read_share(model, PROMPT) / _read_share(model)
    seconds: list[float] = []
    for device in devices:
        share = work * device.held / whole
        held = device.held * more
        own = max(share / (device.flops * traits.compute_share), held / device.bandwidth)
        if device.in_ram and len(devices) > 1:
            sent = held / _PCIE + share / (fastest * traits.compute_share)
            own = min(own, sent)
        seconds.append(own)
    return _turns(seconds, ranks, traits)


def _devices(
    model: ModelSpec,
    estimate: tuple[MemoryEstimate, ...],
    hardware: HardwareProfile,
    specs: Mapping[str, tuple[Gpu, GpuSpec | None]],
    traits: SpeedTraits,
    kind: str,
    spilled: int,
) -> list[_Device]:
    """Where the weights that a token reads lie; the token table in RAM is looked up, not read."""
    share = traits.bandwidth_share.get(kind, 0.6)
    sizes = [
        (part, spilled if part.device == "ram" and hardware.gpus else part.weights)
        for part in estimate
    ]
    holders = [(part, size) for part, size in sizes if size > 0]
    whole = sum(size for _, size in holders) or 1
    read = _read_share(model)
    cache = bytes_per_token(model) * _CONTEXT
    found: list[_Device] = []
    for part, size in holders:
        held, mine = size * read, cache * size / whole
        if part.device == "ram":
            rate = float(hardware.memory_bandwidth or _ASSUMED_RAM)
            reach = traits.memory_share.get("ram", 0.9)
            found.append(_Device(held, mine, rate * reach, _cpu_flops(hardware), in_ram=True))
            continue
        gpu, spec = specs[part.device]
        rate = float(spec.bandwidth if spec else gpu.memory_bandwidth or 1)
        reach = share * traits.memory_share.get(_memory_kind(gpu, spec), 1.0)
        flops = (spec.flops("fp16") or spec.flops("fp32")) if spec else None
        found.append(_Device(held, mine, rate * reach, flops or rate * 50))
    return found


def _read_share(model: ModelSpec, tokens: int = 1) -> float:
    """The part of the weights that a step of `tokens` reads.

    One row of the token table is read, not the table. Of routed experts each token wants a few;
    the more tokens, the more of them are wanted by at least one.
    """
    parts = model.weights
    if parts is None or parts.total == 0 or (model.active_params and not model.experts):
        used = (model.active_params or model.params) / model.params
        return 1 - (1 - used) ** tokens if used < 1 else 1.0
    read = float(parts.total - (parts.embedding if parts.output else 0))
    if model.experts and model.experts_used:
        idle = (1 - model.experts_used / model.experts) ** tokens
        read -= parts.experts * idle
    return read / parts.total


def _batch(
    model: ModelSpec, tuning: Tuning, fixed: float, traits: SpeedTraits, devices: list[_Device]
) -> float | None:
    """Tokens per second of all requests that run together, over all replicas."""
    if not traits.batching:
        return None
    seqs, ranks = tuning.max_concurrency or 1, tuning.tensor_parallel or 1
    more = _read_share(model, seqs) / _read_share(model)
    reading = [(d.held * more + d.cache * seqs) / d.bandwidth for d in devices]
    active = model.active_params or model.params
    whole = sum(d.held for d in devices) or 1.0
    work = 2.0 * active * seqs / traits.compute_share
    computing = [work * d.held / whole / d.flops for d in devices]
    # Stages work on different requests at the same time, once there are enough of them.
    stages = len(devices) / ranks if traits.splits_layers else 1.0
    step = max(_turns(reading, ranks, traits), _turns(computing, ranks, traits))
    return seqs / (step / min(stages, seqs) + fixed) * (tuning.replicas or 1)


def _memory_kind(gpu: Gpu, spec: GpuSpec | None) -> str:
    if gpu.unified or (spec is not None and spec.unified):
        return "unified"
    name = spec.name if spec else gpu.name
    return "hbm" if name.upper().startswith(_HBM) else "gddr"


def _hop(hardware: HardwareProfile) -> float:
    """Seconds of one all-reduce of a token: launch and latency, more without NVLink."""
    fast = any(link.kind in {"nvlink", "xgmi"} for link in hardware.links)
    return 8e-6 if fast else 20e-6


def _decode_flops(cpu: CpuTraits | None, hardware: HardwareProfile) -> float | None:
    known = cpu.decode_flops if cpu else {}
    return next((rate for name, rate in known.items() if name in hardware.isa), None)


def _cpu_flops(hardware: HardwareProfile) -> float:
    best = next((rate for name, rate in _PER_CORE if name in hardware.isa), _SLOW_CORE)
    return best * hardware.cpu_cores
