"""What of a plan matters to whoever starts the container: image, settings, devices, memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from engine_launchers.base import EnginePlan
from orchestrator import __version__
from orchestrator.errors import ConfigError
from orchestrator.generating.asked import handed_on, image_of, refuse_left_out
from orchestrator.models.gguf_spec import part_names
from orchestrator.models.resolve import is_address
from orchestrator.settings import PREFIX, Settings

# No registry has it: whoever runs what is made here builds it, or names another.
IMAGE = f"localhost/engineroom/all-in-one:{__version__}"
PORT = 8001
USER = 65532
DATA = "/var/lib/engineroom"
MODELS = "/models"
LOCAL = "/local"
CACHES = ("HOME", "HF_HOME", "XDG_CACHE_HOME")  # variables that a pull needs

_IN_THE_IMAGE = ("llama_server",)
_CACHED = re.compile(
    r".*/models--(?P<owner>.+?)--(?P<name>[^/]+)/snapshots/[^/]+(/(?P<file>.+))?"
)  # as the hub's library lays out its cache
_GIB = 1 << 30
_STEP = 256 << 20
_OURS = _GIB  # supervisor and gateway, and what a build or a download takes
_PER_GPU = 4 * _GIB  # an engine's own processes beside the weights that it has on the card


@dataclass(frozen=True)
class Mount:
    """A file or folder of the machine of whoever asked, and where the container reads it."""

    source: str
    target: str


@dataclass(frozen=True)
class Deployment:
    """One container that serves one model.

    `pull` is the model's address on a hub. `mounts` are what lies on the machine of whoever asked:
    the model's files, if it is one of them, and its adapters. `gpus` are indices of that machine's.
    Sizes in bytes. `variables` are the container's, without secrets.
    """

    name: str
    plan: str
    image: str
    pull: str | None
    mounts: tuple[Mount, ...]
    gpus: tuple[int, ...]
    memory: int
    shared_memory: int
    processors: int
    variables: Mapping[str, str]
    anonymous: bool
    stop_s: int

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
    plan: EnginePlan,
    settings: Settings,
    bundled: str,
    image: str | None,
    anonymous: bool,
    local: bool = False,
) -> Deployment:
    """What runs `plan` in a container. `bundled` is the folder of the models that the image has,
    `local` whether settings.model is a path of this machine.

    Raises ConfigError for a plan that the image cannot run, and for what no file can hand on.
    """
    if plan.gpus and plan.engine in ("llama_server", "llama_cpp") and image is None:
        raise ConfigError(
            f"{plan.id}: llama.cpp of {IMAGE} computes on processors, and this plan has GPUs: "
            "choose --engine vllm, give --force-cpu, or name an --image that can"
        )
    refuse_left_out(settings)
    source = plan.model.source
    pull = _address(source)
    model: tuple[Mount, ...] = ()
    if pull is None and (local or not f"{source}/".startswith(bundled.rstrip("/") + "/")):
        model = _model_mounts(plan)
    adapters = _adapter_mounts(plan)
    base = model[0].target if model else pull if pull and local else settings.model
    shared = _GIB * max(1, len(plan.gpus))
    ram = sum(part.total for part in plan.estimate if part.device == "ram")
    memory = ram + ram // 8 + _OURS + shared + _PER_GPU * len(plan.gpus)
    return Deployment(
        name=plan.model.id,
        plan=plan.id,
        image=IMAGE if image is None else image_of(image),
        pull=pull,
        mounts=(*model, *adapters.values()),
        gpus=plan.gpus,
        memory=-(-memory // _STEP) * _STEP,
        shared_memory=shared,
        processors=plan.tuning.threads or 4,
        variables=_variables(plan, settings, base, adapters, anonymous),
        anonymous=anonymous,
        stop_s=math.ceil(settings.drain_s + settings.stop_grace_s) + 10,
    )


def _address(source: str) -> str | None:
    """`owner/name[/file]` of what lies on a hub, or came from one; None for anything else."""
    if source.startswith("hf://"):
        return source.removeprefix("hf://")
    if found := _CACHED.fullmatch(source):
        address = "/".join(part for part in found.group("owner", "name", "file") if part)
        return address if is_address(address) else None
    return None


def _model_mounts(plan: EnginePlan) -> tuple[Mount, ...]:
    """Every file of the model, or its folder; the first one is what the server is told."""
    folder, _, name = plan.model.source.rpartition("/")
    if plan.model.format != "gguf":
        _refuse_links(plan.model.source)
        return (Mount(plan.model.source, f"{LOCAL}/{name}"),)
    return tuple(Mount(f"{folder}/{each}", f"{LOCAL}/{each}") for each in part_names(name))


def _adapter_mounts(plan: EnginePlan) -> dict[str, Mount]:
    """The adapters' places by name; that of ADAPTER_PATH keeps its file's, which names it."""
    found: dict[str, Mount] = {}
    for number, each in enumerate(plan.model.adapters):
        if each.format != "gguf":
            _refuse_links(each.path)
        own = f"/{each.path.rpartition('/')[2]}" if each.always else ""
        found[each.name] = Mount(each.path, f"{LOCAL}/adapters/{number}{own}")
    return found


def _refuse_links(folder: str) -> None:
    """Raise ConfigError for a folder of the hub's cache: its files are links that lead out of it,
    and a container that has the folder alone cannot follow them."""
    if _CACHED.fullmatch(folder):
        raise ConfigError(
            f"{folder} has only links to files elsewhere in the hub's cache: copy it with cp -rL, "
            "and give the copy"
        )


def _variables(
    plan: EnginePlan,
    settings: Settings,
    base: str,
    adapters: Mapping[str, Mount],
    anonymous: bool,
) -> dict[str, str]:
    """The settings that make the server over there plan what was planned here."""
    said = {
        "BASE_MODEL": base,
        "FORCE_BACKEND": plan.engine,
        f"{PREFIX}CONTEXT": str(plan.tuning.max_model_len),
        f"{PREFIX}NAME": settings.name or plan.model.id,
    }
    if (cards := plan.tuning.tensor_parallel or 1) > 1 or settings.tensor_parallel_size:
        said["TENSOR_PARALLEL_SIZE"] = str(cards)
    if not plan.gpus:
        said[f"{PREFIX}FORCE_CPU"] = "true"
    if plan.engine not in _IN_THE_IMAGE:  # it is installed into the data volume, once
        said[f"{PREFIX}INSTALL_MISSING"] = "true"
    said |= handed_on(settings)
    behind = [each.name for each in plan.model.adapters if each.always]
    if behind:
        said["ADAPTER_PATH"] = adapters[behind[0]].target
    if beside := [each for each in adapters if each not in behind]:
        said[f"{PREFIX}ADAPTERS"] = ",".join(f"{x}={adapters[x].target}" for x in beside)
    if anonymous:
        said["ALLOW_ANONYMOUS"] = "1"
    # The door is published on loopback, or behind a service; inside, everybody has to reach it.
    places = {"HOST": "0.0.0.0", "PORT": str(PORT), f"{PREFIX}DATA_DIR": f"{DATA}/data"}  # noqa: S104
    caches = {"HOME": DATA, "HF_HOME": f"{MODELS}/huggingface", "XDG_CACHE_HOME": f"{DATA}/cache"}
    return {**said, **places, **caches, "XDG_RUNTIME_DIR": "/tmp"}  # noqa: S108 - of the container
