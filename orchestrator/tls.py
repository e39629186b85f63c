"""The gateway's certificate: looked at before anything starts, and trusted by our own clients."""

from __future__ import annotations

import ssl
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.settings import Settings


def check_certificate(settings: Settings) -> None:
    """Raise ConfigError where `tls_cert` and `tls_key` are not a pair that can be used."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise ConfigError("give tls_cert and tls_key together, or neither")
    if key.exists() and key.stat().st_mode & 0o077:
        raise ConfigError(f"tls_key {key}: others may read it; run: chmod 600 {key}")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, _no_phrase)
    except (OSError, ssl.SSLError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(f"tls_cert {cert} and tls_key {key} cannot be used: {told}") from error


def _no_phrase() -> str:
    raise ConfigError("tls_key is encrypted: give one without a passphrase")


def trusting(certificate: str | Path) -> ssl.SSLContext:
    """For clients on this machine: that very certificate is good, by whatever name it is called."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # not a CA of ours: the very one
    return context
