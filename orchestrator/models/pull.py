"""Fetches a model from a hub into its cache: what serving needs and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine_launchers.model import ModelSpec
from orchestrator.errors import ModelInvalid, PullFailed
from orchestrator.models.download import fetch
from orchestrator.models.gguf_spec import part_names
from orchestrator.models.hub import Hub, Listing, RemoteFile

_PLAIN_HTTP_LIMIT = 50_000_000_000  # hubs send larger files by their own protocol only
_SPARE = 1 << 30  # left on the disk
_WORDS = (".json", ".jinja", ".model", ".txt", ".tiktoken")


@dataclass(frozen=True)
class Progress:
    """How far a pull is: bytes of the whole, the file under way."""

    done: int
    total: int
    file: str


@dataclass(frozen=True)
class Pulled:
    """What a pull left: the path to serve, its files' bytes, how many of them came just now."""

    address: str
    path: Path
    size: int
    fetched: int


def pull(
    what: ModelSpec | str, hub: Hub, report: Callable[[Progress], None] = lambda _: None
) -> Pulled:
    """Fetch `what`, a spec whose source is on a hub, or owner/name[/file].

    Interrupted, it goes on where it was. Raises PullFailed, or ModelInvalid where there is no such
    model.
    """
    address = (what.source if isinstance(what, ModelSpec) else what).removeprefix("hf://")
    repository, file = split_address(address)
    hub.must_be_online(address)
    listing = hub.listing(repository)
    wanted = _wanted(listing, file)
    missing = [each for each in wanted if hub_blob(hub, listing, each) is None]
    need = sum(each.size for each in missing)
    _room(hub, need, address)
    total, done = sum(each.size for each in wanted), 0
    first: Path | None = None
    for each in wanted:
        path = _get(hub, listing, each, _counter(report, done, total, each.name))
        done += each.size
        report(Progress(done, total, each.name))
        if first is None or each.name in (file, "config.json"):
            first = path
    if first is None:
        raise ModelInvalid(f"{address}: it has no files")
    folder = first if file else first.parent
    _remember(hub, listing)
    return Pulled(address, folder, total, need)


def _counter(
    report: Callable[[Progress], None], before: int, total: int, name: str
) -> Callable[[int], None]:
    """A report on one file, as a report on the whole."""
    return lambda here: report(Progress(before + here, total, name))


def split_address(address: str) -> tuple[str, str | None]:
    """owner/name[/file] in its two parts. Raises ModelInvalid."""
    parts = address.split("/", 2)
    if len(parts) < 2 or not all(parts) or ".." in address:
        raise ModelInvalid(f"{address!r} is not of the form owner/name or owner/name/file.gguf")
    return f"{parts[0]}/{parts[1]}", parts[2] if len(parts) == 3 else None


def hub_blob(hub: Hub, listing: Listing, file: RemoteFile) -> Path | None:
    """The content of `file` where the cache has it."""
    blob = hub.repository_dir(listing.repository) / "blobs" / (file.sha256 or "-")
    snapshot = hub.repository_dir(listing.repository) / "snapshots" / listing.commit / file.name
    return blob if blob.is_file() else snapshot if snapshot.is_file() else None


def _wanted(listing: Listing, file: str | None) -> list[RemoteFile]:
    every = {each.name: each for each in listing.files}
    if file:
        names = part_names(file)
        lost = [name for name in names if name not in every]
        if lost:
            raise ModelInvalid(_no_file(listing, lost[0]))
        return [every[name] for name in names]
    if "config.json" not in every:
        ggufs = [name for name in every if name.endswith(".gguf")]
        if ggufs:
            raise ModelInvalid(
                f"{listing.repository} is a collection of GGUF files: name one, e.g. "
                f"{listing.repository}/{ggufs[0]}"
            )
        raise ModelInvalid(f"{listing.repository}: not a language model: it has no config.json")
    top = [each for name, each in every.items() if "/" not in name]
    if not listing.weights:
        raise ModelInvalid(f"{listing.repository}: it has no safetensors; name another variant")
    words = [each for each in top if each.name.endswith(_WORDS) and each.size < 1 << 28]
    return [*sorted(words, key=lambda each: each.name), *listing.weights]


def _no_file(listing: Listing, name: str) -> str:
    ggufs = [each.name for each in listing.files if each.name.endswith(".gguf")][:8]
    have = f"; it has {', '.join(ggufs)}" if ggufs else ""
    return f"{listing.repository} has no file {name}{have}"


def _room(hub: Hub, need: int, address: str) -> None:
    place = hub.cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need and free < need + _SPARE:
        raise PullFailed(
            f"{address} needs {need / 2**30:.1f} GiB and 1 GiB to spare, but {hub.cache} has "
            f"{free / 2**30:.1f} GiB free: make room, or set HF_HOME to another disk"
        )


def _get(hub: Hub, listing: Listing, file: RemoteFile, report: Callable[[int], None]) -> Path:
    if file.sha256 and file.size < _PLAIN_HTTP_LIMIT and hub_blob(hub, listing, file) is None:
        goal = hub.repository_dir(listing.repository) / "blobs" / file.sha256
        url = f"{hub.endpoint}/{listing.repository}/resolve/{listing.commit}/{file.name}"
        fetch(url, goal, file.size, file.sha256, hub.token, report)
    return hub.small_file(listing, file.name)


def _remember(hub: Hub, listing: Listing) -> None:
    """Let `main` name this commit, so that it is found again without the network."""
    ref = hub.repository_dir(listing.repository) / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(listing.commit)
