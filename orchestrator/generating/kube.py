"""`engineroom.yaml`: plain objects of Kubernetes for one model. The Helm chart can do more."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.errors import ConfigError
from orchestrator.generating.deployment import CACHES, DATA, MODELS, PORT, USER, Deployment

FILE = "engineroom.yaml"
_NAME = "engineroom"
_LABELS = {"app.kubernetes.io/name": _NAME, "app.kubernetes.io/component": "engine"}
_SECRET = "engineroom-keys"  # noqa: S105 - its name
_ENDPOINTS_S = 5  # until nobody is led to a pod that ends
_MIB = 1 << 20
_SAFE = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
_MOUNTS = [
    {"name": "data", "mountPath": DATA},
    {"name": "models", "mountPath": MODELS},
    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the container
]


def render(what: Deployment) -> str:
    """The text of the file. Raises ConfigError for a model that no cluster can reach."""
    if what.mounts:
        raise ConfigError(
            f"{what.mounts[0].source} lies on this machine, where no cluster can read it: give a "
            "model of the catalog or of a hub, owner/name, without adapters"
        )
    objects = [_claim("data", "20Gi"), _claim("models", "100Gi"), _deployment(what), _service()]
    return _head(what) + "---\n".join(
        yaml.safe_dump(each, sort_keys=False, width=100) for each in objects
    )


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "labels": dict(_LABELS)}


def _claim(name: str, size: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(f"{_NAME}-{name}"),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def _service() -> dict[str, Any]:
    port = {"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(_NAME),
        "spec": {"selector": dict(_LABELS), "ports": [port]},
    }


def _deployment(what: Deployment) -> dict[str, Any]:
    """One pod at a time: its volumes and GPUs are free before the next one starts."""
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": dict(_LABELS)},
        "template": {"metadata": {"labels": dict(_LABELS)}, "spec": _pod(what)},
    }
    head = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _meta(_NAME)}
    return {**head, "spec": spec}


def _pod(what: Deployment) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        # The variables of links begin with ENGINEROOM_, and an unknown one of these is an error.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _ENDPOINTS_S + what.stop_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if what.pull:
        pod["initContainers"] = [_pulling(what, what.pull)]
    shared = {"medium": "Memory", "sizeLimit": _mebibytes(what.shared_memory)}
    claims = [
        {"name": name, "persistentVolumeClaim": {"claimName": f"{_NAME}-{name}"}}
        for name in ("data", "models")
    ]
    volumes = [
        *claims,
        {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "shared-memory", "emptyDir": shared},
    ]
    return {**pod, "containers": [_container(what)], "volumes": volumes}


def _container(what: Deployment) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [
        {"name": name, "value": _plain(value)} for name, value in what.variables.items()
    ]
    if not what.anonymous:
        entry = {"secretKeyRef": {"name": _SECRET, "key": "api-keys"}}
        variables.append({"name": "ENGINEROOM_API_KEYS", "valueFrom": entry})
    limits: dict[str, Any] = {
        "cpu": str(what.processors + 2),
        "memory": _mebibytes(what.memory),
        **({"nvidia.com/gpu": len(what.gpus)} if what.gpus else {}),
    }
    requests = {"cpu": str(what.processors), "memory": _mebibytes(what.memory)}
    return {
        "name": "engineroom",
        "image": what.image,
        "args": ["serve", "--json"],
        "env": variables,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/health/live", 5, 360),  # installing an engine takes minutes
        "readinessProbe": _probe("/health/ready", 5, 2),
        "livenessProbe": _probe("/health/live", 10, 6),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_ENDPOINTS_S)]}}},
        "securityContext": _SAFE,
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": [*_MOUNTS, {"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }


def _pulling(what: Deployment, address: str) -> dict[str, Any]:
    return {
        "name": "pull",
        "image": what.image,
        "args": ["pull", _plain(address)],
        "env": [{"name": name, "value": _plain(what.variables[name])} for name in CACHES],
        "securityContext": _SAFE,
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "2Gi"},
        },
        "volumeMounts": _MOUNTS,
    }


def _probe(path: str, seconds: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _plain(text: str) -> str:
    """Without what Kubernetes would put a variable for, or take for an escape: $( and $$."""
    return text.replace("$", "$$")


def _mebibytes(size: int) -> str:
    return f"{-(-size // _MIB)}Mi"


def _head(what: Deployment) -> str:
    lines = [
        f"{what.name} by {what.plan}. Made by `engineroom generate kube`.",
        "",
        *what.image_note,
    ]
    if not what.anonymous:
        lines += [
            "Nobody is served without a key. The Secret that it is in comes first:",
            f"  kubectl create secret generic {_SECRET} \\",
            "    --from-literal=api-keys=$(openssl rand -hex 32)",
        ]
    lines.append(f"Then: kubectl apply -f {FILE} && kubectl rollout status deployment/{_NAME}")
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
