"""`engineroom gateway`: one gateway before a server that is not ours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import trustme

from tests.harness import ROOT, SLACK, clean_env, free_ports, look, until
from tests.stage import FakeEngine
from tests.streams import check_stream, told

pytestmark = pytest.mark.slow


@contextmanager
def before(
    upstream: str, model: str, *flags: str, **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process in front of a server, and its address."""
    port = free_ports(1)[0]
    argv = [sys.executable, "-m", "orchestrator", "gateway", "--upstream", upstream]
    argv += ["--model", model, "--port", str(port), *flags]
    process = subprocess.Popen(argv, cwd=ROOT, env=clean_env(**env))
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return look(f"{url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, 30, "it serves")
        yield process, url
    finally:
        process.kill()
        process.wait()


@contextmanager
def alone(*flags: str, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], str, FakeEngine]]:
    """The process, its address, and the engine behind it."""
    engine = FakeEngine("e", ["--tps", "20", "--usage-in-stream"], 16)
    try:
        with before(engine.url, "fake", *flags, **env) as (process, url):
            yield process, url, engine
    finally:
        engine.end()


def test_it_serves_its_one_model_within_its_memory_and_ends_in_order() -> None:
    with alone() as (process, url, _), httpx.Client(trust_env=False, timeout=20 * SLACK) as http:
        told_models = http.get(f"{url}/v1/models").json()["data"]
        assert [each["id"] for each in told_models] == ["fake"]
        asked = {"model": "fake", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 3}
        answer = http.post(f"{url}/v1/chat/completions", json=asked).json()
        assert answer["choices"][0]["message"]["content"] == "w0 w1 w2"
        assert answer["usage"]["completion_tokens"] == 3
        assert psutil.Process(process.pid).memory_info().rss < 64 << 20
        stream = {"prompt": "Hi", "max_new_tokens": 6}
        with http.stream("POST", f"{url}/generate_stream", json=stream) as got:
            check_stream([x[6:] for x in got.iter_lines() if x.startswith("data: ")], 6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10 * SLACK) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stream_under_way_ends_as_it_would_have(workers: str) -> None:
    with (
        alone("--gateway-workers", workers, "--drain-s", "120") as (process, url, _),
        httpx.Client(trust_env=False, timeout=20 * SLACK) as http,
    ):
        stream = {"prompt": "Hi", "max_new_tokens": 120}
        with http.stream("POST", f"{url}/generate_stream", json=stream) as got:
            lines = (line[6:] for line in got.iter_lines() if line.startswith("data: "))
            came = [next(lines)]
            process.send_signal(signal.SIGTERM)
            came += list(lines)
        check_stream(came, 120)
        assert process.wait(20 * SLACK) in (0, -signal.SIGTERM)


def test_a_stream_that_outlasts_the_end_is_told_so() -> None:
    with (
        alone("--drain-s", "1") as (process, url, engine),
        httpx.Client(trust_env=False, timeout=20 * SLACK) as http,
    ):
        stream = {"prompt": "Hi", "max_new_tokens": 1000}
        with http.stream("POST", f"{url}/generate_stream", json=stream) as got:
            lines = (line[6:] for line in got.iter_lines() if line.startswith("data: "))
            came = [next(lines)]
            process.send_signal(signal.SIGTERM)
            came += list(lines)
        assert told(came).errors == ("shutting_down",)
        assert told(came).after_end == 0
        until(lambda: not engine.stats()["running"], 5, "the engine is idle")


def test_keys_come_from_the_environment_and_never_show() -> None:
    with (
        alone(ENGINEROOM_API_KEYS="sekret") as (process, url, _),
        httpx.Client(trust_env=False, timeout=20 * SLACK) as http,
    ):
        asked = {"prompt": "Hi", "max_new_tokens": 1}
        assert http.post(f"{url}/generate", json=asked).status_code == 401
        given = {"authorization": "Bearer sekret"}
        assert http.post(f"{url}/generate", json=asked, headers=given).status_code == 200
        line = json.dumps(psutil.Process(process.pid).cmdline())
        assert "sekret" not in line
        assert "/dev/fd/" in line


def test_keys_that_were_made_guard_a_gateway_alone(tmp_path: Path) -> None:
    data = str(tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "orchestrator", "keys", "create", "alice", "--json", "--data-dir",
         data],
        cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = json.loads(made.stdout)["key"]
    with alone(ENGINEROOM_DATA_DIR=data) as (_, url, engine):
        asked = {"prompt": "Hi", "max_new_tokens": 2}
        with httpx.Client(trust_env=False, timeout=20 * SLACK) as http:
            assert http.post(f"{url}/generate", json=asked).status_code == 401
            good = {"authorization": f"Bearer {key}"}
            answer = http.post(f"{url}/generate", json=asked, headers=good)
            assert answer.json()["token_count"] == 2
            own = {"x-api-key": key, "authorization": "Basic eDp5"}
            assert http.post(f"{url}/generate", json=asked, headers=own).status_code == 200
        assert engine.stats()["requests"] == 2


def test_an_upstream_may_have_tls_a_path_and_a_key(tmp_path: Path) -> None:
    ca = trustme.CA()
    issued, cert, key = ca.issue_cert("localhost"), tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    secure = {"ENGINEROOM_TLS_CERT": str(cert), "ENGINEROOM_TLS_KEY": str(key)}
    engine = FakeEngine("e", ["--usage-in-stream"], 16)
    inner = [sys.executable, "-m", "orchestrator", "gateway", "--upstream", engine.url]
    port = free_ports(1)[0]
    inner += ["--model", "fake", "--host", "localhost", "--port", str(port)]
    env = clean_env(**secure, ENGINEROOM_API_KEYS="inner")
    process = subprocess.Popen(inner, cwd=ROOT, env=env)
    given = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "ENGINEROOM_UPSTREAM_KEY": "inner"}
    asked = {"prompt": "Hi", "max_new_tokens": 3}
    try:
        with before(f"https://localhost:{port}/v1/", "fake", **given) as (outer, url):
            assert "inner" not in json.dumps(psutil.Process(outer.pid).cmdline())

            def answers() -> bool:
                return httpx.post(f"{url}/generate", json=asked, trust_env=False).status_code == 200

            until(answers, 30, "both serve")
            stream = {"prompt": "Hi", "max_new_tokens": 6}
            with httpx.stream(
                "POST", f"{url}/generate_stream", json=stream, trust_env=False
            ) as got:
                check_stream([x[6:] for x in got.iter_lines() if x.startswith("data: ")], 6)
        del given["ENGINEROOM_UPSTREAM_KEY"]
        with before(f"https://localhost:{port}", "fake", **given) as (_, url):
            refused = httpx.post(f"{url}/generate", json=asked, trust_env=False)
            assert refused.status_code == 502
    finally:
        process.kill()
        process.wait()
        engine.end()


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://u:p@x", "http://x:0", "http://x/?a=1", "x:8000", "http://x:a"],
)
def test_an_upstream_that_is_none_is_refused(url: str) -> None:
    argv = [sys.executable, "-m", "orchestrator", "gateway", "--upstream", url, "--model", "m"]
    said = subprocess.run(
        argv, cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=False
    )
    assert said.returncode == 78
    assert "give http://host:port or https://host" in said.stderr
