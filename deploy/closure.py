"""`closure.py SOURCE TARGET MODULE...` copies those modules of ours that MODULEs import.

An import counts wherever it stands in a file. What is not Python is left behind.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("orchestrator", "engine_launchers")


def modules(source: Path) -> dict[str, Path]:
    """Every module below `source`, packages by their own name."""
    files = [file for package in PACKAGES for file in sorted((source / package).rglob("*.py"))]
    names = {".".join(file.relative_to(source).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def closure(known: dict[str, Path], roots: Iterable[str]) -> tuple[set[str], set[str]]:
    """The modules of `known` that `roots` need, and the names of the others that they import."""
    wanted: set[str] = set()
    foreign: set[str] = set()
    left = list(roots)
    while left:
        name = left.pop()
        if name in wanted:
            continue
        wanted.add(name)
        parts = name.split(".")
        named = _imports(known[name]) | {".".join(parts[:i]) for i in range(1, len(parts))}
        left += [each for each in named if each in known]
        foreign |= {each.split(".")[0] for each in named if each.split(".")[0] not in PACKAGES}
    return wanted, foreign


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def main() -> None:
    """See the module."""
    source, target, *roots = sys.argv[1:]
    known = modules(Path(source))
    for name in sorted(closure(known, roots)[0]):
        file = known[name]
        copy = Path(target) / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


if __name__ == "__main__":
    main()
