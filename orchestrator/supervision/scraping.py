"""Reads the engines' own `/metrics` now and then, for whoever reads ours.

It is no part of health and of no request: an engine that is slow, or says too much, only has no
fresh figures. What was read stands for a few rounds, and as long as the same process serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import httpx

from orchestrator.observability.control_metrics import ControlMetrics
from orchestrator.observability.engine_metrics import Told
from orchestrator.supervision import lifecycle as lc
from orchestrator.supervision.instance import Instance
from orchestrator.supervision.normalizing import normalize
from orchestrator.supervision.workloads import EngineWorkload

_log = logging.getLogger("engineroom.scraping")
MOST_BYTES = 1 << 20  # vLLM says 65 KB
_ROUNDS = 3  # for so many rounds an old answer does


@dataclass(frozen=True)
class _Seen:
    generation: int
    at: float
    told: Told


class TooMuch(ValueError):
    """An exposition has more bytes than are read."""


class Scraper:
    """One per supervisor; one task runs `run`. `interval_s` 0: it never looks."""

    def __init__(
        self,
        engines: Callable[[], Iterable[Instance]],
        metrics: ControlMetrics,
        client: httpx.AsyncClient,
        interval_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines, self._metrics, self._client = engines, metrics, client
        self._interval_s, self._timeout_s, self._clock = interval_s, timeout_s, clock
        self._seen: dict[str, _Seen] = {}
        self._told_of: dict[str, int] = {}  # by engine, the generation whose fault is in the log

    async def run(self) -> None:
        """Look in every interval, until cancelled."""
        while self._interval_s:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - whatever it is, it costs figures and nothing else
                _log.exception("the engines' metrics could not be read; again soon")
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Read every engine that serves, all at once."""
        everyone = {each.name for each in self._engines()}
        self._told_of = {name: of for name, of in self._told_of.items() if name in everyone}
        engines = [each for each in self._engines() if _readable(each)]
        names = {each.name for each in engines}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        await asyncio.gather(*map(self._read, engines))

    def told(self) -> Sequence[Told]:
        """What is known of each now; nothing of a process that has ended."""
        limit = self._clock() - _ROUNDS * self._interval_s - self._timeout_s
        serving = {
            each.name: each.lifecycle.generation for each in self._engines() if _serves(each)
        }
        return [
            seen.told
            for name, seen in self._seen.items()
            if serving.get(name) == seen.generation and seen.at >= limit
        ]

    async def _read(self, engine: Instance) -> None:
        workload, url = engine.workload, engine.base_url
        if not isinstance(workload, EngineWorkload) or url is None:
            return
        generation, watch, plan = engine.lifecycle.generation, workload.watch, workload.plan
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await self._text(url + (watch.metrics_path or ""))
            figures = await asyncio.to_thread(normalize, text, watch.series)
            result = "ok"
        except TimeoutError:
            result = "slow"
        except TooMuch:
            result = "too_large"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            _log.debug("engine=%s metrics could not be read: %s", engine.name, error)
            result = "failed"
        except Exception:  # noqa: BLE001 - what one engine says is no other engine's trouble
            result = "failed"
            if self._told_of.get(engine.name) != generation:
                self._told_of[engine.name] = generation
                _log.exception("engine=%s its metrics cannot be understood", engine.name)
        self._metrics.scraped(engine.name, result)
        if result == "ok":
            told = Told(workload.order.name, plan.engine, engine.name, figures)
            self._seen[engine.name] = _Seen(generation, self._clock(), told)

    async def _text(self, url: str) -> str:
        plain = {"accept-encoding": "identity"}
        data = bytearray()
        async with self._client.stream("GET", url, headers=plain) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                data += part
                if len(data) > MOST_BYTES:
                    raise TooMuch(f"more than {MOST_BYTES} bytes")
        return data.decode("utf-8", "replace")


def _serves(engine: Instance) -> bool:
    return engine.lifecycle.state in lc.SERVING | {lc.State.DRAINING}


def _readable(engine: Instance) -> bool:
    watch = engine.workload.watch
    return _serves(engine) and watch.metrics_path is not None and bool(watch.series)
