"""The rows and words that the page and the terminal share. Pure; a report's JSON in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.bench.plots import number, seconds

LATENCY_HEAD = ("", "mean", "p50", "p90", "p95", "p99", "max", "count")
ROUND_HEAD = ("round", "output tokens/s", "requests/s", "TTFT p50", "ITL p50", "e2e p50", "whole")
RATIO_HEAD = ("", "A, median", "B, median", "B / A", "least", "most")
FIGURES = {
    "output_rate": "output tokens/s", "request_rate": "requests/s", "ttft.p50": "TTFT p50",
    "ttft.p99": "TTFT p99", "itl.p50": "ITL p50", "itl.p99": "ITL p99", "tpot.p50": "TPOT p50",
    "e2e.p50": "end to end p50",
}  # fmt: skip
_LATENCIES = {"ttft_s": "TTFT", "itl_s": "ITL", "tpot_s": "TPOT", "e2e_s": "end to end"}
DEFINITIONS = (
    ("TTFT", "from sending a request to its first event with text."),
    ("ITL", "between one event with text and the next, over all gaps of all answers."),
    ("TPOT", "(last event - first event) / (output tokens - 1), per request."),
    ("End to end", "from sending a request to the last byte of its answer."),
    ("Rates", "tokens and requests of whole answers, over the time from first start to last end."),
    (
        "Goodput",
        "whole answers that kept every objective, per second and as a share of what was sent; an "
        "objective on ITL holds every gap.",
    ),
    ("Percentiles", "linear between neighbours. Failed and rejected requests are in no latency."),
)


def latency_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """One row per latency that was measured."""
    points = ("mean", "p50", "p90", "p95", "p99", "max")
    return [
        [label, *(seconds(found[name][point]) for point in points), f"{found[name]['count']:,}"]
        for name, label in _LATENCIES.items()
        if found[name]
    ]


def round_rows(rounds: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per round."""
    return [
        [
            str(index), number(each["output_tokens_per_s"]), number(each["requests_per_s"]),
            *("" if each[name] is None else seconds(each[name])
              for name in ("ttft_p50_s", "itl_p50_s", "e2e_p50_s")),
            f"{each['ok']} / {each['sent']}",
        ]
        for index, each in enumerate(rounds, 1)
    ]  # fmt: skip


def ratio_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per compared figure."""
    return [
        [
            FIGURES[row["figure"]],
            *((seconds if "." in row["figure"] else number)(row[side])
              for side in ("first", "second")),
            f"{row['ratio']:.3f}", f"{row['min']:.3f}", f"{row['max']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip


def slo_words(slo: Mapping[str, float]) -> str:
    """The objectives in words."""
    return "within " + ", ".join(f"{name} {seconds(limit)}" for name, limit in slo.items())


def load_words(load: Mapping[str, Any]) -> str:
    """The load in one line."""
    if load["loop"] == "closed":
        who = f"{load['users']} users, each asks again when answered"
    else:
        who = f"{load['rate']:g} requests/s, {load['arrivals']} arrivals"
    size = []
    if load["requests"] is not None:
        size.append(f"{load['requests']} requests")
    if load["duration_s"] is not None:
        size.append(f"{load['duration_s']:g} s")
    rounds = f", {load['rounds']} rounds" if load["rounds"] > 1 else ""
    return f"{who}, {' or '.join(size)}{rounds}"


def problem_words(found: Mapping[str, Any]) -> list[str]:
    """What went wrong, by class; nothing where nothing did."""
    requests = found["requests"]
    told = [f"{count} rejected with {status}" for status, count in requests["rejected"].items()
            if count]  # fmt: skip
    return told + [f"{count} x {problem}" for problem, count in requests["errors"].items()]


def token_words(found: Mapping[str, Any]) -> str:
    """How many tokens, and who counted them."""
    by = {
        "usage": "the server's count (usage)", "events": "counted by events, the server sends none",
        "mixed": "the server's count where it sent one, else events", "none": "no whole answer",
    }[found["tokens_counted_by"]]  # fmt: skip
    prompts = found["prompt_tokens"]
    asked = f", {prompts:,} in prompts" if prompts is not None else ""
    return f"{found['output_tokens']:,} made{asked}; {by}"


def client_words(client: Mapping[str, Any]) -> str:
    """What measuring cost."""
    many = f"{client['processes']} processes, the busiest" if client["processes"] > 1 else "it"
    return (
        f"{many} took {client['cpu_share_max']:.1%} of a core; event loop late by "
        f"{seconds(client['lag_p50_s'])} (p50), {seconds(client['lag_p99_s'])} (p99), "
        f"{seconds(client['lag_max_s'])} (worst); {client['connections']} connections opened"
    )


def fact_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """How it was measured, as names and texts."""
    load = report["load"]
    shared = load["shared_prefix"]
    rows = [
        ["load", load_words(load)],
        ["prompts", f"{load['prompt_tokens']} tokens" + _shared_words(shared)],
        ["answers", f"{load['output_tokens']} tokens at most, temperature {load['temperature']:g}"
         + ("" if load["stream"] else ", not streamed")],
        ["warm-up", f"{load['warmup']} requests, not counted"],
        ["seed", str(load["seed"])],
        ["client", client_words(report["client"])],
    ]  # fmt: skip
    if load["fields"]:
        rows.insert(3, ["fields", ", ".join(f"{k}={v!r}" for k, v in load["fields"].items())])
    for index, target in enumerate(report["targets"]):
        which = f"{'AB'[index]}, " if len(report["targets"]) == 2 else ""
        found = target["figures"]
        rows.append([f"{which}target", f"{target['url']}, {target['path']}"])
        rows.append([f"{which}tokens", token_words(found)])
        rows.append([f"{which}in flight", f"{found['in_flight_mean']:.2f} requests on average"])
        rows.append([f"{which}failures", ", ".join(problem_words(found)) or "none"])
    return rows


def _shared_words(shared: Mapping[str, Any] | None) -> str:
    if not shared:
        return ""
    size = "half of the prompt" if shared["tokens"] is None else f"{shared['tokens']} tokens"
    groups = f" ({shared['groups']} different ones)" if shared["groups"] > 1 else ""
    return f"; {shared['share']:.0%} of them share a prefix of {size}{groups}"
