"""The images: what they weigh, how fast they start, and that each does its work alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from orchestrator.resources import demo_dir
from tests.docker.stack import base_image, images, name_of, run
from tests.harness import SLACK, free_ports, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
_MB = 1_000_000
_HARD = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"
)  # fmt: skip


@contextmanager
def container(target: str, port: int, *options: str, words: tuple[str, ...] = ()) -> Iterator[str]:
    """One container, its `port` published; the address. It is removed in the end."""
    images()
    (here,) = free_ports(1)
    publish = ("-p", f"127.0.0.1:{here}:{port}")
    made = run("docker", "create", *_HARD, *publish, *options, name_of(target), *words).strip()
    try:
        run("docker", "start", made)
        yield f"http://127.0.0.1:{here}"
    finally:
        run("docker", "rm", "-f", "-v", made)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def size(image: str) -> int:
    """Bytes of all layers."""
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def test_the_gateway_adds_less_than_60_mb_and_lives_within_two_seconds() -> None:
    images()
    added = size(name_of("gateway")) - size(base_image())
    took: list[float] = []
    for _ in range(3):  # the quickest: others use this machine, too
        began = time.monotonic()
        with container("gateway", 8001, "-e", "ALLOW_ANONYMOUS=1") as url:
            until(lambda url=url: answers(f"{url}/health/live"), 20, "it lives")  # type: ignore[misc]
            took.append(time.monotonic() - began)
    print(f"gateway: {added / _MB:.1f} MB added, live after {min(took):.2f} s")
    assert added < 60 * _MB
    assert min(took) < 2 * SLACK


def test_the_gateway_refuses_everybody_and_nobody_at_once() -> None:
    images()
    words = ("docker", "run", "--rm", *_HARD, name_of("gateway"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60 * SLACK, check=False)
    assert done.returncode == 78
    assert "no API keys are set" in done.stderr


def test_all_in_one_serves_from_one_container() -> None:
    key = "key-of-one-container"
    given = ("-e", "HOST=0.0.0.0", "-e", f"ENGINEROOM_API_KEYS={key}")
    volume = ("-v", "/var/lib/engineroom", "-v", "/var/cache/engineroom")
    with container("all-in-one", 8001, *given, *volume) as url:
        until(lambda: answers(f"{url}/health/ready"), 60, "a model is ready")
        body = {"prompt": "Hi", "max_new_tokens": 4}
        headers = {"authorization": f"Bearer {key}"}
        told = httpx.post(f"{url}/generate", json=body, headers=headers, trust_env=False)
        assert told.json()["token_count"] == 4


def test_the_engines_image_serves_a_model() -> None:
    model = ("-v", f"{demo_dir()}:/models/demo:ro")
    words = ("--host", "0.0.0.0", "--port", "8080", "-m", "/models/demo/demo.Q4_K_M.gguf")
    with container("llama-server", 8080, *model, words=words) as url:
        until(lambda: answers(f"{url}/health"), 60, "it is ready")
        body = {"prompt": "Hi", "max_tokens": 4}
        told = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=30 * SLACK)
        assert told.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("target", ["gateway", "all-in-one"])
def test_the_gateway_runs_compiled(target: str) -> None:
    images()
    look = "import orchestrator.gateway.job as job; print(job.__file__)"
    words = ("--rm", "--network", "none", "--entrypoint", "python3", name_of(target), "-c", look)
    assert run("docker", "run", *words).strip().endswith(".so")


@pytest.mark.parametrize("target", ["gateway", "socket-proxy", "all-in-one", "llama-server"])
def test_every_image_says_what_it_is_and_hooks_into_no_start_of_python(target: str) -> None:
    images()
    (told,) = json.loads(run("docker", "image", "inspect", name_of(target)))
    assert told["Config"]["User"] == "65532:65532"
    assert told["Config"]["Labels"]["org.opencontainers.image.licenses"].startswith("Apache-2.0")
    find = "import pathlib; print(*pathlib.Path('/').glob('venv/lib/*/site-packages/*.pth'))"
    words = ("--rm", "--network", "none", "--entrypoint", "python3", name_of(target), "-c", find)
    assert run("docker", "run", *words).split() == []
