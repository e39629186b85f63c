"""The real collector against a library that plays the driver, and children that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine_launchers.machine import GpuPulse
from orchestrator.hardware import nvml
from orchestrator.hardware.files import Recorded
from orchestrator.hardware.probe import NVML_CHILD, ask_nvml

MIB = 2**20
DRIVER = Recorded({"/dev/nvidiactl": ""})
SOURCE = Path(__file__).parents[1] / "fakes" / "nvml.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compiled driver library."""
    compiler = shutil.which("cc")
    assert compiler, "the suite builds engines: it needs a C compiler"
    folder = tmp_path_factory.mktemp("driver")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, SOURCE], check=True)
    return folder


def test_the_collector_and_the_parser_on_a_driver(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    document = ask_nvml(DRIVER)
    assert isinstance(document, dict)
    cards = nvml.parse(document, (0, 0))
    assert cards.notes == ("NVIDIA GPU 3 does not answer: left out; check it with nvidia-smi",)
    assert [(gpu.index, gpu.uuid, gpu.mig, gpu.parent_uuid) for gpu in cards.gpus] == [
        (0, "GPU-0", False, None),
        (1, "GPU-1", False, None),
        (4, "MIG-10", True, "GPU-2"),
        (5, "MIG-11", True, "GPU-2"),
    ]
    first, _, part, _ = cards.gpus
    assert (first.vram_total, first.vram_free) == (80000 * MIB, 79000 * MIB)
    assert (first.driver, first.runtime_version) == ("550.54.15", "12.4")
    assert (first.compute_capability, first.link) == ((9, 0), "PCIe 5.0 x16")
    assert first.memory_bandwidth == 5120 // 8 * 2000 * 10**6 * 2
    assert part.memory_bandwidth == first.memory_bandwidth // 8
    assert (part.name, part.vram_total) == ("NVIDIA Fake MIG 1g.10gb", 10000 * MIB)
    assert [gpu.pulse for gpu in cards.gpus] == [
        GpuPulse(busy=0.4, celsius=60, watts=123.456),
        GpuPulse(busy=0.41, watts=123.456),
        GpuPulse(),
        GpuPulse(),
    ]
    holder, hidden = first.processes
    assert (holder.pid, holder.used) == (os.getpid(), 900 * MIB)
    assert holder.name
    assert (hidden.name, hidden.used) == (None, None)
    assert [(link.a, link.b, link.kind, link.lanes) for link in cards.links] == [
        (0, 1, "nvlink", 2)
    ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [("crash", "could not be asked: it ended by SIGABRT"), ("hang", "did not answer within 1.5 s")],
)
def test_a_driver_that_hangs_or_crashes_is_a_note(
    library: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", fault)
    started = time.monotonic()
    answer = ask_nvml(DRIVER, timeout_s=1.5)
    assert isinstance(answer, str)
    assert words in answer
    assert time.monotonic() - started < 10


def test_a_mismatch_of_library_and_kernel_is_a_note_with_its_cure(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", "mismatch")
    document = ask_nvml(DRIVER)
    assert isinstance(document, dict)
    (note,) = nvml.parse(document, (0, 0)).notes
    assert note.endswith("version mismatch; restart the machine or reload the driver")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('[]')", "printed no JSON document"),
        ("print('half {')", "printed no JSON document"),
        ("", "printed no JSON document"),
        ("raise SystemExit('no such thing')", "ended with status 1: no such thing"),
    ],
)
def test_a_child_that_prints_rubbish_is_a_note(program: str, words: str) -> None:
    answer = ask_nvml(DRIVER, (sys.executable, "-I", "-S", "-c", program))
    assert answer == f"NVIDIA driver could not be asked: it {words}"


def test_a_child_that_cannot_be_started_is_a_note(tmp_path: Path) -> None:
    answer = ask_nvml(DRIVER, (str(tmp_path / "none"),))
    assert answer == (
        "NVIDIA driver could not be asked: it could not be started: No such file or directory"
    )


def test_a_child_that_leaves_another_on_its_pipe_does_not_keep_us() -> None:
    other = "[sys.executable, '-ISc', 'import signal; signal.pause()']"
    program = f"import subprocess, sys; subprocess.Popen({other})"
    argv = (sys.executable, "-I", "-S", "-W", "ignore", "-c", program)
    answer = ask_nvml(DRIVER, argv, timeout_s=0.5)
    assert answer == "NVIDIA driver could not be asked: it did not answer within 0.5 s"


def test_no_child_where_there_is_no_driver(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    argv = (sys.executable, "-I", "-S", "-c", f"open({str(witness)!r}, 'w')")
    bare = Recorded({"/dev/null": ""})
    if isinstance(ask_nvml(bare, NVML_CHILD), dict):
        pytest.skip("a real driver library is installed here")
    assert ask_nvml(bare, argv) == "no NVIDIA driver library on this machine"
    card = "/sys/bus/pci/devices/0000:01:00.0"
    seen = Recorded({f"{card}/vendor": "0x10de\n", f"{card}/class": "0x030200\n"})
    assert ask_nvml(seen, argv) == (
        "1 NVIDIA GPU on the PCI bus, but no NVIDIA driver library on this machine"
    )
    assert not witness.exists()


@pytest.mark.parametrize("document", [{}, {"devices": [{}]}, {"devices": 3, "pairs": []}])
def test_a_document_of_another_shape_is_a_note(document: dict[str, object]) -> None:
    (note,) = nvml.parse(document, (0, 0)).notes
    assert note.startswith("NVIDIA driver's answer could not be understood")


@pytest.mark.parametrize(
    ("ancestor", "p2p", "kind"),
    [
        (10, 0, "pcie"), (30, 0, "pcie"), (40, 0, "cpu"), (50, 0, "cpu"),
        (10, 2, "cpu"), (30, 1, "cpu"),
        (20, None, "pcie"), (30, None, "cpu"), (None, 0, "cpu"), (None, None, "cpu"),
    ],
)  # fmt: skip
def test_peers_on_pcie(ancestor: int | None, p2p: int | None, kind: str) -> None:
    memory = {"total": 1, "free": 1}
    devices = [
        {"index": i, "uuid": f"GPU-{i}", "name": "x", "memory": memory, "bus_id": f"0:0{i}:00.0"}
        for i in (0, 1)
    ]
    pairs = [{"a": 0, "b": 1, "ancestor": ancestor, "p2p": p2p}]
    (link,) = nvml.parse({"devices": devices, "pairs": pairs}, (0, 0)).links
    assert link.kind == kind


def test_device_files_without_a_library_are_a_note_of_their_own() -> None:
    (note,) = nvml.parse({"error": "NVML Shared Library Not Found", "code": 12}, (0, 0)).notes
    assert note.startswith("NVIDIA device files are here, but no driver library")


def test_mig_without_slices_is_no_gpu() -> None:
    device = {"index": 0, "uuid": "GPU-0", "name": "x", "mig": True, "slices": []}
    cards = nvml.parse({"devices": [device], "pairs": []}, (0, 0))
    assert cards.gpus == ()
    assert cards.notes == ("NVIDIA GPU 0 has MIG enabled but no slices: left out",)
