"""`make bench-planner`: the memory model against published measurements.

    python -m bench.planner [--rows F] [--models F] [--gpus F] [--json] [--detail]

Files are JSON lines in the format of `bench/planner/data`. Rows of tiers A and B count. A row whose
model, precision or card is not known cannot be judged by anybody; it is counted as undecided.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.planner import truth
from bench.planner.measure import Judged, judge
from bench.planner.names import Facts
from orchestrator.errors import ConfigError
from orchestrator.models.resolve import load_catalog
from orchestrator.planning.gpus import parse_gpus
from orchestrator.resources import config_path

DATA = Path(__file__).with_name("data")
REFUSED, WRONGLY = 0.95, 0.03  # of failures at least, of working rows at most
TARGETS = {  # (engine, figure): most that its median may be
    ("vllm", "kv_pct_of_card"): 2.0,
    ("vllm", "kv_gib"): 0.2,
    ("vllm", "weights_bytes_pct"): 1.0,
    ("vllm", "weights_config_pct"): 4.0,
    ("llama.cpp", "kv_mib"): 1.0,
    ("llama.cpp", "model_pct"): 1.0,
    ("llama.cpp", "compute_pct"): 5.0,
}


def p95(values: Sequence[float]) -> float:
    """The smallest value that 95 % of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)]


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Everything that is printed, by engine."""
    result: dict[str, Any] = {}
    for engine in ("vllm", "llama.cpp"):
        rows = [row for row in judged if row.engine == engine and row.tier in {"A", "B"}]
        names = sorted({name for row in rows for name in row.errors})
        errors = {}
        for name in names:
            values = [row.errors[name] for row in rows if name in row.errors]
            errors[name] = {
                "rows": len(values),
                "median": round(statistics.median(values), 4),
                "p95": round(p95(values), 4),
            }
            if (engine, name) in TARGETS:
                target = TARGETS[engine, name]
                errors[name] |= {"target": target, "met": errors[name]["median"] <= target}
        result[engine] = {
            "rows": len(rows),
            "errors": errors,
            "verdicts": _verdicts(rows),
            "peers": {name: _peer(rows, name) for name in _peer_names(rows)},
        }
    whole = [row for row in judged if row.tier in {"A", "B"}]
    result["all"] = {"rows": len(whole), "verdicts": _verdicts(whole)}
    return result


def _verdicts(rows: Sequence[Judged]) -> dict[str, Any]:
    failed = [row for row in rows if row.failed and row.refused is not None]
    worked = [row for row in rows if row.failed is False and row.refused is not None]
    refused, wrongly = sum(1 for r in failed if r.refused), sum(1 for r in worked if r.refused)
    return {
        "failed_rows": len(failed),
        "failed_refused": refused,
        "failed_refused_pct": _share(refused, len(failed)),
        "working_rows": len(worked),
        "working_refused": wrongly,
        "working_refused_pct": _share(wrongly, len(worked)),
        "targets_met": _verdicts_meet(refused, len(failed), wrongly, len(worked)),
        "decided_by_need": sum(1 for r in (*failed, *worked) if r.by_need),
        "undecided_failed": sum(1 for r in rows if r.failed and r.refused is None),
        "undecided_working": sum(1 for r in rows if r.failed is False and r.refused is None),
        "not_of_memory": sum(1 for r in rows if r.failed is None),
    }


def _verdicts_meet(refused: int, failed: int, wrongly: int, worked: int) -> bool:
    return refused >= REFUSED * failed and wrongly <= WRONGLY * worked


def missed(result: dict[str, Any]) -> list[str]:
    """The targets that are not met, by name."""
    found = [] if result["all"]["verdicts"]["targets_met"] else ["verdicts"]
    for engine in ("vllm", "llama.cpp"):
        for name, cell in result[engine]["errors"].items():
            if not cell.get("met", True):
                found.append(f"{engine} {name}")
    return found


def _share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def _peer_names(rows: Sequence[Judged]) -> list[str]:
    return sorted({name for row in rows for name in row.peers})


def _peer(rows: Sequence[Judged], name: str) -> dict[str, Any]:
    judged = [row for row in rows if name in row.peers]
    failed = [row.peers[name].refused for row in judged if row.failed]
    worked = [row.peers[name].refused for row in judged if row.failed is False]
    off = [
        abs(row.peers[name].per_card / 2**30 - row.total) / row.total * 100
        for row in judged
        if row.total
    ]
    return {
        "rows": len(judged),
        "total_pct": {"rows": len(off), "median": round(statistics.median(off), 2)}
        if off
        else None,
        "failed_rows": len(failed),
        "failed_refused_pct": _share(sum(failed), len(failed)),
        "working_rows": len(worked),
        "working_refused_pct": _share(sum(worked), len(worked)),
    }


def _median(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"rows": len(values), "median": round(statistics.median(values), 2)}


def show(result: dict[str, Any], console: Console) -> None:
    """The same for people."""
    for engine in ("vllm", "llama.cpp"):
        part = result[engine]
        table = Table(title=f"{engine}: {part['rows']} rows of tiers A and B", title_justify="left")
        for column in ("figure", "rows", "median", "p95", "target"):
            table.add_column(column, justify="left" if column == "figure" else "right")
        for name, cell in part["errors"].items():
            target = cell.get("target")
            mark = "" if target is None else f"{'<=' if cell['median'] <= target else '>'} {target}"
            table.add_row(name, str(cell["rows"]), f"{cell['median']}", f"{cell['p95']}", mark)
        console.print(table)
        console.print(_sentence("the planner", part["verdicts"]))
        for name, peer in part["peers"].items():
            off = peer["total_pct"]
            beside = f", total off by {off['median']} % (median of {off['rows']})" if off else ""
            console.print(
                f"  {name}: would have refused {peer['failed_refused_pct']} % of "
                f"{peer['failed_rows']} failures and {peer['working_refused_pct']} % of "
                f"{peer['working_rows']} working rows{beside}"
            )
        console.print()
    console.print("all engines: " + _sentence("the planner", result["all"]["verdicts"]))


def _sentence(who: str, v: dict[str, Any]) -> str:
    return (
        f"{who}: refused {v['failed_refused']} of {v['failed_rows']} failures "
        f"({v['failed_refused_pct']} %, target >= 95) and {v['working_refused']} of "
        f"{v['working_rows']} working rows ({v['working_refused_pct']} %, target <= 3); not "
        f"decidable: {v['undecided_failed']} failures, {v['undecided_working']} working rows; "
        f"{v['decided_by_need']} decided by need alone, {v['not_of_memory']} failures not of memory"
    )


def main() -> None:
    """Read, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=DATA / "memory.jsonl")
    parser.add_argument("--models", type=Path, default=DATA / "models.jsonl")
    parser.add_argument("--gpus", type=Path, default=DATA / "gpus.jsonl")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--detail", action="store_true", help="one line per row")
    given = parser.parse_args()
    try:
        _run(given)
    except ConfigError as error:
        parser.error(error.message)


def _run(given: argparse.Namespace) -> None:
    catalog = load_catalog()
    known = {name: catalog.variants(name) for name in catalog.names()}
    facts = Facts(truth.read_jsonl(given.models), known)
    table = parse_gpus(yaml.safe_load(config_path("gpus.yaml").read_text()))
    cards = truth.Cards(truth.read_jsonl(given.gpus), table)
    judged = [each for row in truth.read_rows(given.rows) if (each := judge(row, facts, cards))]
    if given.detail:
        for row in judged:
            errors = {name: round(value, 3) for name, value in row.errors.items()}
            verdict = {None: "undecided", True: "refused", False: "accepted"}[row.refused]
            fate = {None: "other failure", True: "failed", False: "worked"}[row.failed]
            sys.stdout.write(f"{row.id} [{row.tier}] {verdict}/{fate}: {row.why} {errors}\n")
    if not judged:
        raise ConfigError(f"{given.rows}: no row of an engine that is modelled")
    result = summary(judged)
    if given.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        show(result, Console(width=120))
    if given.check and missed(result):
        sys.stderr.write(f"targets missed: {', '.join(missed(result))}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
