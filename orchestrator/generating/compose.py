"""`compose.yaml`: one service, hardened, on loopback. For Compose 1.29 and later."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.generating.deployment import CACHES, DATA, MODELS, PORT, USER, Deployment

FILE = "compose.yaml"


def render(what: Deployment) -> str:
    """The text of the file."""
    service: dict[str, Any] = {
        **_hardened(what),
        "command": ["serve", "--json"],
        "environment": {key: _plain(value) for key, value in what.variables.items()},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "shm_size": what.shared_memory,
        "stop_grace_period": f"{what.stop_s}s",
        "restart": "unless-stopped",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
    }
    for each in what.mounts:
        mount = {"type": "bind", "source": each.source, "target": each.target, "read_only": True}
        service["volumes"].append({key: _plain(value) for key, value in mount.items()})
    if what.gpus:
        cards = {"driver": "nvidia", "count": len(what.gpus), "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [cards]}}}
    services = {"engineroom": service}
    if what.pull:
        pulling = {**_hardened(what), "command": ["pull", _plain(what.pull)], "restart": "no"}
        pulling["environment"] = {key: _plain(what.variables[key]) for key in CACHES}
        done = {"pull": {"condition": "service_completed_successfully"}}
        services = {"pull": pulling, "engineroom": {**service, "depends_on": done}}
    content = {"services": services, "volumes": {"data": {}, "models": {}}}
    return _head(what) + yaml.safe_dump(content, sort_keys=False, width=100)


def _hardened(what: Deployment) -> dict[str, Any]:
    return {
        "image": what.image,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - of the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 4096,
        "mem_limit": what.memory,
        "volumes": [f"data:{DATA}", f"models:{MODELS}"],
    }


def _plain(value: Any) -> Any:
    """Without what Compose would put a variable for."""
    return value.replace("$", "$$") if isinstance(value, str) else value


def _head(what: Deployment) -> str:
    lines = [
        f"{what.name} by {what.plan}. Made by `engineroom generate compose`.",
        "",
        *what.image_note,
    ]
    if not what.anonymous:
        lines += [
            "Nobody is served without a key. Make one first; it is shown this once:",
            "  docker compose run --rm --no-deps engineroom keys create me",
            "More, once it runs: docker compose exec engineroom engineroom keys create NAME",
        ]
    lines += ["Then: docker compose up -d", f"The door: http://127.0.0.1:{PORT}"]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
