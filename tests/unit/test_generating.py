"""`engineroom generate`: what it makes is what Compose, Quadlet and Kubernetes take."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
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
from orchestrator.generating.asked import HANDED_ON, LEFT_OUT
from orchestrator.generating.deployment import CACHES, IMAGE, Deployment, deployment_of
from orchestrator.model_settings import ModelSettings
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


def of(source: str, image: str | None = None, **said: Any) -> Deployment:
    """A deployment of a made-up plan."""
    kind = {"source": source, "format": "gguf" if source.endswith(".gguf") else "safetensors"}
    plan = EnginePlan(
        id="vllm-tp1", engine="vllm", engine_version="0", tier="CPU_ONLY",
        model=variants(MISTRAL)[0].model_copy(update=kind),
        tuning=Tuning(max_model_len=4096, max_concurrency=1),
    )  # fmt: skip
    return deployment_of(plan, load_settings(said, env={}), str(demo_dir()), image, False)


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


def expanded(text: str) -> str:
    """What Kubernetes makes of a value: $$ is one $, $(NAME) a variable's value."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "?", text)


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
        ("/models/hub/models--owner--name-x/snapshots/0ab/sub/f.gguf", "owner/name-x/sub/f.gguf"),
        ("/models/hub/models--owner--name-x/snapshots/0ab", "owner/name-x"),
        (f"{demo_dir()}/demo.Q4_K_M.gguf", None),
        (str(demo_dir()), None),
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
    assert expanded(shown) == said


def refused(*words: str) -> str:
    """Why the command makes no file."""
    done = CliRunner().invoke(app, ["generate", *words])
    assert isinstance(done.exception, ConfigError), done.output
    return done.exception.message


def environment(*words: str) -> dict[str, str]:
    """The server's variables, as Compose says them."""
    service = yaml.safe_load(told("compose", *words))["services"]["engineroom"]
    return {key: value.replace("$$", "$") for key, value in service["environment"].items()}


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A snapshot of the hub's cache with one GGUF file."""
    folder = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    shutil.copy(demo_dir() / "demo.Q4_K_M.gguf", folder / "t.Q4_K_M.gguf")
    return folder


def test_a_path_in_the_hubs_cache_is_asked_for_by_its_address(cached: Path) -> None:
    shutil.copy(demo_dir() / "config.json", cached)
    shutil.copy(demo_dir() / "model.safetensors", cached)
    for path, address in ((cached / "t.Q4_K_M.gguf", "/t.Q4_K_M.gguf"), (cached, "")):
        for kind in KINDS:
            assert str(cached) not in (text := told(kind, str(path)))
            assert f"acme/tiny{address}" in text
        assert environment(str(path))["BASE_MODEL"] == f"acme/tiny{address}"


def test_a_file_of_the_cache_that_no_address_names_is_mounted(cached: Path) -> None:
    path = (cached / "t.Q4_K_M.gguf").rename(cached / "my t.gguf")
    assert environment(str(path))["BASE_MODEL"] == "/local/my t.gguf"
    assert "lies on this machine" in refused("kube", str(path))
    shutil.copytree(demo_dir(), cached / "sub")
    assert "only links" in refused("compose", str(cached / "sub"))


def test_a_file_of_the_image_named_by_its_path_is_mounted_too() -> None:
    assert of(str(demo_dir())).mounts == ()
    path = str(demo_dir() / "demo.Q4_K_M.gguf")
    assert environment(path)["BASE_MODEL"] == "/local/demo.Q4_K_M.gguf"
    assert "lies on this machine" in refused("kube", path)


def test_all_parts_of_a_model_are_mounted() -> None:
    what = of("/data/m-00001-of-00003.gguf")
    names = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert what.variables["BASE_MODEL"] == f"/local/{names[0]}"
    volumes = yaml.safe_load(compose.render(what))["services"]["engineroom"]["volumes"][2:]
    assert [(row["source"], row["target"], row["read_only"]) for row in volumes] == [
        (f"/data/{name}", f"/local/{name}", True) for name in names
    ]
    rows = [v for k, v in unit(quadlet.render(what))["Container"] if k == "Volume"][2:]
    assert rows == [f"/data/{name}:/local/{name}:ro" for name in names]


