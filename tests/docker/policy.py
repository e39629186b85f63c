"""What every container of ours has to be like, by what `docker inspect` tells of it. Pure."""

from __future__ import annotations

import re
from typing import Any

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)[^=]*=(?!/run/secrets/|$)", re.IGNORECASE)


def violations(told: dict[str, Any], socket_allowed: bool = False) -> list[str]:
    """Every rule that a container breaks, in words."""
    host, config = told["HostConfig"], told["Config"]
    rules = {
        "its root is read-only": host["ReadonlyRootfs"],
        "it has no capabilities": host["CapDrop"] == ["ALL"] and not host["CapAdd"],
        "it gains no privileges": "no-new-privileges:true" in (host["SecurityOpt"] or ()),
        "it is not privileged": not host["Privileged"],
        "its user is not root": re.fullmatch(r"[1-9]\d*(:\d+)?", config["User"]),
        "its memory is limited": host["Memory"] > 0,
        "its processes are limited": 0 < (host["PidsLimit"] or 0) <= 4096,
        "its log is limited": host["LogConfig"]["Config"].get("max-size") == "10m",
        "it has namespaces of its own": not any(
            (host[mode] or "").startswith(("host", "container:"))
            for mode in ("NetworkMode", "PidMode", "IpcMode", "UTSMode", "UsernsMode")
        ),
        "it has no devices": not host["Devices"],
        "its ports are on loopback": all(
            bound["HostIp"] == "127.0.0.1"
            for ports in (host["PortBindings"] or {}).values()
            for bound in ports
        ),
        "no secret is in its environment": not [x for x in config["Env"] if _SECRET.search(x)],
        "it has a health check": config.get("Healthcheck"),
        "it comes back": host["RestartPolicy"]["Name"] == "unless-stopped",
        "it has no Docker socket": socket_allowed
        or not any("docker.sock" in mount["Destination"] for mount in told["Mounts"]),
        "what it mounts of the host is read-only": not any(
            mount["Type"] == "bind" and mount["RW"] for mount in told["Mounts"]
        ),
    }
    return [rule for rule, kept in rules.items() if not kept]
