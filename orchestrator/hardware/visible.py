"""Which GPUs an environment leaves to its processes: CUDA_VISIBLE_DEVICES and AMD's two. Pure.

GPUs come in the driver's order. The result keeps each one's own index and follows the variable's
order, which is the order in which an engine numbers them from 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engine_launchers.machine import Gpu
from orchestrator.hardware.nvml import Cards

_NUMBER = re.compile(r"\+?\d+")  # the runtimes read a leading number as strtoul does: "1abc" is 1


def visible(gpus: Sequence[Gpu], value: str | None) -> tuple[Gpu, ...]:
    """The GPUs that a list such as "1,0" or "GPU-8932f937,GPU-2f" leaves, in its order.

    The runtimes' rules: None leaves all, an empty list none. An entry is an index, a uuid or the
    unambiguous start of one ("GPU-…", "MIG-…"; of MIG also the older "MIG-GPU-…/instance/instance"
    is a uuid). An entry that names nothing hides itself and all after it, and so does one of
    another kind than the first. A GPU named twice leaves none. The index of a card that is cut
    into slices names its first slice.
    """
    if value is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    entries = [entry.strip() for entry in value.split(",")]
    by_uuid = entries[0].startswith(("GPU-", "MIG-"))
    for entry in entries:
        found = _by_uuid(gpus, entry, entries[0][:4]) if by_uuid else _by_index(gpus, entry)
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _by_uuid(gpus: Sequence[Gpu], entry: str, kind: str) -> Gpu | None:
    if not entry.startswith(kind):
        return None
    matches = [gpu for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())]
    return matches[0] if len(matches) == 1 else None


def _by_index(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    match = _NUMBER.match(entry)
    if match is None:
        return None
    cards = list(dict.fromkeys(gpu.parent_uuid or gpu.uuid for gpu in gpus))
    place = int(match.group())
    if place >= len(cards):
        return None
    return next(gpu for gpu in gpus if cards[place] in (gpu.parent_uuid, gpu.uuid))


def narrowed(cards: Cards, env: Mapping[str, str], names: Sequence[str]) -> Cards:
    """`cards` after each of the variables `names` in turn, with a note for each that hides some."""
    notes: list[str] = list(cards.notes)
    gpus = cards.gpus
    for name in names:
        value = env.get(name)
        left = visible(gpus, value)
        if value is not None and left != gpus:
            notes.append(f"{name}={value[:200]!r} leaves {len(left)} of {len(gpus)} GPUs")
            if _ambiguous(gpus, value, env):
                notes.append(
                    f"{name} counts by index while the cards differ: CUDA may count the fastest "
                    "first; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name them by uuid"
                )
        gpus = left
    indices = {gpu.index for gpu in gpus}
    links = tuple(link for link in cards.links if {link.a, link.b} <= indices)
    return Cards(gpus, links, tuple(notes))


def _ambiguous(gpus: Sequence[Gpu], value: str, env: Mapping[str, str]) -> bool:
    names = {gpu.name for gpu in gpus}
    by_index = _NUMBER.match(value.strip()) is not None
    ordered = env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return by_index and len(names) > 1 and gpus[0].vendor == "nvidia" and not ordered


def cuda(cards: Cards, env: Mapping[str, str]) -> Cards:
    """What CUDA programs see."""
    return narrowed(cards, env, ("CUDA_VISIBLE_DEVICES",))


def rocm(cards: Cards, env: Mapping[str, str]) -> Cards:
    """What HIP programs see: ROCR's list first, then HIP's, which counts over what that left.

    HIP falls back to CUDA's variable where its own is unset.
    """
    second = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in env else "CUDA_VISIBLE_DEVICES"
    return narrowed(cards, env, ("ROCR_VISIBLE_DEVICES", second))
