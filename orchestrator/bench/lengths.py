"""How long prompts and answers are: fixed or drawn from a distribution. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, exp, log, pi, sqrt

from orchestrator.errors import ConfigError

_FORMS = "128, uniform:64:256, normal:MEAN:SD or lognormal:MEDIAN:SIGMA"
_LIMIT = 1_000_000


@dataclass(frozen=True)
class Length:
    """A distribution of lengths in tokens, at least 1."""

    kind: str
    a: float
    b: float = 0.0

    def sample(self, draw: Callable[[], float]) -> int:
        """One length; `draw` is uniform in [0, 1)."""
        if self.kind == "fixed":
            value = self.a
        elif self.kind == "uniform":
            value = int(self.a) + int(draw() * (int(self.b) - int(self.a) + 1))
        else:
            bell = sqrt(-2.0 * log(1.0 - draw())) * cos(2.0 * pi * draw())  # Box-Muller
            value = self.a + self.b * bell if self.kind == "normal" else self.a * exp(self.b * bell)
        return max(1, min(_LIMIT, round(value)))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.a:g}"
        return f"{self.kind}:{self.a:g}:{self.b:g}"


def parse_length(text: str, flag: str) -> Length:
    """Read `128`, `64-256`, `uniform:64:256`, `normal:128:32`, `lognormal:128:0.5`.

    Raises ConfigError, which names the flag.
    """
    words = text.strip().lower().split(":")
    if len(words) == 1 and "-" in words[0]:
        words = ["uniform", *words[0].split("-")]
    try:
        if len(words) == 1:
            made = Length("fixed", float(int(words[0])))
        else:
            kind, a, b = words
            made = Length(kind, float(a), float(b))
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is no length: write {_FORMS}") from None
    if made.kind not in ("fixed", "uniform", "normal", "lognormal"):
        raise ConfigError(f"{flag} {text!r}: no distribution {made.kind!r}; write {_FORMS}")
    # Written so that a NaN fails too.
    if not (1 <= made.a <= _LIMIT and 0 <= made.b <= _LIMIT):
        raise ConfigError(f"{flag} {text!r}: from 1 to {_LIMIT} tokens, and no negative width")
    if made.kind == "uniform" and made.b < made.a:
        raise ConfigError(f"{flag} {text!r}: the second number is the larger one")
    return made
