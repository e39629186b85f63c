"""CUDA_VISIBLE_DEVICES and AMD's two, by the runtimes' rules."""

from __future__ import annotations

import pytest

from engine_launchers.machine import Gpu, GpuLink, Vendor
from orchestrator.hardware import visible
from orchestrator.hardware.nvml import Cards


def gpu(index: int, uuid: str, parent: str | None = None, vendor: Vendor = "nvidia") -> Gpu:
    return Gpu(
        index=index, uuid=uuid, name="x", vendor=vendor, vram_total=1, vram_free=1,
        mig=parent is not None, parent_uuid=parent,
    )  # fmt: skip


CARDS = [gpu(0, "GPU-aa11"), gpu(1, "GPU-aa22"), gpu(2, "GPU-bb33")]
CUT = [
    gpu(0, "GPU-aa"), gpu(3, "MIG-11", "GPU-bb"), gpu(4, "MIG-12", "GPU-bb"), gpu(2, "GPU-cc"),
    gpu(5, "MIG-GPU-dd/7/0", "GPU-dd"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, [0, 1, 2]),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("", []),
        ("-1", []),
        ("0,-1,2", [0]),
        ("0,3,1", [0]),
        ("1,none", [1]),
        ("none", []),
        ("0,,1", [0]),
        ("1abc,+2", [1, 2]),
        ("0,1,0", []),
        ("GPU-bb33", [2]),
        ("GPU-bb", [2]),
        ("GPU-BB", [2]),
        ("GPU-aa", []),  # two begin so
        ("GPU-aa2,GPU-aa1", [1, 0]),
        ("GPU-aa2,GPU-zz,GPU-aa1", [1]),
        ("GPU-bb,0", [2]),
        ("0,GPU-bb", [0]),
        ("GPU-bb,GPU-bb33", []),
        ("NoDevFiles", []),
    ],
)
def test_what_a_list_leaves(value: str | None, left: list[int]) -> None:
    assert [gpu.index for gpu in visible.visible(CARDS, value)] == left


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("MIG-12", [4]),
        ("MIG-12,MIG-11", [4, 3]),
        ("MIG-GPU-dd/7/0", [5]),
        ("0,2", [0, 2]),
        ("1", [3]),  # a cut card's index names its first slice
        ("3", [5]),
        ("4", []),
        ("GPU-bb", []),  # a cut card has no use as a whole
        ("MIG-11,GPU-aa", [3]),
    ],
)
def test_what_a_list_leaves_of_slices(value: str, left: list[int]) -> None:
    assert [gpu.index for gpu in visible.visible(CUT, value)] == left


def test_links_follow_and_a_note_says_what_is_hidden() -> None:
    links = tuple(GpuLink(a=a, b=b, kind="pcie") for a, b in ((0, 1), (0, 2), (1, 2)))
    cards = visible.cuda(Cards(tuple(CARDS), links), {"CUDA_VISIBLE_DEVICES": "2,1"})
    assert cards.links == (links[2],)
    assert cards.notes == ("CUDA_VISIBLE_DEVICES='2,1' leaves 2 of 3 GPUs",)
    whole = visible.cuda(Cards(tuple(CARDS), links), {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert whole == Cards(tuple(CARDS), links)


@pytest.mark.parametrize(
    ("env", "left"),
    [
        ({}, [0, 1, 2]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-bb,GPU-aa2", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "2"}, []),
    ],
)
def test_amd_counts_hips_list_over_what_rocr_leaves(env: dict[str, str], left: list[int]) -> None:
    cards = Cards(tuple(g.model_copy(update={"vendor": "amd"}) for g in CARDS))
    assert [gpu.index for gpu in visible.rocm(cards, env).gpus] == left


def test_an_index_among_different_cards_is_ambiguous_unless_ordered() -> None:
    mixed = Cards((CARDS[0], CARDS[1].model_copy(update={"name": "y"})))
    env = {"CUDA_VISIBLE_DEVICES": "1"}
    assert any("PCI_BUS_ID" in note for note in visible.cuda(mixed, env).notes)
    for other in ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {"CUDA_VISIBLE_DEVICES": "GPU-aa1"}):
        assert not any("PCI_BUS_ID" in note for note in visible.cuda(mixed, {**env, **other}).notes)
