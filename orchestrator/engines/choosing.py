"""What has to be installed for an engine on a machine: a requirement, or the reason against it."""

from __future__ import annotations

import sys

from pydantic import Field

from engine_launchers.base import EngineName
from engine_launchers.machine import Gpu, HardwareProfile, Vendor
from engine_launchers.value import Value
from orchestrator.engines.table import (
    EngineEntry,
    EngineTable,
    Flavour,
    FlavourName,
    Source,
    SourceFlavour,
    Version,
)
from orchestrator.errors import EngineMissing

_GIB = 2**30
_VENDORS: dict[FlavourName, Vendor] = {"cuda": "nvidia", "rocm": "amd", "metal": "apple"}
_MAKERS: dict[Vendor, str] = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}


class Compile(Value):
    """A build on the machine: `target` of the sources in `folder` of `package`.

    `define` are CMake definitions and `env` variables of the build; `needs` names the programs that
    it calls beside a C++ compiler, each with what has it. `take` are the built files that go `into`
    the environment. `wheel` are the CMake definitions under which the package itself is installed,
    as Python only; None where it is not.
    """

    package: str
    folder: str
    tools: tuple[str, ...]
    target: str
    define: dict[str, str]
    env: dict[str, str]
    needs: dict[str, str]
    take: tuple[str, ...]
    into: str
    wheel: dict[str, str] | None


class Requirement(Value):
    """What has to be in an environment of its own before an engine can start.

    `built_for` lists the instruction sets that a build on this machine uses, None where nothing is
    built; an environment made for others is made anew. `without` are packages left out although
    others ask for them, `stands_for` names and versions of distributions whose metadata is added.
    `program` is what is started, relative to the environment. `check` are argvs, with `{engine}`
    for that program and `{python}` for the environment's interpreter, that exit 0 where the
    installation works. `main` says that the flavour is the one which the machine would get unasked,
    `note` why an engine that is on PATH is not used instead.
    """

    engine: EngineName
    version: str
    flavour: FlavourName
    main: bool = True
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    stands_for: dict[str, str] = Field(default_factory=dict)
    source: Compile | None = None
    built_for: tuple[str, ...] | None = None
    program: str
    check: tuple[tuple[str, ...], ...] = ()
    disk_bytes: int = 0
    image: str | None = None
    note: str = ""

    @property
    def needs_compiler(self) -> bool:
        """Whether a C++ compiler has to be there."""
        return self.source is not None

    @property
    def needs_python(self) -> bool:
        """Whether the environment holds a Python interpreter."""
        return bool(self.packages)


def requirement(
    table: EngineTable,
    engine: EngineName,
    hardware: HardwareProfile,
    version: str | None = None,
    flavour: str | None = None,
    python: tuple[int, int] | None = sys.version_info[:2],
) -> Requirement:
    """What to install on `hardware`, the newest version in the flavour of its accelerator unasked.

    `python` is the interpreter that environments are made from, None where none is made. Raises
    EngineMissing with the reason, in one sentence: version, platform, Python, accelerator, driver,
    compute capability.
    """
    entry = table.engines.get(engine)
    if entry is None:
        known = ", ".join(table.engines)
        raise EngineMissing(f"no engine is called {engine}: this version installs {known}")
    chosen = entry.default if version is None else entry.version(version)
    if chosen is None:
        known = ", ".join(each.version for each in entry.versions)
        raise EngineMissing(f"{engine} {version} is not known: this version installs {known}")
    _check_python(engine, chosen, python)
    main = _main_flavour(chosen, hardware)
    name = main if flavour is None else _named(engine, chosen, flavour)
    if name is None:
        able = sorted({place for each in chosen.flavours.values() for place in each.platforms})
        raise EngineMissing(
            f"{engine} {chosen.version} does not run on {hardware.platform}: it needs one of "
            f"{', '.join(able)}"
        )
    if why := refusal(engine, chosen, name, hardware):
        raise EngineMissing(why)
    source = table.sources[chosen.source] if chosen.source else None
    return _requirement(entry, engine, chosen, source, name, hardware, name == main)


