"""The queue between a gateway and its collector, emptied by a thread. It counts what it drops.

OpenTelemetry's own says nowhere how many spans it had no room for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

_PATIENCE_S = 2.0  # at the end, for batches under way


class SpanQueue(SpanProcessor):
    """Holds `room` spans; beyond that the oldest go, and `dropped` is called for each.

    `send` is called in the thread, with `batch` spans at most and whether more are waiting: as soon
    as there are so many, and every `delay_s` where there are any. `close` is called at the end.
    """

    def __init__(
        self,
        send: Callable[[Sequence[ReadableSpan], bool], None],
        dropped: Callable[[], None],
        close: Callable[[], None],
        room: int = 2048,
        batch: int = 256,
        delay_s: float = 1.0,
    ) -> None:
        self._send, self._dropped, self._close = send, dropped, close
        self._room, self._batch, self._delay_s = room, batch, delay_s
        self._spans: deque[ReadableSpan] = deque()
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Never waits for the collector."""
        with self._lock:
            full = len(self._spans) >= self._room or self._over
            if full and not self._over:
                self._spans.popleft()
            if not self._over:
                self._spans.append(span)
            enough = len(self._spans) >= self._batch
        if full:
            self._dropped()
        if enough:
            self._wake.set()

    def shutdown(self) -> None:
        """Send what is left while that is quick; what is not sent then is dropped."""
        self._over = True
        self._wake.set()
        self._thread.join(_PATIENCE_S)
        while self._take(1):
            self._dropped()
        self._close()

    def _run(self) -> None:
        while not self._over:
            early = self._wake.wait(self._delay_s)
            self._wake.clear()
            self._send_while(self._batch if early else 1)
        self._send_while(1)

    def _send_while(self, least: int) -> None:
        while len(self._spans) >= least:
            spans = self._take(self._batch)
            if spans:  # the end may have come between
                self._send(spans, bool(self._spans))

    def _take(self, most: int) -> list[ReadableSpan]:
        with self._lock:
            return [self._spans.popleft() for _ in range(min(most, len(self._spans)))]
