"""The supervisor process: puts the control plane together, runs it, ends it on a signal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import uvicorn

from engine_launchers.base import Listen
from orchestrator import __version__
from orchestrator.admin import build_admin, read_or_make_token
from orchestrator.control import GatewayConfig
from orchestrator.endings import on_parent_gone, on_signals
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.shelf import Shelf
from orchestrator.errors import ConfigError, LaunchFailed
from orchestrator.keys import key_policy
from orchestrator.listening import listen, port_of, reserve
from orchestrator.runtimes.external import ExternalRuntime
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime, is_alive
from orchestrator.settings import Settings
from orchestrator.startup import Decision
from orchestrator.supervision.instance import ProbeTimes
from orchestrator.supervision.lifecycle import Policy, State
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.store import Store
from orchestrator.supervision.supervisor import Orders, Supervisor
from orchestrator.supervision.workloads import GatewayWorkload

_log = logging.getLogger("engineroom")
# For `force_cpu`: a build for GPUs opens them even to compute without. No device has the number -1.
_NO_GPUS = dict.fromkeys(
    ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "-1"
)


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


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # gone already, or an engine that still runs has its socket there
        folder.rmdir()


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


async def serve(
    settings: Settings, decision: Decision, shelf: Shelf, audience: Audience, tied: bool = False
) -> None:
    """Run until SIGTERM or SIGINT, or until the admin API asks for the end.

    An engine that is missing is installed first, onto `shelf`. `tied` also ends it when standard
    input closes: with the program that started it. A port 0 becomes a free port, which the audience
    and the other commands are told. Raises EngineRoomError with one sentence where the start fails;
    nothing is left running then.
    """
    began = asyncio.get_running_loop().time()
    keys = key_policy(settings)
    os.umask(0o077)
    if not settings.data.exists():  # nothing of ours can run: look before anything is made
        listen(settings.host, settings.port, "port").close()
        listen(settings.admin_host, settings.admin_port).close()
    stopping = asyncio.Event()
    on_signals(stopping.set)
    if tied:
        on_parent_gone(stopping.set)
    data = private_folder(settings.data)
    timeout = httpx.Timeout(settings.probe_timeout_s)
    limits = httpx.Limits(max_keepalive_connections=0)
    async with AsyncExitStack() as stack:
        stack.enter_context(only_one(data / "supervisor.lock"))
        token = read_or_make_token(data / "admin.token")
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        )
        store = stack.enter_context(closing(Store(data / "state.db")))
        settings = _settle_port(settings, store, stack)
        admin_socket = stack.enter_context(listen(settings.admin_host, settings.admin_port))
        settings = settings.model_copy(update={"admin_port": port_of(admin_socket)})
        run = private_folder(settings.run)
        stack.callback(_remove_if_empty, run)
        program = await _program(shelf, decision, audience, stopping)
        if program is not None:
            supervisor = Supervisor(
                _orders(settings, decision, program, run),
                store,
                {"process": _runtime(settings, data, run), "external": ExternalRuntime()},
                _gateway(settings, keys.hashes, data, run, client),
                client,
            )
            admin = _admin(supervisor, token, stopping)
            listening = asyncio.create_task(admin.serve(sockets=[admin_socket]))
            try:
                await _run(settings, decision, supervisor, stopping, audience, began)
            finally:
                admin.should_exit = True
                await listening
        shutil.rmtree(run, ignore_errors=True)  # all that used it has ended


async def _run(
    settings: Settings,
    decision: Decision,
    supervisor: Supervisor,
    stopping: asyncio.Event,
    audience: Audience,
    began: float,
) -> None:
    loop = asyncio.get_running_loop()
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
        on_signals(supervisor.hurry)
        await supervisor.stop()
        (settings.data / "endpoints.json").unlink(missing_ok=True)


def _admin(supervisor: Supervisor, token: str, stopping: asyncio.Event) -> _Admin:
    app = build_admin(supervisor, token, stopping.set)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    return _Admin(config)


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
    try:
        (settings.data / "endpoints.json").write_text(json.dumps(addresses.__dict__))
    except OSError as error:  # the other commands will not find us; clients will
        _log.error("where this server listens could not be written: %s", error)
    return addresses


async def _program(
    shelf: Shelf, decision: Decision, audience: Audience, stopping: asyncio.Event
) -> str | None:
    """The plan's engine as a program, installed where it is missing; None if the end came first."""
    need = decision.engine
    if not isinstance(need, Requirement):
        return need.program if need else ""
    work = asyncio.create_task(shelf.install(need, audience.installing))
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None
    return work.result().program


def _orders(settings: Settings, decision: Decision, program: str, run: Path) -> Orders:
    return Orders(
        plans=(decision.plan,),
        fingerprints={decision.plan.model.id: decision.fingerprint},
        hardware=decision.hardware,
        programs={decision.plan.engine: program},
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
    hidden = _NO_GPUS if settings.force_cpu else {}
    return ProcessRuntime(options, {**os.environ, **hidden})


def _gateway(
    settings: Settings, hashes: tuple[str, ...], data: Path, run: Path, client: httpx.AsyncClient
) -> GatewayWorkload:
    config = GatewayConfig(
        version=__version__,
        name="gateway-0",
        host=settings.host,
        port=settings.port,
        control_socket=str(run / "control.sock"),
        key_hashes=hashes,
        max_queue=settings.max_queue,
        queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        stall_timeout_s=settings.stall_timeout_s,
        write_timeout_s=settings.write_timeout_s,
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


def _settle_port(settings: Settings, store: Store, stack: AsyncExitStack) -> Settings:
    """The settings with the gateway's real port, which is kept for it until `stack` ends.

    A gateway of ours may hold the port, or the one that it got instead of 0. Raises PortTaken where
    a stranger has it.
    """
    ours = {
        row.name: row.record.spec.listen.port
        for row in store.saved()
        if row.record.spec.listen and row.record.child and is_alive(row.record.child)
    }
    port = settings.port or ours.get(GatewayWorkload.name, 0)
    if port not in ours.values():
        listen(settings.host, port, "port").close()
        port = port_of(stack.enter_context(reserve(settings.host, port)))
    return settings.model_copy(update={"port": port})