def refusal(
    engine: EngineName, version: Version, name: FlavourName, hardware: HardwareProfile
) -> str | None:
    """Why one flavour cannot be used on `hardware`, in one sentence; None where it can."""
    flavour = version.flavours[name]
    what = f"{engine} {version.version} ({name})"
    if hardware.platform not in flavour.platforms:
        return f"{what} does not run on {hardware.platform}, only on {', '.join(flavour.platforms)}"
    vendor = _VENDORS.get(name)
    if vendor is None:
        return None
    if why := no_card(what, name, hardware):
        return why
    cards = [gpu for gpu in hardware.gpus if gpu.vendor == vendor]
    least = flavour.minimum_capability
    if least and not any((card.compute_capability or least) >= least for card in cards):
        best = max(cards, key=lambda card: card.compute_capability or (0, 0))
        has = ".".join(map(str, best.compute_capability or ()))
        return (
            f"{what} needs compute capability {least[0]}.{least[1]}, and {best.name} has {has}: "
            "use another engine, or the cpu flavour"
        )
    return _old_driver(what, flavour, cards[0])


def no_card(what: str, name: FlavourName, hardware: HardwareProfile) -> str | None:
    """Why `what` cannot use the accelerator of its flavour: there is none; None where it can."""
    vendor = _VENDORS.get(name)
    if vendor is None or any(gpu.vendor == vendor for gpu in hardware.gpus):
        return None
    return f"{what} needs a GPU by {_MAKERS[vendor]}, and none is visible here"


def _old_driver(what: str, flavour: Flavour, card: Gpu) -> str | None:
    least = flavour.minimum_driver
    if least is None or card.driver is None:
        return None
    if numbers(card.driver) >= numbers(least):
        return None
    return (
        f"{what} needs NVIDIA driver {least}, and this machine has {card.driver}: update the "
        "driver, or use another engine or the cpu flavour"
    )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparing: `0.32.0+cpu` is (0, 32, 0)."""
    digits = "".join(c if c.isdigit() or c == "." else " " for c in version).split()
    return tuple(int(part) for part in digits[0].split(".") if part) if digits else ()


def _check_python(engine: str, version: Version, python: tuple[int, int] | None) -> None:
    if version.python is None or python is None:
        return
    first, below = (numbers(each) for each in version.python)
    if not first <= python < below:
        raise EngineMissing(
            f"{engine} {version.version} needs Python {version.python[0]} or later, below "
            f"{version.python[1]}, and Engine Room runs on {python[0]}.{python[1]}: install it "
            "under another Python"
        )


def _main_flavour(version: Version, hardware: HardwareProfile) -> FlavourName | None:
    """The first flavour of this platform whose accelerator the machine has; `cpu` needs none."""
    vendors = {gpu.vendor for gpu in hardware.gpus}
    for name, flavour in version.flavours.items():
        vendor = _VENDORS.get(name)
        if hardware.platform in flavour.platforms and (vendor is None or vendor in vendors):
            return name
    return None


def _named(engine: str, version: Version, wanted: str) -> FlavourName:
    for name in version.flavours:
        if name == wanted:
            return name
    known = ", ".join(version.flavours)
    raise EngineMissing(f"{engine} {version.version} has no flavour {wanted}: it has {known}")


def _requirement(
    entry: EngineEntry,
    engine: EngineName,
    version: Version,
    source: Source | None,
    name: FlavourName,
    hardware: HardwareProfile,
    main: bool,
) -> Requirement:
    flavour = version.flavours[name]
    lines = [*version.check, *([flavour.check] if flavour.check else [])]
    asked = [("{engine}", *version.version_argv)] if version.version_argv else []
    return Requirement(
        engine=engine,
        version=version.version,
        flavour=name,
        main=main,
        packages=(*version.requirements, *flavour.requirements),
        without=flavour.without,
        stands_for=flavour.stands_for,
        source=_compile(source, version, name, hardware) if source else None,
        built_for=hardware.isa if source else None,
        program=entry.program,
        check=(*asked, *(("{python}", "-c", line) for line in lines)),
        disk_bytes=int(flavour.disk_gib * _GIB),
        image=flavour.image,
    )


def _compile(
    source: Source, version: Version, name: FlavourName, hardware: HardwareProfile
) -> Compile:
    special = [each for each in source.processors if each.when in hardware.isa]
    more = source.flavours.get(name, SourceFlavour())
    here = {key: value for each in special for key, value in each.define.items()}
    return Compile(
        package=source.package,
        folder=source.folder,
        tools=source.tools,
        target=version.target,
        define={**source.define, **more.define, **here},
        env={key: value for each in special for key, value in each.env.items()},
        needs=more.needs,
        take=version.take,
        into=version.into,
        wheel=version.wheel,
    )
