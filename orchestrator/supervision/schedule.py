"""Which models stay in memory: what to load, what to unload or put to sleep, and who waits. Pure.

`schedule` looks at all models at once and answers with orders. Demand is a fact (`waiting`), not a
message, so that nothing is lost when a message is. The rules, in this order:

1. A model that nobody used for `ttl_s` goes, or to sleep where it can.
2. Models somebody waits for are placed by priority, then by how long they have waited. What fits is
   loaded. Where memory is short, or a group or an exclusive model stands in the way, others leave:
   idle ones by price, the cheapest first; busy ones only when they had their turn (`turn`), so that
   A B A B becomes A A B B. Pinned models never leave, nor busy ones of a higher priority.
3. One model at a time may make others leave.

The price of a model is what it costs to have it again: load time x recency x priority.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from orchestrator.supervision.ledger import gib

_TURN_LOADS = 3.0  # a busy model keeps its place for so many times its own load time
_TURN_MIN_S, _TURN_MAX_S = 5.0, 60.0


class Phase(StrEnum):
    """Where a model stands, all of its replicas together."""

    ABSENT = "absent"
    LOADING = "loading"
    SERVING = "serving"
    LEAVING = "leaving"
    ASLEEP = "asleep"
    FAILED = "failed"
    OFF = "off"


@dataclass(frozen=True)
class Keeping:
    """What an operator wants of a model. `sleep_level` 0: it is unloaded, never put to sleep."""

    pin: bool = False
    priority: int = 0
    ttl_s: float | None = None
    group: str | None = None
    exclusive: bool = False
    sleep_level: int = 0


@dataclass(frozen=True)
class View:
    """One model as it is now. Times in seconds, memory in bytes by device.

    `wanted` asks for it without a request: a preload, or an operator's order. `need` is what
    loading it takes, `held` what its end gives back, `asleep` its RAM in a sleep of level 1.
    """

    name: str
    phase: Phase
    keeping: Keeping = field(default_factory=Keeping)
    need: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    wanted: bool = False
    waiting: int = 0
    waited_s: float = 0.0
    in_flight: int = 0
    idle_s: float = 0.0
    served_s: float = 0.0
    load_s: float = 1.0
    asleep: int = 0

    @property
    def more(self) -> dict[str, int]:
        """What loading it takes beyond what it holds already, asleep."""
        if self.phase is not Phase.ASLEEP:
            return dict(self.need)
        rest = {device: size - self.held.get(device, 0) for device, size in self.need.items()}
        return {device: size for device, size in rest.items() if size > 0}

    @property
    def busy(self) -> bool:
        """Whether it works, or would if it had room."""
        return bool(self.in_flight or self.waiting)

    @property
    def price(self) -> float:
        """What it costs to have it again."""
        return float(self.load_s * 2.0**self.keeping.priority / (1.0 + self.idle_s))

    @property
    def turn(self) -> float:
        """How long it may keep its place while others wait for it."""
        return min(_TURN_MAX_S, max(_TURN_MIN_S, _TURN_LOADS * self.load_s))


@dataclass(frozen=True)
class Load:
    name: str
    why: str


@dataclass(frozen=True)
class Unload:
    name: str
    why: str
    reason: Literal["idle", "room"] = "room"


@dataclass(frozen=True)
class Sleep:
    name: str
    level: int
    why: str


@dataclass(frozen=True)
class Wait:
    """`name` has to wait, and for what; `seconds` until it is worth to look again."""

    name: str
    why: str
    seconds: float | None = None


@dataclass(frozen=True)
class Refuse:
    """`name` cannot be loaded whatever leaves."""

    name: str
    why: str


Order = Load | Unload | Sleep | Wait | Refuse


def schedule(views: Sequence[View], spare: Mapping[str, int]) -> tuple[Order, ...]:
    """What to do now. `spare` is what a new engine may count on, per device."""
    orders: list[Order] = [order for view in views if (order := _expired(view, spare)) is not None]
    going = {order.name for order in orders}
    staying = [view for view in views if view.name not in going]
    left = dict(spare)
    made_way = False
    now = {view.name: view for view in views}
    for each in sorted(_wanting(staying), key=_urgency):
        others = [view for view in now.values() if view.name != each.name]
        found = _place(each, others, left, going)
        if made_way and any(isinstance(order, Unload) for order in found):
            found = (Wait(each.name, "another model is being given room first", 1.0),)
        for order in found:
            if isinstance(order, Load):
                left = {k: v - each.more.get(k, 0) for k, v in left.items()}
                now[each.name] = replace(each, phase=Phase.LOADING, held=each.need)
            elif isinstance(order, Unload):
                made_way = True
                going.add(order.name)
        orders += found
    return tuple(orders)


def _expired(view: View, spare: Mapping[str, int]) -> Order | None:
    keeping = view.keeping
    if keeping.ttl_s is None or keeping.pin or view.wanted or view.busy:
        return None
    if view.phase is not Phase.SERVING or view.idle_s < keeping.ttl_s:
        return None
    why = f"nobody used it for {keeping.ttl_s:g} s"
    fits = keeping.sleep_level != 1 or view.asleep <= spare.get("ram", 0)
    if keeping.sleep_level and fits:
        return Sleep(view.name, keeping.sleep_level, why)
    return Unload(view.name, why, "idle")


def _wanting(views: Iterable[View]) -> list[View]:
    absent = {Phase.ABSENT, Phase.ASLEEP}
    return [each for each in views if each.phase in absent and (each.waiting or each.wanted)]


def _urgency(view: View) -> tuple[int, float, str]:
    return (-view.keeping.priority, -view.waited_s, view.name)


def _place(
    each: View, others: Sequence[View], spare: Mapping[str, int], going: set[str]
) -> tuple[Order, ...]:
    """The orders that bring `each` nearer to its place."""
    in_memory = [view for view in others if view.phase in _PRESENT]
    rivals = [view for view in in_memory if _exclude(each, view)]
    if pinned := next((view for view in rivals if view.keeping.pin), None):
        return (Refuse(each.name, f"{pinned.name} is pinned, and the two exclude each other"),)
    short = {k: size - spare.get(k, 0) for k, size in each.more.items() if size > spare.get(k, 0)}
    if not rivals and not short:
        return (Load(each.name, _reason(each)),)
    coming = [view for view in in_memory if view.phase is Phase.LEAVING or view.name in going]
    settling = [view for view in rivals if view.phase is Phase.LOADING]
    missing = _after(short, (*coming, *(view for view in rivals if view not in coming)))
    candidates = [view for view in in_memory if view not in (*coming, *rivals)]
    victims = _victims(missing, candidates)
    if victims is None:
        return (_too_big(each, missing, in_memory, spare),)
    leaving = [view for view in (*rivals, *victims) if view not in coming]
    if not leaving:
        names = ", ".join(view.name for view in coming)
        return (Wait(each.name, f"{names} is leaving; its memory is not back yet", 0.25),)
    ways = dict.fromkeys(view.name for view in (*leaving, *settling))
    held_up = [view for view in in_memory if view.name in ways and not _may_go(view, each)]
    if held_up:
        return (_behind(each, held_up),)
    return tuple(Unload(view.name, f"{each.name} needs its place") for view in leaving)


_PRESENT = {Phase.LOADING, Phase.SERVING, Phase.LEAVING, Phase.ASLEEP}


def _exclude(a: View, b: View) -> bool:
    """Whether two models may not be in memory together."""
    same = a.keeping.group is not None and a.keeping.group == b.keeping.group
    return same or a.keeping.exclusive or b.keeping.exclusive


def _after(short: Mapping[str, int], leaving: Iterable[View]) -> dict[str, int]:
    """What is still missing when these have left."""
    back = list(leaving)
    rest = {k: size - sum(view.held.get(k, 0) for view in back) for k, size in short.items()}
    return {k: size for k, size in rest.items() if size > 0}


def _victims(missing: Mapping[str, int], candidates: Sequence[View]) -> list[View] | None:
    """The cheapest models whose end makes up for `missing`; None where no choice does."""
    chosen: list[View] = []
    wanted = missing
    evictable = [view for view in candidates if not view.keeping.pin]
    for view in sorted(evictable, key=lambda v: (v.busy, v.price, v.name)):
        if not missing:
            break
        if any(view.held.get(device, 0) for device in missing):
            chosen.append(view)
            missing = _after(missing, [view])
    return None if missing else _needed(wanted, chosen)


def _needed(missing: Mapping[str, int], chosen: list[View]) -> list[View]:
    """Without those that turn out to be needless, the dearest first."""
    for view in reversed(list(chosen)):
        rest = [other for other in chosen if other is not view]
        if not _after(missing, rest):
            chosen = rest
    return chosen


def _may_go(view: View, for_whom: View) -> bool:
    if view.phase is Phase.LOADING:
        return False
    if not view.busy:
        return True
    lower = view.keeping.priority <= for_whom.keeping.priority
    return lower and view.served_s >= view.turn


def _behind(each: View, held_up: Sequence[View]) -> Wait:
    """Whom `each` waits for, and for how long at most where that can be said."""
    said, seconds = [], []
    for view in held_up:
        if view.phase is Phase.LOADING:
            said.append(f"{view.name} is loading")
        elif view.keeping.priority > each.keeping.priority:
            said.append(f"{view.name} is busy and has the higher priority")
        else:
            rest = max(0.0, view.turn - view.served_s)
            said.append(f"{view.name} is busy, for {rest:.0f} s more at most")
            seconds.append(rest)
    return Wait(each.name, "; ".join(said), max(0.05, min(seconds, default=1.0)))


def _too_big(
    each: View, missing: Mapping[str, int], in_memory: Sequence[View], spare: Mapping[str, int]
) -> Refuse:
    device, lack = next(iter(missing.items()))
    pinned = [view.name for view in in_memory if view.keeping.pin and view.held.get(device)]
    why = f"{device}: {gib(each.need[device])} needed, {gib(max(0, spare.get(device, 0)))} free, "
    why += f"{gib(lack)} too few even if all models that may leave did"
    return Refuse(each.name, why + (f" ({', '.join(pinned)} pinned)" if pinned else ""))


def _reason(each: View) -> str:
    return "requests wait for it" if each.waiting else "wanted"
