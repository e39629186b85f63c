"""What clients do: names, flags of the load client, and the unit that CPU is counted by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """`tokens` of each answer; `pace` in milliseconds a token, 0 for as fast as it goes."""

    name: str
    kind: str
    connections: int
    tokens: int
    stream: bool = False
    pace: int = 0

    @property
    def unit(self) -> str:
        return "chunk" if self.stream else "request"

    def flags(self, seconds: float) -> list[str]:
        """Arguments of `gwbench load`."""
        given = ["--kind", self.kind, "--conns", self.connections, "--tokens", self.tokens]
        given += ["--secs", seconds, "--total", 10_000_000]
        if self.stream:
            given += ["--stream", "--pace", self.pace]
            given += ["--ramp-ms", 1000] if self.pace else []
        else:
            given += ["--warmup", 20 * self.connections]
        return [str(each) for each in given]


WORKLOADS = {
    each.name: each
    for each in (
        Workload("N1", "chat", 1, 1),
        Workload("N32", "chat", 32, 1),
        Workload("N256", "chat", 256, 1),
        Workload("N32x50", "chat", 32, 50),
        Workload("S", "chat", 32, 500, stream=True),
        Workload("P", "chat", 200, 80, stream=True, pace=50),
        Workload("P10", "chat", 200, 400, stream=True, pace=10),
        Workload("G32", "generate", 32, 1),
        Workload("GP10", "generate", 200, 400, stream=True, pace=10),
    )
}
