"""The supervisor process: puts the control plane together, runs it, ends it on a signal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import uvicorn

from engine_launchers.base import Listen
from orchestrator.admin import build_admin, read_or_make_token
from orchestrator.control import GatewayConfig
from orchestrator.errors import ConfigError, LaunchFailed, PortTaken
from orchestrator.keys import key_policy
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime, is_alive
from orchestrator.settings import Settings
from orchestrator.startup import Decision
from orchestrator.supervision.environments import Environments
from orchestrator.supervision.instance import ProbeTimes
from orchestrator.supervision.lifecycle import Policy, State
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.store import Store
from orchestrator.supervision.supervisor import Orders, Supervisor
from orchestrator.supervision.workloads import GatewayWorkload

_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Addresses:
    """Where a running server listens, and the file that holds its admin token."""

    gateway: str
    admin: str
    model: str
    token_file: str


class Audience(Protocol):
    """Who is told how the start goes."""

    def installing(self, line: str, seconds: float) -> None:
        """An engine is being installed."""

    def ready(self, addresses: Addresses, seconds: float) -> None:
        """A first request can be sent."""


class _Admin(uvicorn.Server):
    """uvicorn inside our loop; signals are ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def private_folder(path: Path) -> Path:
    """Make a 0700 folder, or check that it is ours. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    if not path.is_dir() or path.is_symlink() or found.st_uid != os.getuid():
        raise ConfigError(f"{path}: must be a folder of this user; remove it or set --data-dir")
    path.chmod(0o700)
    return path


async def serve(settings: Settings, decision: Decision, audience: Audience) -> None:
    """Run until SIGTERM or SIGINT, or until the admin API asks for the end.

    Raises EngineRoomError with one sentence where the start fails; nothing is left running then.
    """
    began = asyncio.get_running_loop().time()
    keys = key_policy(settings)
    data = private_folder(settings.data)
    run = private_folder(settings.run)
    token = read_or_make_token(data / "admin.token")
    stopping = _stop_on_signals()
    timeout = httpx.Timeout(settings.probe_timeout_s)
    limits = httpx.Limits(max_keepalive_connections=0)
    async with AsyncExitStack() as stack:
        stack.enter_context(only_one(data / "supervisor.lock"))
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        )
        store = stack.enter_context(closing(Store(data / "state.db")))
        supervisor = Supervisor(
            _orders(settings, decision, run, data),
            store,
            _runtime(settings, data, run),
            _gateway(settings, keys.hashes, data, run, client),
            client,
        )
        _check_ports(settings, store)
        await _install(settings, decision, audience, stopping)
        if not stopping.is_set():
            await _run(settings, decision, supervisor, token, stopping, audience, began)
        with suppress(OSError):  # something of another program is in it
            run.rmdir()


async def _run(
    settings: Settings,
    decision: Decision,
    supervisor: Supervisor,
    token: str,
    stopping: asyncio.Event,
    audience: Audience,
    began: float,
) -> None:
    loop = asyncio.get_running_loop()
    app = build_admin(supervisor, token, stopping.set)
    config = uvicorn.Config(
        app,
        host=settings.admin_host,
        port=settings.admin_port,
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    admin = _Admin(config)
    listening = asyncio.create_task(admin.serve())
    try:
        await supervisor.start()
        addresses = _announce_file(settings, decision)
        ready = asyncio.create_task(supervisor.ready())
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if ready.done() and not ready.cancelled():
            _check_start(ready.result(), supervisor)
            audience.ready(addresses, loop.time() - began)
        await asked
    finally:
        _hurry_on_signals(supervisor)
        await supervisor.stop()
        (settings.data / "endpoints.json").unlink(missing_ok=True)
        admin.should_exit = True
        await listening


def _check_start(states: tuple[State, ...], supervisor: Supervisor) -> None:
    """The only model, or the gateway, could not be started: say why, and end."""
    for row, state in zip(supervisor.instances(), states, strict=True):
        if state is State.FAILED:
            raise LaunchFailed(
                f"{row['id']} could not be started: {row['why']} (log: {row['log']})"
            )


def _announce_file(settings: Settings, decision: Decision) -> Addresses:
    """Write where this server listens, for the other commands."""
    addresses = Addresses(
        gateway=Listen(host=settings.host, port=settings.port).base_url,
        admin=Listen(host=settings.admin_host, port=settings.admin_port).base_url,
        model=decision.plan.model.id,
        token_file=str(settings.data / "admin.token"),
    )
    (settings.data / "endpoints.json").write_text(json.dumps(addresses.__dict__))
    return addresses


async def _install(
    settings: Settings, decision: Decision, audience: Audience, stopping: asyncio.Event
) -> None:
    environments = Environments(settings.engines, os.environ)
    need = decision.launchers[decision.plan.engine].requirement(decision.hardware)
    work = asyncio.create_task(environments.install(need, audience.installing))
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return
    work.result()


def _orders(settings: Settings, decision: Decision, run: Path, data: Path) -> Orders:
    environments = Environments(settings.engines, os.environ)
    return Orders(
        plans=(decision.plan,),
        hardware=decision.hardware,
        engine_pythons={
            name: environments.python(launcher.requirement(decision.hardware))
            for name, launcher in decision.launchers.items()
        },
        launchers=decision.launchers,
        policy=Policy(
            restart_limit=settings.restart_limit,
            restart_window_s=settings.restart_window_s,
            backoff_max_s=settings.backoff_max_s,
            start_timeout_s=settings.start_timeout_s,
            stop_grace_s=settings.stop_grace_s,
            half_open_s=settings.half_open_s,
        ),
        probes=ProbeTimes(settings.probe_interval_s, settings.probe_timeout_s),
        drain_s=settings.drain_s,
        control_socket=run / "control.sock",
    )


def _runtime(settings: Settings, data: Path, run: Path) -> ProcessRuntime:
    options = ProcessOptions(
        folder=private_folder(data / "instances"),
        logs=private_folder(data / "logs"),
        sockets=run,
        lease_s=settings.lease_s,
        grace_s=settings.stop_grace_s,
        log_max_bytes=settings.log_max_bytes,
        log_files=settings.log_files,
    )
    return ProcessRuntime(options, os.environ)


def _gateway(
    settings: Settings, hashes: tuple[str, ...], data: Path, run: Path, client: httpx.AsyncClient
) -> GatewayWorkload:
    config = GatewayConfig(
        name="gateway-0",
        host=settings.host,
        port=settings.port,
        control_socket=str(run / "control.sock"),
        key_hashes=hashes,
        max_queue=settings.max_queue,
        queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        stall_timeout_s=settings.stall_timeout_s,
        log_level=settings.log_level,
    ).model_dump_json()
    # Named by content: a gateway with other settings is another command line.
    digest = hashlib.sha256(config.encode()).hexdigest()[:12]
    for old in data.glob("gateway-*.json"):
        old.unlink()
    path = data / f"gateway-{digest}.json"
    path.touch(mode=0o600)
    path.write_text(config)
    listen = Listen(host=settings.host, port=settings.port)
    return GatewayWorkload(sys.executable, path, listen, client)


def _check_ports(settings: Settings, store: Store) -> None:
    """Raise PortTaken for a port of a stranger; a gateway of ours may hold it."""
    ours = {
        row.record.spec.listen.port
        for row in store.saved()
        if row.record.spec.listen and row.record.child and is_alive(row.record.child)
    }
    for what, host, port in (
        ("port", settings.host, settings.port),
        ("admin_port", settings.admin_host, settings.admin_port),
    ):
        if port in ours:
            continue
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}): free it, or set another {what}"
            ) from error


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    for number in _ENDINGS:
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


def _hurry_on_signals(supervisor: Supervisor) -> None:
    for number in _ENDINGS:
        asyncio.get_running_loop().add_signal_handler(number, supervisor.hurry)
