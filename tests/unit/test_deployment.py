"""compose.yaml, the Dockerfile, rules and dashboard as texts: the policy that they are held to."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.closure import closure, modules
from deploy.grafana.dashboard import queries
from orchestrator import __version__
from orchestrator.contradictions import refuse_contradictions
from orchestrator.fence.__main__ import LISTENS, USER
from orchestrator.resources import demo_dir
from orchestrator.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SUPERVISORS = {name for name in SERVICES if name.startswith("supervisor")}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
TARGETS = (
    "gateway",
    "socket-proxy",
    "supervisor",
    "llama-server",
    "all-in-one",
    "supervisor-vllm",
    "vllm-cpu",
)
# What Compose 1.29 refuses or does wrongly, or what newer ones warn of.
NEW_IN_COMPOSE = {"version", "name", "include", "configs", "models"}
NEW_IN_SERVICES = {"gpus", "develop", "annotations", "attach", "cgroup", "post_start", "configs"}
EXTRAS = {"opentelemetry"}  # imported only by a gateway of which traces are asked


def default(text: str) -> str:
    """A value as it is where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def members(network: str) -> set[str]:
    """The services of a network."""
    return {name for name, each in SERVICES.items() if network in each.get("networks", ())}


def stages() -> dict[str, list[str]]:
    """The instructions of every stage, FROM first."""
    found: dict[str, list[str]] = {}
    for line in DOCKERFILE.splitlines():
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = [line]
        elif found and line.strip() and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def last(stage: str, word: str) -> str:
    """The instruction that holds in an image, inherited ones too; empty where there is none."""
    lines = [line for line in stages()[stage] if line.startswith(f"{word} ")]
    if lines:
        return lines[-1].removeprefix(word).strip()
    parent = stages()[stage][0].split()[1]
    return last(parent, word) if parent in stages() else ""


