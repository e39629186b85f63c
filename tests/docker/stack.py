"""compose.yaml as a person runs it: images built, services up, looked at, and down again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from orchestrator import __version__
from orchestrator.settings import load_settings
from tests.harness import ROOT, SLACK, free_ports, until

IMAGES = "engineroom-test"
PROMETHEUS = f"{IMAGES}/prometheus:debian"
KEY = "canary-key-of-a-client-7c1f"
HF_TOKEN = "canary-token-of-a-hub-93ab"


def run(*argv: str, env: Mapping[str, str] | None = None, input: str | None = None) -> str:
    """Its standard output; AssertionError with all it said where it fails."""
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        input=input,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{' '.join(argv)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, said
    return done.stdout


def works(*argv: str) -> bool:
    """Whether a program is there and content."""
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def name_of(target: str) -> str:
    """The image of a target, as compose.yaml calls it."""
    return f"{IMAGES}/{target}:{__version__}"


# --- images -------------------------------------------------------------------------------------


@cache
def base_image() -> str:
    """The Python image to build on."""
    return run("sh", "tools/base_image.sh").strip()


@cache
def _builder() -> tuple[str, str]:
    """A client that has BuildKit, and the value of DOCKER_BUILDKIT; else the legacy builder."""
    for client in ("docker", "/usr/bin/docker"):
        if works(client, "buildx", "version"):
            return client, "1"
        if works(client, "--version"):
            version = run(client, "version", "--format", "{{.Client.Version}}")
            if int(version.split(".")[0]) < 23:  # it has the client for BuildKit in itself
                return client, "1"
    return "docker", "0"


def build(file: str, target: str | None, tag: str, context: str = ".", **arguments: str) -> None:
    """One image."""
    client, kit = _builder()
    given = {"PYTHON_IMAGE": base_image(), **arguments}
    words = [word for key, value in given.items() for word in ("--build-arg", f"{key}={value}")]
    aim = ["--target", target] if target else []
    run(client, "build", "-f", file, *aim, *words, "-t", tag, context, env={"DOCKER_BUILDKIT": kit})


@cache
def _llama_files() -> dict[str, str]:
    """Where llama.cpp comes from: what `engineroom engines install` compiled on this machine.

    Unless E2E_COMPILE says to compile it in the image, which takes many minutes.
    """
    found = sorted(load_settings({}, env={}).engines.glob("llama_server-*/bin/llama-server"))
    if not found or os.environ.get("E2E_COMPILE"):
        return {}
    content = hashlib.sha256(found[-1].parents[1].joinpath("engineroom.json").read_bytes())
    tag = f"{IMAGES}/llama-files:{content.hexdigest()[:12]}"
    if works("docker", "image", "inspect", tag):
        return {"LLAMA_FILES": tag}
    with subprocess.Popen(
        ["docker", "import", "-", tag], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as taker:
        assert taker.stdin is not None
        with tarfile.open(fileobj=taker.stdin, mode="w|") as packed:
            packed.add(found[-1].parent, "opt/llama")
        taker.stdin.close()
        assert taker.wait() == 0
    return {"LLAMA_FILES": tag}


@cache
def images() -> Mapping[str, float]:
    """Seconds that each image took to build, from the cache or not."""
    took: dict[str, float] = {}
    for target in ("gateway", "socket-proxy", "llama-server", "all-in-one"):
        began = time.monotonic()
        more = _llama_files() if target in ("llama-server", "all-in-one") else {}
        build("deploy/Dockerfile", target, name_of(target), **more)
        took[target] = time.monotonic() - began
    build("tests/docker/prometheus.Dockerfile", None, PROMETHEUS, "tests/docker")
    return took


# --- compose ------------------------------------------------------------------------------------


def composes() -> list[tuple[str, ...]]:
    """Every Compose of this machine; $COMPOSE names one instead."""
    if chosen := os.environ.get("COMPOSE"):
        return [tuple(chosen.split())]
    found = [("docker", "compose"), ("docker-compose",)]
    return [each for each in found if works(*each, "version")]


class Stack:
    """One project of one Compose; `folder` holds its secrets."""

    def __init__(self, compose: tuple[str, ...], folder: Path, name: str = "e2e") -> None:
        self._compose = compose
        self.project = f"engineroom-{name}-{os.getpid()}"
        self.port, self.prometheus_port = free_ports(2)
        folder.chmod(0o700)  # keeps others out; the files themselves are read by another user
        for name, content in (("api_keys", KEY), ("hf_token", HF_TOKEN)):
            (folder / name).write_text(content + "\n")
            (folder / name).chmod(0o644)
        self.env = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": "cpu,monitoring,siblings",
            "IMAGES": IMAGES,
            "ENGINE_IMAGE": name_of("all-in-one"),
            "PROMETHEUS_IMAGE": PROMETHEUS,
            "GATEWAY_PORT": str(self.port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "API_KEYS_FILE": str(folder / "api_keys"),
            "METRICS_KEY_FILE": str(folder / "api_keys"),
            "HF_TOKEN_FILE": str(folder / "hf_token"),
            "ALLOW_ANONYMOUS": "0",
            "DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
        }
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=30 * SLACK,
        )

    def compose(self, *words: str) -> str:
        """Run Compose in the checkout."""
        return run(*self._compose, *words, env=self.env)

    def up(self, *services: str) -> None:
        """Start what is named, and wait until every health check is content."""
        self.compose("up", "-d", "--no-build", *services)
        until(self._healthy, 90, "every container is healthy")

    def _healthy(self) -> bool:
        states = {row["Name"]: row["State"]["Health"]["Status"] for row in self.containers()}
        assert "unhealthy" not in states.values(), self.compose("logs", "--tail", "20")
        return set(states.values()) == {"healthy"}

    def containers(self) -> list[dict[str, Any]]:
        """What `docker inspect` tells of each."""
        ids = self.left("container", "ls", "-a")
        return list(json.loads(run("docker", "inspect", *ids))) if ids else []

    def container(self, service: str) -> dict[str, Any]:
        """The one of a service."""
        key = "com.docker.compose.service"
        (found,) = [x for x in self.containers() if x["Config"]["Labels"][key] == service]
        return found

    def inside(self, service: str, *argv: str, input: str | None = None) -> str:
        """Run a program in a service's container, as its user."""
        return run("docker", "exec", "-i", self.container(service)["Id"], *argv, input=input)

    def left(self, *words: str) -> list[str]:
        """Ids of what there is of the project: `left("volume", "ls")`."""
        label = f"label=com.docker.compose.project={self.project}"
        return run("docker", *words, "-q", "--filter", label).split()

    def beside(self, network: str, script: str, *argv: str) -> str:
        """The output of a Python script in a container of its own, on a network of ours."""
        words = ("--rm", "-i", "--network", network, "--entrypoint", "python3")
        return run("docker", "run", *words, name_of("gateway"), "-", *argv, input=script)

    def with_volume(self, name: str, folder: str, script: str, *argv: str) -> str:
        """The same without a network, with a volume of ours in `folder`."""
        words = ("--rm", "-i", "--network", "none", "--entrypoint", "python3")
        volume = ("-v", f"{self.network(name)}:{folder}")
        return run("docker", "run", *words, *volume, name_of("gateway"), "-", *argv, input=script)

    def network(self, name: str) -> str:
        """The Docker Engine's name of a network, or a volume, of compose.yaml."""
        return f"{self.project}_{name}"

    def query(self, text: str) -> list[dict[str, Any]]:
        """What Prometheus answers now."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query"
        answer = httpx.get(url, params={"query": text}, trust_env=False, timeout=30 * SLACK)
        assert answer.status_code == 200, (text, answer.text)
        return list(answer.json()["data"]["result"])

    def chats(self, said: str) -> str:
        """What a streamed chat answers; a failure where the stream does not end as it should."""
        asked = {"model": "demo", "messages": [{"role": "user", "content": said}], "stream": True}
        with self.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        chosen = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        assert chosen[-1]["finish_reason"] in ("stop", "length")
        return "".join(each["delta"].get("content") or "" for each in chosen)

    def down(self) -> None:
        """End and remove everything."""
        self.compose("down", "-v", "--remove-orphans")
        self.http.close()


def have_docker() -> bool:
    """Whether an engine answers that we may use."""
    return shutil.which("docker") is not None and works("docker", "version")
