"""Settings that cannot be true together, or are not a person's to set."""

from __future__ import annotations

import ipaddress

from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

# Where an engine listens, what it serves and who may use it is ours to say; a key on a command
# line is read by every user of the machine; a file of flags could say all of that.
_OURS = (
    *("--host", "--port", "--uds", "--model", "-m", "--alias", "-a", "--model-alias"),
    *("--served-model-name", "--api-key", "--api-key-file", "--config", "--config-file"),
)


def refuse_contradictions(settings: Settings) -> None:
    """Raise ConfigError for settings that cannot be true together, or are not a person's to set."""
    if settings.port == settings.admin_port != 0:
        raise ConfigError(f"port and admin_port are both {settings.port}: choose two")
    for name in ("engine_path", "engine_url", "engine_version", "engine_image"):
        if getattr(settings, name) and not settings.force_backend:
            raise ConfigError(f"{name}: say which engine it is with --engine")
    ways = [n for n in ("engine_path", "engine_url", "engine_version") if getattr(settings, n)]
    docker = settings.runtime == "docker"
    if settings.engine_image and not docker:
        raise ConfigError("engine_image: set runtime to docker as well, or leave it out")
    if settings.engine_url and docker:
        raise ConfigError("engine_url: a server that runs is not started in a container")
    if len(ways) > 1 and not (docker and "engine_url" not in ways):
        raise ConfigError(f"{' and '.join(ways)}: each names the engine by itself; give one")
    if settings.engine_url and (settings.adapter_path or settings.adapters):
        raise ConfigError("engine_url: adapters are loaded by whoever runs that server")
    refuse_open(settings.engine_host)
    for word in settings.engine_args:
        if _is_ours(word.split("=")[0]):
            raise ConfigError(f"engine_args: {word.split('=')[0]} is set by Engine Room itself")


def refuse_open(host: str) -> None:
    """Raise ConfigError for an address at which strangers would reach engines; a name passes."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_unspecified or address.is_global:
        raise ConfigError(
            f"engine_host: {host} is open to other machines, and engines ask for no key: name the "
            "address of a network that only gateways are on"
        )


def _is_ours(word: str) -> bool:
    """Whether an engine's parser may take `word` for a flag of ours: abbreviated, or with `_`."""
    if not word.startswith("--"):
        return word in _OURS
    flag = word.replace("_", "-")
    return len(flag) > 2 and any(ours.startswith(flag) for ours in _OURS)
