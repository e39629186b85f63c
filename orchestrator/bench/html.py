"""The report as one page: no script, no other file, light and dark, fit for print. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from orchestrator.bench import words
from orchestrator.bench.plots import histogram_plot, line_plot, number, ratio_plot, seconds

_STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--ink:#1d2126;--soft:#5c6570;--rule:#dfe2e5;
--card:#fff;--a:#2f6fb3;--b:#c4682b;--warn:#8a5a00;--warnbg:#fff5dc}
@media(prefers-color-scheme:dark){:root{--bg:#15181b;--ink:#e4e7ea;--soft:#98a2ac;--rule:#31373d;
--card:#1c2024;--a:#6ea8e5;--b:#e59a62;--warn:#f0c674;--warnbg:#332a14}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:1.55rem;margin:0 0 2px}
h2{font-size:1.12rem;margin:34px 0 10px}p{margin:4px 0}.soft,footer{color:var(--soft)}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 16px;
min-width:128px;flex:1 1 128px}.card b{display:block;font-size:1.45rem;font-weight:600;
font-variant-numeric:tabular-nums;white-space:nowrap}.card span{color:var(--soft);font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--rule);text-align:right;
white-space:nowrap}th{font-weight:600;color:var(--soft)}th:first-child,td:first-child{
text-align:left}.facts td{white-space:normal;text-align:left}.facts td:first-child{
color:var(--soft);width:13em;vertical-align:top}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:10px 12px 4px;break-inside:avoid}figcaption{font-weight:600;font-size:.92rem}
svg{width:100%;height:auto;display:block}.tick{fill:var(--soft);font-size:11.5px}
.name{fill:var(--ink);font-size:12.5px}.axis{stroke:var(--soft)}.grid{stroke:var(--rule)}
.s0{fill:var(--a);fill-opacity:.85}.s1{fill:var(--b);fill-opacity:.6}.two .s0{fill-opacity:.6}
.line{fill:none;stroke-width:1.8}.l0{stroke:var(--a)}.l1{stroke:var(--b)}
figcaption span{font-weight:400;color:var(--soft);margin-left:.7em;white-space:nowrap}
.two figcaption .t0{color:var(--a)}.two figcaption .t1{color:var(--b)}
.wide+.wide{margin-top:14px}.narrow{max-width:640px;margin-top:14px}
.mark{stroke:var(--soft);stroke-dasharray:3 3}.two .m0{stroke:var(--a)}.two .m1{stroke:var(--b)}
.range{stroke:var(--a);stroke-width:3;stroke-opacity:.45}.dot{fill:var(--a)}
.warn{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:10px 16px;margin:16px 0}
.warn ul{margin:4px 0;padding-left:20px}.key{display:inline-block;width:.8em;height:.8em;
border-radius:2px;margin-right:.4em}.k0{background:var(--a)}.k1{background:var(--b)}
@media print{body{font-size:12px}.card b{font-size:1.1rem}}
"""


