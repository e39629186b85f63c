"""Whether and how a GGUF model fits llama.cpp: layers per device and context, by search. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engine_launchers import llama_memory
from engine_launchers.base import Fit, MemoryEstimate, Rejection, Tuning
from engine_launchers.llama_memory import Layout, Run
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.relaxing import gib

MIN_CONTEXT = 512  # nothing shorter is planned unless it was asked for
_GOOD_CONTEXT = 4096  # worth more than keeping all layers on the card
_STEP = 256  # contexts are multiples of this many tokens
_RAM_SHARE = 0.95  # of the available RAM that a plan may take
_VRAM_SHARE = 0.98  # of a card's free memory: what a program sees of it


@dataclass(frozen=True)
class _Room:
    """Bytes that may be used: on the host in all, on each card beside its overhead.

    `shared` is that overhead where the cards' memory is the host's, None where they have their own.
    """

    host: float
    cards: tuple[float, ...]
    shares: tuple[float, ...]
    shared: float | None = None


def fit(
    name: str,
    model: ModelSpec,
    hardware: HardwareProfile,
    wish: Tuning,
    pinned: frozenset[str],
) -> Fit | Rejection:
    """All layers on the cards at the wished context; else fewer tokens; else fewer layers.

    Without GPUs everything lies in RAM. `name` is the engine's, for rejections.
    """
    if model.format != "gguf":
        return Rejection(what=name, why=f"reads GGUF files, this is {model.format}")
    asked = wish.max_model_len
    if asked and asked > model.context_max and "max_model_len" in pinned:
        why = f"context {asked} was asked for, the model has {model.context_max}"
        return Rejection(what=name, why=why, need=asked, have=model.context_max, unit="tokens")
    wanted = min(asked or model.context_max, model.context_max)
    used = _usable(model, hardware)
    if hardware.gpus and not used:
        return _no_card(name, model, hardware)
    hardware = hardware.model_copy(update={"gpus": tuple(hardware.gpus[at] for at in used)})
    room = _room(model, hardware)
    layout = Layout.of(model)
    layers = layout.layers
    least = wanted if "max_model_len" in pinned else min(MIN_CONTEXT, wanted)
    chosen = _choose(layout, room, wish, wanted, least, pinned)
    if chosen is None:
        return _refusal(name, layout, room, wish, least, wanted, pinned)
    run, reasons = chosen
    if run.context < wanted:
        reasons.append(f"context {run.context}: more does not fit, {wanted} tokens wished")
    if hardware.gpus:
        on_card = layers if run.gpu_layers < 0 else min(run.gpu_layers, layers)
        reasons.append(f"{on_card} of {layers} layers on the GPU: computed from what is free")
    threads = wish.threads or hardware.cpu_cores
    reasons.append(f"threads {threads}: usable physical cores are {hardware.cpu_cores}")
    spilled = llama_memory.spilled(layout, run) if hardware.gpus else 0.0
    tuning = wish.model_copy(
        update={
            "max_model_len": run.context,
            "max_concurrency": 1,
            "threads": threads,
            "batch": min(wish.batch or run.ubatch, run.context),
            "quantization": model.quantization,
            "gpu_layers": run.gpu_layers if hardware.gpus else 0,
            "tensor_split": run.shares,
            "flash_attention": run.flash_attention or None,
            "tensor_parallel": None,
            "pipeline_parallel": None,
            "gpu_memory_fraction": None,
            "dtype": None,
        }
    )
    return Fit(
        tuning=tuning,
        gpus=used,
        spilled=int(spilled),
        estimate=estimates(model, hardware, run),
        reasons=tuple(reasons),
    )


def estimates(model: ModelSpec, hardware: HardwareProfile, run: Run) -> tuple[MemoryEstimate, ...]:
    """What `run` takes from RAM and from each card."""
    host, cards = llama_memory.buffers(model, run)
    ram = MemoryEstimate(
        device="ram",
        weights=int(host.weights),
        kv=int(host.kv),
        activations=int(host.compute - host.idle),
        overhead=int(llama_memory.host_overhead(model, run)),
        capacity=hardware.ram_total,
        others=hardware.ram_total - hardware.ram_available,
    )
    beside = llama_memory.device_overhead(model)
    return (
        *(
            MemoryEstimate(
                device=f"gpu:{gpu.index}",
                weights=int(held.weights),
                kv=int(held.kv),
                activations=int(held.compute),
                overhead=int(beside),
                capacity=gpu.vram_total,
                others=gpu.vram_total - gpu.vram_free,
            )
            for gpu, held in zip(hardware.gpus, cards, strict=True)
        ),
        ram,
    )


def _usable(model: ModelSpec, hardware: HardwareProfile) -> tuple[int, ...]:
    """Positions of the cards that have room beside what the engine takes of each."""
    beside = llama_memory.device_overhead(model)
    return tuple(at for at, gpu in enumerate(hardware.gpus) if gpu.vram_free * _VRAM_SHARE > beside)


def _no_card(name: str, model: ModelSpec, hardware: HardwareProfile) -> Rejection:
    freest = max(hardware.gpus, key=lambda gpu: gpu.vram_free)
    need, have = llama_memory.device_overhead(model), freest.vram_free * _VRAM_SHARE
    why = f"takes {gib(need)} of a GPU before any layer, {gib(have)} of {freest.name} may be used"
    return Rejection(what=name, why=why, need=need, have=have, unit="bytes")


def _room(model: ModelSpec, hardware: HardwareProfile) -> _Room:
    beside = llama_memory.device_overhead(model)
    cards = tuple(max(0.0, gpu.vram_free * _VRAM_SHARE - beside) for gpu in hardware.gpus)
    total = sum(cards)
    even = len(cards) < 2 or total == 0
    shares = () if even else tuple(round(card / total, 3) for card in cards)
    unified = any(gpu.unified for gpu in hardware.gpus)
    return _Room(hardware.ram_available * _RAM_SHARE, cards, shares, beside if unified else None)


def _run(room: _Room, wish: Tuning, context: int, gpu_layers: int) -> Run:
    return Run(
        context=context,
        gpu_layers=gpu_layers if room.cards else 0,
        devices=len(room.cards),
        shares=room.shares,
        flash_attention=bool(wish.flash_attention and room.cards),
        kv_dtype=wish.kv_cache_dtype,
        ubatch=min(wish.batch or llama_memory.UBATCH, llama_memory.UBATCH),
    )


def _on_cards(layout: Layout, room: _Room, wish: Tuning, context: int, gpu_layers: int) -> bool:
    _, cards = llama_memory.laid_out(layout, _run(room, wish, context, gpu_layers))
    return all(card.total <= limit for card, limit in zip(cards, room.cards, strict=True))


def _fits(layout: Layout, room: _Room, run: Run) -> bool:
    host, cards = llama_memory.laid_out(layout, run)
    taken = host.total + llama_memory.host_overhead(layout.model, run)
    if room.shared is not None:
        taken += sum(card.total + room.shared for card in cards)
    return taken <= room.host and all(
        card.total <= limit for card, limit in zip(cards, room.cards, strict=True)
    )


def _choose(
    layout: Layout,
    room: _Room,
    wish: Tuning,
    wanted: int,
    least: int,
    pinned: frozenset[str],
) -> tuple[Run, list[str]] | None:
    """The best run that fits, with reasons; None where there is none."""

    layers = layout.layers

    def at(context: int, gpu_layers: int) -> Run:
        return _run(room, wish, context, gpu_layers)

    def longest(gpu_layers: int, least: int) -> Run | None:
        best = _most(least, wanted, lambda n: _fits(layout, room, at(n, gpu_layers)))
        if best is None:
            return None
        return at(best if best == wanted else max(least, best // _STEP * _STEP), gpu_layers)

    if not room.cards:
        found = longest(0, least)
        return None if found is None else (found, [])
    if "gpu_layers" in pinned and wish.gpu_layers is not None:
        found = longest(wish.gpu_layers, least)
        return None if found is None else (found, [f"{wish.gpu_layers} layers were asked for"])
    whole = longest(-1, max(least, min(_GOOD_CONTEXT, wanted)))
    if whole is not None:
        return whole, []
    context = wanted
    while context >= least:
        # More layers on the cards leave fewer in RAM: the most that the cards hold decides.
        hold = partial(_on_cards, layout, room, wish, context)
        some = _most(0, layers - 1, hold)
        if some is not None and _fits(layout, room, at(context, some)):
            return at(context, some), ["the rest of the layers stays in RAM, which is slower"]
        if context == least:
            break
        context = max(least, context // 4)
    return None


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number from `low` to `high` that fits, by bisection; None if none does."""
    if fits(high):
        return high
    if not fits(low):
        return None
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _refusal(
    name: str,
    layout: Layout,
    room: _Room,
    wish: Tuning,
    least: int,
    wanted: int,
    pinned: frozenset[str],
) -> Rejection:
    """The number that rules it out, and what would do."""
    model = layout.model
    run = _run(room, wish, least, 0)
    host, _ = llama_memory.laid_out(layout, run)
    need = host.total + llama_memory.host_overhead(model, run)
    have, where = room.host, "of RAM"
    if room.cards:
        have, where = room.host + sum(room.cards), "of RAM and GPU memory"
    if "gpu_layers" in pinned and room.cards and wish.gpu_layers:
        _, cards = llama_memory.laid_out(layout, _run(room, wish, least, wish.gpu_layers))
        over = max(range(len(cards)), key=lambda at: cards[at].total - room.cards[at])
        if cards[over].total > room.cards[over]:
            need, have = cards[over].total, room.cards[over]
            where = f"of a GPU for {wish.gpu_layers} layers"
    shortest = "" if least == wanted else " at the shortest context"
    advice = ""
    if "max_model_len" in pinned:
        free = pinned - {"max_model_len"}
        found = _choose(layout, room, wish, wanted, min(MIN_CONTEXT, wanted), free)
        if found is not None:
            advice = f"; context {found[0].context} would fit"
    if "gpu_layers" in pinned and wish.gpu_layers and room.cards:
        free = pinned - {"gpu_layers"}
        found = _choose(layout, room, wish, wanted, least, free)
        if found is not None and found[0].gpu_layers >= 0:
            advice += f"; {found[0].gpu_layers} layers on the GPU would fit"
    why = (
        f"{model.quantization} needs {gib(need)} {where}{shortest} ({least} tokens), "
        f"{gib(max(0.0, have))} may be used{advice}"
    )
    return Rejection(what=name, why=why, need=need, have=max(0.0, have), unit="bytes")
