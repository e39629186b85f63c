"""The metadata of what is installed in an environment: what it asks for, and stand-ins."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement as Asked
from packaging.utils import canonicalize_name


def site_packages(environment: Path) -> Path:
    """The environment's folder of packages. Raises FileNotFoundError where it has none."""
    for place in (
        *environment.glob("lib/python3*/site-packages"),
        environment / "Lib/site-packages",
    ):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{environment}: no folder of packages")


def rest_of(environment: Path, packages: Sequence[str], without: Sequence[str]) -> list[str]:
    """What `packages`, which are installed, ask for, less themselves and what is left out."""
    mine = [Asked(each) for each in packages]
    left_out = {canonicalize_name(each) for each in without}
    left_out |= {canonicalize_name(each.name) for each in mine}
    place = str(site_packages(environment))
    rest: list[str] = []
    for package in mine:
        (found,) = metadata.distributions(name=package.name, path=[place])
        for line in found.requires or ():
            asked = Asked(line)
            wanted = asked.marker is None or any(
                asked.marker.evaluate({"extra": extra}) for extra in ("", *package.extras)
            )
            if wanted and canonicalize_name(asked.name) not in left_out:
                asked.marker = None
                rest.append(str(asked))
    return sorted(set(rest))


def add_stand_in(environment: Path, packages: Sequence[str], name: str, version: str) -> None:
    """Give the first of `packages` a second name: its metadata, as distribution `name`.

    For programs that look themselves up under the name of the package they were built from.
    """
    place = site_packages(environment)
    (found,) = metadata.distributions(name=Asked(packages[0]).name, path=[str(place)])
    text = found.read_text("METADATA") or ""
    head, gap, body = text.partition("\n\n")
    lines = [f"Name: {name}" if line.startswith("Name:") else line for line in head.splitlines()]
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in lines]
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("\n".join(lines) + gap + body)
    (folder / "INSTALLER").write_text("engineroom\n")
    with (folder / "RECORD").open("w", newline="") as record:
        rows = csv.writer(record, lineterminator="\n")
        rows.writerows([[f"{folder.name}/{part}", "", ""] for part in ("METADATA", "INSTALLER")])
        rows.writerow([f"{folder.name}/RECORD", "", ""])
