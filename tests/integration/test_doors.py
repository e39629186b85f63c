"""Host allow-list and CORS of a real gateway: off unless set, and never reflecting."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from orchestrator.errors import ConfigError
from orchestrator.gateway.doors import host_name
from orchestrator.settings import load_settings
from tests.stage import Stage, staged

pytestmark = pytest.mark.slow

OURS, EVIL = "https://app.example", "https://evil.example"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged([], allowed_hosts=("127.0.0.1", "llm.example"), cors_origins=(OURS,)) as made:
        yield made


def post(stage: Stage, **headers: str) -> httpx.Response:
    body = {"prompt": "Hi", "max_new_tokens": 1}
    return stage.http.post(f"{stage.url}/generate", json=body, headers=headers)


def test_only_names_of_the_list_are_served(stage: Stage) -> None:
    before = stage.requests()
    for host in ("evil.example", "llm.example.evil.example", "127.0.0.1.evil.example:80"):
        answer = post(stage, host=host)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    for host in ("", "127.0.0.1@evil.example"):
        assert post(stage, host=host).status_code == 400
    assert stage.requests() == before
    for host in ("llm.example", "LLM.example:8001", "127.0.0.1"):
        assert post(stage, host=host).status_code == 200


def test_a_page_of_the_list_may_read_and_no_other(stage: Stage) -> None:
    answer = post(stage, origin=OURS)
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "access-control-allow-credentials" not in answer.headers
    for origin in (EVIL, "null", OURS + ".evil.example", OURS.upper()):
        answer = post(stage, origin=origin)
        assert answer.status_code == 200  # a browser keeps it from the page
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "origin"


def test_a_browser_that_asks_first_is_answered(stage: Stage) -> None:
    def ask(origin: str, method: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": method}
        return stage.http.options(f"{stage.url}/v1/chat/completions", headers=headers)

    answer = ask(OURS, "POST")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, OURS)
    assert "authorization" in answer.headers["access-control-allow-headers"]
    for origin, method in ((EVIL, "POST"), (OURS, "DELETE"), ("null", "POST")):
        refused = ask(origin, method)
        assert refused.status_code == 405
        assert "access-control-allow-methods" not in refused.headers


def test_it_is_off_unless_set() -> None:
    with staged([]) as plain:
        answer = post(plain, host="whatever", origin=EVIL)
        assert answer.status_code == 200
        assert not {"access-control-allow-origin", "vary"} & set(answer.headers)


@pytest.mark.parametrize(
    ("host", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", "::1"), ("a", "a")],
)
def test_the_name_in_a_host(host: str, name: str) -> None:
    assert host_name(host) == name


def test_what_is_no_origin_is_no_setting() -> None:
    env = {"ENGINEROOM_CORS_ORIGINS": f"{OURS}, http://localhost:3000"}
    assert load_settings(env=env).cors_origins == (OURS, "http://localhost:3000")
    for wrong in ("*", "app.example", OURS + "/", "null"):
        with pytest.raises(ConfigError, match="origin"):
            load_settings({"cors_origins": wrong}, env={})
    with pytest.raises(ConfigError, match="allowed-hosts"):
        load_settings({"allowed_hosts": "a/b"}, env={})