def test_adapters_are_mounted_and_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = demo_dir() / "adapters"
    monkeypatch.setenv("ADAPTER_PATH", str(shelf / "pirate.gguf"))
    monkeypatch.setenv("ENGINEROOM_ADAPTERS", f"g={shelf / 'garden.gguf'}")
    service = yaml.safe_load(told("compose", "demo"))["services"]["engineroom"]
    places = {row["target"]: row["source"] for row in service["volumes"][2:]}
    assert places == {
        "/local/adapters/0/pirate.gguf": str(shelf / "pirate.gguf"),
        "/local/adapters/1": str(shelf / "garden.gguf"),
    }
    assert service["environment"]["ADAPTER_PATH"] == "/local/adapters/0/pirate.gguf"
    assert service["environment"]["ENGINEROOM_ADAPTERS"] == "g=/local/adapters/1"
    assert "without adapters" in refused("kube", "demo")


def test_a_folder_of_an_adapter_is_its_base_model_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(demo_dir() / "adapters" / "pirate", folder)
    words = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**words, "base_model_name_or_path": "demo"})
    )
    said = environment(str(folder))
    assert (said["BASE_MODEL"], said["ADAPTER_PATH"]) == ("demo", "/local/adapters/0/mine")


def test_every_setting_of_a_model_is_handed_on_planned_or_refused(tmp_path: Path) -> None:
    ours = {"model", "name", "adapter_path", "adapters", "force_backend", "install_missing",
            "force_cpu", "tensor_parallel_size", "context"}  # fmt: skip
    assert not (ours | set(LEFT_OUT)) & set(HANDED_ON)
    assert ours | set(HANDED_ON) | set(LEFT_OUT) == {*ModelSettings.model_fields, "models"}
    what = of(
        "hf://a/b", aliases="x,y", max_concurrency=3, ttl_s=0.5, pin=True, gpu_layers=0,
        engine_args="--seed '3 4'", name="n", tensor_parallel_size=1,
    )  # fmt: skip
    before = {"aliases": ("x", "y"), "max_concurrency": 3, "ttl_s": 0.5, "pin": True, "name": "n",
              "gpu_layers": 0, "engine_args": ("--seed", "3 4")}  # fmt: skip
    after = load_settings(env=what.variables)
    assert {key: getattr(after, key) for key in before} == before
    assert what.variables["ENGINEROOM_GPU_LAYERS"] == "0"
    assert what.variables["TENSOR_PARALLEL_SIZE"] == "1"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"replicas": 2}, "replicas: a generated file has the memory and the GPUs of one engine"),
        ({"defaults": {"seed": 1}}, "defaults: only a settings file"),
        ({"engine_url": "http://h:1"}, "engine_url: that server runs already"),
        ({"engine_path": "/bin/x"}, "engine_path: a program of this machine"),
        ({"runtime": "docker"}, "runtime: in a generated file engines run in the container"),
        ({"engine_image": "x/y:1"}, "engine_image: engines run in the container that --image"),
        ({"models": [{"model": "demo"}]}, "models: a generated file serves one"),
    ],
)
def test_what_no_file_can_say_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{why}"):
        of("hf://a/b", **said)


def test_one_replica_is_what_the_file_has() -> None:
    assert of("hf://a/b", replicas=1).variables["BASE_MODEL"] == "demo"


@pytest.mark.parametrize(
    "words",
    ["--api-key hunter2", "--api_key=hunter2", "--api-k hunter2", "-hft hunter2",
     "--hf-token=hunter2", "--hf_tok hunter2", "--ssl-keyfile-password hunter2",
     "--kv-url redis://me:hunter2@host/1"],
)  # fmt: skip
def test_no_flag_that_carries_a_secret_is_written(words: str) -> None:
    for kind in KINDS:
        assert "hunter2" not in (why := refused(kind, "demo", "--engine-args", words))
        assert why.startswith("engine_args: ")
    with pytest.raises(ConfigError, match=r"engine_args: .*everybody who reads the file would see"):
        of("hf://a/b", engine_args=words)


@pytest.mark.parametrize(
    "words",
    ["--max-num-batched-tokens 8", "--return-tokens-as-token-ids", "--tokenizer x", "--seed 3",
     "--api-server-count 2", "--long-prefill-token-threshold 4"],
)  # fmt: skip
def test_flags_that_only_sound_so_are_written(words: str) -> None:
    assert of("hf://a/b", engine_args=words).variables["ENGINEROOM_ENGINE_ARGS"] == words


