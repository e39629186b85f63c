"""A whole benchmark: warm-up, then rounds, one target or two in turns."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from orchestrator.bench.arrivals import schedule
from orchestrator.bench.crew import Crew, Pace, Progress
from orchestrator.bench.load import Load, Side
from orchestrator.bench.orders import Asking

_ROOM = 10_000_000  # requests that a round may have; their numbers never meet

Teller = Callable[[str, Progress], None]  # what runs now, in words, and how far it is


def pace_of(load: Load, number: int) -> Pace:
    """The pace of one round."""
    duration = None if load.duration is None else load.duration / load.rounds
    if load.rate is None:
        return Pace(load.users, load.requests_a_round, duration)
    draw = random.Random(f"{load.workload.seed}:arrivals:{number}").random  # noqa: S311
    due = schedule(load.arrivals, load.rate, draw, load.requests_a_round, duration)
    return Pace(requests=len(due), due=tuple(due))


async def run(load: Load, asked: list[tuple[Asking, float | None]], tell: Teller) -> list[Side]:
    """Measure one target, or two in turns (first A then B, then B then A, and so on)."""
    sides = [Side(asking, ratio, [], []) for asking, ratio in asked]
    known = [side.words_per_token for side in sides if side.words_per_token]
    async with Crew(load.processes) as crew:
        workloads = []
        for place, side in enumerate(sides):
            mine = replace(
                load.workload,
                words_per_token=known[0] if known else 1.0,  # prompts of both are equally long
                salt="" if place == 0 else "second",
            )
            workloads.append(mine)
            if load.warmup:
                users = min(load.warmup, load.users)
                pace = Pace(users=users, requests=load.warmup)
                words = _words("warm-up", sides, place)
                await crew.run(side.asking, mine, pace, -load.warmup, _telling(tell, words))
        for number in range(load.rounds):
            pace, first = pace_of(load, number), number * _ROOM
            order = [0, 1] if number % 2 == 0 else [1, 0]
            for place in order if len(sides) == 2 else [0]:
                side = sides[place]
                what = f"round {number + 1}/{load.rounds}" if load.rounds > 1 else "measuring"
                telling = _telling(tell, _words(what, sides, place))
                records, efforts = await crew.run(
                    side.asking, workloads[place], pace, first, telling
                )
                side.rounds.append(records)
                side.efforts += efforts
    return sides


def _telling(tell: Teller, words: str) -> Callable[[Progress], None]:
    return lambda progress: tell(words, progress)


def _words(what: str, sides: list[Side], place: int) -> str:
    return what if len(sides) == 1 else f"{what}, {'AB'[place]}"