# --- compose.yaml -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service["pids_limit"] <= 4096
    assert re.fullmatch(r"\d+[mg]", default(service["mem_limit"]))
    assert service["restart"] == "unless-stopped"
    assert service.get("network_mode", "none") == "none"
    assert not {"pid", "ipc", "userns_mode", "devices", "ulimits"} & set(service)
    if "build" not in service:  # ours say it in the image
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert "test" in service.get("healthcheck", {}) or name == "grafana"  # it has one in its image


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_and_every_port_is_on_loopback(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = default(service["image"]).rpartition(":")
    assert image
    assert re.search(r"\d+\.\d+", tag)
    if image.startswith("engineroom/"):
        assert tag == __version__
        assert image == f"engineroom/{service['build']['target']}"
        assert service["build"]["target"] in TARGETS
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD", key):
            assert value.startswith("/run/secrets/"), key
            assert Path(value).name in service["secrets"]
    assert all(Path(default(each["file"])).name == "none" for each in COMPOSE["secrets"].values())
    assert (DEPLOY / "secrets" / "none").read_bytes() == b""


def test_networks_part_what_has_nothing_to_say_to_each_other() -> None:
    networks = COMPOSE["networks"]
    inside = {name for name, each in networks.items() if each.get("internal")}
    assert inside == {"engines", "watch", "admin"}
    assert members("engines") == {"gateway", *SUPERVISORS}
    assert members("admin") == {"prometheus", *SUPERVISORS}
    assert members("watch") == {"gateway", "prometheus", "grafana"}
    assert members("front") == {"gateway"}
    assert members("out") == SUPERVISORS
    assert set(networks) == {each for one in SERVICES.values() for each in one.get("networks", ())}


def test_only_the_proxy_has_the_docker_socket_and_the_gateway_has_no_files() -> None:
    with_socket = {
        name
        for name, each in SERVICES.items()
        if any("docker.sock" in volume for volume in each.get("volumes", ()))
    }
    assert with_socket == {"socket-proxy"}
    beside = {name for name, each in SERVICES.items() if "docker-api" in str(each.get("volumes"))}
    assert beside == {"supervisor-siblings", "socket-proxy"}
    assert SERVICES["socket-proxy"]["network_mode"] == "none"
    assert SERVICES["gateway"]["volumes"] == ["control:/run/engineroom:ro"]
    assert "DOCKER_HOST" not in SERVICES["gateway"]["environment"]


def test_the_supervisor_stops_before_the_gateway_and_has_time_to_drain() -> None:
    for name in SUPERVISORS:
        assert SERVICES[name]["depends_on"]["gateway"] == {"condition": "service_healthy"}
        assert SERVICES[name]["stop_grace_period"] == "60s"  # drain_s + stop_grace_s, and to spare
    assert "depends_on" not in SERVICES["gateway"]
    assert SERVICES["gateway"]["stop_grace_period"] == "45s"  # drain_s, and to spare


def test_a_profile_chooses_one_supervisor() -> None:
    profiles = {name: SERVICES[name]["profiles"] for name in SUPERVISORS}
    assert sorted(profiles.values()) == [["cpu"], ["gpu"], ["multi-gpu"], ["siblings"]]
    lines = (ROOT / ".env").read_text().splitlines()
    assert [line for line in lines if line and line[0] != "#"] == [
        "COMPOSE_PROFILES=cpu,monitoring"
    ]
    for name, count in (("supervisor-gpu", 1), ("supervisor-multi-gpu", "all")):
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
    environment = SERVICES["supervisor-multi-gpu"]["environment"]
    assert default(environment["TENSOR_PARALLEL_SIZE"]) == "2"


def test_engines_beside_the_supervisor_see_the_gateway_and_the_demo_model() -> None:
    service = SERVICES["supervisor-siblings"]
    environment = service["environment"]
    network = COMPOSE["networks"]["engines"]["name"]
    assert environment["ENGINEROOM_DOCKER_NETWORK"] == network
    assert default(network) == "engineroom_engines"
    given = {key: default(value) for key, value in environment.items()}
    settings = load_settings(env={**given, "HF_TOKEN_PATH": ""})
    refuse_contradictions(settings)
    assert settings.runtime == "docker"
    assert settings.engine_image == default(service["image"])  # one build is enough to try it
    assert str(settings.engine_path) == json.loads(last("llama-server", "ENTRYPOINT"))[2]
    (shown,) = [each for each in service["volumes"] if each.startswith("./")]
    source, target, mode = shown.split(":")
    assert (ROOT / source).samefile(demo_dir())
    assert mode == "ro"
    assert [line for line in stages()["supervisor-build"] if f"/models/demo {target} " in line]


def test_the_proxy_is_told_of_the_engines_network_and_user() -> None:
    told = SERVICES["socket-proxy"]["environment"]
    assert told["FENCE_NETWORK"] == COMPOSE["networks"]["engines"]["name"]
    assert SERVICES["supervisor-siblings"]["environment"]["DOCKER_HOST"] == f"unix://{LISTENS}"
    assert last("socket-proxy", "HEALTHCHECK").split('"')[-6] == LISTENS
    assert last("all-in-one", "USER") == USER


def test_old_and_new_compose_read_it() -> None:
    assert not NEW_IN_COMPOSE & set(COMPOSE)
    for service in SERVICES.values():
        assert not NEW_IN_SERVICES & set(service)
        assert not {"secrets", "additional_contexts", "dockerfile_inline"} & set(
            service.get("build", {})
        )
        assert "start_interval" not in service.get("healthcheck", {})
        conditions = service.get("depends_on", {}).values()
        assert all(set(each) == {"condition"} for each in conditions)
    text = (ROOT / "compose.yaml").read_text()
    assert not re.search(r"\$\{\w+:?[+?]", text)
    assert not re.search(r"\$\{\w+:-[^}]*\$\{", text)


# --- the Dockerfile -----------------------------------------------------------------------------


def test_any_builder_can_build_it() -> None:
    assert "syntax=" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    for flag in ("--mount", "--link", "--chmod", "--network", "--security"):
        assert flag not in DOCKERFILE


def test_every_base_is_a_stage_or_a_pinned_argument() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    for stage, lines in stages().items():
        base = lines[0].split()[1]
        base = arguments[base[2:-1]] if base.startswith("${") else base
        assert base in stages() or re.search(r":v?\d+\.\d+", base), stage
    assert arguments["VERSION"] == __version__
    engines = yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text())["engines"]
    flavours = engines["vllm"]["versions"][0]["flavours"]
    assert arguments["VLLM_IMAGE"] == flavours["cuda"]["image"]
    assert "latest" not in DOCKERFILE


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_runs_as_nobody_and_watches_itself(target: str) -> None:
    assert last(target, "USER") == "65532:65532"
    entry = json.loads(last(target, "ENTRYPOINT"))
    assert entry[:2] == ["/usr/bin/tini", "--"]
    check = last(target, "HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    for words in (entry, command, json.loads(last(target, "CMD") or "[]")):
        assert not {"sh", "bash", "/bin/sh", "-c", "curl", "wget"} & set(words)
    labels = last(target, "LABEL")
    for name in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_what_is_installed_is_pinned() -> None:
    for words in re.findall(r"pip install([^&\n]*)", DOCKERFILE):
        exact = all("==" in word for word in words.split() if not word.startswith(("-", "/")))
        assert "--require-hashes" in words or "/dist/" in words or exact, words
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert "deploy/secrets" in ignored


# --- what is in the images ----------------------------------------------------------------------


def pins(name: str) -> dict[str, Version]:
    """The versions of a lock file."""
    text = (DEPLOY / "requirements" / name).read_text()
    return {p: Version(v) for p, v in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


def test_the_locks_fit_the_project() -> None:
    everything, gateway = pins("supervisor.txt"), pins("gateway.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        need = Requirement(text)
        name = need.name.lower().replace("_", "-")
        assert everything[name] in need.specifier, f"{text}: run `make lock`"
    assert gateway.items() <= everything.items() <= pins("compile.txt").items()
    assert len(gateway) < len(everything)


def test_the_images_with_a_gateway_have_it_compiled_of_these_very_sources() -> None:
    for stage in ("gateway-build", "supervisor-build"):
        assert "COPY --from=compiled /out /compiled" in stages()[stage]
    ignored = set((ROOT / ".dockerignore").read_text().splitlines())
    assert ignored >= {"**/*.so", "orchestrator/compiled.json"}  # of a checkout's own interpreter


def test_the_gateways_image_has_what_it_imports_and_nothing_of_the_supervisor() -> None:
    known = modules(ROOT)
    ours, foreign = closure(known, ["orchestrator.outpost", "orchestrator.gateway.__main__"])
    for room in ("supervision", "planning", "runtimes", "models", "engines", "admin", "serve"):
        assert not [name for name in ours if name.startswith(f"orchestrator.{room}")]
    lines = (DEPLOY / "requirements" / "gateway.in").read_text().splitlines()
    wanted = {line.replace("-", "_") for line in lines if line[0] != "#"}
    names = {"yaml": "pyyaml"}
    imported = {names.get(each, each) for each in foreign - sys.stdlib_module_names}
    assert imported - EXTRAS | {"uvloop"} == wanted  # that one uvicorn imports by its name


# --- rules and dashboard ------------------------------------------------------------------------


def vocabulary() -> set[str]:
    """Every name that a query may use."""
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    found = {"up"}
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


def rules(file: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    read = yaml.safe_load((DEPLOY / "prometheus" / "rules" / file).read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def used(query: str) -> set[str]:
    """The series that a query names."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on) ?\([^)]*\)', " ", query)
    return set(re.findall(r"[a-z]+:\w+:\w+|\bengineroom_\w+|\bup\b", bare))


def test_rules_and_panels_ask_for_what_is_exported() -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    known = vocabulary() | recorded
    asked = {text for _, text in queries()}
    asked |= {rule["expr"] for file in ("recording.yml", "alerts.yml") for rule in rules(file)}
    for text in asked:
        assert used(text), text
        assert used(text) <= known, text


def test_every_alert_says_what_to_look_at_and_is_tried() -> None:
    tried = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())
    names = {each["alertname"] for test in tried["tests"] for each in test["alert_rule_test"]}
    for rule in rules("alerts.yml"):
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "look"}
        assert rule["alert"] in names
