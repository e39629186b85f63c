"""API keys through a whole server: made by the operator, in force at the gateway, counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import ROOT, Room, clean_env, fake_room, sample, until


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    made = fake_room(tmp_path_factory.mktemp("keys"), serial=False, adapters=())
    try:
        yield made.start()
    finally:
        made.close()


def make(room: Room, name: str, **limits: Any) -> str:
    """A new key, once the gateway knows of it."""
    answer = room.admin("POST", "/admin/keys", json={"name": name, **limits})
    assert answer.status_code == 201, answer.text
    secret = str(answer.json()["key"])
    until(lambda: ask(room, secret, "GET", "/v1/models").status_code == 200, 5, "key in force")
    return secret


def ask(
    room: Room, key: str | None, method: str = "POST", path: str = "/generate", **fields: Any
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": "Hi", "max_new_tokens": 3, **fields} if method == "POST" else None
    return room.http.request(method, room.url + path, headers=headers, json=body)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def used(room: Room, key: str, secret: str) -> dict[str, float]:
    text = ask(room, secret, "GET", "/metrics").text
    tokens = "engineroom_key_tokens_total"
    return {
        "requests": sample(text, "engineroom_key_requests_total", {"key": key}),
        "prompt": sample(text, tokens, {"key": key, "direction": "prompt"}),
        "completion": sample(text, tokens, {"key": key, "direction": "completion"}),
    }


def refused(room: Room, key: str, secret: str, reason: str) -> float:
    text = ask(room, secret, "GET", "/metrics").text
    return sample(text, "engineroom_key_refused_total", {"key": key, "reason": reason})


def test_the_first_key_ends_free_entry_without_a_restart_and_a_revoked_one_is_worthless(
    room: Room,
) -> None:
    assert ask(room, None).status_code == 200
    pid = room.engine("gateway-0")["pid"]
    operator = make(room, "operator")
    assert code(ask(room, None)) == (401, "invalid_api_key")
    gone = make(room, "gone")
    assert ask(room, gone).status_code == 200
    assert room.admin("DELETE", "/admin/keys/gone").json()["state"] == "revoked"
    until(lambda: ask(room, gone).status_code == 401, 1, "revoked within a second")
    assert ask(room, operator).status_code == 200
    assert room.engine("gateway-0")["pid"] == pid
    assert [e["type"] for e in room.events() if e["type"].startswith("key.")] == [
        "key.created", "key.created", "key.revoked",
    ]  # fmt: skip


def test_each_limit_has_its_own_answer_and_is_counted(room: Room) -> None:
    slow = make(room, "slow", requests_per_minute=2)
    assert [ask(room, slow).status_code for _ in range(2)] == [200, 200]
    late = ask(room, slow)
    assert code(late) == (429, "requests_per_minute")
    assert 1 <= int(late.headers["retry-after"]) <= 30
    assert used(room, "slow", slow) == {"requests": 3, "prompt": 2, "completion": 6}
    assert refused(room, "slow", slow, "requests_per_minute") == 1

    small = make(room, "small", tokens_per_minute=100)
    assert ask(room, small, max_new_tokens=90).status_code == 200
    assert code(ask(room, small, max_new_tokens=90)) == (429, "tokens_per_minute")
    assert ask(room, small, max_new_tokens=5).status_code == 200

    alone = make(room, "alone", concurrency=1)
    headers = {"authorization": f"Bearer {alone}"}
    body = {"prompt": 'fake={"tps": 2}', "max_new_tokens": 50}
    with room.http.stream(
        "POST", f"{room.url}/generate_stream", json=body, headers=headers
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert code(ask(room, alone)) == (429, "concurrent_requests")
    until(lambda: ask(room, alone).status_code == 200, 5, "the place of a client that left")
    assert used(room, "alone", alone)["completion"] >= 4  # what it was sent before it left

    other = make(room, "other", models=["another"])
    assert code(ask(room, other)) == (404, "model_not_found")
    assert ask(room, other, "GET", "/v1/models").json()["data"] == []
    assert code(ask(room, other, "GET", "/v1/models/demo")) == (404, "model_not_found")

    old = make(room, "old")
    room.admin("PATCH", "/admin/keys/old", json={"expires_at": 1})
    until(lambda: code(ask(room, old)) == (401, "api_key_expired"), 5, "expired")


def test_admin_and_inference_are_kept_apart(room: Room) -> None:
    key = make(room, "curious")
    for method, path in (("GET", "/admin/keys"), ("POST", "/admin/shutdown"), ("GET", "/metrics")):
        url, headers = room.ready["admin"] + path, {"authorization": f"Bearer {key}"}
        assert room.http.request(method, url, headers=headers).status_code == 401
    assert ask(room, room.token).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "curious2", "priority": 101}, 400),
        ({"name": "../../etc"}, 400),
        ({"name": "x", "argv": ["sh"]}, 400),
        ({"name": "x", "models": "demo"}, 400),
        ({}, 400),
        ({"name": "settings"}, 409),
    ],
)
def test_a_bad_wish_is_refused_and_makes_nothing(
    room: Room, body: dict[str, Any], status: int
) -> None:
    before = room.admin("GET", "/admin/keys").json()
    assert room.admin("POST", "/admin/keys", json=body).status_code == status
    assert room.admin("GET", "/admin/keys").json() == before
    assert room.admin("PATCH", "/admin/keys/nobody", json={}).status_code == 404
    assert room.admin("DELETE", "/admin/keys/nobody").status_code == 404


def cli(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "orchestrator", "keys", *words, "--data-dir", str(data)]
    return subprocess.run(
        argv, cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_makes_keys_of_a_running_server_and_for_the_next_one(
    room: Room, tmp_path: Path
) -> None:
    made = cli(room.data, "create", "typed", "--rpm", "5", "--model", "demo", "--days", "1")
    secret = made.stdout.strip()
    assert (made.returncode, secret[:3]) == (0, "er-")
    until(lambda: ask(room, secret).status_code == 200, 5, "in force")
    assert "typed" in cli(room.data, "list").stdout
    assert cli(room.data, "create", "typed").returncode == 1
    assert cli(room.data, "change", "typed", "--rpm", "7").returncode == 0
    rows = json.loads(cli(room.data, "list", "--json").stdout)
    assert next(x for x in rows if x["name"] == "typed")["requests_per_minute"] == 7
    assert cli(room.data, "revoke", "typed").returncode == 0
    until(lambda: ask(room, secret).status_code == 401, 5, "revoked")

    data = tmp_path / "later"
    first = json.loads(cli(data, "create", "first", "--json").stdout)
    assert (data / "keys.json").stat().st_mode & 0o777 == 0o600
    later = fake_room(data)
    try:
        later.start()
        assert ask(later, None).status_code == 401
        assert ask(later, first["key"]).status_code == 200
        assert cli(data, "list").stdout.count("first") == 1
    finally:
        later.close()


def test_a_secret_is_nowhere_but_in_the_answer_that_made_it(room: Room) -> None:
    secret = make(room, "hidden")
    assert ask(room, secret).status_code == 200
    files = [path for path in room.data.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 3
    assert [str(p) for p in files if secret.encode() in p.read_bytes()] == []
    told = ask(room, secret, "GET", "/metrics").text + room.admin("GET", "/admin/keys").text
    assert secret not in told
    assert "hash" not in room.admin("GET", "/admin/keys/hidden").json()


def test_a_key_moves_no_model_that_it_may_not_use(room: Room) -> None:
    """Neither unloads it nor holds it, on any path, and is told what strangers are told."""
    other = make(room, "elsewhere", models=["something-else"])
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"prompt": "x"},
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/api/generate": {"prompt": "x"},
        "/api/chat": {"messages": []},
    }
    for path, body in bodies.items():
        for stays in (0, -1):
            asked = {"model": "demo", "keep_alive": stays, **body}
            headers = {"authorization": f"Bearer {other}"}
            answer = room.http.post(room.url + path, headers=headers, json=asked)
            assert answer.status_code == 404, path
            assert "no model of that name" in answer.text
    assert ask(room, make(room, "at-home"), keep_alive=60).status_code == 200
    assert room.engine()["generation"] == 1
    told = room.admin("GET", "/admin/models").json()["models"][0]
    assert told["phase"] == "serving", told
