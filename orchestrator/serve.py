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
from fastapi import FastAPI

from engine_launchers.base import Listen
from orchestrator import compiled
from orchestrator.admin import build_admin, read_or_make_token
from orchestrator.endings import on_change_of, on_hangup, on_parent_gone, on_signals
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.shelf import Shelf
from orchestrator.errors import LaunchFailed
from orchestrator.gateway_config import gateway_config
from orchestrator.keyfile import KeyFile
from orchestrator.keys import key_policy, keys_path
from orchestrator.launching import private_folder, runtimes, socket_folder
from orchestrator.listening import listen, port_of, reserve
from orchestrator.notify import Manager
from orchestrator.observability.extras import check_tracing
from orchestrator.ordering import Install, Orderer
from orchestrator.resources import one_arena
from orchestrator.runtimes.process import is_alive
from orchestrator.settings import Settings
from orchestrator.startup import Decision, Planning
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.lock import only_one
from orchestrator.supervision.observing import observed
from orchestrator.supervision.operator import Operator
from orchestrator.supervision.schedule import Phase
from orchestrator.supervision.store import Store
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.supervision.workloads import GatewayWorkload
from orchestrator.tls import check_certificate, trusting

_log = logging.getLogger("engineroom")


@dataclass(frozen=True)
class Addresses:
    """Where a running server listens, and the file that holds its admin token."""

    gateway: str
    admin: str
    model: str
    token_file: str
    certificate: str | None = None


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


async def serve(
    settings: Settings,
    decisions: tuple[Decision, ...],
    planning: Planning,
    audience: Audience,
    tied: bool = False,
) -> None:
    """Run until SIGTERM or SIGINT, or until the admin API asks for the end.

    Engines that are missing are installed first. SIGHUP, and a change of the settings file, ask
    `planning` for new decisions. `tied` also ends it when standard input closes: with the program
    that started it. A port 0 becomes a free port, which the audience and the other commands are
    told. The service manager, if there is one, hears of it too. Raises EngineRoomError with one
    sentence where the start fails; nothing is left running then.
    """
    manager = Manager(os.environ)
    began, asked = asyncio.get_running_loop().time(), settings
    keys = key_policy(settings, opens=settings.control_socket is None)
    check_certificate(settings)
    check_tracing(settings.otlp_endpoint)
    compiled.check()
    os.umask(0o077)
    one_arena()
    if not settings.data.exists():  # nothing of ours can run: look before anything is made
        if settings.control_socket is None:
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
        stack.callback(asyncio.create_task(manager.keep_alive()).cancel)
        stack.enter_context(only_one(data / "supervisor.lock"))
        token = read_or_make_token(data / "admin.token")
        client = await stack.enter_async_context(
            httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        )
        prober = client
        if settings.tls_cert is not None:
            certain = trusting(settings.tls_cert)
            prober = httpx.AsyncClient(
                timeout=timeout, limits=limits, trust_env=False, verify=certain
            )
            await stack.enter_async_context(prober)
        store = stack.enter_context(closing(Store(data / "state.db")))
        stack.callback(asyncio.create_task(store.keep()).cancel)
        if settings.control is None:
            settings = _settle_port(settings, store, stack)
        else:
            socket_folder(settings.control.parent)
        admin_socket = stack.enter_context(listen(settings.admin_host, settings.admin_port))
        settings = settings.model_copy(update={"admin_port": port_of(admin_socket)})
        run = private_folder(settings.run)
        stack.callback(_remove_if_empty, run)
        orderer = Orderer(planning, asked, _installer(planning.shelf, audience, stopping))
        models = await orderer.models(decisions)
        if models is not None:
            supervisor = Supervisor(
                orderer.orders(decisions, models, run),
                store,
                await stack.enter_async_context(runtimes(settings, run, store.add_event)),
                _gateways(settings, keys.hashes, data, run, prober),
                client,
            )
            operator = Operator(supervisor)
            keys_of = KeyFile(keys_path(asked))
            app = build_admin(
                supervisor, operator, token, stopping.set, keys_of, settings.open_metrics
            )
            admin = _admin(app)
            on_hangup(operator.reload_soon)
            watching = asyncio.create_task(on_change_of(planning.file, operator.reload_soon))
            supervisor.metrics.storage.set_function(lambda: float(bool(store.degraded)))
            every_s, limit_s = settings.engine_metrics_interval_s, settings.probe_timeout_s
            await stack.enter_async_context(observed(supervisor, client, data, every_s, limit_s))
            listening = asyncio.create_task(admin.serve(sockets=[admin_socket]))
            try:
                await _run(settings, models[0].name, supervisor, stopping, audience, manager, began)
            finally:
                watching.cancel()
                store.journal.close()  # whoever follows it goes home
                admin.should_exit = True
                await listening
        shutil.rmtree(run, ignore_errors=True)  # all that used it has ended


