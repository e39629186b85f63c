"""The file of API keys: hashes only, readable by its owner only, replaced as a whole."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.access import MAX_KEYS, RESERVED, KeyGrant, hash_of
from orchestrator.errors import BadRequest, ConfigError, Conflict, NotFound

_PREFIX = "er-"


class _Content(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    keys: tuple[KeyGrant, ...] = ()


class KeyFile:
    """The keys of one file. Whoever changes them holds the data directory's lock.

    Raises ConfigError for a file that others may read or that holds something else.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._keys = {each.name: each for each in _read(path)}

    def all(self) -> tuple[KeyGrant, ...]:
        """Every key, revoked ones too, in the order of their names."""
        return tuple(self._keys[name] for name in sorted(self._keys))

    def get(self, name: str) -> KeyGrant:
        """One key. Raises NotFound."""
        if name not in self._keys:
            raise NotFound("no key of that name; GET /admin/keys lists them")
        return self._keys[name]

    def create(self, name: str, limits: Mapping[str, Any]) -> tuple[KeyGrant, str]:
        """A new key and its secret, which is kept nowhere. Raises BadRequest or Conflict."""
        old = self._keys.get(name)
        if name in RESERVED or (old is not None and not old.revoked):
            raise Conflict(f"there is a key called {name} already")
        if old is None and len(self._keys) >= MAX_KEYS:
            raise Conflict(f"there are {MAX_KEYS} keys already, revoked ones included")
        secret = _PREFIX + secrets.token_urlsafe(32)
        made = {**limits, "name": name, "hash": hash_of(secret), "created_at": self._clock()}
        return self._put(_checked(made)), secret

    def change(self, name: str, limits: Mapping[str, Any]) -> KeyGrant:
        """Set some limits of a key. Raises NotFound or BadRequest."""
        return self._put(_checked({**self.get(name).model_dump(), **limits}))

    def revoke(self, name: str) -> KeyGrant:
        """Make a key worthless; its name may be given again. Raises NotFound."""
        return self._put(self.get(name).model_copy(update={"revoked": True}))

    def _put(self, key: KeyGrant) -> KeyGrant:
        keys = {**self._keys, key.name: key}
        _write(self._path, _Content(keys=tuple(keys[name] for name in sorted(keys))))
        self._keys = keys
        return key


def _checked(values: Mapping[str, Any]) -> KeyGrant:
    try:
        return KeyGrant.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "key"
        raise BadRequest(f"{field}: {first['msg']}", param=field) from None


def _read(path: Path) -> tuple[KeyGrant, ...]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"keys file {path}: cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_mode & 0o077 or found.st_uid != os.getuid():
            raise ConfigError(f"keys file {path}: only you may read it; run: chmod 600 {path}")
        data = file.read()
    try:
        return _Content.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(
            f"keys file {path}: not a file of keys ({first['msg']}); put a copy of it back, or "
            "move it away to begin without keys"
        ) from None


def _write(path: Path, content: _Content) -> None:
    """Whole or not at all, also when the power fails."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(content.model_dump_json(indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
