"""`engineroom generate`: what it makes is what Compose, Quadlet and Kubernetes take."""

from __future__ import annotations

import configparser
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine_launchers.base import EnginePlan, Tuning
from orchestrator.cli.main import app
from orchestrator.errors import ConfigError
from orchestrator.generating import compose, kube, quadlet
from orchestrator.generating.deployment import IMAGE, Deployment, deployment_of
from orchestrator.resources import demo_dir
from orchestrator.settings import load_settings
from tests.charts import faults, of_kind
from tests.kubernetes import VERSIONS, check
from tests.plans import MISTRAL, variants

KINDS = ("compose", "quadlet", "kube")
CASES = {
    "demo": ["demo"],
    "one GPU": ["mistral-7b-instruct-v0.3", "--gpu", "RTX 4060"],
    "two GPUs": [
        *("mistral-7b-instruct-v0.3", "--gpu", "RTX 4090:2", "--tensor-parallel-size", "2"),
        *("--users", "4", "--engine-args", "--seed 3"),
    ],
    "no keys": ["demo", "--anonymous", "--image", "registry.example.org/own:1"],
}

# What we use of the Compose specification, as strict as it is.
TEXT, WORDS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
SERVICE = {
    "image": TEXT, "user": TEXT, "command": WORDS, "tmpfs": WORDS, "cap_drop": WORDS,
    "security_opt": WORDS, "ports": WORDS, "read_only": {"type": "boolean"},
    "pids_limit": {"type": "integer"}, "mem_limit": {"type": "integer"},
    "shm_size": {"type": "integer"},
    "stop_grace_period": {"type": "string", "pattern": "^[0-9]+s$"},
    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
    "environment": {"type": "object", "additionalProperties": TEXT},
    "volumes": {"type": "array", "items": {"anyOf": [TEXT, {
        "type": "object", "additionalProperties": False,
        "required": ["type", "source", "target"],
        "properties": {"type": {"const": "bind"}, "source": TEXT, "target": TEXT,
                       "read_only": {"type": "boolean"}},
    }]}},
    "logging": {"type": "object", "additionalProperties": False, "properties": {
        "driver": TEXT, "options": {"type": "object", "additionalProperties": TEXT}}},
    "depends_on": {"type": "object", "additionalProperties": {
        "type": "object", "required": ["condition"], "additionalProperties": False,
        "properties": {"condition": {"enum": [
            "service_started", "service_healthy", "service_completed_successfully"]}}}},
    "deploy": {"type": "object", "additionalProperties": False, "properties": {
        "resources": {"type": "object", "additionalProperties": False, "properties": {
            "reservations": {"type": "object", "additionalProperties": False, "properties": {
                "devices": {"type": "array", "items": {
                    "type": "object", "required": ["capabilities"],
                    "additionalProperties": False, "properties": {
                        "driver": TEXT, "count": {"type": "integer"},
                        "capabilities": WORDS}}}}}}}}},
}  # fmt: skip
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "properties": {
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["image"],
                "additionalProperties": False,
                "properties": SERVICE,
            },
        },
        "volumes": {
            "type": "object",
            "additionalProperties": {"type": "object", "maxProperties": 0},
        },
    },
}

# Of podman-systemd.unit(5), version 5.4.
_CONTAINER = """
AddCapability AddDevice AddHost Annotation AutoUpdate CgroupsMode ContainerName DNS DropCapability
Entrypoint Environment EnvironmentFile EnvironmentHost Exec ExposeHostPort GIDMap GlobalArgs Group
GroupAdd HealthCmd HealthInterval HealthOnFailure HealthRetries HealthStartPeriod HealthTimeout
HostName IP IP6 Image Label LogDriver LogOpt Mask Mount Network NetworkAlias NoNewPrivileges Notify
PidsLimit Pod PodmanArgs PublishPort Pull ReadOnly ReadOnlyTmpfs Rootfs RunInit SeccompProfile
Secret ShmSize StartWithPod StopSignal StopTimeout SubGIDMap SubUIDMap Sysctl Timezone Tmpfs UIDMap
Ulimit Unmask User UserNS Volume WorkingDir
"""
QUADLET = {
    "Unit": {"Description", "Wants", "After"},
    "Container": set(_CONTAINER.split()),
    "Service": {"ExecStartPre", "Restart", "TimeoutStartSec", "TimeoutStopSec"},
    "Install": {"WantedBy"},
}