async def _run(
    settings: Settings,
    model: str,
    supervisor: Supervisor,
    stopping: asyncio.Event,
    audience: Audience,
    manager: Manager,
    began: float,
) -> None:
    loop = asyncio.get_running_loop()
    try:
        await supervisor.start()
        addresses = _announce_file(settings, model)
        ready = asyncio.create_task(supervisor.ready())
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if ready.done() and not ready.cancelled():
            _check_start(ready.result(), supervisor)
            audience.ready(addresses, loop.time() - began)
            manager.ready(f"serves {model} on {addresses.gateway}")
        await asked
    finally:
        manager.stopping("requests in flight may end")
        on_signals(supervisor.hurry)
        await supervisor.stop()
        (settings.data / "endpoints.json").unlink(missing_ok=True)


def _admin(app: FastAPI) -> _Admin:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    return _Admin(config)


def _check_start(failed: tuple[Instance, ...], supervisor: Supervisor) -> None:
    """Nothing that was to be loaded could be, or the gateway could not: say why, and end."""
    rows = [supervisor.describe(each) for each in failed]
    said = [f"{row['id']} could not be started: {row['why']} (log: {row['log']})" for row in rows]
    loaded = any(pool.phase is Phase.SERVING for pool in supervisor.pools.values())
    if failed and (not loaded or any(row["kind"] == "gateway" for row in rows)):
        raise LaunchFailed(said[-1] if len(said) == 1 else said[0])
    for line in said:
        _log.error("%s", line)


def _announce_file(settings: Settings, model: str) -> Addresses:
    """Write where this server listens, for the other commands."""
    addresses = Addresses(
        gateway=_door(settings).base_url,
        admin=Listen(host=settings.admin_host, port=settings.admin_port).base_url,
        model=model,
        token_file=str(settings.data / "admin.token"),
        certificate=str(settings.tls_cert.absolute()) if settings.tls_cert else None,
    )
    try:
        (settings.data / "endpoints.json").write_text(json.dumps(addresses.__dict__))
    except OSError as error:  # the other commands will not find us; clients will
        _log.error("where this server listens could not be written: %s", error)
    return addresses


def _installer(shelf: Shelf, audience: Audience, stopping: asyncio.Event) -> Install:
    """Installs engines onto `shelf`, until the end comes."""

    async def install(need: Requirement) -> str | None:
        work = asyncio.create_task(shelf.install(need, audience.installing))
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return None
        return work.result().program

    return install


def _door(settings: Settings) -> Listen:
    return Listen(host=settings.host, port=settings.port, tls=settings.tls_cert is not None)


def _gateways(
    settings: Settings, hashes: tuple[str, ...], data: Path, run: Path, client: httpx.AsyncClient
) -> tuple[GatewayWorkload, ...]:
    if settings.control_socket is not None:
        return ()
    socket = str(run / "control.sock")
    config = gateway_config(settings, "gateway-0", hashes, socket).model_dump_json()
    # Named by content: a gateway with other settings is another command line.
    digest = hashlib.sha256(config.encode()).hexdigest()[:12]
    path = data / f"gateway-{digest}.json"
    for old in set(data.glob("gateway-*.json")) - {path}:
        old.unlink()
    if not path.exists() or path.read_text() != config:  # a full disk would leave an empty file
        path.touch(mode=0o600)
        path.write_text(config)
    listen = _door(settings)
    return (GatewayWorkload(sys.executable, path, listen, client),)


def _settle_port(settings: Settings, store: Store, stack: AsyncExitStack) -> Settings:
    """The settings with the gateway's real port, which is kept for it until `stack` ends.

    A gateway of ours may hold the port, or the one that it got instead of 0. Raises PortTaken where
    a stranger has it.
    """
    ours = {
        row.name: row.record.spec.listen.port
        for row in store.saved()
        if row.record.runtime == "process"
        if row.record.spec.listen and row.record.child and is_alive(row.record.child)
    }
    port = settings.port or ours.get(GatewayWorkload.name, 0)
    if port not in ours.values():
        listen(settings.host, port, "port").close()
        port = port_of(stack.enter_context(reserve(settings.host, port)))
    return settings.model_copy(update={"port": port})