def test_the_time_of_a_stop_is_the_one_that_the_server_takes() -> None:
    what = of("hf://a/b")
    assert what.variables["ENGINEROOM_DRAIN_S"] == "30"
    assert what.variables["ENGINEROOM_STOP_GRACE_S"] == "10"
    assert what.stop_s == 50
    what = of("hf://a/b", drain_s=1.25, stop_grace_s=0.25)
    assert load_settings(env=what.variables).drain_s == 1.25
    assert load_settings(env=what.variables).stop_grace_s == 0.25
    assert what.stop_s == 12


@pytest.mark.parametrize(
    "path",
    ["/data/a:b.gguf", "/data/a\nb.gguf", "/data/a  b.gguf", "/data /b.gguf", "/d/b.gguf\x7f"],
)
def test_a_path_that_a_unit_cannot_mount_is_refused(path: str) -> None:
    what = of(path)
    with pytest.raises(ConfigError, match="a unit cannot"):
        quadlet.render(what)
    volume = yaml.safe_load(compose.render(what))["services"]["engineroom"]["volumes"][-1]
    assert volume["source"] == path


def test_a_unit_keeps_blanks_and_refuses_what_begins_another_line() -> None:
    said = quadlet.render(of("hf://a/b", engine_args="--x 'a  b'"))
    assert variables(said)["ENGINEROOM_ENGINE_ARGS"] == "--x 'a  b'"
    for word in ("a\nExecStartPre=b", "a\u2028b"):
        with pytest.raises(ConfigError, match="control characters"):
            quadlet.render(of("hf://a/b", engine_args=shlex.quote(word)))


@pytest.mark.parametrize(
    "image",
    ["", " ", "own:1\nExecStartPre=/bin/x", "own:1\n", "own:$TAG", "own:%h", "Own:1", "own: 1",
     "-v", "a//b", "own@sha256:12", "a" * 600],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_all(image: str) -> None:
    for kind in KINDS:
        assert "no name of an image" in refused(kind, "demo", f"--image={image}")


@pytest.mark.parametrize(
    "image",
    ["own", "own:1", "localhost:5000/a/b_c:v1.2-x", "Registry.example.org/a__b/c", "[::1]:5000/a",
     "ghcr.io/a/b:1@sha256:" + "0" * 64],
)  # fmt: skip
def test_names_of_images_are_taken(image: str) -> None:
    assert of("hf://a/b", image).image == image


def test_what_is_pulled_is_escaped_and_pulled_to_where_the_server_looks() -> None:
    what = of("hf://a/$(b)${c}%d")
    pulling = yaml.safe_load(compose.render(what))["services"]["pull"]
    assert pulling["command"] == ["pull", "a/$$(b)$${c}%d"]
    pod = list(yaml.safe_load_all(kube.render(what)))[2]["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"] == ["pull", "a/$$(b)$${c}%d"]
    for word in ("$$(HOME)", "a$$b", "$", "$$", "$x"):
        pod = list(yaml.safe_load_all(kube.render(of(f"hf://a/{word}"))))[2]["spec"]["template"]
        assert expanded(pod["spec"]["initContainers"][0]["args"][1]) == f"a/{word}"
    (before,) = [v for k, v in unit(quadlet.render(what))["Service"] if k == "ExecStartPre"]
    assert before.endswith('pull "a/$$(b)$${c}%%d"')
    for name in CACHES:
        assert pulling["environment"][name] == what.variables[name]
        assert f"--env={name}={what.variables[name]} " in before


def test_the_pages_commands_use_the_folders_that_the_files_use() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/run-elsewhere.md").read_text()
    commands = re.findall(r"^docker run (?:.*\\\n)*.*$", page, re.MULTILINE)
    assert len(commands) == 2
    variables = of("hf://a/b").variables
    for command in commands:
        said = dict(re.findall(r"-e ([A-Z_]+)=(\S+)", command))
        for name in (*CACHES, "ENGINEROOM_DATA_DIR", "XDG_RUNTIME_DIR"):
            assert said[name] == variables[name]
