"""The Docker Engine's API: one client, called in threads, and its errors in our words.

The client library is imported by the first call: a server without containers never needs it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from orchestrator.errors import LaunchFailed

T = TypeVar("T")
_UNREACHED = 503
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
        self._lock, self._closed = threading.Lock(), False
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="docker")

    async def call(self, ask: Callable[[Any], T]) -> T:
        """What `ask` returns, given the client, in a thread. Raises as `asking` does."""

        def work() -> T:
            with self.asking() as client:
                return ask(client)

        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def asking(self) -> Iterator[Any]:
        """The client, for a thread that waits itself. Raises Away, Refused, or LaunchFailed for
        what cannot be asked at all: an address that is none, a certificate that is not there."""
        import requests
        import urllib3
        from docker import errors

        invalid = (requests.exceptions.InvalidJSONError, json.JSONDecodeError)
        cut = (*invalid, errors.StreamParseError)  # the first half of an answer
        try:
            yield self._connected()
        except errors.APIError as error:
            status = error.response.status_code if error.response is not None else 500
            said = str(error.explanation or error)
            if status == _UNREACHED:  # by the proxy before its socket
                raise Away(f"{self.where}: {said}") from error
            raise Refused(said, status) from error
        except cut as error:
            raise Away(self._away(error)) from error
        except (errors.DockerException, ValueError) as error:
            raise LaunchFailed(f"the Docker Engine at {self.where}: {error}") from error
        except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise Away(self._away(error)) from error

    def _connected(self) -> Any:
        """The client; made without the lock, which `close` must not wait for."""
        with self._lock:
            self._refuse_closed()
            if self._client is not None:
                return self._client
        made = self._made()
        with self._lock:
            if self._client is None and not self._closed:
                self._client = made
            if self._client is not made:
                made.close()
            self._refuse_closed()
            return self._client

    def _made(self) -> Any:
        """A client that speaks the version of the API that the engine does."""
        import docker

        found = docker.utils.kwargs_from_env(environment=self._environment)
        lowest = docker.constants.MINIMUM_DOCKER_API_VERSION
        with closing(_client(docker, lowest, found)) as first:
            version = first.version(api_version=False).get("ApiVersion", lowest)
        return _client(docker, str(version), found)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Away(f"the connection to the Docker Engine at {self.where} is closed")

    def _away(self, error: Exception) -> str:
        return (
            f"the Docker Engine at {self.where} does not answer ({_short(error)}): start it, let "
            "this user reach it (group docker), or name another with DOCKER_HOST"
        )

    def close(self) -> None:
        """Let go of it; calls under way end in their own time. Blocks for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _client(docker: Any, version: str, found: Mapping[str, Any]) -> Any:
    """A client that has asked nothing yet: with "auto" it would, and through a proxy."""
    client = docker.APIClient(version=version, timeout=_LIMIT_S, **found)
    client.trust_env = False  # no proxy stands between
    return client


def _short(error: Exception) -> str:
    """The innermost reason, in a few words."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    text = str(error) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
