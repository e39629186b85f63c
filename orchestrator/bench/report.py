"""The report of a run as one JSON document; the page and the table are made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import __version__
from orchestrator.bench.compare import ratios
from orchestrator.bench.figures import Figures, figures, timeline
from orchestrator.bench.load import Load, Side
from orchestrator.bench.orders import Effort
from orchestrator.bench.records import join

FORMAT = 1
CPU_LIMIT = 0.7  # of a core, in one load process
LAG_LIMIT_S = 0.010  # 99th percentile of the event loop's lateness
SEND_LIMIT_S = 0.050
_FEW = 100


def build(
    load: Load, sides: Sequence[Side], slo: Mapping[str, float], made_at: str
) -> dict[str, Any]:
    """Everything that was measured and how, in seconds, tokens and requests; `made_at` as text."""
    rounds = [[figures(records, slo) for records in side.rounds] for side in sides]
    wholes = [figures(join(side.rounds), slo) for side in sides]
    targets = []
    for side, whole, parts in zip(sides, wholes, rounds, strict=True):
        width, tokens, busy = timeline(join(side.rounds))
        targets.append(
            {
                "url": side.asking.target.url,
                "path": side.asking.target.path(side.asking.stream),
                "model": side.asking.model,
                "figures": whole.to_json(),
                "rounds": [_round(part) for part in parts] if len(parts) > 1 else [],
                "timeline": {"step_s": width, "tokens_per_s": tokens, "in_flight": busy},
            }
        )
    both = [each.to_json() for each in ratios(*rounds)] if len(sides) == 2 else None
    efforts = [effort for side in sides for effort in side.efforts]
    return {
        "format": FORMAT,
        "engineroom": __version__,
        "made_at": made_at,
        "load": _load(load, sides[0]),
        "targets": targets,
        "comparison": both,
        "client": _client(load, efforts),
        "warnings": _warnings(load, sides, wholes, efforts),
    }


def _round(part: Figures) -> dict[str, Any]:
    points = ("ttft.p50", "itl.p50", "e2e.p50", "e2e.p99")
    return {
        "ok": part.ok,
        "sent": part.sent,
        "requests_per_s": part.request_rate,
        "output_tokens_per_s": part.output_rate,
        **{point.replace(".", "_") + "_s": part.value(point) for point in points},
    }


def _load(load: Load, side: Side) -> dict[str, Any]:
    work = load.workload
    asking = side.asking
    return {
        "loop": "closed" if load.rate is None else "open",
        "users": load.users if load.rate is None else None,
        "rate": load.rate,
        "arrivals": load.arrivals if load.rate is not None else None,
        "requests": load.requests,
        "duration_s": load.duration,
        "rounds": load.rounds,
        "warmup": load.warmup,
        "stream": asking.stream,
        "prompt_tokens": str(work.prompt),
        "output_tokens": str(work.output),
        "shared_prefix": {
            "share": work.share, "tokens": work.prefix_tokens, "groups": work.groups
        } if work.share else None,
        "temperature": asking.more.get("temperature", 0.0),
        "fields": asking.more.get("fields") or {},
        "words_per_token": side.words_per_token,
        "seed": work.seed,
    }  # fmt: skip


def _client(load: Load, efforts: Sequence[Effort]) -> dict[str, Any]:
    def worst(name: str) -> float:
        return max((float(getattr(each, name)) for each in efforts), default=0.0)

    return {
        "processes": load.processes,
        "cpu_share_max": worst("share"),
        "cpu_s": sum(each.cpu for each in efforts),
        "lag_p50_s": worst("lag_p50"),
        "lag_p99_s": worst("lag_p99"),
        "lag_max_s": worst("lag_max"),
        "connections": sum(each.connects for each in efforts),
    }


def _warnings(
    load: Load, sides: Sequence[Side], wholes: Sequence[Figures], efforts: Sequence[Effort]
) -> list[str]:
    client = _client(load, efforts)
    told = []
    if client["cpu_share_max"] >= CPU_LIMIT:
        told.append(
            f"The client may be the bottleneck: a load process took "
            f"{client['cpu_share_max']:.0%} of a core. Try --processes {load.processes + 1}."
        )
    if client["lag_p99_s"] > LAG_LIMIT_S:
        told.append(
            f"The client was late: 1 % of its turns came {client['lag_p99_s'] * 1e3:.0f} ms or "
            "more after their time, so latencies may be too long by as much. The machine is busy, "
            "or too much is asked of one process (--processes)."
        )
    if max((whole.late for whole in wholes), default=0.0) > SEND_LIMIT_S:
        late = max(whole.late for whole in wholes)
        told.append(f"A request was sent {late * 1e3:.0f} ms after it was due.")
    for side, whole in zip(sides, wholes, strict=True):
        name = side.asking.target.url
        if whole.failed or any(whole.rejected.values()):
            missing = whole.failed + sum(whole.rejected.values())
            told.append(f"{name}: {missing} of {whole.sent} requests got no whole answer.")
        if whole.counted_by in ("events", "mixed"):
            some = " in some answers" * (whole.counted_by == "mixed")
            told.append(
                f"{name} sends no token counts{some}: events with text were counted instead, and "
                "one may carry several tokens."
            )
        wanted = load.workload.output
        if wanted.kind == "fixed" and whole.ok and whole.output_tokens / whole.ok < 0.9 * wanted.a:
            told.append(
                f"{name}: answers had {whole.output_tokens / whole.ok:.1f} tokens on average, "
                f"{wanted.a:.0f} were allowed: the model ended them. Servers that know it go on "
                "with --field ignore_eos=true."
            )
    if wholes and min(whole.ok for whole in wholes) < _FEW:
        told.append("Fewer than 100 answers: the 99th percentile is close to the worst one.")
    return told
