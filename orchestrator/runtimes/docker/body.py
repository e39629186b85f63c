"""What the Docker Engine is told to create: the policy that every engine's container keeps. Pure.

No capabilities, no new privileges, a root that cannot be written, limits of memory and processes,
files of this machine for reading only, one internal network, no published port, no restarts but
ours, nothing in the environment but what the engine's command says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine_launchers.base import ExitResult
from orchestrator.errors import LaunchFailed
from orchestrator.runtimes.base import HandleRecord
from orchestrator.runtimes.docker.labels import GENERATION, INSTALLATION, NAME, PLAN
from orchestrator.runtimes.docker.mounts import Mount
from orchestrator.runtimes.shim.leaf import BLAME_S

_PROCESSES = 4096
_SHM = 8 << 30  # what ranks of one engine share; a bound, not a cost
_TMP = 4 << 30
_KILLED, _SIGNALLED, _LAST_SIGNAL = 137, 128, 192


@dataclass(frozen=True)
class Surroundings:
    """What a container is put into. `memory` is the most that it may take, bytes.

    `user` is uid and gid; `groups` own the `devices` that it is given beside its cards. `podman`
    takes cards by their CDI names.
    """

    installation: str
    network: str
    user: tuple[int, int]
    memory: int
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    log_max_bytes: int = 50 << 20
    log_files: int = 5
    podman: bool = False


def labels(record: HandleRecord, installation: str) -> dict[str, str]:
    """By which a container is found again, and whose it is."""
    container = record.spec.container
    return {
        INSTALLATION: installation,
        NAME: record.name,
        GENERATION: str(record.generation),
        PLAN: container.plan if container else "",
    }


def body(record: HandleRecord, around: Surroundings) -> dict[str, Any]:
    """The JSON of `POST /containers/create`. Raises LaunchFailed for a spec without an image."""
    spec = record.spec
    if spec.container is None:
        raise LaunchFailed(f"{record.name}: its plan names no container image")
    here = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "engineroom"}  # noqa: S108 - in there
    # An image for CUDA asks for every card, and a default runtime of NVIDIA's gives them.
    hidden = {} if spec.container.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}
    env = {**here, **hidden, **spec.env}
    return {
        "Image": spec.container.image,
        "Entrypoint": list(spec.argv[:1]),
        "Cmd": list(spec.argv[1:]),
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "User": "{}:{}".format(*around.user),
        "WorkingDir": "/tmp",  # noqa: S108 - in there
        "Labels": labels(record, around.installation),
        "Healthcheck": {"Test": ["NONE"]},  # ours asks more
        "HostConfig": _host(record, spec.container.gpus, around),
        "NetworkingConfig": {"EndpointsConfig": {around.network: {}}},
    }


def _host(record: HandleRecord, gpus: Sequence[str], around: Surroundings) -> dict[str, Any]:
    asked = record.spec.memory_max
    memory = min(asked, around.memory) if asked else around.memory
    return {
        "NetworkMode": around.network,
        "Init": True,
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={min(_TMP, memory)}"},  # noqa: S108
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "PidsLimit": _PROCESSES,
        "Memory": memory,
        "MemorySwap": memory,
        "ShmSize": min(_SHM, memory),
        "IpcMode": "private",
        "Mounts": [
            {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True}
            for source, target in around.mounts
        ],
        "LogConfig": {
            "Type": "json-file",
            "Config": {
                "max-size": str(around.log_max_bytes),
                "max-file": str(max(2, around.log_files)),
            },
        },
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "GroupAdd": [str(each) for each in around.groups],
        **_cards(gpus, around),
    }


def _cards(gpus: Sequence[str], around: Surroundings) -> dict[str, Any]:
    """Podman would ignore a request without a word, and start the engine without its cards."""
    devices = list(around.devices)
    if around.podman:
        devices += [f"nvidia.com/gpu={each}" for each in gpus]
    request = {"Driver": "nvidia", "DeviceIDs": list(gpus), "Capabilities": [["gpu"]]}
    return {
        "Devices": [
            {"PathOnHost": each, "PathInContainer": each, "CgroupPermissions": "rwm"}
            for each in devices
        ],
        "DeviceRequests": [request] if gpus and not around.podman else [],
    }


def exit_result(state: Mapping[str, Any], killed_s: float | None = None) -> ExitResult:
    """How it ended, from the `State` of a container that did.

    `killed_s` is how long before that the kernel last killed in it for memory, None where nobody
    heard of it. `OOMKilled` alone may be of a child that the engine outlived long ago: then only an
    end by KILL counts. The init in a container adds 128 to a signal's number.
    """
    code = int(state.get("ExitCode") or 0)
    flagged = code == _KILLED and bool(state.get("OOMKilled"))
    for_memory = flagged if killed_s is None else killed_s < BLAME_S
    if _SIGNALLED < code <= _LAST_SIGNAL:
        return ExitResult(signal=code - _SIGNALLED, oom_killed=for_memory)
    return ExitResult(code=code, oom_killed=for_memory)


_NO_PROGRAM = "the image has no such program: set engine_path to its own"
_CURES = (
    (
        r"could not select device driver",
        "the Docker Engine cannot give out NVIDIA GPUs: install nvidia-container-toolkit, run "
        "`nvidia-ctk runtime configure --runtime=docker`, and restart it",
    ),
    (
        r"unresolvable CDI devices",
        "the cards are not described for containers: run "
        "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
    ),
    (r"\bexec:? .*no such file or directory", _NO_PROGRAM),
    (r"executable file not found", _NO_PROGRAM),
    (r"\bexec:? .*permission denied", "the program in the image may not be run by this user"),
    (r"container-init binary not found", "Podman has no init to give it: install catatonit"),
    (r"error setting rlimit", "containers may not raise their limits on this machine"),
    (r"exec format error", "the image is made for another processor"),
    (r"No such image", "the image is not here: pull or build it, or set engine_image"),
    (r"non-overlapping IPv4", "no addresses are left for networks: `docker network prune`"),
)


def with_cure(message: str) -> str:
    """What the Docker Engine answered, with what to do about it, where that is known."""
    said = message.strip()
    cure = next((cure for sign, cure in _CURES if re.search(sign, said, re.IGNORECASE)), "")
    return f"{said} ({cure})" if cure else said
