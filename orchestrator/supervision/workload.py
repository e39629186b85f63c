"""What an instance runs, as a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine_launchers.base import CrashCause, ExitResult, LaunchSpec, Listen
from engine_launchers.watch import WatchTraits
from orchestrator.errors import EngineRoomError


class ProbeError(EngineRoomError):
    """A probe did not get the answer of a healthy process; the message says what it got."""


class Workload(Protocol):
    """What an instance runs: pure knowledge, and the questions and orders that it understands."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Names the wish behind it: a running process of another wish is not adopted."""

    @property
    def noise(self) -> tuple[str, ...]:
        """What marks the lines of its log that our own probing causes."""

    def command(self, listen: Listen) -> LaunchSpec:
        """The command for this launch."""

    def listen(self) -> Listen:
        """Where the next launch listens."""

    async def alive(self, base_url: str) -> None:
        """Return when it answers; raise ProbeError otherwise."""

    @property
    def watch(self) -> WatchTraits:
        """How its progress shows."""

    @property
    def prefill_s(self) -> float:
        """Seconds that it may compute on one prompt without a sign of progress."""

    async def counters(self, base_url: str) -> tuple[float, ...] | None:
        """The values that move while it works; None where it has none. Raises ProbeError."""

    async def canary(self, base_url: str) -> None:
        """Return when one token was made; raise ProbeError where none will be."""

    async def sleep(self, base_url: str, level: int) -> None:
        """Return when it has given back its memory; raise ProbeError where it does not."""

    async def wake(self, base_url: str, level: int) -> None:
        """Return when what `sleep` took away is back; raise ProbeError where it does not."""

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """Why it ended."""

    async def replan(self, cause: CrashCause) -> str | None:
        """Switch to the next plan after `cause` and say what changed; None where there is none."""
