"""Who may use the gateway: API keys from the settings, kept as hashes only."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import ConfigError
from orchestrator.settings import Settings


class KeyPolicy(BaseModel):
    """Who may use the gateway: SHA-256 hashes of the accepted keys, empty for everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hashes: tuple[str, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether binding `host` keeps strangers out."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; who knows where it leads
        return False


def key_policy(settings: Settings) -> KeyPolicy:
    """Hash the configured keys. Raises ConfigError for an unsafe bind or an unsafe key file."""
    keys: list[str] = []
    if settings.api_keys is not None:
        keys += settings.api_keys.get_secret_value().split(",")
    if settings.api_keys_file is not None:
        keys += _read_key_file(settings.api_keys_file.expanduser())
    keys = [key.strip() for key in keys if key.strip() and not key.strip().startswith("#")]
    if not keys and not is_loopback(settings.host) and not settings.allow_anonymous:
        raise ConfigError(
            f"host {settings.host} is reachable from other machines but no API keys are set: set "
            "ENGINEROOM_API_KEYS or api_keys_file, or ALLOW_ANONYMOUS=1 to serve everybody"
        )
    return KeyPolicy(hashes=tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys))


def _read_key_file(path: Path) -> list[str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys_file {path}: cannot be read: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"api_keys_file {path}: others may read it; run: chmod 600 {path}")
    return text.splitlines()
