"""Memory bandwidth: bounded, plausible, kept for one boot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.hardware import bandwidth

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("threads", "available", "size"),
    [
        (1, 64 * GIB, 128 * MIB),
        (2, 64 * GIB, 128 * MIB),
        (64, 512 * GIB, 16 * MIB),
        (2, GIB, 32 * MIB),
        (2, 511 * MIB, None),
        (64, 8 * GIB, None),
    ],
)
def test_buffers_are_a_small_share_of_what_is_free(
    threads: int, available: int, size: int | None
) -> None:
    assert bandwidth.buffer_size(threads, available) == size
    assert (size or 0) * threads <= available // 16


def test_too_little_memory_is_a_note() -> None:
    found = bandwidth.measure(2, 100 * MIB)
    assert found.rate is None
    assert "too little RAM" in str(found.note)


def test_a_measured_figure_is_plausible_and_kept_for_this_boot(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = bandwidth.cached(folder, "boot-1", 1, 2 * GIB)
    assert first.note is None
    assert first.rate is not None
    assert 10**8 < first.rate < 10**13
    (path,) = folder.iterdir()  # nothing temporary is left
    again = bandwidth.cached(folder, "boot-1", 1, 0)  # not measured: there is no memory
    assert again == first
    for boot, cores in (("boot-2", 1), ("boot-1", 2)):
        assert bandwidth.cached(folder, boot, cores, 0).rate is None
    good = json.loads(path.read_text())
    for rate in (0, -5, "fast", None, 1.5):
        path.write_text(json.dumps({**good, "bytes_per_second": rate}))
        assert bandwidth.cached(folder, "boot-1", 1, 0).rate is None


def test_a_figure_taken_under_load_is_measured_again_and_the_better_one_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "memory-bandwidth.json"
    held = {"method": 1, "boot": "b", "cores": 1, "quiet": False}
    path.write_text(json.dumps({**held, "bytes_per_second": 1}))
    found = bandwidth.cached(tmp_path, "b", 1, 2 * GIB)
    assert found.rate is not None
    assert json.loads(path.read_text())["bytes_per_second"] == found.rate > 1
    path.write_text(json.dumps({**held, "bytes_per_second": 10**15}))
    assert bandwidth.cached(tmp_path, "b", 1, 2 * GIB).rate == 10**15
    path.write_text(json.dumps({**held, "bytes_per_second": 7}))
    assert bandwidth.cached(tmp_path, "b", 1, 0).rate == 7  # better than none


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"bytes_per_second": 7}', "\x00\xff"])
def test_a_damaged_file_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory-bandwidth.json").write_text(text)
    assert "not measured" in str(bandwidth.cached(tmp_path, "boot-1", 1, 0).note)


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = bandwidth.cached(blocked / "cache", "boot-1", 1, 2 * GIB)
    assert found.rate or found.note
    assert found.note


def test_a_boot_has_one_name() -> None:
    assert bandwidth.boot_id() == bandwidth.boot_id() != ""
