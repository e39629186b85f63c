"""The Docker Engine's API: one client, called in threads, and its errors in our words.

The client library is imported by the first call: a server without containers never needs it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.errors import LaunchFailed

T = TypeVar("T")
_LIMIT_S = 10.0  # of one call; what takes longer is looked at again
_AT_ONCE = 8
_SOCKET = "unix:///var/run/docker.sock"


class Away(LaunchFailed):
    """Nobody answers there, or not in time."""


class Refused(LaunchFailed):
    """The engine answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def missing(self) -> bool:
        """Whether there is no such thing."""
        return self.status == 404


class Connection:
    """To the Docker Engine that the environment names (`DOCKER_HOST`), else to this machine's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self.where = self._environment.get("DOCKER_HOST") or _SOCKET
        self._client: Any = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="docker")

    async def call(self, ask: Callable[[Any], T]) -> T:
        """What `ask` returns, given the client, in a thread. Raises Away or Refused."""

        def work() -> T:
            with self.asking() as client:
                return ask(client)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def asking(self) -> Iterator[Any]:
        """The client, for a thread that waits itself. Raises Away or Refused."""
        import requests
        import urllib3
        from docker import errors

        try:
            yield self._connected()
        except errors.APIError as error:
            status = error.response.status_code if error.response is not None else 500
            raise Refused(str(error.explanation or error), status) from error
        except (errors.DockerException, requests.RequestException) as error:
            raise Away(self._away(error)) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # cut in the middle
            raise Away(self._away(error)) from error

    def _connected(self) -> Any:
        import docker

        with self._lock:
            if self._client is None:
                found = docker.utils.kwargs_from_env(environment=self._environment)
                client = docker.APIClient(version="auto", timeout=_LIMIT_S, **found)
                client.trust_env = False  # no proxy stands between
                self._client = client
            return self._client

    def _away(self, error: Exception) -> str:
        return (
            f"the Docker Engine at {self.where} does not answer ({_short(error)}): start it, let "
            "this user reach it (group docker), or name another with DOCKER_HOST"
        )

    def close(self) -> None:
        """Let go of it; calls under way end in their own time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None


def _short(error: Exception) -> str:
    """The innermost reason, in a few words."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    text = str(error) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
