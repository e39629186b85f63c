"""Values out of a Prometheus exposition text. Pure.

Lines that are not of the format count for nothing: another program's text is no reason to fail, and
none to take longer than its length. Lines beyond 4 KB, which no engine says, are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

# A name begins where no name is, and nothing taken is given back: one look at each character.
_LABEL = re.compile(r'(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]*+)="((?:[^"\\]|\\.)*+)"')
_MOST_CHARACTERS = 4096  # of a line


def values(text: str, names: Sequence[str]) -> tuple[float, ...]:
    """The sum over all labels of each series of `names`; 0 where there is none."""
    sums = dict.fromkeys(names, 0.0)
    for name, _, value in _lines(text, sums):
        sums[name] += value
    return tuple(sums.values())


def rows(text: str, names: Collection[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The labels and the value of each line of the series of `names` that are there."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in _lines(text, names):
        found.setdefault(name, []).append((dict(_LABEL.findall(labels)), value))
    return found


def _lines(text: str, names: Collection[str]) -> Iterator[tuple[str, str, float]]:
    for line in text.splitlines():
        if len(line) > _MOST_CHARACTERS:
            continue
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name not in names:
            continue
        labels, ended, rest = line[len(name) :].rpartition("}")
        try:
            yield name, labels, float((rest if ended else line[len(name) :]).split()[0])
        except (ValueError, IndexError):
            continue
