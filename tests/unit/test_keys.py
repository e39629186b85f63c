"""API keys: the file, who is let in, and by which limit not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access import KeyGrant, hash_of
from orchestrator.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    KeyExpired,
    NotFound,
    RequestError,
    TooManyAtOnce,
    TooManyFailures,
    TooManyRequests,
    TooManyTokens,
    Unauthorized,
    UnknownModel,
)
from orchestrator.gateway.asking import Ask
from orchestrator.gateway.buckets import Bucket
from orchestrator.gateway.keyring import KeyRing
from orchestrator.keyfile import KeyFile


class Counted:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.refusals: list[tuple[str, str]] = []
        self.tokens: list[tuple[str, int, int]] = []

    def known(self, keys: Iterable[str]) -> None:
        self.keys = sorted(keys)

    def asked(self, key: str) -> None: ...

    def refused(self, key: str, reason: str) -> None:
        self.refusals.append((key, reason))

    def used(self, key: str, prompt: int, completion: int) -> None:
        self.tokens.append((key, prompt, completion))


class Desk:
    """A ring with a clock that stands still until it is moved."""

    def __init__(self, *grants: KeyGrant, fixed: tuple[str, ...] = ()) -> None:
        self.now, self.meter = 0.0, Counted()
        hashes = tuple(hash_of(key) for key in fixed)
        self.ring = KeyRing(hashes, self.meter, lambda: self.now, lambda: self.now)
        self.ring.apply(grants)

    def who(self, key: str) -> str:
        return self.ring.identify(f"Bearer {key}").name

    def ask(self, key: str, tokens: int = 1, name: str = "m", adapter: str | None = None) -> Any:
        holder = self.ring.identify(f"Bearer {key}")
        ask = Ask("m", holder.name, prompt_tokens=tokens)
        return self.ring.admit(holder, ask, name, adapter)


def grant(name: str = "ann", **limits: Any) -> KeyGrant:
    """A key whose secret is its name."""
    return KeyGrant(name=name, hash=hash_of(name), created_at=0, **limits)


# --- the file ------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made, secret = KeyFile(path, clock=lambda: 7.0).create("ann", {"models": ["m"], "priority": 5})
    assert (made.created_at, made.models, made.hash) == (7.0, ("m",), hash_of(secret))
    assert len(secret) > 40
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyFile(path).all() == (made,)


def test_names_are_given_once_and_again_after_they_were_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, first = file.create("ann", {})
    for name in ("ann", "settings"):
        with pytest.raises(Conflict):
            file.create(name, {})
    assert file.change("ann", {"requests_per_minute": 3}).requests_per_minute == 3
    assert file.change("ann", {"requests_per_minute": None}).requests_per_minute is None
    assert file.revoke("ann").revoked
    _, second = file.create("ann", {})
    assert first != second
    assert [(each.name, each.revoked) for each in file.all()] == [("ann", False)]
    with pytest.raises(NotFound):
        file.revoke("bob")


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("../x", {}),
        ("", {}),
        ("a\n", {}),
        ("a", {"tokens_per_minute": 0}),
        ("a", {"priority": 101}),
        ("a", {"expires_at": float("nan")}),
        ("a", {"nonsense": 1}),
    ],
)
def test_what_is_no_key_is_not_made(tmp_path: Path, name: str, limits: dict[str, Any]) -> None:
    with pytest.raises((BadRequest, Conflict)):
        KeyFile(tmp_path / "keys.json").create(name, limits)
    assert not (tmp_path / "keys.json").exists()


def test_a_file_that_is_not_ours_alone_or_no_file_of_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    KeyFile(path).create("ann", {})
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyFile(path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(ConfigError):
        KeyFile(link)
    for text in ("", "{", "[]", '{"keys": [{"name": "x"}]}', '{"keys": [], "more": 1}'):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="not a file of keys"):
            KeyFile(path)


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    file = KeyFile(path)
    file.create("ann", {})
    before = path.read_text()
    (tmp_path / "keys.json.new").mkdir()  # stands in the way, as a full disk would
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's choice
        file.revoke("ann")
    assert path.read_text() == before
    assert not file.get("ann").revoked
    os.rmdir(tmp_path / "keys.json.new")
    file.revoke("ann")
    assert json.loads(path.read_text())["keys"][0]["revoked"]


# --- who -----------------------------------------------------------------------------------------


def test_nobody_needs_a_key_where_there_is_none() -> None:
    desk = Desk()
    assert desk.ring.identify(None).name == "-"
    assert desk.who("whatever") == "-"


def test_keys_of_the_settings_are_nameless_and_may_do_everything() -> None:
    desk = Desk(grant("ann"), fixed=("old",))
    assert [desk.who("old"), desk.who("ann")] == ["settings", "ann"]
    assert desk.ring.identify("bearer old").limits.priority == 100
    assert desk.meter.keys == ["ann", "settings"]


@pytest.mark.parametrize(
    "said",
    [
        *(None, "", "Bearer", "Bearer ", "Basic ann", "ann", "Bearer bob", "Bearer \udcff"),
        *("Bearer Ann", "Bearer ann ann", "Bearer " + "x" * 1_000_000),
    ],
    ids=range(11),
)
def test_what_is_not_a_key_is_refused_in_the_same_words(said: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        Desk(grant("ann")).ring.identify(said)
    assert caught.value.message == "give a valid API key as `Authorization: Bearer KEY`"


def test_a_revoked_key_is_as_good_as_none_and_the_last_one_opens_no_door() -> None:
    desk = Desk(grant("ann", revoked=True))
    for key in ("ann", "bob", ""):
        with pytest.raises(Unauthorized):
            desk.who(key)


def test_a_key_expires_by_the_clock() -> None:
    desk = Desk(grant("ann", expires_at=10))
    assert desk.who("ann") == "ann"
    desk.now = 10
    with pytest.raises(KeyExpired):
        desk.who("ann")
    assert desk.meter.refusals == [("ann", "api_key_expired")]
    desk.ring.apply([grant("ann", expires_at=20)])
    assert desk.who("ann") == "ann"


def test_one_that_guesses_is_slowed_down_and_nobody_else() -> None:
    desk = Desk(grant("ann"))
    answers = []
    for _ in range(100):
        with pytest.raises((Unauthorized, TooManyFailures)) as caught:
            desk.ring.identify("Bearer guess", "10.0.0.1")
        answers.append(caught.type)
    assert answers == [Unauthorized] * 60 + [TooManyFailures] * 40
    assert desk.ring.identify("Bearer ann", "10.0.0.1").name == "ann"
    with pytest.raises(Unauthorized):
        desk.ring.identify("Bearer guess", "10.0.0.2")
    desk.now = 1.0
    with pytest.raises(Unauthorized):
        desk.ring.identify("Bearer guess", "10.0.0.1")


# --- how much ------------------------------------------------------------------------------------


def test_models_are_those_of_the_list_with_their_aliases_but_not_their_adapters() -> None:
    desk = Desk(grant("ann", models=("m", "special")), grant("bob", models=("tuned",)))
    for name, adapter in (("m", None), ("alias", None), ("special", "s")):
        desk.ask("ann", name=name, adapter=adapter).close()
    with pytest.raises(UnknownModel):
        desk.ask("ann", name="tuned", adapter="t")
    desk.ask("bob", name="tuned", adapter="t").close()
    with pytest.raises(UnknownModel):
        desk.ask("bob")
    assert desk.meter.refusals == [("ann", "model_not_found"), ("bob", "model_not_found")]


def refusal(desk: Desk, tokens: int = 1) -> tuple[type[RequestError], float]:
    with pytest.raises(RequestError) as caught:
        desk.ask("ann", tokens)
    assert caught.value.retry_after is not None
    return caught.type, round(caught.value.retry_after, 6)


def test_requests_at_once() -> None:
    desk = Desk(grant("ann", concurrency=2))
    first, second = desk.ask("ann"), desk.ask("ann")
    assert refusal(desk) == (TooManyAtOnce, 1)
    second.close()
    second.close()  # closing is done once
    third = desk.ask("ann")
    assert refusal(desk) == (TooManyAtOnce, 1)
    first.close()
    third.close()


def test_requests_per_minute() -> None:
    desk = Desk(grant("ann", requests_per_minute=3))
    for _ in range(3):
        desk.ask("ann").close(5, 5)
    assert refusal(desk) == (TooManyRequests, 20)
    desk.now = 20
    desk.ask("ann").close()
    assert refusal(desk) == (TooManyRequests, 20)


def test_tokens_are_charged_by_estimate_and_put_right_at_the_end() -> None:
    desk = Desk(grant("ann", tokens_per_minute=600))
    first = desk.ask("ann", 400)
    assert refusal(desk, 300) == (TooManyTokens, 10)
    first.close(30, 70)
    desk.ask("ann", 500).close(400, 300)  # 700 instead of 500: a debt
    assert refusal(desk, 1) == (TooManyTokens, 20.1)
    assert desk.meter.tokens == [("ann", 30, 70), ("ann", 400, 300)]
    desk.now = 3600
    desk.ask("ann", 10_000)  # larger than a minute's worth: when nothing is owed


def test_what_was_refused_or_never_reached_an_engine_costs_no_tokens() -> None:
    desk = Desk(grant("ann", tokens_per_minute=100, requests_per_minute=1000))
    for _ in range(50):
        with desk.ask("ann", 100):
            pass
    assert desk.meter.tokens == []


def test_new_limits_are_in_force_at_once_and_forget_nothing() -> None:
    desk = Desk(grant("ann", requests_per_minute=10, concurrency=1))
    held = desk.ask("ann")
    for _ in range(5):
        with pytest.raises(TooManyAtOnce):
            desk.ask("ann")
    desk.ring.apply([grant("ann", requests_per_minute=2, concurrency=3)])
    desk.ask("ann").close()
    assert refusal(desk) == (TooManyRequests, 30)
    desk.ring.apply([])
    held.close()
    assert desk.ring.identify(None).name == "-"


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 200), st.integers(0, 300)), max_size=60),
    st.integers(60, 600),
)
def test_over_any_time_no_more_passes_than_a_minutes_worth_and_what_flowed_in(
    asks: list[tuple[float, int, int]], per_minute: int
) -> None:
    bucket, now, used, last = Bucket(per_minute), 0.0, 0.0, 0.0
    for pause, estimate, real in asks:
        now += pause
        wait = bucket.wait_for(estimate, now)
        assert wait >= 0
        if wait == 0:
            bucket.take(estimate, now)
            bucket.take(real - estimate, now)
            used, last = used + real, float(real)
        else:
            now += wait  # Retry-After tells the truth
            assert bucket.wait_for(estimate, now) < 1e-6
        assert used <= per_minute + now * per_minute / 60 + last + 1e-6
