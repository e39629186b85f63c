"""Orders that outlive a supervisor: what stands after any of them, and after changed settings."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.orders import ModelOrder
from orchestrator.supervision.schedule import Keeping
from orchestrator.supervision.standing import Standing, applied, ordered, still
from orchestrator.supervision.store import Store
from tests.plans import MISTRAL, box, planned

PLAN = planned(MISTRAL, box("RTX 4090"))
NAME = PLAN.model.id


def asked(pin: bool = False, replicas: int = 1) -> ModelOrder:
    return ModelOrder(PLAN, "wish", "x", keeping=Keeping(pin=pin), replicas=replicas)


ONE = st.sampled_from(["off", "pin", "replicas"]).flatmap(
    lambda name: st.tuples(
        st.just(name), st.integers(1, 4) if name == "replicas" else st.booleans()
    )
)


@given(st.lists(ONE), st.booleans(), st.integers(1, 4))
def test_the_last_of_each_order_stands(
    orders: list[tuple[str, Any]], pin: bool, replicas: int
) -> None:
    wanted, standing = asked(pin, replicas), None
    for at, (name, value) in enumerate(orders):
        standing = ordered(standing, wanted, "admin", float(at), **{name: value})
    last = {"off": False, "pin": pin, "replicas": replicas, **dict(orders)}
    done = applied(wanted, standing)
    assert (done.keeping.pin, done.replicas) == (last["pin"], last["replicas"])
    assert bool(standing and standing.off) == last["off"]
    assert (standing is None) == (done == wanted and not last["off"])
    assert still(standing, wanted) == standing


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_setting_that_was_changed_since_counts(before: int, order: int, now: int) -> None:
    standing = ordered(None, asked(replicas=before), "admin", 1.0, replicas=order, pin=True)
    assert standing is not None
    later = asked(replicas=now)
    done = applied(later, still(standing, later))
    assert done.replicas == (order if now == before else now)
    assert done.keeping.pin  # this one was not changed
    assert still(standing, replace(later, keeping=Keeping(pin=True), replicas=order)) is None


def test_they_are_kept_and_damage_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.standing.order(asked(), "admin", 5.0, off=True)
    store.standing.order(asked(), "admin", 6.0, replicas=3)
    store.close()
    again = Store(tmp_path / "state.db")
    found = again.standing.still(asked())
    assert found == Standing(model=NAME, at=6.0, actor="admin", off=True, replicas=3)
    again.standing.keep_only([])
    assert again.standing.still(asked()) is None
    again.standing.order(asked(), "admin", 7.0, pin=True)
    again.close()
    (tmp_path / "state.db").write_bytes(b"lost")
    mended = Store(tmp_path / "state.db")  # from the good copy, which is as new as the last order
    assert mended.standing.still(asked()) == again.standing.still(asked())
    mended.standing.order(asked(), "admin", 8.0, pin=False)
    mended.standing.order(asked(), "admin", 8.0, pin=True)
    mended.close()
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("UPDATE standing SET standing = replace(standing, 'true', 'null')")
    db.close()
    last = Store(tmp_path / "state.db")
    assert last.standing.still(asked()) is None
    last.close()
