"""One large file from a URL: goes on where it was interrupted, and is what it promised to be.

`huggingface_hub` starts again from nothing after an interruption. Here the bytes already fetched
are kept beside the goal, hashed again, and the rest is asked for with a Range.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from orchestrator.errors import PullFailed

_TRIES = 5
_PAUSE_S = 1.0
_TIMEOUT = httpx.Timeout(30, connect=10)

Report = Callable[[int], None]


def fetch(url: str, goal: Path, size: int, sha256: str, token: str | None, report: Report) -> None:
    """Write the file at `url` to `goal`, which appears only when it is complete and correct.

    `report` gets the count of bytes here so far. Raises PullFailed.
    """
    part = goal.with_name(goal.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = {"Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with (
        part.open("a+b") as file,
        httpx.Client(follow_redirects=True, timeout=_TIMEOUT, headers=headers) as client,
    ):
        _claim(file.fileno(), goal.name)
        before = -1
        tries = _TRIES
        while (have := file.seek(0, os.SEEK_END)) < size:
            tries = _TRIES if have > before else tries - 1
            before = have
            try:
                _go_on(client, url, file, have, size, report)
            except httpx.TransportError as error:
                if tries <= 0:
                    raise PullFailed(
                        f"{url}: broke off at {have} of {size} bytes ({type(error).__name__}); "
                        "run it again: it goes on there"
                    ) from error
                time.sleep(_PAUSE_S * (_TRIES - tries))  # none while bytes still come
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise PullFailed(
            f"{url}: what came is not what the hub promised (sha256 {found[:12]}, not "
            f"{sha256[:12]}); it was deleted: pull it again"
        )
    part.replace(goal)


def _go_on(
    client: httpx.Client, url: str, out: BinaryIO, have: int, size: int, report: Report
) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code == 200 and have:  # the server knows no ranges: from the beginning
            out.truncate(0)
            have = 0
        elif answer.status_code not in (200, 206):
            hint = ": check HF_TOKEN" if answer.status_code in (401, 403) else ""
            raise PullFailed(f"{url}: the server answered {answer.status_code}{hint}")
        report(have)
        for chunk in answer.iter_raw():
            have += len(chunk)
            if have > size:
                out.truncate(0)
                raise PullFailed(f"{url}: more than the {size} bytes that it should have")
            try:
                out.write(chunk)
            except OSError as error:
                raise PullFailed(f"{url}: cannot be written: {error.strerror}") from error
            report(have)


def _claim(descriptor: int, name: str) -> None:
    """Let no second process append to the same file."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; the checksum finds what two would mix
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise PullFailed(f"{name}: another pull is fetching it; wait for that one") from error
