"""The Helm chart, rendered: value sets, and what every result has to be like."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "engineroom"
APIS = ["monitoring.coreos.com/v1", "keda.sh/v1alpha1"]
Manifest = dict[str, Any]
EGRESS = [
    {"to": [{"namespaceSelector": {"matchLabels": {"name": "tracing"}}}],
     "ports": [{"port": 4318, "protocol": "TCP"}]},
    {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
     "ports": [{"port": 3000, "endPort": 3128, "protocol": "TCP"}]},
]  # fmt: skip

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one GPU": {
        "gpu": {"count": 1, "runtimeClassName": "nvidia"},
        "config": {"model": "qwen3-8b", "context": 8192},
        "pull": ["qwen3-8b"],
        "hub": {"existingSecret": "hub"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "env": {"HTTPS_PROXY": "http://proxy:3128"},
    },
    "several GPUs and models": {
        "gpu": {"count": 4},
        "replicas": 2,
        "config": {
            "models": [
                {"model": "demo", "name": "small", "pin": True},
                {"model": "owner/name", "ttl_s": 600.0, "defaults": {"temperature": 0.2}},
            ],
            "install_missing": True,
            "max_queue": 128,
        },
        "persistence": {"models": {"existingClaim": "models"}, "data": {"storageClass": "fast"}},
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
    },
    "gateway": {
        "gateway": {"enabled": True, "replicas": 3},
        "auth": {"existingSecret": "keys"},
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
        "networkPolicy": {"clients": [{"namespaceSelector": {}}], "egress": EGRESS},
        "config": {"otlp_endpoint": "http://collector.tracing:4318"},
        "podLabels": {"team": "search"},
        "podAnnotations": {"note": "x"},
    },
    "watched": {
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "admin": {"expose": True},
        "gateway": {"enabled": True, "model": "demo"},
        "assumeApiVersions": APIS,
    },
    "hpa": {"autoscaling": {"kind": "hpa", "maxReplicas": 8, "queueSeconds": 0.5}},
    "keda": {
        "autoscaling": {"kind": "keda", "prometheus": "http://prometheus.monitoring:9090"},
        "assumeApiVersions": APIS,
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"registry": "registry.example.org:5000", "digest": "sha256:" + "0" * 64},
    },
    "bare": {
        "auth": {"anonymous": True},
        "persistence": {"data": {"enabled": False}, "models": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "fullnameOverride": "llm",
    },
}


def helm() -> ModuleType:
    """Helm as a library, which there is for Linux only: without it a test fails in one sentence."""
    try:
        return import_module("helm_python")
    except (ImportError, OSError) as error:
        return pytest.fail(
            f"The chart is rendered by helm-python-sdk, and it cannot be imported ({error}). On "
            "Linux `.venv/bin/python -m pip install -e '.[dev]'` installs it; there is none for "
            "other systems.",
            pytrace=False,
        )


def files(values: dict[str, Any], name: str = "demo") -> dict[str, str]:
    """Path to text of what the chart makes. Raises HelmError."""
    with helm().Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(values, name=name, namespace="llm")
    return {path.removeprefix("engineroom/templates/"): text for path, text in rendered.items()}


def manifests(values: dict[str, Any], name: str = "demo") -> list[Manifest]:
    """Every object that the chart makes."""
    texts = [t for path, t in files(values, name).items() if not path.endswith("NOTES.txt")]
    found = (each for text in texts for each in yaml.safe_load_all(text))
    return [each for each in found if each]


@cache
def rendered(value_set: str) -> list[Manifest]:
    """What one of the value sets makes; shared, so not to be changed."""
    return manifests(VALUE_SETS[value_set])


def of_kind(found: list[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [each for each in found if each["kind"] == kind]


def pods(found: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and pod spec of every workload, of whatever kind."""
    for each in found:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each["spec"]
        elif "template" in each.get("spec", {}):
            yield name, each["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod, those that run before the others too."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def faults(found: list[Manifest]) -> list[str]:
    """What offends the policy: the restricted profile, probes, limits, protocols."""
    return [
        *(fault for name, pod in pods(found) for fault in _pod_faults(name, pod)),
        *(fault for each in of_kind(found, "Service") for fault in _service_faults(each)),
    ]


def _pod_faults(name: str, pod: Manifest) -> Iterator[str]:
    user = pod.get("securityContext", {})
    if not (user.get("runAsNonRoot") and user.get("runAsUser") == 65532):
        yield f"{name}: may run as root"
    if user.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{name}: no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{name}: gets a token"
    if pod.get("enableServiceLinks") is not False:
        yield f"{name}: links are variables that Engine Room refuses"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{name}: shares the host's namespaces"
    kinds = {kind for each in pod.get("volumes", []) for kind in each if kind != "name"}
    if extra := kinds - {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}:
        yield f"{name}: volumes {extra}"
    for each in containers(pod):
        yield from (f"{name}/{each['name']}: {fault}" for fault in _container_faults(each))
    for each in pod["containers"]:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            yield from (f"{name}: {probe} {fault}" for fault in _probe_faults(each, probe))
        if "preStop" not in each.get("lifecycle", {}):
            yield f"{name}: ends while endpoints lead to it"


def _container_faults(container: Manifest) -> Iterator[str]:
    safe = container.get("securityContext", {})
    if safe.get("allowPrivilegeEscalation") is not False or safe.get("privileged"):
        yield "may gain rights"
    if safe.get("readOnlyRootFilesystem") is not True or safe.get("runAsNonRoot") is not True:
        yield "may write to its image, or be root"
    if safe.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
            yield f"no {kind}"
    if any("protocol" not in port for port in container.get("ports", [])):
        yield "a port without a protocol"
    if ":" not in container["image"].rsplit("/", 1)[-1] or container["image"].endswith(":latest"):
        yield "an image without a version"
    for variable in container.get("env", []):
        secret = any(word in variable["name"] for word in ("KEY", "TOKEN"))
        if secret and not str(variable.get("value", "$(")).startswith("$("):
            yield f"{variable['name']} is readable in the object"


def _probe_faults(container: Manifest, probe: str) -> Iterator[str]:
    asked = container.get(probe, {}).get("httpGet")
    if asked is None:
        yield "is missing"
    elif asked["port"] not in {port["name"] for port in container["ports"]}:
        yield f"asks a port {asked['port']} that is not there"


def _service_faults(service: Manifest) -> Iterator[str]:
    for port in service["spec"]["ports"]:
        if port.get("protocol") != "TCP":
            yield f"Service/{service['metadata']['name']}: a port without a protocol"
