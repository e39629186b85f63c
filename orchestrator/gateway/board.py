"""What a gateway worker knows: the models of the last route table, and what each has to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from orchestrator.control import Dealings, ModelRoute, Replica, Wish
from orchestrator.errors import BadRequest, ModelUnavailable
from orchestrator.gateway.books import Books
from orchestrator.gateway.places import Line, Target, key_of, unknown_model


class Board:
    """See the module. Names of models have to be known, where nothing else is said."""

    def __init__(self, books: Books, clock: Callable[[], float]) -> None:
        self._books, self._clock = books, clock
        self._lines: dict[str, Line] = {}
        self._names: dict[str, Target] = {}
        self._served: Counter[str] = Counter()
        self.version = 0
        self.draining = False
        self.known = False
        self.keep_alive: dict[str, Wish] = {}

    def routes(self) -> list[ModelRoute]:
        """Every model of the table."""
        return [line.route for line in self._lines.values()]

    def targets(self) -> list[Target]:
        """Every name that clients may give: models, aliases, adapters."""
        return list(self._names.values())

    def find(self, name: str | None) -> Target:
        """What `name` stands for; the only model where a client names none.

        Raises ModelUnavailable, BadRequest or UnknownModel.
        """
        if not self.known:
            raise ModelUnavailable("the gateway has no models yet", retry_after=1)
        if name is None:
            if len(self._lines) != 1:
                raise BadRequest("name a model: several are served, see /v1/models", param="model")
            name = next(iter(self._lines))
        if name not in self._names:
            raise unknown_model()
        return self._names[name]

    def ready(self, name: str) -> bool:
        """Whether a replica of the model takes requests, now or after others."""
        return any(slot.accepting for slot in self._lines[name].slots.values())

    def in_flight(self) -> dict[str, int]:
        """Requests of this worker per replica id."""
        return {s.replica.id: s.count.own for x in self._lines.values() for s in x.slots.values()}

    def dealings(self) -> dict[str, Dealings]:
        """What was had with each replica, by its id."""
        return {
            slot.replica.id: slot.dealings
            for line in self._lines.values()
            for slot in line.slots.values()
        }

    def model_load(self, name: str) -> tuple[int, int]:
        """Requests in flight and waiting of one model, in all workers."""
        with self._books:
            return self._lines[name].load

    def own_load(self, name: str) -> tuple[int, int]:
        """The same of this worker."""
        return self._lines[name].own_load

    def waiting(self) -> dict[str, int]:
        """Requests in this worker's queue per model."""
        return {name: len(line.queue) for name, line in self._lines.items()}

    def served(self) -> dict[str, int]:
        """Leases given so far per model."""
        return {name: self._served[name] for name in self._lines}

    def ejected(self, name: str) -> int:
        """How many replicas of the model are left out because requests failed on them."""
        return self._lines[name].outliers.out(self._clock())

    def has_other(self, name: str, replica: Replica) -> bool:
        """Whether a replica of the model other than `replica` takes requests."""
        line = self._lines.get(name)
        if line is None:
            return False
        barred = line.barred(key_of(replica), self._clock())
        others = line.slots.keys() - barred - {key_of(replica)}
        return any(line.slots[key].replica.accepting for key in others)
