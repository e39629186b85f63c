"""One load process: orders on standard input, progress and records on standard output.

`python -m orchestrator.bench.worker`. It ends when its input does, so nothing outlives the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Any

from orchestrator.bench.driver import Driver, Tally
from orchestrator.bench.orders import read_order
from orchestrator.bench.records import pack

_BATCH = 200


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _told(tally: Tally) -> None:
    done = len(tally.records)
    tokens = tally.tokens_so_far
    _say({"done": done, "sent": tally.sent, "failed": tally.failed, "tokens": tokens})


async def _serve(lines: asyncio.Queue[bytes]) -> None:
    driver = Driver(_told)
    try:
        while line := await lines.get():
            records, effort = await driver.run(read_order(line))
            for start in range(0, len(records), _BATCH):
                _say({"records": [pack(each) for each in records[start : start + _BATCH]]})
            _say({"effort": asdict(effort)})
    finally:
        driver.close()


async def _main() -> None:
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def read() -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        os._exit(0)  # the command is gone: so is the reason for the load

    threading.Thread(target=read, daemon=True).start()
    await _serve(lines)


def _many_connections() -> None:
    """As many open files as this process may have: each user has a connection."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Work until the input ends."""
    _many_connections()
    try:
        import uvloop
    except ImportError:  # Windows
        asyncio.run(_main())
    else:
        uvloop.run(_main())


if __name__ == "__main__":
    main()
