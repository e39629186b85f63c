"""What a new container may be: what the runtime makes for an engine, and nothing else. Pure.

The body is parsed here, held against that shape, and written anew: the Docker Engine reads what was
judged, whatever another parser had made of the same bytes.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.fence.calls import Refused
from orchestrator.runtimes.docker.labels import INSTALLATION

LIMIT = 64 * 1024
"""Bytes of a body."""
Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Yard:
    """What engines' containers are put into: their network, their user (uid:gid), and the folders
    of the machine that they may be shown, for reading only."""

    network: str
    user: str
    folders: tuple[str, ...] = ()


def created(data: bytes, yard: Yard) -> bytes:
    """The body of `POST /containers/create`, written anew. Raises Refused, and says what of it."""
    if len(data) > LIMIT:
        raise Refused(f"the body has more than {LIMIT} bytes")
    try:
        body = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON as it is taken here: {error}") from None
    _hold("", body, _shape(yard))
    _hold("HostConfig.", body["HostConfig"], _host(yard))
    return json.dumps(body).encode()


def ours(inspected: Mapping[str, Any], network: str) -> bool:
    """Whether a container, as `inspect` tells of it, is an engine's of this network."""
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    mode = (inspected.get("HostConfig") or {}).get("NetworkMode")
    return INSTALLATION in labels and mode == network


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is written twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _hold(where: str, given: Any, shape: Mapping[str, Check]) -> None:
    if type(given) is not dict:
        raise Refused(f"{where or 'the body'} has to be an object")
    for name in given:
        if name not in shape:
            raise Refused(f"{where}{str(name)[:60]!r} is not in an engine's container")
    for name, check in shape.items():
        if name not in given:
            raise Refused(f"{where}{name} is missing")
        if not check(given[name]):
            told = json.dumps(given[name])
            raise Refused(f"{where}{name} is not that of an engine's container: {told[:120]}")


def _shape(yard: Yard) -> dict[str, Check]:
    return {
        "Image": _text,
        "Entrypoint": _texts,
        "Cmd": _texts,
        "Env": _texts,
        "User": _is(yard.user),
        "WorkingDir": _is("/tmp"),  # noqa: S108 - in the container
        "Labels": lambda given: _words(given) and INSTALLATION in given,
        "Healthcheck": _is({"Test": ["NONE"]}),
        "HostConfig": lambda given: type(given) is dict,
        "NetworkingConfig": _is({"EndpointsConfig": {yard.network: {}}}),
    }


def _host(yard: Yard) -> dict[str, Check]:
    return {
        "NetworkMode": _is(yard.network),
        "Init": _is(True),
        "ReadonlyRootfs": _is(True),
        "Tmpfs": _tmpfs,
        "CapDrop": _is(["ALL"]),
        "SecurityOpt": _is(["no-new-privileges"]),
        "Privileged": _is(False),
        "PidsLimit": _whole(1, 4096),
        "Memory": _whole(1, 1 << 60),
        "MemorySwap": _whole(1, 1 << 60),
        "ShmSize": _whole(1, 1 << 40),
        "IpcMode": _is("private"),
        "Mounts": lambda given: _each(given, lambda one: _mount(one, yard.folders)),
        "LogConfig": _log,
        "RestartPolicy": _is({"Name": "no"}),
        "AutoRemove": _is(False),
        "GroupAdd": lambda given: _each(given, _group),
        "Devices": lambda given: _each(given, _device),
        "DeviceRequests": lambda given: _each(given, _cards),
    }


def _is(wanted: Any) -> Check:
    # As JSON: 1 is not true there.
    return lambda given: json.dumps(given, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _whole(least: int, most: int) -> Check:
    return lambda given: type(given) is int and least <= given <= most


def _each(given: Any, check: Check) -> bool:
    return type(given) is list and all(check(one) for one in given)


def _text(given: Any) -> bool:
    return type(given) is str


def _texts(given: Any) -> bool:
    return _each(given, _text)


def _words(given: Any) -> bool:
    return type(given) is dict and all(type(each) is str for each in given.values())


def _like(pattern: str) -> Check:
    return lambda given: type(given) is str and re.fullmatch(pattern, given) is not None


_tmpfs_options = _like(r"rw,exec,nosuid,nodev,mode=1777,size=\d+")
_group = _like(r"[1-9]\d*")
_number = _like(r"\d+")
# GPUs: AMD's by their files, those of CDI by their names.
_card = _like(r"/dev/kfd|/dev/dri|nvidia\.com/gpu=[A-Za-z0-9-]+")


def _tmpfs(given: Any) -> bool:
    return type(given) is dict and list(given) == ["/tmp"] and _tmpfs_options(given["/tmp"])  # noqa: S108


def _log(given: Any) -> bool:
    if type(given) is not dict or set(given) != {"Type", "Config"} or given["Type"] != "json-file":
        return False
    config = given["Config"]
    return (
        type(config) is dict
        and set(config) == {"max-size", "max-file"}
        and all(_number(each) for each in config.values())
    )


def _mount(given: Any, folders: tuple[str, ...]) -> bool:
    if type(given) is not dict or set(given) != {"Type", "Source", "Target", "ReadOnly"}:
        return False
    source, target = given["Source"], given["Target"]
    return (
        given["Type"] == "bind"
        and given["ReadOnly"] is True
        and _plain(source)
        and _plain(target)
        and any(source == each or source.startswith(f"{each}/") for each in folders)
    )


def _plain(path: Any) -> bool:
    """Whether it is an absolute path without steps."""
    return (
        type(path) is str
        and path.startswith("/")
        and path == posixpath.normpath(path)
        and not path.startswith("//")
        and "\0" not in path
    )


def _device(given: Any) -> bool:
    if type(given) is not dict:
        return False
    path = given.get("PathOnHost")
    wanted = {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
    return _card(path) and given == wanted


def _cards(given: Any) -> bool:
    if type(given) is not dict or set(given) != {"Driver", "DeviceIDs", "Capabilities"}:
        return False
    return (
        given["Driver"] == "nvidia"
        and _texts(given["DeviceIDs"])
        and given["Capabilities"] == [["gpu"]]
    )