def told(kind: str, *words: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["generate", kind, *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def of(source: str, **said: Any) -> Deployment:
    """A deployment of a made-up plan."""
    plan = EnginePlan(
        id="vllm-tp1", engine="vllm", engine_version="0", tier="CPU_ONLY",
        model=variants(MISTRAL)[0].model_copy(update={"source": source}),
        tuning=Tuning(max_model_len=4096, max_concurrency=1),
    )  # fmt: skip
    return deployment_of(plan, load_settings(said, env={}), str(demo_dir()), None, False)


def unit(text: str) -> dict[str, list[tuple[str, str]]]:
    """Sections of a unit, with keys that come more than once."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            rows = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            rows.append((key, value))
    return found


def variables(text: str) -> dict[str, str]:
    """Those of a Quadlet unit, as systemd reads them."""
    rows = [value for key, value in unit(text)["Container"] if key == "Environment"]
    words = [shlex.split(row.replace("%%", "%").replace("$$", "$"))[0] for row in rows]
    return dict(word.split("=", 1) for word in words)


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_compose_takes_it(words: list[str]) -> None:
    content = yaml.safe_load(told("compose", *words))
    jsonschema.validate(content, COMPOSE)
    for service in content["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_quadlet_takes_it(words: list[str]) -> None:
    text = told("quadlet", *words)
    configparser.RawConfigParser(strict=False).read_string(text)
    for section, rows in unit(text).items():
        assert {key for key, _ in rows} <= QUADLET[section]
    assert ("Notify", "true") in unit(text)["Container"]


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_kubernetes_takes_it(words: list[str]) -> None:
    objects = list(yaml.safe_load_all(told("kube", *words)))
    for version in VERSIONS:
        for each in objects:
            check(each, version)
    assert faults(objects) == []
    selected = of_kind(objects, "Service")[0]["spec"]["selector"]
    assert of_kind(objects, "Deployment")[0]["spec"]["selector"]["matchLabels"] == selected


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_all_three_run_the_same_plan(words: list[str], tmp_path: Path) -> None:
    texts = {kind: told(kind, *words) for kind in KINDS}
    service = yaml.safe_load(texts["compose"])["services"]["engineroom"]
    made = of_kind(list(yaml.safe_load_all(texts["kube"])), "Deployment")[0]
    pod = made["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env = {row["name"]: row["value"] for row in container["env"] if "value" in row}
    assert env == service["environment"] == variables(texts["quadlet"])
    settings = load_settings(env=env)
    assert settings.host == "0.0.0.0"
    plan = json.loads(told("kube", *words, "--json"))["plan"]
    assert all(f"by {plan}." in text for text in texts.values())
    cards = container["resources"]["limits"].get("nvidia.com/gpu", 0)
    devices = [v for k, v in unit(texts["quadlet"])["Container"] if k == "AddDevice"]
    assert len(devices) == cards == settings_cards(service)
    assert settings.tensor_parallel_size in (None, cards)
    pulled = [each["args"] for each in pod.get("initContainers", [])]
    one = [each["command"] for key, each in yaml.safe_load(texts["compose"])["services"].items()
           if key == "pull"]  # fmt: skip
    assert pulled == one


def settings_cards(service: dict[str, Any]) -> int:
    """How many GPUs a Compose service reserves."""
    reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {})
    return sum(device["count"] for device in reserved.get("devices", []))


def test_no_secret_and_nothing_anonymous_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEROOM_API_KEYS", "very-secret-key-1")
    for kind in KINDS:
        assert "very-secret" not in (text := told(kind, "demo"))
        assert "ALLOW_ANONYMOUS" not in text
        assert "Nobody is served without a key" in text
        assert "ALLOW_ANONYMOUS" in (text := told(kind, "demo", "--anonymous"))
        assert "without a key" not in text


def test_a_file_of_this_machine_is_mounted_but_not_into_a_cluster() -> None:
    what = of("/data/my $model.gguf")
    assert what.variables["BASE_MODEL"] == "/local/my $model.gguf"
    mounted = yaml.safe_load(compose.render(what))["services"]["engineroom"]["volumes"][-1]
    assert mounted["source"] == "/data/my $$model.gguf"
    assert mounted["read_only"] is True
    assert "Volume=/data/my $$model.gguf:/local/my $$model.gguf:ro\n" in quadlet.render(what)
    with pytest.raises(ConfigError, match="lies on this machine, where no cluster can read it"):
        kube.render(what)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("hf://owner/name/file.gguf", "owner/name/file.gguf"),
        ("/root/hub/models--owner--name-x/snapshots/0ab/sub/f.gguf", "owner/name-x/sub/f.gguf"),
        ("/root/hub/models--owner--name-x/snapshots/0ab", "owner/name-x"),
        (f"{demo_dir()}/demo.Q4_K_M.gguf", None),
        ("/data/x.gguf", None),
    ],
)
def test_what_came_from_a_hub_comes_from_it_again(source: str, address: str | None) -> None:
    assert of(source).pull == address


def test_llama_cpp_on_gpus_needs_an_image_that_can() -> None:
    words = ["mistral-7b-instruct-v0.3", "--gpu", "RTX 4060", "--engine", "llama_server"]
    done = CliRunner().invoke(app, ["generate", "compose", *words])
    assert isinstance(done.exception, ConfigError)
    assert f"llama.cpp of {IMAGE} computes on processors" in done.exception.message
    assert "image: own:1" in told("compose", *words, "--image", "own:1")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_nobody_named_is_said_to_be_published_nowhere(kind: str) -> None:
    note = (
        f"# The image {IMAGE} is published nowhere: build it yourself first,\n# or name yours with"
    )
    assert note in told(kind, "demo").partition("\n\n")[0]
    assert "published nowhere" not in told(kind, "demo", "--image", "own:1")


def test_a_word_that_is_no_kind_is_refused() -> None:
    done = CliRunner().invoke(app, ["generate", "swarm"])
    assert done.exit_code == 2
    assert "compose" in done.output


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1))
def test_no_text_is_taken_for_something_else(word: str) -> None:
    what = of("hf://a/b", engine_args=shlex.quote(word))
    said = what.variables["ENGINEROOM_ENGINE_ARGS"]
    content = yaml.safe_load(compose.render(what))["services"]["engineroom"]
    assert content["environment"]["ENGINEROOM_ENGINE_ARGS"].replace("$$", "$") == said
    assert "$" not in content["environment"]["ENGINEROOM_ENGINE_ARGS"].replace("$$", "")
    assert variables(quadlet.render(what))["ENGINEROOM_ENGINE_ARGS"] == said
    deployment = list(yaml.safe_load_all(kube.render(what)))[2]
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    shown = next(row["value"] for row in env if row["name"] == "ENGINEROOM_ENGINE_ARGS")
    assert shown.replace("$$(", "$(") == said
