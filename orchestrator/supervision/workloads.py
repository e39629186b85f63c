"""The two kinds of workload: an engine, and the gateway. Each knows its command and its probes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from engine_launchers.base import (
    CrashCause,
    EngineName,
    EnginePlan,
    ExitResult,
    Launcher,
    LaunchSpec,
    Listen,
)
from engine_launchers.containers import in_container
from engine_launchers.watch import Call, WatchTraits
from orchestrator.errors import EngineRoomError
from orchestrator.supervision.exposition import values
from orchestrator.supervision.orders import ModelOrder, NextEngine
from orchestrator.supervision.workload import ProbeError

_log = logging.getLogger("engineroom.workload")
_FOR_TRACES = ("OTEL_",)  # OpenTelemetry's own variables: headers, certificates, compression
_PREFILL_S_PER_TOKEN = 0.2  # slower than any engine worth waiting for


class EngineWorkload:
    """One engine process that serves one model.

    It keeps the fingerprint of the order it was made from: a plan that was relaxed, or moved to
    another engine, still serves the same wish. `program` is set where that is not the order's.
    """

    def __init__(
        self,
        name: str,
        plan: EnginePlan,
        order: ModelOrder,
        launchers: Mapping[EngineName, Launcher],
        next_engine: NextEngine,
        client: httpx.AsyncClient,
        program: str | None = None,
    ) -> None:
        self.name, self.plan, self.order = name, plan, order
        self._launchers, self._next_engine = launchers, next_engine
        self._program, self._client = program or order.program, client
        self._tried: set[EngineName] = set()

    @property
    def fingerprint(self) -> str:
        """Names the wish behind its plan."""
        return self.order.fingerprint

    @property
    def launcher(self) -> Launcher:
        """What is known of the plan's engine."""
        return self._launchers[self.plan.engine]

    @property
    def noise(self) -> tuple[str, ...]:
        """Access log lines of liveness probes, of looks at counters, and of token counts."""
        quirks, metrics = self.launcher.quirks, self.launcher.watch.metrics_path
        counted = (f'"POST {quirks.tokenize_path} ',) if quirks.tokenize_path else ()
        watched = (f'"GET {metrics} ',) if metrics else ()
        return (f'"GET {quirks.liveness_path} ', *watched, *counted)

    @property
    def watch(self) -> WatchTraits:
        """The launcher's."""
        return self.launcher.watch

    @property
    def prefill_s(self) -> float:
        """The longest prompt's time on the slowest machine."""
        context = self.plan.tuning.max_model_len or self.plan.model.context_max
        return context * _PREFILL_S_PER_TOKEN

    def command(self, listen: Listen) -> LaunchSpec:
        """The launcher's command, with the program of the engine's installation."""
        if self.plan.address:  # nothing is started
            return LaunchSpec(argv=(), listen=self.plan.address)
        spec = self.launcher.command(self.plan, listen).with_engine(self._program)
        return in_container(spec, self.plan) if self.plan.runtime == "docker" else spec

    def listen(self) -> Listen | None:
        """Any free loopback port, or where a server runs already."""
        return self.plan.address

    async def alive(self, base_url: str) -> None:
        """One GET of a path that does not touch the generation lock."""
        await _get(self._client, base_url + self.launcher.quirks.liveness_path)

    async def canary(self, base_url: str) -> None:
        """A completion of one token; the caller's patience is the limit."""
        own = self.launcher.served(self.plan)[0]
        body = {"prompt": "Hi", "max_tokens": 1, "temperature": 0, "model": own.model, **own.fields}
        try:
            url = base_url + "/v1/completions"
            answer = await self._client.post(url, json=body, timeout=None)
        except httpx.HTTPError as error:
            raise ProbeError(f"first token: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise ProbeError(f"first token: HTTP {answer.status_code}")

    async def counters(self, base_url: str) -> tuple[float, ...] | None:
        """The launcher's series, in its order."""
        watch = self.launcher.watch
        if watch.metrics_path is None:
            return None
        return values(
            (await _get(self._client, base_url + watch.metrics_path)).text, watch.counters
        )

    async def sleep(self, base_url: str, level: int) -> None:
        """The launcher's calls, one after the other."""
        traits = self.launcher.watch.sleep
        calls = traits.down.get(level) if traits else None
        await self._ask(base_url, calls, f"sleep at level {level}")

    async def wake(self, base_url: str, level: int) -> None:
        """The launcher's calls, one after the other."""
        traits = self.launcher.watch.sleep
        calls = traits.up.get(level) if traits else None
        await self._ask(base_url, calls, f"wake from level {level}")

    async def _ask(self, base_url: str, calls: tuple[Call, ...] | None, what: str) -> None:
        if calls is None:
            raise ProbeError(f"{self.launcher.name} cannot {what}")
        for call in calls:
            try:
                url = base_url + call.path
                answer = await self._client.post(url, json=call.body, timeout=None)
            except httpx.HTTPError as error:
                raise ProbeError(f"{call.path}: {type(error).__name__}") from error
            if answer.status_code != 200:
                raise ProbeError(f"{call.path}: HTTP {answer.status_code}")

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """The launcher's knowledge."""
        return self.launcher.diagnose(exit, tail)

    async def replan(self, cause: CrashCause) -> str | None:
        """Take the launcher's next rung, or after the last one the next engine that fits."""
        smaller = self.launcher.relax(self.plan, cause)
        if smaller is not None:
            self.plan = smaller
            return smaller.reasons[-1]
        left = self.plan.id
        self._tried.add(self.plan.engine)
        try:
            order = await self._next_engine(self.order, frozenset(self._tried))
        except EngineRoomError as error:
            _log.info("model=%s no other engine: %s", self.order.name, error.message)
            return None
        self.plan, self._program = order.plan, order.program
        return f"{left} has no smaller plan after {cause.value}: {order.plan.id} instead"


class GatewayWorkload:
    """One gateway process. `config` is the file that holds all it has to know."""

    name = "gateway-0"
    noise: tuple[str, ...] = ()
    watch = WatchTraits()
    prefill_s = 0.0

    def __init__(
        self, python: str, config: Path, listen: Listen, client: httpx.AsyncClient
    ) -> None:
        self._python, self._config, self._listen = python, config, listen
        self._client = client

    @property
    def fingerprint(self) -> str:
        """Its configuration: the file is named by what is in it."""
        return self._config.stem

    def command(self, listen: Listen) -> LaunchSpec:
        """`python -m orchestrator.gateway`."""
        argv = (self._python, "-m", "orchestrator.gateway", "--config", str(self._config))
        return LaunchSpec(argv=argv, inherits=_FOR_TRACES, listen=listen)

    def listen(self) -> Listen | None:
        """The public address."""
        return self._listen

    async def alive(self, base_url: str) -> None:
        """`/health/live`; a wildcard address is probed on loopback."""
        url = httpx.URL(base_url)
        if url.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            url = url.copy_with(host="127.0.0.1" if url.host == "0.0.0.0" else "::1")  # noqa: S104
        await _get(self._client, str(url.join("/health/live")))

    async def counters(self, base_url: str) -> tuple[float, ...] | None:
        """It owes no work of its own."""
        return None

    async def canary(self, base_url: str) -> None:
        """It makes no tokens: an answer has to do."""
        await self.alive(base_url)

    async def sleep(self, base_url: str, level: int) -> None:
        """It holds no memory that would be worth it."""
        raise ProbeError("a gateway does not sleep")

    async def wake(self, base_url: str, level: int) -> None:
        """It does not sleep."""
        raise ProbeError("a gateway does not sleep")

    def diagnose(self, exit: ExitResult, tail: Sequence[str]) -> CrashCause:
        """A taken port is told apart; everything else is a crash."""
        if any("address already in use" in line for line in tail) and exit.code:
            return CrashCause.PORT_TAKEN
        return CrashCause.KILLED if exit.signal else CrashCause.EXIT_UNREQUESTED

    async def replan(self, cause: CrashCause) -> str | None:
        """A gateway has one size."""
        return None


async def _get(client: httpx.AsyncClient, url: str) -> httpx.Response:
    try:
        answer = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ProbeError(f"{type(error).__name__}") from error
    if answer.status_code != 200:
        raise ProbeError(f"HTTP {answer.status_code}")
    return answer
