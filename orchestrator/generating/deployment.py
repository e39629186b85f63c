"""What of a plan matters to whoever starts the container: image, settings, devices, memory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from engine_launchers.base import EnginePlan
from orchestrator import __version__
from orchestrator.errors import ConfigError
from orchestrator.settings import PREFIX, Settings

# No registry has it: whoever runs what is made here builds it, or names another.
IMAGE = f"engineroom/all-in-one:{__version__}"
PORT = 8001
USER = 65532
DATA = "/var/lib/engineroom"
MODELS = "/models"
LOCAL = "/local"

# Flags of `generate` that are settings of the server too, handed on as they were given.
HANDED_ON = (
    "users", "goal", "threads", "quantization", "gpu_memory_utilization", "gpu_layers",
    "engine_args",
)  # fmt: skip
_IN_THE_IMAGE = ("llama_server",)
_CACHED = re.compile(
    r".*/models--(?P<owner>.+?)--(?P<name>[^/]+)/snapshots/[^/]+(/(?P<file>.+))?"
)  # as the hub's library lays out its cache
_GIB = 1 << 30
_STEP = 256 << 20
_OURS = _GIB  # supervisor and gateway, and what a build or a download takes
_PER_GPU = 4 * _GIB  # an engine's own processes beside the weights that it has on the card


@dataclass(frozen=True)
class Deployment:
    """One container that serves one model.

    `pull` is the model's address on a hub, `file` its place on the machine of whoever asked; both
    None for one that the image has. `gpus` are indices of that machine's. Sizes in bytes.
    `variables` are the container's, without secrets.
    """

    name: str
    plan: str
    image: str
    pull: str | None
    file: str | None
    gpus: tuple[int, ...]
    memory: int
    shared_memory: int
    processors: int
    variables: Mapping[str, str]
    anonymous: bool
    drain_s: int
    grace_s: int

    @property
    def stop_s(self) -> int:
        """How long a stop may take."""
        return self.drain_s + self.grace_s + 10

    @property
    def image_note(self) -> tuple[str, ...]:
        """What a file's first lines say of the image, where none was named."""
        if self.image != IMAGE:
            return ()
        return (
            f"The image {IMAGE} is published nowhere: build it yourself first,",
            "or name yours with --image.",
        )


def deployment_of(
    plan: EnginePlan, settings: Settings, bundled: str, image: str | None, anonymous: bool
) -> Deployment:
    """What runs `plan` in a container. `bundled` is the folder of the models that the image has.

    Raises ConfigError for a plan that the image cannot run.
    """
    if plan.gpus and plan.engine in ("llama_server", "llama_cpp") and image is None:
        raise ConfigError(
            f"{plan.id}: llama.cpp of {IMAGE} computes on processors, and this plan has GPUs: "
            "choose --engine vllm, give --force-cpu, or name an --image that can"
        )
    source = plan.model.source
    pull, file = _address(source), None
    if pull is None and not source.startswith(bundled.rstrip("/") + "/"):
        file = source
    shared = _GIB * max(1, len(plan.gpus))
    ram = sum(part.total for part in plan.estimate if part.device == "ram")
    memory = ram + ram // 8 + _OURS + shared + _PER_GPU * len(plan.gpus)
    return Deployment(
        name=plan.model.id,
        plan=plan.id,
        image=image or IMAGE,
        pull=pull,
        file=file,
        gpus=plan.gpus,
        memory=-(-memory // _STEP) * _STEP,
        shared_memory=shared,
        processors=plan.tuning.threads or 4,
        variables=_variables(plan, settings, file, anonymous),
        anonymous=anonymous,
        drain_s=int(settings.drain_s),
        grace_s=int(settings.stop_grace_s),
    )


def _address(source: str) -> str | None:
    """`owner/name[/file]` of what lies on a hub, or came from one; None for anything else."""
    if source.startswith("hf://"):
        return source.removeprefix("hf://")
    if found := _CACHED.fullmatch(source):
        return "/".join(part for part in found.group("owner", "name", "file") if part)
    return None


def _variables(
    plan: EnginePlan, settings: Settings, file: str | None, anonymous: bool
) -> dict[str, str]:
    """The settings that make the server over there plan what was planned here."""
    said = {
        "BASE_MODEL": f"{LOCAL}/{file.rsplit('/', 1)[-1]}" if file else settings.model,
        "FORCE_BACKEND": plan.engine,
        f"{PREFIX}CONTEXT": str(plan.tuning.max_model_len),
        f"{PREFIX}NAME": plan.model.id,
    }
    if (cards := plan.tuning.tensor_parallel or 1) > 1:
        said["TENSOR_PARALLEL_SIZE"] = str(cards)
    if not plan.gpus:
        said[f"{PREFIX}FORCE_CPU"] = "true"
    if plan.engine not in _IN_THE_IMAGE:  # it is installed into the data volume, once
        said[f"{PREFIX}INSTALL_MISSING"] = "true"
    for field in HANDED_ON:
        if field in settings.model_fields_set and (value := getattr(settings, field)):
            text = shlex.join(value) if isinstance(value, tuple) else str(value)
            said[PREFIX + field.upper()] = text
    if anonymous:
        said["ALLOW_ANONYMOUS"] = "1"
    # The door is published on loopback, or behind a service; inside, everybody has to reach it.
    places = {"HOST": "0.0.0.0", "PORT": str(PORT), f"{PREFIX}DATA_DIR": f"{DATA}/data"}  # noqa: S104
    caches = {"HOME": DATA, "HF_HOME": f"{MODELS}/huggingface", "XDG_CACHE_HOME": f"{DATA}/cache"}
    return {**said, **places, **caches, "XDG_RUNTIME_DIR": "/tmp"}  # noqa: S108 - of the container
