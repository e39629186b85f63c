"""Control groups, processors and the odd corners of the vendors' parsers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.hardware import amd, apple, cpu, intel
from orchestrator.hardware.cgroup import ROOT, cgroup_limits, parse_membership
from orchestrator.hardware.facts import assemble
from orchestrator.hardware.files import Disk, Files, Recorded, cpu_list, number, pairs
from tests.machines import facts

GIB = 2**30


def cpuinfo(triples: list[tuple[int, int, int]], flags: str = "avx avx2 avx512f") -> str:
    """(processor, socket, core) triples as /proc/cpuinfo shows them."""
    block = "processor\t: {}\nphysical id\t: {}\ncore id\t\t: {}\nflags\t\t: fpu {}\n"
    return "\n".join(block.format(*triple, flags) for triple in triples)


def test_hyperthreads_are_not_cores_and_affinity_counts() -> None:
    text = cpuinfo([(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1), (4, 1, 0), (5, 1, 0)])
    assert cpu.physical_cores(text, frozenset(range(6))) == 3
    assert cpu.physical_cores(text, frozenset({0, 2})) == 1
    assert cpu.physical_cores("", frozenset({0, 1, 2})) == 3
    arm = "processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"
    assert cpu.physical_cores(arm, frozenset({0, 1})) == 2
    assert cpu.instruction_sets(arm) == ("NEON",)
    assert cpu.instruction_sets(text) == ("AVX", "AVX2", "AVX-512")


def test_an_affinity_of_slow_cores_only_uses_them() -> None:
    text = cpuinfo([(n, 0, n) for n in range(6)])
    files = Recorded({"/proc/cpuinfo": text, "/sys/devices/cpu_core/cpus": "0-3"})
    assert cpu.usable_cores(files, frozenset({4, 5})) == cpu.Cores(2)
    assert cpu.usable_cores(files, frozenset({1})) == cpu.Cores(1)
    assert cpu.usable_cores(files, None).count == 4
    assert cpu.usable_cores(files, frozenset({3, 4, 5})).count == 1


def test_no_cpuinfo_counts_what_the_affinity_allows() -> None:
    assert cpu.usable_cores(Recorded({}), frozenset({0, 1, 2})) == cpu.Cores(3)
    assert cpu.usable_cores(Recorded({}), None) == cpu.Cores(1)
    assert cpu.cpu_name("") is None
    assert cpu.instruction_sets("nonsense\n\n:::") == ()
    assert cpu.numa_nodes(Recorded({}), None) == 1


def test_memory_of_an_old_kernel_and_of_none() -> None:
    old = "MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 500 kB\nShmem: 200 kB\n"
    assert cpu.memory(Recorded({"/proc/meminfo": old})) == (1000 * 1024, 400 * 1024)
    assert cpu.memory(Recorded({})) is None
    assert cpu.memory(Recorded({"/proc/meminfo": "MemTotal: many kB"})) is None


def limits(files: dict[str, str], membership: str) -> tuple[float | None, int | None, int | None]:
    found = cgroup_limits(Recorded({f"{ROOT}/{k}": v for k, v in files.items()}), membership)
    return found.cpus, found.memory_limit, found.memory_free


def test_the_tightest_limit_of_the_whole_chain_counts_v2() -> None:
    files = {
        "pod/memory.max": str(4 * GIB),
        "pod/memory.current": str(3 * GIB),
        "pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}",
        "pod/cpu.max": "150000 100000",
        "pod/box/memory.max": "max",
        "pod/box/cpu.max": "max 100000",
    }
    assert limits(files, "0::/pod/box\n") == (1.5, 4 * GIB, 3 * GIB)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_limits_v1(mount: str) -> None:
    files = {
        f"{mount}/a/cpu.cfs_quota_us": "200000",
        f"{mount}/a/cpu.cfs_period_us": "100000",
        f"{mount}/a/b/cpu.cfs_quota_us": "-1",
        f"{mount}/a/b/cpu.cfs_period_us": "100000",
        "memory/a/memory.limit_in_bytes": str(2 * GIB),
        "memory/a/memory.usage_in_bytes": str(GIB),
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    text = "4:memory:/a\n3:cpu,cpuacct:/a/b\n"
    assert parse_membership(text) == {"memory": "/a", "cpu": "/a/b", "cpuacct": "/a/b"}
    assert limits(files, text) == (2.0, 2 * GIB, GIB)


def test_hybrid_mounts_have_v2_below_unified() -> None:
    files = {"unified/x/memory.max": str(GIB), "unified/x/memory.current": str(2 * GIB)}
    assert limits(files, "1:name=systemd:/x\n0::/x\n") == (None, GIB, 0)


@pytest.mark.parametrize("path", ["/..", "/../..", "/../../../etc", "/a/../../b"])
def test_a_path_out_of_the_namespace_does_not_leave_the_root(path: str) -> None:
    files = {"memory.max": str(GIB), "../b/memory.max": "1", "a/memory.max": "1"}
    assert limits(files, f"0::{path}\n") == (None, GIB, GIB)


@pytest.mark.parametrize("membership", ["", "0::/\n", "rubbish\n", "0:\n::\n", "0::relative\n"])
def test_no_groups_no_limits(membership: str) -> None:
    assert limits({}, membership) == (None, None, None)


def test_malformed_limits_are_no_limits() -> None:
    files = {"memory.max": "plenty", "cpu.max": "100000", "memory.stat": "inactive_file x\n\n7"}
    assert limits(files, "0::/\n") == (None, None, None)
    assert limits({"cpu.max": "100000 0"}, "0::/\n") == (None, None, None)


def both(tmp_path: Path, texts: dict[str, str]) -> list[Files]:
    """The same files on a disk and in memory."""
    for name, text in texts.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [Disk(tmp_path), Recorded(texts)]


def test_a_disk_and_a_recording_read_alike(tmp_path: Path) -> None:
    texts = {"/sys/n/node10/x": "a\n", "/sys/n/node9/x": "", "/sys/n/has_cpu": " b ", "/t": "1"}
    for files in both(tmp_path, texts):
        assert files.names("/sys/n") == ["has_cpu", "node9", "node10"]
        assert files.names("/none") == files.names("/t") == []
        assert files.read("/sys/n/node10/x") == "a"
        assert files.read("/sys/n/has_cpu") == "b"
        assert files.read("/sys/n/node9/x") == ""
        assert files.read("/sys/n") is files.read("/none") is None


def test_small_formats() -> None:
    assert cpu_list("0-2,5,\n") == {0, 1, 2, 5}
    assert cpu_list("") == cpu_list(None) == cpu_list("x-y") == frozenset()
    assert (number("12"), number("0x1f", 0), number("x"), number(None)) == (12, 31, None, None)
    assert pairs("a 1\n\nb\nc  2 3\n") == {"a": "1", "c": "2 3"}


@pytest.mark.parametrize(
    ("gib", "wired_mib", "mib"),
    [
        (8, 0, 5461), (16, 0, 10922), (24, 0, 16384), (32, 0, 21845), (36, 0, 27648),
        (64, 0, 49152), (192, 0, 147456), (64, 60000, 60000), (16, 999999, 16384), (16, -1, 10922),
    ],
)  # fmt: skip
def test_apples_share_of_the_ram(gib: int, wired_mib: int, mib: int) -> None:
    assert apple.working_set(gib * GIB, wired_mib) // 2**20 == mib


@pytest.mark.parametrize("displays", ["", "{", "[]", '{"SPDisplaysDataType": [{}]}', "7"])
def test_a_mac_whose_displays_cannot_be_read_is_a_note(displays: str) -> None:
    values = {"machdep.cpu.brand_string": "Apple M2"}
    cards = apple.parse(values, displays, (16 * GIB, 8 * GIB))
    assert cards.notes == ("system_profiler's list of GPUs could not be read",)
    assert [gpu.name for gpu in cards.gpus] == ["Apple M2"]  # sysctl alone names the GPU
    assert apple.parse({}, displays, (GIB, GIB)).notes == ("sysctl did not name the processor",)


def test_an_amd_card_that_this_container_may_not_use_is_left_out() -> None:
    node = f"{amd.KFD}/topology/nodes/1"
    files = {f"{node}/properties": "simd_count 240\ngfx_target_version 90010\n"}
    assert amd.parse(Recorded(files), (GIB, GIB)).gpus == ()
    files[f"{node}/gpu_id"] = "77"
    (note,) = amd.parse(Recorded(files), (GIB, GIB)).notes
    assert note == "AMD GPU gfx90a: its memory could not be read from sysfs"


def test_impossible_figures_of_sysfs_are_a_note() -> None:
    recorded = facts("desktop-rx7900xt")
    assert isinstance(recorded.files, Recorded)
    path = "/sys/class/drm/renderD128/device/mem_info_vram_total"
    files = Recorded({**recorded.files.texts, path: "-5"})
    profile = assemble(replace(recorded, files=files))
    assert profile.gpus == ()
    assert any("AMD GPUs: sysfs could not be understood" in note for note in profile.notes)


def card(**files: str) -> Recorded:
    base = {"vendor": "0x8086", "uevent": "PCI_SLOT_NAME=0000:03:00.0", **files}
    return Recorded({f"/sys/class/drm/card0/device/{k}": v for k, v in base.items()})


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({"device": "0x56a1"}, 8 * GIB),
        ({"device": "0x9999", "lmem_total_bytes": str(3 * GIB)}, 3 * GIB),
        ({"device": "0xe20b", "tile0/physical_vram_size_bytes": hex(12 * GIB)}, 12 * GIB),
        ({"device": "0x56a0", "resource": "0x4000000000 0x43ffffffff 0x14220c"}, 16 * GIB),
        ({"device": "0x56a0", "resource": "0x4000000000 0x400fffffff 0x14220c"}, None),
        ({"device": "0x56a0", "resource": "rubbish"}, None),
    ],
)
def test_an_arcs_memory_is_found_where_it_can_be(files: dict[str, str], total: int | None) -> None:
    cards = intel.parse(card(**files))
    assert [gpu.vram_total for gpu in cards.gpus] == ([total] if total else [])
    assert len(cards.notes) == 1


def test_fixtures_are_small_text() -> None:
    folder = Path(__file__).parents[1] / "fixtures" / "machines"
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
        assert path.stat().st_size < 100_000
