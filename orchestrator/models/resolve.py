"""From what a person typed to the artefacts it stands for.

In this order: `demo`; a path of a GGUF file or of a folder of safetensors; a name of the catalog; a
repository on a hub, which is read from the hub's cache, or else from the hub itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from engine_launchers.model import ModelSpec
from engine_launchers.precision import satisfies
from orchestrator.errors import ConfigError, ModelInvalid, PullFailed
from orchestrator.models.catalog import Artefact, Catalog, Match
from orchestrator.models.config_json import spec_from_config
from orchestrator.models.folder import folder_spec
from orchestrator.models.gguf_spec import model_spec, part_names
from orchestrator.models.hub import Hub
from orchestrator.models.names import choose, model_name, near
from orchestrator.models.safetensors import read_json
from orchestrator.resources import config_path

DEMO = "demo"
_LONGEST_NAME = 1024
_DEMO_FILES = {"Q4_K_M": "demo.Q4_K_M.gguf", "F16": "demo.F16.gguf"}
_ADDRESS = re.compile(
    r"(?:hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>\w[\w./-]*\.gguf))?"
)


@dataclass(frozen=True)
class Resolved:
    """The artefacts that a name stands for, best known first.

    `pinned`: the name asked for just these; `others` are then the logical model's further ones.
    """

    name: str
    variants: tuple[ModelSpec, ...]
    pinned: bool
    others: tuple[ModelSpec, ...] = ()


def renamed(found: Resolved, name: str) -> Resolved:
    """The same artefacts, called `name` by clients."""
    variants = tuple(each.model_copy(update={"id": name}) for each in found.variants)
    return replace(found, name=name, variants=variants)


def is_path(name: str) -> bool:
    """Whether `name` stands for a file or folder of this machine."""
    return name != DEMO and len(name) <= _LONGEST_NAME and Path(name).expanduser().exists()


def is_address(name: str) -> bool:
    """Whether `name` has the form of what lies on a hub: owner/name or owner/name/file.gguf."""
    address = _ADDRESS.fullmatch(name)
    return address is not None and not (name.endswith(".gguf") and not address["file"])


def load_catalog() -> Catalog:
    """The catalog that ships with this version. Raises ConfigError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with config_path("models.yaml").open() as file:
        return Catalog.load(yaml.load(file, Loader=loader))  # noqa: S506 - a safe loader


def resolve(
    name: str,
    demo: Path,
    quantization: str | None = None,
    *,
    catalog: Callable[[], Catalog] = load_catalog,
    hub: Callable[[], Hub] = Hub.from_env,
) -> Resolved:
    """Find what `name` stands for.

    `demo` is the folder of the built-in model. `quantization` is 4bit, 8bit, none, a precision's
    name, or None for all there are. `catalog` and `hub` are made only when they are needed. Raises
    ModelInvalid where there is no such model or it cannot be read, ConfigError where it does not
    exist in the wanted quantization, PullFailed where the hub would know but cannot be asked.
    """
    if name == DEMO:
        ggufs = [model_spec(demo / each, DEMO) for each in _DEMO_FILES.values()]
        found = choose(name, (*ggufs, folder_spec(demo, DEMO)), quantization)
        return Resolved(DEMO, found, pinned=False)
    path = Path(name).expanduser()
    if len(name) > _LONGEST_NAME:
        raise ModelInvalid(f"model {name[:40]!r}...: longer than any name or path")
    if path.exists():
        return _local(path, quantization)
    shelf = catalog()
    match = shelf.find(name)
    if match:
        return _from_catalog(shelf, match, quantization, hub())
    address = _ADDRESS.fullmatch(name)
    if address and is_address(name):
        spec = _from_hub(address["repository"], address["file"], hub(), shelf)
        return Resolved(spec.id, choose(name, (spec,), quantization), pinned=True)
    raise ModelInvalid(_unknown(name, shelf))


def _local(path: Path, quantization: str | None) -> Resolved:
    if path.is_dir():
        spec = folder_spec(path, model_name(path.resolve().name))
    elif path.is_file():
        spec = model_spec(path, model_name(path.name))
    else:
        raise ModelInvalid(f"{path}: not a regular file; give a GGUF file or a model's folder")
    if not satisfies(spec.quantization, quantization):
        raise ConfigError(
            f"quantization {quantization} was asked for but {path.name} is {spec.quantization}: "
            "leave it unset, or give a model of that quantization"
        )
    return Resolved(spec.id, (spec,), pinned=True)


def _from_catalog(shelf: Catalog, match: Match, quantization: str | None, hub: Hub) -> Resolved:
    specs = (_placed(shelf, each, hub) for each in match.artefacts)
    found = choose(match.model, specs, quantization)
    others: tuple[ModelSpec, ...] = ()
    whole = shelf.find(match.model)
    if match.pinned and whole:
        rest = (each for each in whole.artefacts if each not in match.artefacts)
        others = tuple(_placed(shelf, each, hub) for each in rest)
    return Resolved(match.model, found, match.pinned, others)


def _placed(shelf: Catalog, artefact: Artefact, hub: Hub) -> ModelSpec:
    """The artefact as it lies here, else as the catalog knows it."""
    if artefact.file:
        files = [hub.local_file(artefact.source, name) for name in part_names(artefact.file)]
        first = files[0] if all(files) else None
        return model_spec(first, artefact.model) if first else shelf.spec(artefact)
    folder = hub.local_folder(artefact.source)
    if folder is None:
        return shelf.spec(artefact)
    found = folder_spec(folder, artefact.model, artefact.source)
    return found.model_copy(update={"quantization": artefact.quantization})


def _from_hub(repository: str, file: str | None, hub: Hub, shelf: Catalog) -> ModelSpec:
    model_id = model_name((file or repository).rsplit("/", 1)[-1])
    if file:
        local = hub.local_file(repository, file)
        if local is None:
            raise ModelInvalid(
                f"{repository}/{file} is not in {hub.cache}: fetch it with `engineroom pull "
                f"{repository}/{file}`"
            )
        return model_spec(local, model_id)
    folder = hub.local_folder(repository)
    if folder:
        return folder_spec(folder, model_id, repository)
    try:
        return _described(repository, model_id, hub)
    except PullFailed as error:
        raise PullFailed(
            f"{error.message} (it is neither in {hub.cache} nor in the catalog"
            f"{near(repository.split('/')[1], shelf.names())})"
        ) from error


def _described(repository: str, model_id: str, hub: Hub) -> ModelSpec:
    """What the hub tells without its weights: config.json, and the sizes of the files."""
    listing = hub.listing(repository)
    names = {each.name: each for each in listing.files}
    if "config.json" not in names:
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = f": name a file, e.g. {repository}/{ggufs[0]}" if ggufs else ""
        raise ModelInvalid(f"{repository}: it has no config.json{hint}")
    config = read_json(hub.small_file(listing, "config.json"))
    size = sum(each.size for each in listing.weights)
    if not size:
        raise ModelInvalid(f"{repository}: it has no safetensors; name a model that has")
    spec = spec_from_config(
        config, model_id=repository, source=f"hf://{repository}", weight_bytes=size
    )
    return spec.model_copy(update={"id": model_id})


def _unknown(name: str, shelf: Catalog) -> str:
    if name.endswith(".gguf") or name.startswith((".", "/", "~")):
        return f"model {name!r}: no such file; give the path of a GGUF file or of a model's folder"
    known = near(name, shelf.names())
    return (
        f"model {name!r}: no such file, and no name of the catalog{known or ';'} give `demo`, a "
        "path, a name of the catalog or owner/name of a hub"
    )
