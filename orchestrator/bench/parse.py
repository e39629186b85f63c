"""The small languages of the flags: durations, objectives, shared prefixes. Pure."""

from __future__ import annotations

import difflib
import re

from orchestrator.errors import ConfigError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)")
OBJECTIVES = ("ttft", "itl", "tpot", "e2e")


def parse_duration(text: str, flag: str) -> float:
    """`500ms`, `30s`, `2m`, `30` in seconds, over 0. Raises ConfigError, which names the flag."""
    found = _NUMBER.fullmatch(text.strip().lower())
    if not found or found[2] not in _UNITS:
        raise ConfigError(f"{flag} {text!r} is no duration: write 500ms, 30s, 2m or 1h")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{flag} {text!r}: longer than nothing, please")
    return seconds


def parse_slo(text: str) -> dict[str, float]:
    """`ttft=500ms,itl=50ms` as seconds by name. Raises ConfigError for a typo, with a hint."""
    objectives: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OBJECTIVES)}"
            raise ConfigError(f"--slo: no objective {name!r}; {hint}")
        if not equals:
            raise ConfigError(f"--slo: {name} needs a limit, such as {name}=500ms")
        if name in objectives:
            raise ConfigError(f"--slo: {name} is named twice")
        objectives[name] = parse_duration(value, f"--slo {name}")
    if not objectives:
        raise ConfigError("--slo is empty: write ttft=500ms,itl=50ms")
    return objectives


def parse_prefix(text: str) -> tuple[float, int | None, int]:
    """`SHARE[:TOKENS[:GROUPS]]` as (share of requests, tokens or None, different prefixes).

    `0.8` is four of five requests that share the first half of their prompt; `0.8:512` shares 512
    tokens, `1:512:4` has four prefixes in turn. Raises ConfigError.
    """
    words = text.strip().split(":")
    try:
        if len(words) > 3:
            raise ValueError
        share = float(words[0])
        tokens = int(words[1]) if len(words) > 1 else None
        groups = int(words[2]) if len(words) > 2 else 1
    except ValueError:
        raise ConfigError(
            f"--shared-prefix {text!r}: write SHARE[:TOKENS[:GROUPS]], as 0.8:512"
        ) from None
    if not 0 <= share <= 1 or (tokens is not None and tokens < 1) or groups < 1:
        raise ConfigError(f"--shared-prefix {text!r}: a share of 0 to 1, then counts of 1 or more")
    return share, tokens, groups
