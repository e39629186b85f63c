"""Whether and how a GGUF model fits llama.cpp: layers per device and context, by search. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from engine_launchers import llama_memory
from engine_launchers.base import Fit, MemoryEstimate, Rejection, Tuning
from engine_launchers.llama_memory import PYTHON, Buffers, Layout, Run, Server
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import ModelSpec
from engine_launchers.relaxing import gib

UBATCH = llama_memory.UBATCH  # prompt tokens per evaluation step, at most
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


@dataclass(frozen=True)
class _Asked:
    """What the search starts from; `slots` is the least number of sequences."""

    layout: Layout
    room: _Room
    wish: Tuning
    server: Server
    slots: int
    wanted: int
    least: int
    pinned: frozenset[str]

    def run(self, context: int, gpu_layers: int, slots: int | None = None) -> Run:
        """The settings of one try, every sequence with `context` tokens."""
        wish, cards = self.wish, self.room.cards
        sequences = slots or self.slots
        by_itself = self.server.auto_flash and wish.flash_attention is None
        return Run(
            context=llama_memory.cells(context) * sequences,
            gpu_layers=gpu_layers if cards else 0,
            devices=len(cards),
            shares=self.room.shares,
            flash_attention=by_itself or bool(wish.flash_attention and cards),
            kv_dtype=wish.kv_cache_dtype,
            ubatch=min(wish.batch or UBATCH, UBATCH),
            sequences=sequences,
            server=self.server,
        )

    def fits(self, run: Run) -> bool:
        """Whether the host and every card hold it."""
        room = self.room
        host, cards = llama_memory.laid_out(self.layout, run)
        taken = host.total + llama_memory.host_overhead(self.layout.model, run)
        if room.shared is not None:
            taken += sum(card.total + room.shared for card in cards)
        return taken <= room.host and _hold(room, cards)

    def on_cards(self, context: int, gpu_layers: int) -> bool:
        """Whether the cards hold their part of it."""
        return _hold(
            self.room, llama_memory.laid_out(self.layout, self.run(context, gpu_layers))[1]
        )


@dataclass(frozen=True)
class _Choice:
    """What was found: tokens of each sequence, layers on the cards, and why so many."""

    context: int
    gpu_layers: int
    reasons: tuple[str, ...] = ()


def fit(
    name: str,
    model: ModelSpec,
    hardware: HardwareProfile,
    wish: Tuning,
    pinned: frozenset[str],
    server: Server = PYTHON,
) -> Fit | Rejection:
    """All layers on the cards at the wished context; else fewer tokens; else fewer layers.

    Further sequences take what is left then: they cost neither context nor layers, unless their
    number is pinned. Without GPUs everything lies in RAM. `name` is the engine's, for rejections.
    """
    refused = _impossible(name, model, wish, pinned, server)
    if refused is not None:
        return refused
    wanted = min(wish.max_model_len or model.context_max, model.context_max)
    used = _usable(model, hardware)
    if hardware.gpus and not used:
        return _no_card(name, model, hardware)
    hardware = hardware.model_copy(update={"gpus": tuple(hardware.gpus[at] for at in used)})
    room = _room(model, hardware)
    layout = Layout.of(model)
    asked = _Asked(
        layout=layout,
        room=room,
        wish=wish,
        server=server,
        slots=_pinned_slots(wish, pinned, server) or 1,
        wanted=wanted,
        least=wanted if "max_model_len" in pinned else min(MIN_CONTEXT, wanted),
        pinned=pinned,
    )
    chosen = _choose(asked)
    if chosen is None:
        return _refusal(name, asked)
    slots, told = _slots(asked, chosen)
    run = asked.run(chosen.context, chosen.gpu_layers, slots)
    reasons = [*chosen.reasons]
    if chosen.context < wanted:
        reasons.append(f"context {chosen.context}: more does not fit, {wanted} tokens wished")
    if hardware.gpus:
        layers = layout.layers
        on_card = layers if run.gpu_layers < 0 else min(run.gpu_layers, layers)
        reasons.append(f"{on_card} of {layers} layers on the GPU: computed from what is free")
    reasons += told
    threads = wish.threads or hardware.cpu_cores
    reasons.append(f"threads {threads}: usable physical cores are {hardware.cpu_cores}")
    spilled = llama_memory.spilled(layout, run) if hardware.gpus else 0.0
    tuning = wish.model_copy(
        update={
            "max_model_len": chosen.context,
            "max_concurrency": slots,
            "threads": threads,
            "batch": min(wish.batch or run.ubatch, run.context),
            "quantization": model.quantization,
            "gpu_layers": run.gpu_layers if hardware.gpus else 0,
            "tensor_split": run.shares,
            "flash_attention": (run.flash_attention and bool(room.cards)) or None,
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


def _hold(room: _Room, cards: tuple[Buffers, ...]) -> bool:
    return all(card.total <= limit for card, limit in zip(cards, room.cards, strict=True))


def _impossible(
    name: str, model: ModelSpec, wish: Tuning, pinned: frozenset[str], server: Server
) -> Rejection | None:
    """What no machine could do."""
    if model.format != "gguf":
        return Rejection(what=name, why=f"reads GGUF files, this is {model.format}")
    asked = wish.max_model_len
    if asked and asked > model.context_max and "max_model_len" in pinned:
        why = f"context {asked} was asked for, the model has {model.context_max}"
        return Rejection(what=name, why=why, need=asked, have=model.context_max, unit="tokens")
    users = _pinned_slots(wish, pinned, server)
    if users and users > server.slots:
        why = f"{users} requests at a time were asked for, it works on {server.slots} at most"
        return Rejection(what=name, why=why, need=users, have=server.slots, unit="requests")
    return None


def _pinned_slots(wish: Tuning, pinned: frozenset[str], server: Server) -> int | None:
    """The number of sequences that a person asked for; a serial server has its one."""
    if "max_concurrency" not in pinned or server.slots == 1:
        return None
    return wish.max_concurrency


def _slots(asked: _Asked, chosen: _Choice) -> tuple[int, list[str]]:
    """How many sequences the memory holds beside all that was chosen for one, and why so many."""
    if asked.server.slots == 1:
        return 1, []
    if asked.slots > 1 or "max_concurrency" in asked.pinned:
        return asked.slots, [f"{asked.slots} sequences: so many full contexts were asked for"]
    limit = min(asked.wish.max_concurrency or 1, asked.server.slots)

    def fits(slots: int) -> bool:
        return asked.fits(asked.run(chosen.context, chosen.gpu_layers, slots))

    slots = (_most(1, limit, fits) or 1) if limit > 1 else 1
    if slots < limit:
        return slots, [f"{slots} of {limit} sequences: more full contexts do not fit"]
    return slots, [f"{slots} sequences at the same time, each with a context of its own"]


def _choose(asked: _Asked) -> _Choice | None:
    """The best that fits; None where nothing does."""
    wanted, least, layers = asked.wanted, asked.least, asked.layout.layers
    if asked.layout.parts.total > asked.room.host + sum(asked.room.cards):
        return None  # no search where the weights alone are too many

    def longest(gpu_layers: int, least: int, *reasons: str) -> _Choice | None:
        best = _most(least, wanted, lambda n: asked.fits(asked.run(n, gpu_layers)))
        if best is None:
            return None
        context = best if best == wanted else max(least, best // _STEP * _STEP)
        return _Choice(context, gpu_layers, reasons)

    if not asked.room.cards:
        return longest(0, least)
    if "gpu_layers" in asked.pinned and asked.wish.gpu_layers is not None:
        said = asked.wish.gpu_layers
        return longest(said, least, f"{said} layers were asked for")
    whole = longest(-1, max(least, min(_GOOD_CONTEXT, wanted)))
    if whole is not None:
        return whole
    context = wanted
    while context >= least:
        # More layers on the cards leave fewer in RAM: the most that the cards hold decides.
        some = _most(0, layers - 1, partial(asked.on_cards, context))
        if some is not None and asked.fits(asked.run(context, some)):
            return _Choice(context, some, ("the rest of the layers stays in RAM, which is slower",))
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


def _refusal(name: str, asked: _Asked) -> Rejection:
    """The number that rules it out, and what would do."""
    layout, room, wish, pinned = asked.layout, asked.room, asked.wish, asked.pinned
    model, least = layout.model, asked.least
    run = asked.run(least, 0)
    host, _ = llama_memory.laid_out(layout, run)
    need = host.total + llama_memory.host_overhead(model, run)
    have, where = room.host, "of RAM"
    if room.cards:
        have, where = room.host + sum(room.cards), "of RAM and GPU memory"
    if "gpu_layers" in pinned and room.cards and wish.gpu_layers:
        _, cards = llama_memory.laid_out(layout, asked.run(least, wish.gpu_layers))
        over = max(range(len(cards)), key=lambda at: cards[at].total - room.cards[at])
        if cards[over].total > room.cards[over]:
            need, have = cards[over].total, room.cards[over]
            where = f"of a GPU for {wish.gpu_layers} layers"
    shortest = "" if least == asked.wanted else " at the shortest context"
    tokens = f"{least} tokens" if asked.slots == 1 else f"{asked.slots} x {least} tokens"
    why = (
        f"{model.quantization} needs {gib(need)} {where}{shortest} ({tokens}), "
        f"{gib(max(0.0, have))} may be used{_advice(asked)}"
    )
    return Rejection(what=name, why=why, need=need, have=max(0.0, have), unit="bytes")


def _advice(asked: _Asked) -> str:
    """What would fit if one of the pins were given up."""
    told = ""
    if "max_model_len" in asked.pinned:
        shorter = replace(asked, least=min(MIN_CONTEXT, asked.wanted))
        found = _choose(replace(shorter, pinned=asked.pinned - {"max_model_len"}))
        told += f"; context {found.context} would fit" if found else ""
    if asked.slots > 1:
        fewer = _most(1, asked.slots, lambda n: _choose(replace(asked, slots=n)) is not None)
        told += f"; {fewer} requests at a time would fit" if fewer else ""
    if "gpu_layers" in asked.pinned and asked.wish.gpu_layers and asked.room.cards:
        found = _choose(replace(asked, pinned=asked.pinned - {"gpu_layers"}))
        if found is not None and found.gpu_layers >= 0:
            told += f"; {found.gpu_layers} layers on the GPU would fit"
    return told
