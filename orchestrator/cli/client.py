"""How the other commands find a running server, and talk to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.errors import ControlUnavailable, EngineRoomError
from orchestrator.settings import load_settings


class Refused(EngineRoomError):
    """The server answered with an error; its sentence, code and type are passed on."""

    exit_code = 1

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", "the server refused")), param=error.get("param"))
        self.code = str(error.get("code", self.code))
        self.kind = str(error.get("type", self.kind))
        self.retryable = bool(error.get("retryable"))


@dataclass(frozen=True)
class Server:
    """A running server, as its data directory describes it."""

    gateway: str
    admin: str
    model: str
    token: str
    certificate: str | None = None

    def admin_client(self) -> httpx.Client:
        """A client of the admin API."""
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.admin, headers=headers, timeout=10, trust_env=False)


def find_server(data_dir: Path | None) -> Server:
    """The server of a data directory. Raises ControlUnavailable where none runs."""
    data = load_settings({"data_dir": data_dir}).data
    try:
        told = json.loads((data / "endpoints.json").read_text())
        token = Path(told["token_file"]).read_text().strip()
    except (OSError, ValueError, KeyError):
        raise ControlUnavailable(
            f"no engineroom runs on {data}: start one with `engineroom serve`"
        ) from None
    certificate = told.get("certificate")
    return Server(told["gateway"], told["admin"], told["model"], token, certificate)


def ask(server: Server, method: str, path: str, body: object = None) -> dict[str, Any]:
    """One call of the admin API. Raises ControlUnavailable or Refused."""
    try:
        with server.admin_client() as client:
            answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise ControlUnavailable(
            f"nobody answers at {server.admin}: the supervisor is gone or busy; `engineroom serve` "
            "adopts what still runs"
        ) from error
    return checked(answer)


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of a good answer; Refused with the server's own sentence otherwise."""
    try:
        value = answer.json()
    except ValueError:
        told = f"HTTP {answer.status_code} without JSON from {answer.url}"
        raise Refused({"message": told}) from None
    if answer.is_error:
        raise Refused(value.get("error") or {"message": f"HTTP {answer.status_code}"})
    return dict(value)
