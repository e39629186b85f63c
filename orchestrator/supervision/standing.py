"""What operators ordered of a model and have not taken back: it outlives the supervisor.

A setting that is changed after an order takes its place, whether a supervisor was there or not.
The rules are pure; `StandingOrders` is their table in the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field, ValidationError

from engine_launchers.value import Value
from orchestrator.supervision.database import Write
from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.schema import insert, seal

_log = logging.getLogger("engineroom.store")


class Standing(Value):
    """The orders for one model; None where the settings count.

    `at` is when the last was given, seconds since the epoch, `actor` by whom. `asked_pin` and
    `asked_replicas` are what the settings said then.
    """

    model: str
    at: float = Field(allow_inf_nan=False)
    actor: str
    off: bool = False
    pin: bool | None = None
    replicas: int | None = Field(None, ge=1)
    asked_pin: bool = False
    asked_replicas: int = 1

    @property
    def says(self) -> dict[str, Any]:
        """What it orders, by name; empty for nothing."""
        found: dict[str, Any] = {"off": self.off or None, "pin": self.pin}
        found["replicas"] = self.replicas
        return {name: value for name, value in found.items() if value is not None}


def ordered(
    known: Standing | None, asked: ModelOrder, actor: str, at: float, **change: Any
) -> Standing | None:
    """What stands after an order (`off`, `pin`, `replicas`); None where the settings say the same.

    `asked` is what the settings want now.
    """
    own = still(known, asked) or Standing(model=asked.name, at=at, actor=actor)
    pin, replicas = asked.keeping.pin, asked.replicas
    fields = {"asked_pin": pin, "asked_replicas": replicas, "at": at, "actor": actor, **change}
    return still(own.model_copy(update=fields), asked)


def still(standing: Standing | None, asked: ModelOrder) -> Standing | None:
    """What of it counts now that the settings want `asked`; None for nothing."""
    if standing is None:
        return None
    update: dict[str, Any] = {}
    if asked.keeping.pin in {standing.pin, not standing.asked_pin}:
        update["pin"] = None
    if asked.replicas == standing.replicas or asked.replicas != standing.asked_replicas:
        update["replicas"] = None
    left = standing.model_copy(update=update)
    return left if left.says else None


def applied(asked: ModelOrder, standing: Standing | None) -> ModelOrder:
    """What the settings want, with what was ordered since."""
    if standing is None:
        return asked
    keeping = asked.keeping
    if standing.pin is not None:
        keeping = replace(keeping, pin=standing.pin)
    return replace(asked, keeping=keeping, replicas=standing.replicas or asked.replicas)


class StandingOrders:
    """All of them, in memory and written through; a row that was damaged is left out."""

    def __init__(self, write: Callable[[Write], None], kept: Callable[[], object]) -> None:
        """`kept` renews the good copy: an old one would bring back what was taken back."""
        self._write, self._kept = write, kept
        self._known: dict[str, Standing] = {}

    def recall(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Begin with the rows of a file."""
        self._known = {}
        for model, text, mark in rows:
            try:
                if seal(model, text) != mark:
                    raise ValueError("its seal does not fit")
                self._known[str(model)] = Standing.model_validate_json(str(text))
            except (ValueError, ValidationError) as error:
                _log.warning("what was ordered of %s cannot be read: %s", model, error)

    def still(self, asked: ModelOrder) -> Standing | None:
        """What counts of the orders for a model now that the settings want `asked`; no more is
        kept."""
        self.put(asked.name, still(self._known.get(asked.name), asked))
        return self._known.get(asked.name)

    def order(self, asked: ModelOrder, actor: str, at: float, **change: Any) -> None:
        """An order was given: see `ordered`."""
        self.put(asked.name, ordered(self._known.get(asked.name), asked, actor, at, **change))

    def keep_only(self, models: Container[str]) -> None:
        """No other models are served any more."""
        for model in [each for each in self._known if each not in models]:
            self.put(model, None)

    def put(self, model: str, standing: Standing | None) -> None:
        """Remember it in place of what stood before; None: nothing stands any more."""
        if self._known.get(model) == standing:
            return
        if standing is None:
            del self._known[model]
            self._write(("DELETE FROM standing WHERE model = ?", (model,)))
        else:
            self._known[model] = standing
            self._write((insert("standing"), _row(standing)))
        self._kept()

    def writes(self) -> Iterator[Write]:
        """What makes a file say what memory knows."""
        yield "DELETE FROM standing", ()
        yield from ((insert("standing"), _row(each)) for each in self._known.values())


def _row(standing: Standing) -> tuple[object, ...]:
    columns = (standing.model, standing.model_dump_json())
    return (*columns, seal(*columns))
