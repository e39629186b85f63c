"""The settings of what can be seen: logs, metrics of engines, traces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from orchestrator.setting_types import LogLevel, Seconds, Url, lower


class ObservabilitySettings(BaseModel):
    """See the module."""

    log_level: LogLevel = Field("info", description="debug, info, warning or error.")
    log_format: Annotated[Literal["text", "json"], BeforeValidator(lower)] = Field(
        "text", description="text: lines for people; json: one object a line."
    )
    log_requests: bool = Field(
        False, description="Log a line for each generating request when it is over; no prompts."
    )
    log_max_bytes: int = Field(
        50 * 1024 * 1024, ge=65_536, le=1 << 40, description="Size of one engine log file, bytes."
    )
    log_files: int = Field(5, ge=1, le=100, description="Old log files kept per engine.")
    engine_metrics_interval_s: Seconds = Field(
        15.0, description="Between looks at the engines' own metrics, seconds; 0: never."
    )
    otlp_endpoint: Url | None = Field(
        None,
        description="OTLP collector (HTTP) that gets a trace of each generating request, such as "
        "http://127.0.0.1:4318; unset: none. Its headers: OTEL_EXPORTER_OTLP_HEADERS.",
    )
    trace_share: float = Field(
        1.0, ge=0, le=1,
        description="Share of requests that are traced where the client does not say.",
    )  # fmt: skip
