"""From the settings to all that a gateway process is started with."""

from __future__ import annotations

import math
import platform

from orchestrator import __version__
from orchestrator.access import KeyGrant
from orchestrator.control import GatewayConfig, RouteTable
from orchestrator.hardware.cgroup import cgroup_limits
from orchestrator.hardware.files import Disk
from orchestrator.resources import processors
from orchestrator.settings import Settings

_PER_WORKER = 4  # processors
_MOST = 8


def default_workers() -> int:
    """One for every four processors that this process may use, eight at most; one where the system
    does not spread a port's connections."""
    if platform.system() != "Linux":
        return 1
    files = Disk()
    quota = cgroup_limits(files, files.read("/proc/self/cgroup") or "").cpus or math.inf
    return min(_MOST, max(1, int(min(processors(), quota) / _PER_WORKER)))


def gateway_config(
    settings: Settings,
    name: str,
    hashes: tuple[str, ...],
    control_socket: str | None,
    table: RouteTable | None = None,
    keys: tuple[KeyGrant, ...] = (),
) -> GatewayConfig:
    """`hashes` are of the settings' own keys. `table` and `keys` are for a gateway that has no
    supervisor to tell it, and no `control_socket`."""
    cert, key = settings.tls_cert, settings.tls_key
    return GatewayConfig(
        version=__version__,
        name=name,
        host=settings.host,
        port=settings.port,
        workers=settings.gateway_workers or default_workers(),
        control_socket=control_socket,
        tls_cert=str(cert.absolute()) if cert else None,
        tls_key=str(key.absolute()) if key else None,
        key_hashes=hashes,
        allowed_hosts=settings.allowed_hosts,
        cors_origins=settings.cors_origins,
        max_queue=settings.max_queue,
        max_queue_tokens=settings.max_queue_tokens,
        queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        stall_timeout_s=settings.stall_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        stream_comment_s=settings.stream_comment_s,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        log_level=settings.log_level,
        log_format=settings.log_format,
        log_requests=settings.log_requests,
        otlp_endpoint=settings.otlp_endpoint,
        trace_share=settings.trace_share,
        table=table,
        keys=keys,
    )
