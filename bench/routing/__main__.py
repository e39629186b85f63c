"""`make sim-routing`: the gateway's routing policies on two workloads, 2 to 1000 replicas.

    python -m bench.routing [--write] [--sizes 2,8,64,1000] [--seed 1]

Prints the table; `--write` puts it into docs/explanation/routing.md. The same seed gives the same
table, whatever the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.routing.simulation import Outcome, Simulation, Workload
from bench.routing.workloads import ManyTurns, SharedPrefix
from orchestrator.control import Routing
from orchestrator.gateway.policies.choice import policy_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "routing.md"
BEGIN, END = "<!-- made by `make sim-routing` -->\n", "<!-- end of what is made -->\n"
POLICIES: tuple[Routing, ...] = ("least", "p2c", "prefix")
SIZES = (2, 8, 64, 1000)
# Requests a second for each replica: about two thirds of what they could do without any cache hit.
_CHATS = {"shared prefix": 1.5, "many turns": 0.36}
_REQUESTS = {2: 3000, 8: 6000, 64: 12_000, 1000: 40_000}


def workload(name: str, size: int, seed: int) -> Workload:
    """A fresh one: every policy gets the same requests."""
    return ManyTurns(seed) if name == "many turns" else SharedPrefix(seed, 16 * size)


def outcome(name: str, routing: Routing, size: int, seed: int, requests: int) -> Outcome:
    """One line of the table."""
    policy = policy_for(routing, [f"m-{n}" for n in range(size)], random.Random(seed).randrange)
    rate = _CHATS[name] * size
    return Simulation(workload(name, size, seed), policy, size, rate, requests, seed).run()


def table(sizes: Sequence[int], seed: int) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield "| workload | replicas | policy | TTFT p50, ms | TTFT p99, ms | prefix hits | imbalance |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    for name in _CHATS:
        for size in sizes:
            for routing in POLICIES:
                found = outcome(name, routing, size, seed, _REQUESTS.get(size, 100 * size))
                ttft = f"{found.ttft_p50 * 1000:.0f} | {found.ttft_p99 * 1000:.0f}"
                shares = f"{found.hit_rate:.1%} | {found.imbalance:.2f}"
                yield f"| {name} | {size} | {routing} | {ttft} | {shares} |"


def main() -> None:
    """Print it, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    lines = []
    for line in table([int(size) for size in given.sizes.split(",")], given.seed):
        lines.append(line)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if given.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
