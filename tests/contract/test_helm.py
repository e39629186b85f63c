"""The Helm chart: lint, rendering by Helm itself, the schemas of ten Kubernetes, a policy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from orchestrator import __version__
from orchestrator.cli.main import app
from orchestrator.settings import PREFIX, Settings, load_settings
from tests.charts import (
    CHART,
    EGRESS,
    VALUE_SETS,
    Manifest,
    faults,
    files,
    helm,
    manifests,
    of_kind,
    pods,
    rendered,
)
from tests.kubernetes import VERSIONS, check
from tools.chart import OWNED

OTHERS = {"ServiceMonitor", "ScaledObject"}  # of operators, which Kubernetes has no schema of
each_set = pytest.mark.parametrize("found", VALUE_SETS, indirect=True)


@pytest.fixture
def found(request: pytest.FixtureRequest) -> list[Manifest]:
    """What the value set of that name makes."""
    return rendered(request.param)


def one(found: list[Manifest], kind: str, end: str = "") -> Manifest:
    """The only object of a kind whose name ends so."""
    (each,) = (x for x in of_kind(found, kind) if x["metadata"]["name"].endswith(end))
    return each


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_helm_finds_nothing_to_say(values: dict[str, Any]) -> None:
    told = helm().lint(CHART, values, strict=True)
    assert told["errors"] == []
    assert [each["error"] for each in told["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_this_kubernetes_takes(version: str) -> None:
    for value_set in VALUE_SETS:
        for each in rendered(value_set):
            if each["kind"] not in OTHERS:
                check(each, version)


def test_the_check_is_strict() -> None:
    service = {**of_kind(rendered("defaults"), "Service")[0], "spec": {"clusterIPS": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(service, VERSIONS[0])


@each_set
def test_the_policy_holds(found: list[Manifest]) -> None:
    assert len(list(pods(found))) >= 1
    assert faults(found) == []


def test_the_policy_sees_faults() -> None:
    engine = one(manifests({}), "StatefulSet")
    pod = engine["spec"]["template"]["spec"]
    pod["securityContext"], pod["hostNetwork"] = {}, True
    main = pod["containers"][0]
    main |= {"securityContext": {"privileged": True}, "resources": {}, "image": "x"}
    main["env"].append({"name": "API_KEY", "value": "secret"})
    del main["readinessProbe"], main["ports"][0]["protocol"]
    assert len(faults([engine])) == 12


@each_set
def test_what_selects_finds_and_names_meet(found: list[Manifest]) -> None:
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in found
        if "template" in each.get("spec", {})
    ]
    for each in found:
        spec = each.get("spec", {})
        wanted = spec.get("podSelector", spec.get("selector", {}))
        wanted = wanted.get("matchLabels", wanted)
        candidates = labels
        if each["kind"] == "ServiceMonitor":
            candidates = [x["metadata"]["labels"] for x in of_kind(found, "Service")]
        if wanted:
            assert sum(wanted.items() <= one.items() for one in candidates) == 1, each
    names = {f"{each['kind']}/{each['metadata']['name']}" for each in found}
    for each in found:
        target = each.get("spec", {}).get("scaleTargetRef")
        assert target is None or f"{target['kind']}/{target['name']}" in names
        if each["kind"] == "StatefulSet":
            assert f"Service/{each['spec']['serviceName']}" in names


@each_set
def test_the_settings_are_ones_that_engine_room_takes(
    found: list[Manifest], tmp_path: Path
) -> None:
    file = tmp_path / "engineroom.yaml"
    file.write_text(one(found, "ConfigMap")["data"]["engineroom.yaml"])
    for _, pod in pods(found):
        for each in pod["containers"]:
            env = {x["name"]: x.get("value", "sixteen-characters") for x in each["env"]}
            settings = load_settings(env={**env, "ENGINEROOM_CONFIG": ""}, file=file)
            assert (settings.host, settings.port) == ("0.0.0.0", 8001)
            stop = pod["terminationGracePeriodSeconds"]
            wait = int(each["lifecycle"]["preStop"]["exec"]["command"][1])
            assert stop >= wait + settings.drain_s + settings.stop_grace_s
            assert settings.allow_anonymous == (settings.api_keys is None)


@each_set
def test_every_command_line_is_one_that_exists(found: list[Manifest]) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for _, pod in pods(found):
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            if "command" not in each:
                name, *rest = each["args"]
                commands[name].make_context(name, list(rest), resilient_parsing=False)


def test_gpus_are_a_limit_and_the_model_comes_first() -> None:
    pod = one(rendered("one GPU"), "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert [each["args"] for each in pod["initContainers"]] == [["pull", "qwen3-8b"]]
    assert pod["runtimeClassName"] == "nvidia"
    plain = one(rendered("defaults"), "StatefulSet")["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in plain["containers"][0]["resources"]["limits"]


def test_a_gateway_stands_between_clients_and_engines() -> None:
    found = rendered("gateway")
    front = one(found, "Service", "demo-engineroom")
    assert front["spec"]["selector"]["app.kubernetes.io/component"] == "gateway"
    args = one(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    upstream = args[args.index("--upstream") + 1]
    name = one(found, "Service", "-upstream")["metadata"]["name"]
    assert upstream == f"http://{name}:8001"
    allowed = one(found, "NetworkPolicy", "-engine")["spec"]["ingress"]
    peers = [peer for rule in allowed for peer in rule["from"]]
    assert [x["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for x in peers] == [
        "gateway"
    ]


def test_what_is_outside_may_be_reached_where_a_rule_says_so() -> None:
    for end in ("-engine", "-gateway"):
        rules = one(rendered("gateway"), "NetworkPolicy", end)["spec"]["egress"]
        assert rules[-2:] == EGRESS
    plain = one(rendered("defaults"), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in plain for port in rule["ports"]] == [53, 53]


OUTSIDE: list[tuple[dict[str, Any], str]] = [
    ({"config": {"otlp_endpoint": "http://collector:4318"}}, "config.otlp_endpoint"),
    ({"config": {"engine_url": "http://10.0.0.7:8000"}}, "config.engine_url"),
    (
        {"config": {"models": [{"model": "demo"}, {"model": "x", "engine_url": "http://a:8000"}]}},
        "config.models[1].engine_url",
    ),
    (
        {"env": {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "x", "http_proxy": "proxy:80"}},
        "env.HTTPS_PROXY, env.http_proxy",
    ),
    ({"env": {"HF_ENDPOINT": "http://mirror:8080"}}, "env.HF_ENDPOINT"),
    ({"env": {"HF_ENDPOINT": "https://mirror.example.org"}}, ""),
    ({"config": {"otlp_endpoint": "http://127.0.0.1:4318"}}, ""),
    ({"env": {"HTTPS_PROXY": ""}}, ""),
]


@pytest.mark.parametrize(("values", "named"), OUTSIDE)
def test_the_notes_warn_of_what_no_rule_lets_pods_reach(values: dict[str, Any], named: str) -> None:
    told = files(values)["NOTES.txt"]
    assert f"WARNING: {named}: the network policy" in told if named else "WARNING" not in told
    for policy in ({"egress": EGRESS}, {"enabled": False}):
        assert "WARNING" not in files({**values, "networkPolicy": policy})["NOTES.txt"]


def test_keys_are_made_up_once_and_differ() -> None:
    first, second = (one(manifests({}), "Secret")["data"] for _ in range(2))
    assert set(first) == {"api-keys", "metrics-key", "upstream-key", "admin-token"}
    assert len({*first.values(), *second.values()}) == 8
    assert of_kind(rendered("gateway"), "Secret") == []
    assert of_kind(rendered("bare"), "Secret") == []


def test_scaling_asks_for_series_that_exist() -> None:
    known = (CHART.parents[2] / "docs/reference/metrics.md").read_text()
    trigger = one(rendered("keda"), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    readme = (CHART / "README.md").read_text()
    rule = next(line for line in readme.splitlines() if "seriesQuery" in line)
    for text in (trigger["query"], rule):
        (series,) = set(re.findall(r"engineroom_[a-z_]+", text)) - {"engineroom_engine"}
        assert f"| `{series.removesuffix('_bucket')}` | histogram |" in known
    made = one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]
    assert f"as: {made['metric']['name']}}}" in readme
    assert made["target"]["averageValue"] == "0.5"
    for name in ("hpa", "keda"):
        assert "replicas" not in one(rendered(name), "StatefulSet")["spec"]


def test_prometheus_is_given_a_key_of_its_own() -> None:
    engine, gateway = of_kind(rendered("watched"), "ServiceMonitor")
    keys = [each["authorization"]["credentials"]["key"] for each in engine["spec"]["endpoints"]]
    assert keys == ["metrics-key", "admin-token"]
    assert [each["port"] for each in gateway["spec"]["endpoints"]] == ["http"]
    service = one(rendered("watched"), "Service", "-engine")
    ports = {each["name"] for each in service["spec"]["ports"]}
    assert ports == {each["port"] for each in engine["spec"]["endpoints"]}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"replica": 2}, "additional properties 'replica' not allowed"),
    ({"config": {"max_que": 3}}, "additional properties 'max_que' not allowed"),
    ({"config": {"port": 9000}}, "additional properties 'port' not allowed"),
    ({"config": {"max_queue": "many"}}, "got string, want integer"),
    ({"config": {"models": [{"modell": "demo"}]}}, "additional properties 'modell' not allowed"),
    ({"config": {"runtime": "docker"}}, "additional properties 'runtime' not allowed"),
    (
        {"config": {"models": [{"model": "demo", "runtime": "docker"}]}},
        "additional properties 'runtime' not allowed",
    ),
    ({"gpu": {"count": -1}}, "at '/gpu/count': minimum: got -1, want 0"),
    ({"gpu": {"count": "1"}}, "at '/gpu/count': got string, want integer"),
    ({"resources": {"limits": {"memory": "8 GB"}}}, "at '/resources/limits/memory'"),
    ({"resources": {"limits": {"cpu": None}}}, "missing property 'cpu'"),
    ({"auth": {"apiKeys": ["short"]}}, "at '/auth/apiKeys/0'"),
    ({"autoscaling": {"kind": "vpa"}}, "value must be one of 'none', 'hpa', 'keda'"),
    ({"image": {"digest": "latest"}}, "at '/image/digest'"),
    ({"pull": ["--help"]}, "at '/pull/0'"),
    ({"networkPolicy": {"egress": {}}}, "at '/networkPolicy/egress': got object, want array"),
    ({"networkPolicy": {"egress": [{"from": []}]}}, "additional properties 'from' not allowed"),
    (
        {"networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}]}},
        "at '/networkPolicy/egress/0/to/0/ipBlock/cidr'",
    ),
    (
        {"networkPolicy": {"egress": [{"ports": [{"port": 70000}]}]}},
        "at '/networkPolicy/egress/0/ports/0/port': maximum: got 70,000, want 65,535",
    ),
    ({"autoscaling": {"minReplicas": 9}}, "autoscaling: minReplicas is more than maxReplicas"),
    ({"autoscaling": {"kind": "keda"}}, "needs keda.sh/v1alpha1, which this cluster does not"),
    (
        {"autoscaling": {"kind": "keda"}, "assumeApiVersions": ["keda.sh/v1alpha1"]},
        "autoscaling.prometheus: KEDA asks Prometheus, so give its address",
    ),
    ({"metrics": {"serviceMonitor": {"enabled": True}}}, "needs monitoring.coreos.com/v1"),
    (
        {"gateway": {"enabled": True}, "config": {"model": "owner/name"}},
        "gateway.model: say under which name config.model (owner/name) is served",
    ),
    (
        {"gateway": {"enabled": True}, "config": {"models": [{"model": "demo"}]}},
        "gateway.model: config.models has several models and a gateway serves one: name it",
    ),
    (
        {"auth": {"anonymous": True}, "admin": {"expose": True}},
        "admin.expose needs a token",
    ),
]


@pytest.mark.parametrize(("values", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_what_is_wrong_is_refused_in_words(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm().HelmError) as refused:
        manifests(values)
    assert says in str(refused.value)


def test_without_helm_a_test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)
    with pytest.raises(pytest.fail.Exception, match="rendered by helm-python-sdk") as told:
        manifests({})
    assert told.value.pytrace is False


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_what_the_chart_owns_are_settings() -> None:
    assert set(Settings.model_fields) >= OWNED
    text = (CHART / "templates" / "engine.yaml").read_text()
    for name in re.findall(rf"{PREFIX}([A-Z_]+)", text):
        assert name in ("CONFIG", "") or name.lower() in OWNED


def test_the_notes_say_how_to_ask() -> None:
    told = files({})["NOTES.txt"]
    assert "KEY=$(kubectl -n llm get secret demo-engineroom" in told
    assert "WARNING" not in told
    told = files(VALUE_SETS["bare"])["NOTES.txt"]
    assert "WARNING: auth.anonymous is true" in told
    assert "KEY=" not in told


def test_the_line_of_the_notes_is_one_that_a_shell_takes() -> None:
    for values in VALUE_SETS.values():
        lines = [x for x in files(values)["NOTES.txt"].splitlines() if x.startswith("  ")]
        subprocess.run(["sh", "-n"], input="\n".join(lines), text=True, check=True)
