"""The bench's report: one page that needs nothing else, warnings, and the verdict on streaming."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bench import html, report
from orchestrator.bench.lengths import Length
from orchestrator.bench.load import Load, Side
from orchestrator.bench.orders import Asking, Effort
from orchestrator.bench.plots import nice_ticks, time_ticks
from orchestrator.bench.records import Record
from orchestrator.bench.streaming import Watched, clusters, judge, judge_one, sentence
from orchestrator.bench.targets import parse_target
from orchestrator.bench.workload import Workload

LOAD = Load(Workload(1, Length("fixed", 20), Length("fixed", 3)), users=2, requests=4, rounds=2)
CALM = Effort(0.1, 1.0, 0.0001, 0.001, 0.002, 2)


def side(model: str, records: list[Record], effort: Effort = CALM, url: str = "http://h:1") -> Side:
    """A target whose two rounds had the same records."""
    return Side(Asking(parse_target(url, None), model), 1.0, [records, records], [effort])


def some(count: int = 60, pace: float = 0.02, **more: Any) -> list[Record]:
    """Whole answers of three tokens."""
    return [
        Record(
            i * 0.01, (pace * 5, pace * 6, pace * 7 + i / 1e4), pace * 8, **{"tokens": 3, **more}
        )
        for i in range(count)
    ]


def built(*sides: Side, slo: dict[str, float] | None = None) -> dict[str, Any]:
    return report.build(LOAD, sides, slo or {}, "2030-01-01 12:00:00")


HOSTILE = "<script>alert('x')</script> & \"quotes\" ü"
REPORTS = {
    "one": built(side("m", some()), slo={"ttft": 0.5, "itl": 0.05}),
    "two": built(side("a", some()), side("b", some(pace=0.5))),
    "hostile": built(side(HOSTILE, some())),
    "no answer": built(side("m", [Record(0, (), 0.1, 503, "HTTP 503")] * 3)),
    "no stream": built(side("m", [Record(0, (), 0.1, tokens=4)])),
    "nothing": built(side("m", []), side("m", [])),
    "one moment": built(side("m", [Record(0, (0.0, 0.0), 0.0)])),
    "wide": built(side("m", [Record(0, (0.001, 0.002), 0.003), Record(0, (9.0, 9.1), 100.0)])),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    made = REPORTS[name]
    page = html.page(json.loads(json.dumps(made, allow_nan=False)))
    tree = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    names = {each.tag for each in tree.iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for each in tree.iter():
        outward = {"href", "src", "srcset", "action", "data", "poster", "xlink:href"}
        assert not outward & set(each.attrib)
        assert not any(key.startswith("on") for key in each.attrib)
    style = tree.findtext(".//style") or ""
    assert "prefers-color-scheme:dark" in style
    assert not re.search(r"url\(|@import|expression", style)


def test_a_page_says_what_was_measured() -> None:
    tree = ET.fromstring(html.page(REPORTS["two"]).removeprefix("<!DOCTYPE html>"))
    text = " ".join(tree.itertext())
    for word in ("a at http://h:1", "b at http://h:1", "B over A", "25.000", "TTFT p50", "seed"):
        assert word in text
    captions = [each.text or "" for each in tree.iter("figcaption")]
    assert len(captions) == 7
    shown = "".join(ET.fromstring(html.page(REPORTS["hostile"])[15:]).itertext())
    assert HOSTILE in shown


def test_plots_draw_every_bin() -> None:
    tree = ET.fromstring(html.page(REPORTS["one"]).removeprefix("<!DOCTYPE html>"))
    drawn = len(list(tree.iter("rect")))
    found = REPORTS["one"]["targets"][0]["figures"]
    bins = [found[name]["histogram"]["counts"] for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s")]
    assert drawn == sum(count > 0 for counts in bins for count in counts)


def test_figures_come_through() -> None:
    target = REPORTS["one"]["targets"][0]
    found = target["figures"]
    assert found["requests"]["ok"] == 120
    assert found["goodput"]["share"] == 1.0
    assert found["ttft_s"]["p50"] == pytest.approx(0.1)
    assert len(target["rounds"]) == 2
    both = {row["figure"]: row for row in REPORTS["two"]["comparison"]}
    assert both["ttft.p50"]["ratio"] == pytest.approx(25)


def test_what_to_mind() -> None:
    def told(one: Side) -> str:
        return " ".join(built(one)["warnings"])

    assert told(side("m", some())) == ""
    assert "bottleneck" in told(side("m", some(), replace(CALM, cpu=0.8)))
    assert "client was late" in told(side("m", some(), replace(CALM, lag_p99=0.02)))
    assert "after it was due" in told(side("m", some(late=0.2)))
    assert "no token counts" in told(side("m", some(tokens=None)))
    assert "ignore_eos" in told(side("m", some(tokens=1)))
    assert "Fewer than 100" in told(side("m", some(40)))
    broken = Record(0.0, (), 0.1, 0, "connection lost")
    assert "2 of 122 requests" in told(side("m", [*some(), broken]))


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12 or width < low * 1e-9
    assert all(low - width * 1e-6 <= tick <= high + width * 1e-6 for tick in ticks)


@given(st.floats(0, 100), st.floats(1e-4, 100))
def test_neighbouring_ticks_read_differently(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert len(set(time_ticks(ticks))) == len(ticks)


# --- do tokens arrive as they are made? ---


def answer(events: list[float], tail: float = 0.001) -> Watched:
    return Watched(tuple(events), (events[-1] if events else 0.0) + tail)


EVEN = [0.2 + i * 0.01 for i in range(64)]
HELD = [0.83 + i * 1e-5 for i in range(64)]
FOURS = [0.2 + (i // 16) * 0.16 for i in range(64)]
PAIRS = [0.2 + (i // 2) * 0.02 for i in range(64)]
FAST = [0.2 + i * 0.0005 for i in range(64)]


@pytest.mark.parametrize(
    ("events", "one", "verdict"),
    [
        (EVEN, 0.21, "streamed"),
        (PAIRS, 0.21, "streamed"),  # two tokens a step, as speculative decoding does
        (FAST, 0.2, "streamed"),  # 2,000 tokens/s: a reader sees several at once
        (HELD, 0.21, "one lump"),
        (FOURS, 0.21, "lumps"),
        ([0.2 + i * 1e-5 for i in range(64)], 0.199, "too short"),
        (EVEN[:5], 0.21, "too short"),
        ([], 0.21, "too short"),
    ],
)
def test_a_verdict(events: list[float], one: float, verdict: str) -> None:
    found = judge_one(answer(events), one)
    assert found.verdict == verdict
    assert found.good == (verdict == "streamed")
    assert str(len(events)) in sentence(found)


def test_a_long_prefill_is_no_lump() -> None:
    slow_start = [10.0 + i * 0.001 for i in range(64)]
    assert judge_one(answer(slow_start), 9.99).good


def test_most_answers_decide_and_a_tie_is_no_pass() -> None:
    good, bad = answer(EVEN), answer(HELD)
    assert judge([good, bad, good], [0.21, 0.5, 0.22]).good
    assert judge([bad, good, bad], [0.21]).verdict == "one lump"
    assert judge([good, bad], [0.21]).verdict == "one lump"


@given(st.lists(st.floats(0, 100), max_size=80).map(sorted), st.floats(0.0001, 1))
def test_clusters_keep_everything_in_order(events: list[float], same: float) -> None:
    groups = clusters(events, same)
    assert [at for group in groups for at in group] == events
    assert all(b[0] - a[-1] > same for a, b in pairwise(groups))
