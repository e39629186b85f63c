"""Prompts of a wanted length, alike only where they shall be. Pure.

They are made of plain words. How many tokens a word is depends on the model: a trial request finds
out (`words_per_token`), and the report says what the server counted.
"""

from __future__ import annotations

from collections.abc import Callable

_TEXT = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "number night point home water room mother area money story fact month lot right study "
    "book eye job word business issue side kind head house service friend father power hour "
    "game line end member law car city name president team minute idea body back parent face "
    "level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force order paper space ground form event matter "
    "center couple site project tree street table plan "
)
_WORDS = tuple(_TEXT.split())


def words(count: int, draw: Callable[[], float]) -> list[str]:
    """So many words by chance; `draw` is uniform in [0, 1)."""
    return [_WORDS[int(draw() * len(_WORDS))] for _ in range(count)]


def word_count(tokens: int, words_per_token: float) -> int:
    """Words for so many tokens, at least one."""
    return max(1, round(tokens * words_per_token))


def shared_tokens(tokens: int, prefix_tokens: int | None) -> int:
    """How much of a prompt is its prefix: half, or what was asked; one token is its own."""
    wanted = tokens // 2 if prefix_tokens is None else prefix_tokens
    return max(0, min(wanted, tokens - 1))
