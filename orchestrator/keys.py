"""Who may use the gateway: API keys from the settings and the keys file, kept as hashes only."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.access import hash_of
from orchestrator.errors import ConfigError
from orchestrator.keyfile import KeyFile
from orchestrator.settings import Settings

# What a container engine mounts there keeps the host's modes, and only this container sees it.
SECRETS = Path("/run/secrets")
_MOUNTS = Path("/proc/self/mountinfo")


class KeyPolicy(BaseModel):
    """SHA-256 hashes of the settings' own keys. Empty, and no key in the keys file: everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hashes: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether binding `host` keeps strangers out."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; who knows where it leads
        return False


def key_policy(settings: Settings, opens: bool = True) -> KeyPolicy:
    """Hash the configured keys. Raises ConfigError for an unsafe bind or an unsafe key file.

    `opens`: it is we who bind the gateway's address, not somebody elsewhere with keys of his own.
    """
    keys: list[str] = []
    if settings.api_keys is not None:
        keys += settings.api_keys.get_secret_value().split(",")
    if settings.api_keys_file is not None:
        keys += _read_key_file(settings.api_keys_file.expanduser())
    keys = [key.strip() for key in keys if key.strip() and not key.strip().startswith("#")]
    named = KeyFile(keys_path(settings)).all()
    guarded = keys or named or is_loopback(settings.host) or settings.allow_anonymous
    if opens and not guarded:
        raise ConfigError(
            f"host {settings.host} is reachable from other machines but no API keys are set: set "
            "ENGINEROOM_API_KEYS or api_keys_file, make one with `engineroom keys create NAME`, or "
            "ALLOW_ANONYMOUS=1 to serve everybody"
        )
    return KeyPolicy(hashes=tuple(hash_of(key) for key in keys))


def keys_path(settings: Settings) -> Path:
    """Where the keys are kept that `engineroom keys` makes."""
    return (settings.keys_file or settings.data / "keys.json").expanduser().absolute()


def _read_key_file(path: Path) -> list[str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {path}: cannot be read: {error}") from error
    if mode & 0o077 and not (path.parent == SECRETS and _is_mounted(path)):
        raise ConfigError(f"api_keys_file {path}: others may read it; run: chmod 600 {path}")
    return text.splitlines()


def _is_mounted(secret: Path) -> bool:
    """Whether it, or the folder of secrets, is a mount: else it lies on the machine's own disk."""
    try:
        points = {line.split()[4] for line in _MOUNTS.read_text().splitlines()}
    except OSError:  # not Linux, and no container
        return False
    return not points.isdisjoint({str(secret), str(secret.parent)})
