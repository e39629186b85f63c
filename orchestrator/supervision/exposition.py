"""Values out of a Prometheus exposition text. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def values(text: str, names: Sequence[str]) -> tuple[float, ...]:
    """The sum over all labels of each series of `names`; 0 where there is none.

    Lines that are not of the format count for nothing: another program's text is no reason to fail.
    """
    sums = dict.fromkeys(names, 0.0)
    for line in text.splitlines():
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name in sums:
            try:
                sums[name] += float(line.rsplit("}", 1)[-1].split()[0 if "}" in line else 1])
            except (ValueError, IndexError):
                continue
    return tuple(sums.values())
