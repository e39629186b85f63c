"""Plots as inline SVG: bars, lines and intervals. Pure; colours come from the page's style.

Classes: `s0`, `s1` are the series, `axis` the frame, `tick` and `name` texts, `mark` percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 22, 44
_PLOT_W, _PLOT_H = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


def seconds(value: float) -> str:
    """A time for people: 12.3 ms, 1.23 s."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s"


def time_ticks(ticks: Sequence[float]) -> list[str]:
    """Labels of neighbouring times, in one unit where they span little, as precise as they need."""
    if len(ticks) < 2 or ticks[-1] > 100 * max(ticks[0], 1e-9) > 1e-7:
        return [seconds(tick) for tick in ticks]
    scale, unit = next(
        (each for each in ((1.0, "s"), (1e3, "ms")) if ticks[-1] * each[0] >= 1), (1e6, "µs")
    )
    step = min(b - a for a, b in pairwise(ticks)) * scale
    places = max(0, -floor(log10(step) + 1e-9))
    return [f"{tick * scale:.{places}f} {unit}" for tick in ticks]


def number(value: float) -> str:
    """A number for people: 1,234 or 12.3."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them, growing."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    base = 10.0 ** floor(log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw)
    first = ceil(low / step - 1e-9)
    return [tick * step for tick in range(first, floor(high / step + 1e-9) + 1)]


def histogram_plot(
    title: str, series: Sequence[tuple[str, Sequence[float], Sequence[int], dict[str, float]]]
) -> str:
    """Bars over bins of time, one series behind the other.

    A series is (name, edges in seconds, counts, percentiles to mark by name). Areas are shares of
    a series, so that two with bins of their own compare; one alone shows its share per bin. The
    axis is linear, or by logarithm where a series' bins grow.
    """
    edges = [edge for _, some, _, _ in series for edge in some]
    low, high = min(edges), max(edges)
    growing = any(_grows(some) for _, some, _, _ in series) and low > 0
    place = _log_scale(low, high) if growing else _linear_scale(low, high)
    bars = []  # (series, x, width, height before scaling, tip)
    for index, (name, some, counts, _) in enumerate(series):
        for (a, b), count in zip(pairwise(some), counts, strict=True):
            share, width = count / max(1, sum(counts)), max(1.0, place(b) - place(a))
            tip = f"{name}: {seconds(a)} to {seconds(b)}: {count} ({share:.1%})"
            if count:
                tall = share if len(series) == 1 else share / width
                bars.append((index, place(a), width, tall, tip.removeprefix(": ")))
    top = max((tall for _, _, _, tall, _ in bars), default=0) or 1
    parts = [
        f'<rect class="s{index}" x="{x:.1f}" y="{_TOP + _PLOT_H * (1 - tall / top):.1f}" '
        f'width="{max(1.0, width - 0.6):.1f}" height="{_PLOT_H * tall / top:.1f}">'
        f"<title>{escape(tip)}</title></rect>"
        for index, x, width, tall, tip in bars
    ]
    for index, (_, _, _, marks) in enumerate(series):
        for label, value in marks.items():
            x = place(min(max(value, low), high))
            parts.append(
                f'<line class="mark m{index}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" '
                f'y2="{_TOP + _PLOT_H}"><title>{escape(label)} {seconds(value)}</title></line>'
            )
            if len(series) == 1:
                parts.append(
                    f'<text class="tick" x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">'
                    f"{escape(label)}</text>"
                )
    ticks = _log_ticks(low, high) if growing else nice_ticks(low, high)
    labels = [seconds(tick) for tick in ticks] if growing else time_ticks(ticks)
    parts += [_tick_x(place(tick), label) for tick, label in zip(ticks, labels, strict=True)]
    if len(series) == 1:
        parts += [_tick_y(share, top, f"{share:.0%}") for share in nice_ticks(0, top, 3)]
    told = [
        f'<span class="t{index}">{escape(f"{name}: " if name else "")}'
        + escape(", ".join(f"{label} {seconds(value)}" for label, value in marks.items()))
        + "</span>"
        for index, (name, _, _, marks) in enumerate(series)
    ]
    return _svg(title, "", parts, told=" ".join(told))


def line_plot(
    title: str, x_name: str, step: float, series: Sequence[tuple[str, Sequence[float]]]
) -> str:
    """Lines over time; each value stands for `step` seconds, the first begins at 0."""
    length = max((len(values) for _, values in series), default=0)
    top = max((max(values, default=0) for _, values in series), default=0) or 1
    place = _linear_scale(0, step * max(1, length))
    parts = []
    for index, (name, values) in enumerate(series):
        points = " ".join(
            f"{place((i + 0.5) * step):.1f},{_TOP + _PLOT_H * (1 - value / top):.1f}"
            for i, value in enumerate(values)
        )
        tip = escape(name or title)
        parts.append(
            f'<polyline class="line l{index}" points="{points}"><title>{tip}</title></polyline>'
        )
    ticks = nice_ticks(0, step * max(1, length), 6)
    parts += [_tick_x(place(tick), f"{tick:g}") for tick in ticks]
    parts += [_tick_y(value, top, number(value)) for value in nice_ticks(0, top, 4)]
    return _svg(title, x_name, parts)


def ratio_plot(title: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """One row per figure: the range of the rounds' ratios, and their median; a line stands at 1."""
    values = [value for _, *three in rows for value in three]
    low, high = min(0.9, *values), max(1.1, *values)
    left, height = 130, 26 * len(rows) + 44
    width = _WIDTH - left - _RIGHT - 50

    def place(value: float) -> float:
        return left + width * (value - low) / (high - low)

    base = height - 30
    parts = [f'<line class="mark" x1="{place(1):.1f}" x2="{place(1):.1f}" y1="18" y2="{base}"/>']
    for index, (name, least, mid, most) in enumerate(rows):
        y = 30 + 26 * index
        parts.append(
            f'<text class="name" x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line class="range" x1="{place(least):.1f}" x2="{place(most):.1f}" y1="{y}" y2="{y}">'
            f"<title>{escape(name)}: {least:.3f} to {most:.3f}</title></line>"
            f'<circle class="dot" cx="{place(mid):.1f}" cy="{y}" r="4.5"/>'
            f'<text class="tick" x="{_WIDTH - 8}" y="{y + 4}" text-anchor="end">{mid:.3f}</text>'
        )
    for tick in nice_ticks(low, high, 6):
        parts.append(
            f'<text class="tick" x="{place(tick):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    return _svg(title, "", parts, height)


def _grows(edges: Sequence[float]) -> bool:
    return len(edges) > 3 and edges[-1] - edges[-2] > 1.5 * (edges[1] - edges[0])


class _Scale:
    def __init__(self, low: float, high: float, log: bool) -> None:
        self._low, self._log = (log10(low) if log else low), log
        self._span = ((log10(high) if log else high) - self._low) or 1.0

    def __call__(self, value: float) -> float:
        at = log10(value) if self._log else value
        return _LEFT + _PLOT_W * (at - self._low) / self._span


def _linear_scale(low: float, high: float) -> _Scale:
    return _Scale(low, high, log=False)


def _log_scale(low: float, high: float) -> _Scale:
    return _Scale(low, high, log=True)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or 1 only where there are many."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 5 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _tick_x(x: float, label: str) -> str:
    y = _TOP + _PLOT_H
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>'
        f'<text class="tick" x="{x:.1f}" y="{y + 17}" text-anchor="middle">{escape(label)}</text>'
    )


def _tick_y(value: float, top: float, label: str) -> str:
    y = _TOP + _PLOT_H * (1 - value / top)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _PLOT_W}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escape(label)}</text>"
    )


def _svg(
    title: str, x_name: str, parts: Sequence[str], height: int = _HEIGHT, told: str = ""
) -> str:
    below = (
        f'<text class="tick" x="{_LEFT + _PLOT_W}" y="{height - 6}" text-anchor="end">'
        f"{escape(x_name)}</text>"
        if x_name
        else ""
    )
    # Grid lines first: what was measured is drawn over them.
    ordered = sorted(parts, key=lambda part: 'class="grid"' not in part)
    return (
        f"<figure><figcaption>{escape(title)} {told}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(ordered)}{below}</svg></figure>"
    )
