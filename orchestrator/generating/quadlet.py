"""`engineroom.container`: a systemd unit of Podman 5 or later (Quadlet)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from orchestrator.errors import ConfigError
from orchestrator.generating.deployment import CACHES, DATA, MODELS, PORT, USER, Deployment

FILE = "engineroom.container"
_NO_TEXT = {"Cc", "Zl", "Zp"}  # Unicode's control characters and ends of lines
_VOLUMES = (f"engineroom-data:{DATA}", f"engineroom-models:{MODELS}")


def render(what: Deployment) -> str:
    """The text of the file. Raises ConfigError for what no unit can say."""
    sections = {
        "Unit": list(_unit(what)),
        "Container": list(_container(what)),
        "Service": list(_service(what)),
        "Install": [("WantedBy", "default.target")],
    }
    blocks = (
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in rows)
        for name, rows in sections.items()
    )
    return _head(what) + "\n".join(blocks)


def _unit(what: Deployment) -> Iterator[tuple[str, str]]:
    yield "Description", f"Engine Room serves {what.name}".replace("%", "%%")
    yield "Wants", "network-online.target"
    yield "After", "network-online.target"


def _container(what: Deployment) -> Iterator[tuple[str, str]]:
    yield "ContainerName", "engineroom"
    yield "Image", what.image
    yield "Exec", "serve --json"
    yield "Notify", "true"
    yield "User", str(USER)
    yield "Group", str(USER)
    yield "ReadOnly", "true"
    yield "NoNewPrivileges", "true"
    yield "DropCapability", "all"
    yield "PidsLimit", "4096"
    yield "ShmSize", str(what.shared_memory)
    yield "PodmanArgs", f"--memory={what.memory}"
    yield "StopTimeout", str(what.stop_s)
    yield "PublishPort", f"127.0.0.1:{PORT}:{PORT}"
    for volume in _VOLUMES:
        yield "Volume", volume
    for each in what.mounts:
        yield "Volume", _plain(f"{_path(each.source)}:{_path(each.target)}:ro")
    for card in what.gpus:
        yield "AddDevice", f"nvidia.com/gpu={card}"
    for name, value in what.variables.items():
        yield "Environment", _quoted(f"{name}={value}")


def _service(what: Deployment) -> Iterator[tuple[str, str]]:
    if what.pull:
        mounts = " ".join(f"--volume={volume}" for volume in _VOLUMES)
        kept = " ".join(f"--env={key}={_plain(what.variables[key])}" for key in CACHES)
        command = f"podman run --rm {mounts} {kept} {what.image} pull {_quoted(what.pull)}"
        yield "ExecStartPre", f"/usr/bin/{command}"
    yield "Restart", "always"
    yield "TimeoutStartSec", "infinity"
    yield "TimeoutStopSec", str(what.stop_s + 10)


def _path(path: str) -> str:
    """A path that a line with colons between its parts can say."""
    if ":" in path or "  " in path or any(part != part.strip() for part in path.split("/")):
        raise ConfigError(
            f"{path!r}: a unit cannot mount a path with a colon, with blanks at a name's end or "
            "with several in a row: give it another name, or generate compose"
        )
    return path


def _plain(text: str) -> str:
    """Without what systemd would put something else for. All of it comes to stand in a command
    line, so that $ is escaped too. Raises ConfigError for what would begin another line."""
    if any(unicodedata.category(each) in _NO_TEXT for each in text):
        raise ConfigError(f"{text!r}: a unit cannot say control characters: leave them out")
    return text.replace("%", "%%").replace("$", "$$")


def _quoted(text: str) -> str:
    escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _head(what: Deployment) -> str:
    lines = [
        f"{what.name} by {what.plan}. Made by `engineroom generate quadlet`.",
        "Into ~/.config/containers/systemd/engineroom.container, or /etc/containers/systemd.",
        "",
        *what.image_note,
    ]
    if not what.anonymous:
        data = what.variables["ENGINEROOM_DATA_DIR"]
        lines += [
            "Nobody is served without a key. Make one first; it is shown this once:",
            f"  podman run --rm -v {_VOLUMES[0]} -e ENGINEROOM_DATA_DIR={data} \\",
            f"    {what.image} keys create me",
            "More, once it runs: podman exec engineroom engineroom keys create NAME",
        ]
    lines.append("Then: systemctl --user daemon-reload && systemctl --user start engineroom")
    lines.append(f"The door: http://127.0.0.1:{PORT}")
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"
