"""Machines that are only imagined: what a plan would be elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from engine_launchers.machine import Gpu, GpuLink, HardwareProfile, LinkKind
from orchestrator.errors import ConfigError
from orchestrator.planning.gpus import GpuSpec, GpuTable

MOST_GPUS = 64
_GIB = 2**30
_NO_GPU = frozenset({"0", "none"})
_REPORTED = 0.98  # of the nominal size, where no print of the driver is known
_SHARED = 0.94  # of RAM that firmware and system leave to both
_IDLE = 0.985  # free of what is reported, with nothing running
_RAM_FREE = 0.9  # of RAM that is only imagined
_CPUS, _LEAST_RAM_GB = 8, 32.0
_X86, _ARM = ("AVX", "AVX2", "FMA", "F16C"), ("NEON",)
_ARM_HOSTS = ("GH200", "GB200", "GB300", "GB10", "Jetson")


@dataclass(frozen=True)
class _Card:
    """One card to be: its row, or none for a nameless one; nominal memory in GiB.

    `lent_gb` is what a chip may use of the RAM it shares, None where the system decides.
    """

    spec: GpuSpec | None
    memory_gb: float
    lent_gb: float | None = None

    @property
    def name(self) -> str:
        return self.spec.name if self.spec else f"{self.memory_gb:g} GB GPU"

    @property
    def unified(self) -> bool:
        return self.spec is not None and self.spec.unified

    @property
    def reported(self) -> int:
        """Bytes that its driver would report."""
        spec = self.spec
        if spec and spec.reported_mib and self.memory_gb == spec.memory_gb:
            return spec.reported_mib * 2**20
        if self.lent_gb:
            return int(self.lent_gb * _GIB)
        if spec and spec.vendor == "apple":  # macOS lends the GPU two thirds, or three quarters
            return int(self.memory_gb * _GIB * (0.75 if self.memory_gb >= 36 else 2 / 3))
        return int(self.memory_gb * _GIB * (_SHARED if self.unified else _REPORTED))

    @property
    def free(self) -> int:
        """Bytes of it that nothing uses."""
        free = int(self.reported * _IDLE)
        return min(free, int(self.memory_gb * _GIB * _RAM_FREE)) if self.unified else free


def machine(
    table: GpuTable,
    *,
    gpus: Sequence[str] = (),
    vram_gb: float | None = None,
    ram_gb: float | None = None,
    cpus: int | None = None,
    base: HardwareProfile | None = None,
) -> HardwareProfile:
    """The machine that the flags describe; what they leave open is `base`'s, else a usual one's.

    `gpus` holds "NAME" or "NAME:COUNT", or only "none" (or "0") for no GPU. `vram_gb` is every
    card's memory, and alone means one nameless NVIDIA card. Sizes are 2^30 bytes. Of a chip that
    shares the machine's RAM either size is that of the RAM; given both, it may use `vram_gb`.
    Raises ConfigError in one sentence.
    """
    _check("--vram-gb", vram_gb, 4096)
    _check("--ram-gb", ram_gb, 65_536)
    _check("--cpus", cpus, 4096)
    cards = _cards(table, gpus, vram_gb, ram_gb)
    ours = base if cards is None else None  # whose accelerators these are
    devices = ours.gpus if ours else tuple(_gpu(i, card) for i, card in enumerate(cards or ()))
    chip = next((card for card in cards or () if card.unified), None)
    kept = None if chip else base  # RAM that an imagined chip shares is not this machine's
    ram, free = _ram(kept, ram_gb, chip.memory_gb if chip else None, devices)
    platform, isa = _host(cards or (), base)
    same_cpu = base is not None and platform == base.platform
    cores = cpus or (base.cpu_cores if base else _CPUS)
    return HardwareProfile(
        gpus=devices,
        links=ours.links if ours else _links(cards or ()),
        ram_total=ram,
        ram_available=free,
        cpu_cores=cores,
        cpu_name=base.cpu_name if base and same_cpu else None,
        numa_nodes=base.numa_nodes if base and same_cpu else 1,
        isa=isa,
        memory_bandwidth=(
            base.memory_bandwidth if base and same_cpu and cores == base.cpu_cores else None
        ),
        platform=platform,
        notes=(_note(gpus, vram_gb, ram_gb, cpus), *(ours.notes if ours else ())),
    )


def _check(flag: str, value: float | None, most: float) -> None:
    if value is None:
        return
    if not 0 < value < float("inf"):
        raise ConfigError(f"{flag} must be above 0, not {value:g}")
    if value > most:
        raise ConfigError(f"{flag} must be at most {most:g}, not {value:g}")


def _cards(
    table: GpuTable, gpus: Sequence[str], vram_gb: float | None, ram_gb: float | None
) -> tuple[_Card, ...] | None:
    """The imagined cards in order; None where no flag speaks of GPUs."""
    if any(text.strip().lower() in _NO_GPU for text in gpus):
        if len(gpus) > 1:
            raise ConfigError("--gpu none means no GPU at all: leave the other --gpu flags away")
        if vram_gb is not None:
            raise ConfigError("--gpu none and --vram-gb contradict each other: leave one away")
        return ()
    if not gpus:
        return None if vram_gb is None else (_Card(None, vram_gb),)
    cards: list[_Card] = []
    for text in gpus:
        name, count = _count(text)
        spec = table.find(name, vram_gb)
        if spec is None:
            raise ConfigError(_unknown(table, name))
        cards += [_card(spec, vram_gb, ram_gb)] * count
    if len(cards) > MOST_GPUS:
        raise ConfigError(f"{len(cards)} GPUs are too many: a machine has {MOST_GPUS} at most")
    chips = [card.name for card in cards if card.unified]
    if chips and len(cards) > 1:
        raise ConfigError(
            f"{chips[0]} shares its machine's RAM, and there is one to a machine: give it alone"
        )
    return tuple(cards)


def _card(spec: GpuSpec, vram_gb: float | None, ram_gb: float | None) -> _Card:
    if not spec.unified or ram_gb is None:
        return _Card(spec, vram_gb or spec.memory_gb)
    if vram_gb and vram_gb > ram_gb:
        raise ConfigError(
            f"{spec.name} shares the machine's RAM: --vram-gb {vram_gb:g} cannot be above "
            f"--ram-gb {ram_gb:g}"
        )
    return _Card(spec, ram_gb, lent_gb=vram_gb)


def _count(text: str) -> tuple[str, int]:
    """ "NAME:COUNT" or "NAME" taken apart."""
    name, colon, number = text.rpartition(":")
    if not colon:
        name, number = text, "1"
    if not name.strip():
        raise ConfigError(f"--gpu {text!r} names no GPU: write NAME or NAME:COUNT")
    number = number.strip()
    count = int(number) if number.isdecimal() and len(number) < 10 else 0
    if not 1 <= count <= MOST_GPUS:
        raise ConfigError(
            f"--gpu {text!r}: the count after the colon must be a whole number from 1 to "
            f"{MOST_GPUS}"
        )
    return name.strip(), count


def _unknown(table: GpuTable, name: str) -> str:
    near = table.suggestions(name)
    advice = f"did you mean {' or '.join(near)}? " if near else ""
    return f"the GPU {name[:80]!r} is not known; {advice}A card of any size is --vram-gb alone"


def _gpu(index: int, card: _Card) -> Gpu:
    spec = card.spec
    return Gpu(
        index=index,
        uuid=f"hypothetical-{index}",
        name=card.name,
        vendor=spec.vendor if spec else "nvidia",
        vram_total=card.reported,
        vram_free=card.free,
        compute_capability=spec.compute_capability if spec else None,
        memory_bandwidth=spec.bandwidth if spec else None,
        unified=card.unified,
        architecture=spec.architecture if spec else None,
    )


def _links(cards: Sequence[_Card]) -> tuple[GpuLink, ...]:
    """Each pair's way: the table's between equals, PCIe between others and nameless ones."""
    return tuple(
        GpuLink(a=a, b=b, kind=_kind(one, other))
        for (a, one), (b, other) in combinations(enumerate(cards), 2)
    )


def _kind(one: _Card, other: _Card) -> LinkKind:
    if one.spec and one.spec.link and one.spec == other.spec:
        return one.spec.link.kind
    return "pcie"


def _ram(
    base: HardwareProfile | None, ram_gb: float | None, chip_gb: float | None, gpus: Iterable[Gpu]
) -> tuple[int, int]:
    """Bytes of RAM, and of it available."""
    if base and ram_gb is None:
        return base.ram_total, base.ram_available
    vram_gb = sum(gpu.vram_total for gpu in gpus) / _GIB
    total = int((ram_gb or chip_gb or max(_LEAST_RAM_GB, 2 * vram_gb)) * _GIB)
    return total, int(total * _RAM_FREE)


def _host(cards: Sequence[_Card], base: HardwareProfile | None) -> tuple[str, tuple[str, ...]]:
    """Platform and instruction sets of the machine that such cards are found in."""
    if any(card.spec and card.spec.vendor == "apple" for card in cards):
        needed = "darwin-arm64"
    elif any(card.name.startswith(_ARM_HOSTS) for card in cards):
        needed = "linux-aarch64"
    else:
        return (base.platform, base.isa) if base else ("linux-x86_64", _X86)
    return needed, base.isa if base and base.platform == needed else _ARM


def _note(
    gpus: Sequence[str], vram_gb: float | None, ram_gb: float | None, cpus: int | None
) -> str:
    said = [f"--gpu {text!r}" for text in gpus]
    flags = (("--vram-gb", vram_gb), ("--ram-gb", ram_gb), ("--cpus", cpus))
    said += [f"{flag} {value:g}" for flag, value in flags if value is not None]
    return f"hypothetical machine: {', '.join(said) or 'a usual one'}; nothing here was probed"