def page(report: dict[str, Any]) -> str:
    """The page of a report that `report.build` made (or that was read back from its JSON)."""
    targets = report["targets"]
    two = len(targets) == 2
    title = "Benchmark of " + " and ".join(_name(target) for target in targets)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(report["made_at"])}, engineroom {escape(report["engineroom"])}'
        f", {escape(words.load_words(report['load']))}</p>",
        _warnings(report["warnings"]),
    ]
    if two:
        parts += [_legend(targets), _comparison(report["comparison"])]
    for index, target in enumerate(targets):
        if two:
            parts.append(f"<h2>{_key(index)}{'AB'[index]}: {escape(_name(target))}</h2>")
        parts += [_cards(target["figures"]), _latency_table(target["figures"])]
        parts.append(_round_table(target["rounds"]))
    parts += [f'<h2>Plots</h2><div class="plots{" two" if two else ""}">', *_plots(targets)]
    parts += ["</div>", _facts(report)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _name(target: dict[str, Any]) -> str:
    model = target["model"]
    return f"{model} at {target['url']}" if model else str(target["url"])


def _key(index: int) -> str:
    return f'<span class="key k{index}"></span>'


def _legend(targets: Sequence[dict[str, Any]]) -> str:
    rows = [f"{_key(i)}{'AB'[i]}: {escape(_name(each))}" for i, each in enumerate(targets)]
    return f"<p>{'<br/>'.join(rows)}</p>"


def _warnings(told: Sequence[str]) -> str:
    if not told:
        return ""
    rows = "".join(f"<li>{escape(each)}</li>" for each in told)
    return f'<div class="warn"><b>Mind</b><ul>{rows}</ul></div>'


def _cards(found: dict[str, Any]) -> str:
    cards = [
        (number(found["output_tokens_per_s"]), "output tokens/s"),
        (number(found["requests_per_s"]), "requests/s"),
    ]
    for name, label in (("ttft_s", "TTFT, median"), ("itl_s", "ITL, median"),
                        ("e2e_s", "end to end, median")):  # fmt: skip
        if found[name]:
            cards.append((seconds(found[name]["p50"]), label))
    if found["goodput"]:
        cards.append((f"{found['goodput']['share']:.1%}", words.slo_words(found["goodput"]["slo"])))
    requests = found["requests"]
    cards.append((f"{requests['ok']} / {requests['sent']}", "whole answers / sent"))
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in cards
    )
    return f'<div class="cards">{inner}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    shown = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{kind}">{shown}<tbody>{body}</tbody></table></div>'


def _latency_table(found: dict[str, Any]) -> str:
    rows = words.latency_rows(found)
    return _table(words.LATENCY_HEAD, rows) if rows else ""


def _round_table(rounds: Sequence[dict[str, Any]]) -> str:
    return _table(words.ROUND_HEAD, words.round_rows(rounds)) if rounds else ""


def _comparison(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>Nothing could be compared.</p>"
    plot = [(words.FIGURES[row["figure"]], row["min"], row["ratio"], row["max"]) for row in rows]
    return (
        "<h2>B over A, round by round</h2>"
        + _table(words.RATIO_HEAD, words.ratio_rows(rows))
        + '<div class="narrow">'
        + ratio_plot("Ratios B / A: median, and range over the rounds", plot)
        + "</div>"
    )


def _plots(targets: Sequence[dict[str, Any]]) -> list[str]:
    titles = {
        "ttft_s": "Time to first token", "itl_s": "Time between tokens (ITL)",
        "tpot_s": "Time per output token (TPOT)", "e2e_s": "End to end",
    }  # fmt: skip
    made = []
    for name, title in titles.items():
        series = []
        for index, target in enumerate(targets):
            found = target["figures"][name]
            if found:
                shape = found["histogram"]
                marks = {each: found[each] for each in ("p50", "p99")}
                label = "AB"[index] if len(targets) == 2 else ""
                series.append((label, shape["edges"], shape["counts"], marks))
        if series:
            made.append(histogram_plot(title, series))
    lines = [target["timeline"] for target in targets]
    step = max(line["step_s"] for line in lines)
    names = ["A", "B"] if len(targets) == 2 else [""]
    for field, title in (("tokens_per_s", "Output tokens per second"),
                         ("in_flight", "Requests in flight")):  # fmt: skip
        data = list(zip(names, (line[field] for line in lines), strict=True))
        made.append(line_plot(title, "seconds into the run", step, data))
    return made


def _facts(report: dict[str, Any]) -> str:
    rows = [*words.fact_rows(report)]
    definitions = "".join(f"<p><b>{escape(a)}</b>: {escape(b)}</p>" for a, b in words.DEFINITIONS)
    return (
        "<h2>How it was measured</h2>"
        + _table((), rows, "facts")
        + f"<h2>What the figures are</h2>{definitions}"
    )
