"""compose.yaml for real: an engine, the gateway in a container of its own, Prometheus beside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from deploy.grafana.dashboard import queries
from tests.docker.policy import violations
from tests.docker.stack import HF_TOKEN, KEY, PROMETHEUS, Stack, composes, run
from tests.harness import ROOT, until
from tests.unit.test_deployment import SERVICES

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
PROFILES = ("cpu,monitoring", "gpu", "multi-gpu", "siblings")


@pytest.mark.parametrize("profiles", PROFILES)
@pytest.mark.parametrize("compose", composes(), ids=" ".join)
def test_compose_reads_every_profile(compose: tuple[str, ...], profiles: str) -> None:
    told = run(*compose, "config", "--services", env={"COMPOSE_PROFILES": profiles}).split()
    wanted = set(profiles.split(","))
    for name, service in SERVICES.items():  # version 1 tells of the others, too
        if not service.get("profiles") or wanted & set(service["profiles"]):
            assert name in told


def test_it_generates_and_streams_from_a_real_engine(stack: Stack) -> None:
    until(lambda: stack.http.get("/health/ready").status_code == 200, 60, "a model is ready")
    body = {"prompt": "What products do you recommend?", "max_new_tokens": 24}
    assert stack.http.post("/generate", json=body).json()["token_count"] > 5
    assert stack.chats("What products do you recommend?")
    assert stack.http.get("/health").json()["supervisor"] == "connected"
    nobody = stack.http.post("/generate", json=body, headers={"authorization": ""})
    assert nobody.status_code == 401


def test_the_command_works_in_the_supervisors_container(stack: Stack) -> None:
    (row,) = json.loads(stack.inside("supervisor", "engineroom", "ps", "--json"))
    assert (row["id"], row["state"], row["engine"]) == ("demo-0", "ready", "llama_server")


@pytest.mark.parametrize("service", ["gateway", "supervisor", "prometheus"])
def test_every_container_keeps_the_policy(stack: Stack, service: str) -> None:
    assert violations(stack.container(service)) == []


@pytest.mark.parametrize("service", ["gateway", "supervisor", "prometheus"])
def test_no_secret_is_in_an_environment_or_on_a_command_line(stack: Stack, service: str) -> None:
    told = stack.container(service)
    processes = run("docker", "top", told["Id"], "-eo", "pid,args").splitlines()[1:]
    seen = [json.dumps(told["Config"]), *processes]
    # PID 1 cannot be dumped, so that only root reads its environment; we may not be root.
    pids = [line.split()[0] for line in processes]
    seen += [Path(f"/proc/{pid}/environ").read_text() for pid in pids if _readable(pid)]
    assert len(pids) >= 1
    for secret in (KEY, HF_TOKEN):
        assert not [text for text in seen if secret in text]


def _readable(pid: str) -> bool:
    try:
        Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return False
    return True


_WHAT_THE_GATEWAY_HAS = """
import importlib.util, json, os, pathlib, shutil, socket
def writes(folder):
    try:
        pathlib.Path(folder, "x").touch()
    except OSError:
        return False
    return True
def connects(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True
rooms = ("supervision", "planning", "runtimes", "models", "engines", "admin", "serve", "cli")
print(json.dumps({
    "programs": [x for x in ("llama-server", "vllm", "engineroom", "docker") if shutil.which(x)],
    "rooms": [x for x in rooms if importlib.util.find_spec("orchestrator." + x)],
    "files": [x for x in ("/var/run/docker.sock", "/opt/llama") if os.path.exists(x)],
    "models": os.listdir("/models"),
    "writable": [x for x in ("/", "/venv", "/run/engineroom", "/var/lib/engineroom") if writes(x)],
    "reaches": [x for x in (("supervisor.admin", 8002), ("supervisor", 8002), ("prometheus", 2375),
                            ) if connects(*x)],
}))
"""


def test_the_gateway_has_nothing_but_its_door(stack: Stack) -> None:
    told = json.loads(stack.inside("gateway", "python3", "-", input=_WHAT_THE_GATEWAY_HAS))
    assert not any(told.values()), told


_SCAN = """
import json, socket, sys
open = []
for address in sys.argv[1].split(","):
    for port in json.loads(sys.argv[2]):
        try:
            socket.create_connection((address, port), 0.5).close()
            open.append((address, port))
        except OSError:
            pass
print(json.dumps(open))
"""


def test_no_engine_is_reached_but_by_the_gateway(stack: Stack) -> None:
    (engine,) = json.loads(stack.inside("supervisor", "engineroom", "ps", "--json"))
    port = int(engine["url"].rsplit(":", 1)[1])
    networks = stack.container("supervisor")["NetworkSettings"]["Networks"].values()
    addresses = ",".join(each["IPAddress"] for each in networks)
    ports = json.dumps([port, 8002])
    for network in ("bridge", stack.network("front"), stack.network("panels")):
        assert json.loads(stack.beside(network, _SCAN, addresses, ports)) == []
    among = json.loads(stack.beside(stack.network("engines"), _SCAN, addresses, ports))
    assert [found[1] for found in among] == [port]  # on the engines' address only


def _promtool(stack: Stack, *words: str, input: str | None = None) -> str:
    return stack.inside("prometheus", "promtool", *words, input=input)


def test_prometheus_has_both_targets_and_content_rules(stack: Stack) -> None:
    up = {"gateway": "1", "supervisor": "1"}

    def both() -> bool:
        return {row["metric"]["job"]: row["value"][1] for row in stack.query("up")} == up

    until(both, 30, "both targets were scraped")
    _promtool(stack, "check", "config", "/etc/prometheus/prometheus.yml")
    files = [f"/etc/prometheus/rules/{name}.yml" for name in ("recording", "alerts")]
    _promtool(stack, "check", "rules", *files)
    mount = f"{ROOT / 'deploy' / 'prometheus'}:/rules:ro"
    tool = ("--entrypoint", "promtool", PROMETHEUS, "test", "rules", "/rules/rules_test.yml")
    run("docker", "run", "--rm", "--network", "none", "-v", mount, *tool)


def test_what_is_exported_is_in_the_table_and_lints(stack: Stack) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    admin = "import urllib.request as r; print(r.urlopen('http://supervisor.admin:8002/metrics')"
    texts = {
        "Gateway": stack.http.get("/metrics").text,
        "Control plane": stack.inside("supervisor", "python3", "-c", f"{admin}.read().decode())"),
    }
    for plane, text in texts.items():
        _promtool(stack, "check", "metrics", input=text)
        section = page.split(f"## {plane}")[1].split("\n## ")[0]
        table = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == table


def test_every_query_of_the_dashboard_returns_data(stack: Stack) -> None:
    def empty() -> list[str]:
        silent = []
        for title, text in queries(optional=False):
            for name, value in (("$model", ".*"), ("$replica", ".*"), ("$__rate_interval", "1m")):
                text = text.replace(name, value)
            if not stack.query(text):
                silent.append(f"{title}: {text}")
        return silent

    for _ in range(3):  # something to see between two scrapes
        stack.http.post("/generate", json={"prompt": "Hi", "max_new_tokens": 4})
    until(lambda: not empty(), 60, f"no data: {empty()}")


def test_a_restarted_gateway_is_told_everything_again(stack: Stack) -> None:
    run("docker", "restart", "-t", "10", stack.container("gateway")["Id"])

    def ready() -> bool:
        try:
            return stack.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    until(ready, 30, "it serves again")
    body = {"prompt": "Hi", "max_new_tokens": 4}
    assert stack.http.post("/generate", json=body).status_code == 200
