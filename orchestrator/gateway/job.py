"""One generating request: its order, its place, its call, perhaps once more elsewhere, its end.

Everything is a callback; where something has to be waited for, one task does it and goes on with
the next step. A call counts as begun with the engine's first event: before that nothing of it has
reached the client, so a failure may be tried again; after it nothing is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import orjson

from orchestrator.control import Replica
from orchestrator.errors import DeadlineExceeded, EngineRoomError, RequestError, UpstreamInvalid
from orchestrator.gateway.asking import Ask, ask_for
from orchestrator.gateway.call import ODD, Call, died
from orchestrator.gateway.desk import Desk
from orchestrator.gateway.engine_connection import Address, EngineConnection
from orchestrator.gateway.engine_pool import NotReached
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.guard import StreamGuard
from orchestrator.gateway.keyring import Holder, Permit
from orchestrator.gateway.orders import Order
from orchestrator.gateway.places import Lease, Target
from orchestrator.gateway.readers import READERS
from orchestrator.gateway.shapes import End
from orchestrator.gateway.tokens import refuse_hopeless
from orchestrator.gateway.weights import characters

_log = logging.getLogger("engineroom.gateway")
_TRIES = 2
T = TypeVar("T")


class Job:
    """See the module. `exchange` is the client's side of it."""

    __slots__ = (
        "_ask", "_avoid", "_began", "_call", "_desk", "_exchange", "_lease", "_order", "_over",
        "_path", "_permit", "_prompt_tokens", "_request", "_size", "_stream", "_task", "_tries",
        "_ttft", "_used", "holder", "model",
    )  # fmt: skip

    def __init__(self, desk: Desk, exchange: Exchange, path: str) -> None:
        self._desk, self._path, self._exchange = desk, path, exchange
        self._over, self._began = False, time.monotonic()
        self._order: Order
        self._ask: Ask
        self._permit: Permit | None = None
        self._used = (0, 0)  # tokens, of the prompt and of the answer
        self.holder: Holder
        self._lease: Lease | None = None
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None
        self._avoid: Replica | None = None
        self._ttft: float | None = None
        self._request, self._stream = b"", False
        self._prompt_tokens, self._size, self._tries = 0, 0, 1
        self.model = "other"

    # --- for the client's side ------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """The body is here."""
        try:
            order = self._order = READERS[self._path](self._desk.router, data, self)
            self._stream = order.answer.stream
            self._size = characters(order.body)
            refuse_hopeless(order.target.route, order.body, self._size)
            self._admit(order)
            if order.keep is not None:
                self._desk.router.keep(self.model, order.keep)
            self._request = orjson.dumps(order.body)
            self._desk.judge.asked()
            if order.waits:
                self._place()
            else:
                self._present(0.0)
        except EngineRoomError as error:
            self._trouble(error)
        except Exception:  # noqa: BLE001 - the last line: log it, tell the client, serve on
            self._internal()

    def may_use(self, target: Target) -> None:
        """Raise, in the words for a model that nobody serves, where its key does not allow it."""
        if not self.holder.may_use(target.name, target.model, target.adapter):
            raise self._desk.keys.forbidden(self.holder)
        self.model = target.model

    def _admit(self, order: Order) -> None:
        """Raise which of its key's limits keeps it out; the permit is closed at the end."""
        holder, target = self.holder, order.target
        ask = self._ask = ask_for(
            target.model,
            order.body,
            self._exchange.headers,
            self._began,
            key=holder.name,
            ceiling=holder.limits.priority,
            context=target.context,
            priority=order.priority,
            timeout=order.timeout,
            choice=len(target.route.replicas) > 1,
            size=self._size,
            generates=order.generates,
        )
        self._permit = self._desk.keys.admit(holder, ask, target.name, target.adapter)

    def fail(self, error: EngineRoomError) -> None:
        """Tell the client that there is no answer, or no more of it, and be done."""
        if self._over:
            return
        if self._exchange.streaming:
            self._desk.metrics.broken.labels(self.model, error.code).inc()
        else:
            self._desk.metrics.refused(self.model, error.code)
        self._end(str(error.http_status))
        self._exchange.fail(error)

    def gone(self) -> None:
        """The client has left: whatever is under way for it ends now."""
        if not self._over:
            self._desk.metrics.disconnects.labels(self.model).inc()
            self._end("499")

    def pause(self) -> None:
        """The client takes nothing now."""
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """The client takes again."""
        if self._call is not None:
            self._call.resume()

    def check(self, now: float) -> None:
        """Look whether time is over, the engine silent for too long, the client without a word."""
        ends = None if self._lease is None else self._ask.deadline
        if ends is not None and now >= ends:
            self.fail(DeadlineExceeded("the request's own timeout was over before its answer"))
        elif self._call is not None:
            self._call.check(now)
        every = self._desk.comment_s
        if every and self._stream and not self._over and now - self._exchange.written >= every:
            self._exchange.remark()

    # --- a place --------------------------------------------------------------------------------

    def _place(self) -> None:
        router, ask, again = self._desk.router, self._ask, self._tries > 1
        self._desk.judge.refuse_poison(self._order)
        lease = router.take_now(ask, again, self._avoid)
        if lease is None:
            self._later(router.take(ask, again, self._avoid), partial(self._placed, waited=True))
        else:
            self._placed(lease)

    def _placed(self, lease: Lease, waited: bool = False) -> None:
        self._lease = lease
        self._desk.page(self.model, self._path).waited(lease.waited_s)
        if waited:
            self._desk.judge.refuse_poison(self._order)  # meanwhile another one may have done it
        if not self._order.calls:
            self._present(lease.waited_s)
        elif lease.route.quirks.tokenize_path is None or not self._order.generates:
            self._call_engine(lease, 0)
        else:
            self._later(self._measure(lease, self._order), partial(self._call_engine, lease))

    def _present(self, waited: float) -> None:
        """The model is there, or is not wanted: nothing was to be generated."""
        answer = self._order.answer
        self._answer(answer.closing(StreamGuard(answer), End(0, 0, 0.0, None, waited)))

    async def _measure(self, lease: Lease, order: Order) -> int:
        with lease.tally.owing():
            return await self._desk.tokenizers.of_prompt(lease.route, lease.replica, order.body)

    # --- a call ---------------------------------------------------------------------------------

    def _call_engine(self, lease: Lease, prompt_tokens: int) -> None:
        order, desk = self._order, self._desk
        self._prompt_tokens = prompt_tokens
        most = prompt_tokens or min(order.target.context, self._size)
        keeps = order.answer.keeps_text or lease.route.quirks.tokenize_path is not None
        guard = order.guard(order.answer, keeps)  # without the engine's count the text is counted
        next_s, clock = desk.stall_timeout_s, self._exchange.clock
        call = self._call = Call(self, lease, guard, desk.patience(most), next_s, clock)
        address = lease.slot.address
        connection = desk.pool.take(address)
        if connection is None:
            self._later(desk.pool.connect(address), partial(self._send, call))
        else:
            self._send(call, connection)

    def _send(self, call: Call, connection: EngineConnection) -> None:
        head = self._desk.pool.head(call.lease.replica.base_url, self._order.path)
        call.send(connection, b"%b%d\r\n\r\n%b" % (head, len(self._request), self._request))

    # --- from the call --------------------------------------------------------------------------

    def relay(self, call: Call, data: bytes, framed: bool = False) -> None:
        """Bytes for the client; none while only the engine's side has begun."""
        self._used = self._ask.prompt_tokens, call.guard.pieces
        if self._ttft is None and call.guard.pieces:
            self._ttft = time.monotonic() - self._began
            self._desk.page(self.model, self._path).first_token(self._ttft)
        if framed:
            self._exchange.pass_on(data)
        elif data:
            self._exchange.send(data)

    def completed(self, call: Call) -> None:
        """The engine's answer is complete: count its tokens, then end ours."""
        guard, self._call = call.guard, None  # the call has closed itself
        ended = time.monotonic()
        counted = (guard.usage or {}).get("completion_tokens")
        if isinstance(counted, int):
            self._finish(call, ended, counted)
        elif not guard.pieces or call.lease.route.quirks.tokenize_path is None:
            self._finish(call, ended, guard.pieces)
        else:
            self._later(self._count(call), partial(self._finish, call, ended))

    async def _count(self, call: Call) -> int:
        """What goes wrong now costs the count, not the answer: the number of events stands in."""
        lease, guard = call.lease, call.guard
        try:
            return await self._desk.tokenizers.count(lease.route, lease.replica, guard.full_text)
        except RequestError as error:
            self._desk.judge.blame(lease, error)
            return guard.pieces

    def _finish(self, call: Call, ended: float, tokens: int) -> None:
        lease, told = call.lease, (call.guard.usage or {}).get("prompt_tokens")
        prompt = told if isinstance(told, int) else self._prompt_tokens or self._ask.prompt_tokens
        self._used, lease.tokens = (prompt, tokens), prompt + tokens
        seconds = ended - lease.granted
        end = End(self._prompt_tokens, tokens, seconds, self._ttft, lease.waited_s)
        try:
            last = self._order.answer.closing(call.guard, end)
        except ODD as error:
            _log.info("request=%s: answer not put together: %s", self._exchange.id.decode(), error)
            self.failed(call, UpstreamInvalid("the engine's answer makes no sense as a whole"))
            return
        self._desk.judge.answered(self._order, lease)
        page = self._desk.page(self.model, self._path)
        page.used(prompt, tokens)
        if self._ttft is not None:
            page.spaced(call.guard.pieces, tokens, ended - self._began - self._ttft)
        self._answer(last)

    def _answer(self, last: bytes) -> None:
        self._end("200")
        if self._order.answer.stream:
            self._exchange.finish(last)
        else:
            self._exchange.answer(200, last)

    def stale(self, call: Call, used: bool) -> None:
        """The connection was lost before a byte of an answer.

        One that had served before was probably closed by the engine while it idled: the request
        goes over a new one. If there is none to be had, the engine has died of something.
        """
        if not used:
            self._broke(call.lease, died())
            return
        address = call.lease.slot.address
        self._later(self._reconnect(address), partial(self._send, call))

    async def _reconnect(self, address: Address) -> EngineConnection:
        try:
            return await self._desk.pool.connect(address)
        except NotReached:
            raise died() from None

    def failed(self, call: Call, error: RequestError) -> None:
        """The engine's answer will not come, or not be complete."""
        self._broke(call.lease, error, begun=call.guard.begun)

    def _broke(self, lease: Lease, error: RequestError, begun: bool = False) -> None:
        order, judge = self._order, self._desk.judge
        judge.blame(lease, error, order)
        again = not begun and self._tries < _TRIES and judge.again(order, lease, error)
        self._leave_engine()
        if not again:
            self.fail(error)
            return
        self._tries += 1
        self._avoid = lease.replica
        try:
            self._place()
        except EngineRoomError as refusal:
            self._trouble(refusal)

    # --- ours -----------------------------------------------------------------------------------

    def _later(self, what: Awaitable[T], then: Callable[[T], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait(what, then))

    async def _wait(self, what: Awaitable[T], then: Callable[[T], None]) -> None:
        try:
            result = await what
            self._task = None  # nobody cancels what comes now
            then(result)
        except EngineRoomError as error:
            self._task = None
            self._trouble(error)
        except Exception:  # noqa: BLE001 - as in `run`
            self._task = None
            self._internal()

    def _trouble(self, error: EngineRoomError) -> None:
        if self._lease is not None and isinstance(error, RequestError):
            self._broke(self._lease, error)
        else:
            self.fail(error)

    def _internal(self) -> None:
        _log.exception("request=%s path=%s failed", self._exchange.id.decode(), self._path)
        self.fail(EngineRoomError("internal error; the gateway's log has the details"))

    def _leave_engine(self) -> None:
        """Free the engine, the place, and whoever waits for either."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        call, self._call = self._call, None
        if call is not None:
            call.close()
        lease, self._lease = self._lease, None
        if lease is not None:
            self._desk.router.release(lease)

    def _end(self, code: str) -> None:
        self._over = True
        self._leave_engine()
        if self._permit is not None:
            self._permit.close(*self._used)
        page = self._desk.page(self.model, self._path)
        page.answered(code)
        page.lasted(time.monotonic() - self._began)
