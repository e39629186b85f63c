"""Whether what is only needed for traces is installed."""

from __future__ import annotations

from importlib.util import find_spec

from orchestrator.errors import ConfigError


def check_tracing(endpoint: str | None) -> None:
    """Raise ConfigError where traces are asked for and cannot be made."""
    if endpoint is None:
        return
    try:
        found = find_spec("opentelemetry.sdk.trace") and find_spec(
            "opentelemetry.exporter.otlp.proto.http"
        )
    except ModuleNotFoundError:
        found = None
    if not found:
        raise ConfigError(
            "otlp_endpoint: traces need OpenTelemetry; run: pip install 'engineroom[traces]'"
        )
