"""What a tree of processes has used and what it logged, read from the system. Slow: for threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psutil

from orchestrator.runtimes.base import HandleRecord
from orchestrator.supervision.loading import Evidence

_READ_LIMIT = 1 << 20


class Vitals:
    """One process with all its descendants, and its log. Not for two threads at once.

    `noise` marks log lines that our own probes cause.
    """

    def __init__(self, record: HandleRecord, noise: Sequence[str]) -> None:
        self._pid = record.child.pid if record.child else None
        self._log, self._offset = record.log, record.log_start
        self._noise = tuple(noise)
        self._logged = 0
        self._cpu: dict[tuple[int, float], float] = {}
        self._read: dict[tuple[int, float], int] = {}

    @property
    def visible(self) -> bool:
        """Whether there are processes to look at."""
        return self._pid is not None

    def evidence(self) -> tuple[Evidence, list[str]]:
        """What was used and logged so far, and the log's lines since the last call."""
        lines = self._new_lines()
        memory = 0
        for process in self._tree():
            with suppress(psutil.Error, OSError):  # it ended while we looked
                who = process.pid, process.create_time()
                memory += process.memory_info().rss
                self._cpu[who] = _cpu(process)
                moved = process.io_counters()
                self._read[who] = moved.read_chars + moved.read_bytes
        read, cpu = sum(self._read.values()), sum(self._cpu.values())
        return Evidence(logged=self._logged, read=read, memory=memory, cpu_s=cpu), lines

    def cpu_s(self) -> float:
        """Processor seconds of the whole tree, of those that have ended too."""
        for process in self._tree():
            with suppress(psutil.Error):
                self._cpu[process.pid, process.create_time()] = _cpu(process)
        return sum(self._cpu.values())

    def _tree(self) -> list[psutil.Process]:
        if self._pid is None:
            return []
        try:
            leader = psutil.Process(self._pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []

    def _new_lines(self) -> list[str]:
        """From where the last look ended; from the start of a log that was rotated meanwhile."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, 2)
                start = self._offset if self._offset <= size else 0
                file.seek(max(start, size - _READ_LIMIT))
                data = file.read(_READ_LIMIT)
                self._offset = file.tell()
        except OSError:  # nothing was written yet
            return []
        lines = [
            line
            for line in data.decode(errors="replace").splitlines()
            if not any(word in line for word in self._noise)
        ]
        self._logged += sum(len(line) + 1 for line in lines)
        return lines


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
