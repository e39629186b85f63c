"""What is measured: our gateway alone, and the peers that this machine has."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NGINX = """daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  keepalive_requests 1000000; keepalive_timeout 75s; tcp_nodelay on;
  upstream engine {{ server 127.0.0.1:{mock}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; client_body_buffer_size 1m;
    }}
  }}
}}
"""  # noqa: E501

LITELLM = """model_list:
  - model_name: mock-model
    litellm_params:
      {{model: openai/mock-model, api_base: "http://127.0.0.1:{mock}/v1", api_key: none}}
litellm_settings: {{drop_params: true, telemetry: false, request_timeout: 600}}
general_settings: {{disable_spend_logs: true, dangerously_permit_weak_or_unset_master_key: true}}
"""


@dataclass(frozen=True)
class Target:
    """A program that listens on `port`, or the mock itself. `generates`: it has `/generate`."""

    name: str
    port: int
    argv: tuple[str, ...]
    generates: bool = False


def targets(mock: int, first: int, peers: Path, only: set[str]) -> list[Target]:
    """Ours first, then what is installed; `peers` is a virtual environment with the routers."""
    upstream = f"http://127.0.0.1:{mock}"
    ours = (sys.executable, "-m", "orchestrator", "gateway", "--upstream", upstream)
    found = [
        Target("ours", first, (*ours, "--model", "mock-model", "--port", str(first),
                               "--log-level", "warning"), generates=True),
    ]  # fmt: skip
    if shutil.which("nginx"):
        found.append(Target("nginx", first + 1, _nginx(mock, first + 1)))
    python = str(peers / "bin" / "python")
    listens = ("--host", "127.0.0.1", "--port")
    routers = {
        "sglang-router": "sglang_router.launch_router",
        "vllm-router": "vllm_router.launch_router",
    }
    for number, (name, module) in enumerate(routers.items(), start=2):
        if Path(python).exists() and _has(python, module):
            port = first + number
            argv = (python, "-m", module, *listens, str(port), "--worker-urls", upstream,
                    "--prometheus-port", str(port + 100))  # fmt: skip
            found.append(Target(name, port, argv))
    plain = (sys.executable, "-m", "bench.gateway.plain_proxy", upstream, str(first + 4))
    found.append(Target("fastapi+httpx", first + 4, plain))
    litellm = peers.parent / "litellm" / "bin" / "litellm"
    if litellm.exists():
        command = (str(litellm), "--config", _litellm(mock), *listens, str(first + 5))
        found.append(Target("litellm", first + 5, command))
    return [each for each in found if not only or each.name in only]


def _nginx(mock: int, port: int) -> tuple[str, ...]:
    folder = Path(tempfile.mkdtemp(prefix="bench-nginx-"))
    (folder / "nginx.conf").write_text(NGINX.format(mock=mock, port=port))
    return ("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"))


def _litellm(mock: int) -> str:
    file = Path(tempfile.mkdtemp(prefix="bench-litellm-")) / "config.yaml"
    file.write_text(LITELLM.format(mock=mock))
    return str(file)


def _has(python: str, module: str) -> bool:
    found = subprocess.run((python, "-c", f"import {module}"), capture_output=True, check=False)
    return found.returncode == 0
