"""`engineroom bench` and `engineroom test-streaming`."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.bench import html, report, trial
from orchestrator.bench.load import Side
from orchestrator.bench.orders import Asking
from orchestrator.bench.parse import parse_slo
from orchestrator.bench.preflight import preflight
from orchestrator.bench.streaming import judge, sentence
from orchestrator.bench.watching import watch
from orchestrator.cli.bench_options import (
    KEY_ENV,
    OTHER_KEY_ENV,
    Api,
    Fields,
    KeyEnv,
    KeyFile,
    ModelName,
    Temperature,
    Timeout,
    Url,
    fields_of,
    load_of,
    place_of,
)
from orchestrator.cli.bench_show import Watching, show
from orchestrator.cli.options import DataDir, Json, out, print_json
from orchestrator.errors import ConfigError

_LOAD, _REQUESTS, _SECOND, _REPORT = "Load", "Requests", "Second target", "Report"


def bench(
    url: Url = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream/--no-stream",
            help="Ask for streams, or for whole answers.",
            rich_help_panel=_REQUESTS,
        ),
    ] = True,
    users: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Closed loop: each asks again when answered (10).",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            help="Open loop: requests/s, whatever comes back.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="Of an open loop: poisson or constant.", rich_help_panel=_LOAD)
    ] = "poisson",
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="How many to count (10 per user).", rich_help_panel=_LOAD),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(help="Or for how long new ones are sent, as 30s, 5m.", rich_help_panel=_LOAD),
    ] = None,
    prompt_tokens: Annotated[
        str,
        typer.Option(
            help="Length: 128, 64-256, normal:MEAN:SD or lognormal:MEDIAN:SIGMA.",
            rich_help_panel=_REQUESTS,
        ),
    ] = "128",
    output_tokens: Annotated[
        str, typer.Option(help="Length of answers, likewise.", rich_help_panel=_REQUESTS)
    ] = "64",
    shared_prefix: Annotated[
        str | None,
        typer.Option(
            help="SHARE[:TOKENS[:GROUPS]] of the prompts begin alike, as 0.8:512.",
            rich_help_panel=_REQUESTS,
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests before, not counted (one per user, 20 at most).",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Same seed, same requests (by chance; it is printed).", rich_help_panel=_REQUESTS
        ),
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(
            help="Objectives for goodput: ttft=500ms,itl=50ms,tpot=,e2e=.", rich_help_panel=_REPORT
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="URL2", help="A second target, measured in turns.", rich_help_panel=_SECOND
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Parts of the run (1; 5 to compare).", rich_help_panel=_LOAD
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Load processes, if one is not enough.", rich_help_panel=_LOAD
        ),
    ] = 1,
    model: ModelName = None,
    compare_model: Annotated[
        str | None, typer.Option(help="Model of the second target.", rich_help_panel=_SECOND)
    ] = None,
    api: Api = None,
    temperature: Temperature = 0.0,
    fields: Fields = None,
    usage: Annotated[
        bool,
        typer.Option(
            "--usage/--no-usage", help="Ask streams for token counts.", rich_help_panel=_REQUESTS
        ),
    ] = True,
    timeout: Timeout = "10m",
    key_env: KeyEnv = None,
    key_file: KeyFile = None,
    compare_key_env: Annotated[
        str | None,
        typer.Option(
            help=f"The second target's variable ({OTHER_KEY_ENV}).", rich_help_panel=_SECOND
        ),
    ] = None,
    compare_key_file: Annotated[
        Path | None, typer.Option(help="The second target's key file.", rich_help_panel=_SECOND)
    ] = None,
    json_to: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write JSON there, `-` prints it.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    html_to: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with plots there.", rich_help_panel=_REPORT
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Measure a server: TTFT, ITL, TPOT, end to end, tokens/s, goodput, with their spreads.

    Any OpenAI-compatible server, or Engine Room's own API; the server that runs here where none is
    named. What each figure means: docs/how-to/benchmark.md. Exit code 1 where no whole answer came.

    engineroom bench --stream --users 10

    engineroom bench http://host:8000 --rate 5 --duration 60s --slo ttft=500ms,itl=50ms

    engineroom bench http://a:8000 --compare http://b:8000 --requests 500
    """
    objectives = parse_slo(slo) if slo else {}
    load = load_of(
        users, rate, arrivals, requests, duration, prompt_tokens, output_tokens, shared_prefix,
        warmup, rounds, processes, seed, compare is not None,
    )  # fmt: skip
    for path in (html_to, None if json_to in (None, "-") else Path(str(json_to))):
        if path is not None and str(path).startswith("-"):
            raise ConfigError(f"{path}: that is a flag, name a file (or - to print JSON)")
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    more: dict[str, Any] = {"temperature": temperature, "usage": usage, "fields": fields_of(fields)}
    places = [
        place_of(url, api, model, (key_env, key_file, KEY_ENV), "--key-env or --key-file",
                 data_dir, stream, timeout, more)
    ]  # fmt: skip
    if compare is not None:
        key = (compare_key_env, compare_key_file, OTHER_KEY_ENV)
        where = "--compare-key-env or --compare-key-file"
        second = compare_model or model
        places.append(place_of(compare, api, second, key, where, data_dir, stream, timeout, more))
    elif compare_model or compare_key_env or compare_key_file:
        raise ConfigError("the --compare-... flags need --compare URL2")
    notes = Console(stderr=True)

    async def measure() -> list[Side]:
        asked = [await preflight(place.asking, place.hint) for place in places]
        with Watching(notes, load) as watching:
            return await trial.run(load, [(f.asking, f.words_per_token) for f in asked], watching)

    sides = asyncio.run(measure())
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    made = report.build(load, sides, objectives, now)
    if json_to == "-":
        print_json(made)
    else:
        show(out(), made)
    if json_to not in (None, "-"):
        Path(str(json_to)).write_text(json.dumps(made, ensure_ascii=False) + "\n", encoding="utf-8")
    if html_to is not None:
        html_to.write_text(html.page(made), encoding="utf-8")
        notes.print(f"report: {html_to}", highlight=False, soft_wrap=True)
    if not all(target["figures"]["requests"]["ok"] for target in made["targets"]):
        raise typer.Exit(1)


def check_streaming(
    url: Url = None,
    model: ModelName = None,
    api: Api = None,
    tokens: Annotated[int, typer.Option(min=8, max=4096, help="Tokens of each answer.")] = 64,
    answers: Annotated[int, typer.Option(min=1, max=100, help="Answers to look at.")] = 3,
    fields: Fields = None,
    timeout: Timeout = "2m",
    key_env: KeyEnv = None,
    key_file: KeyFile = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check that tokens arrive as they are made, and not in one lump at the end.

    Exit code 0: they do. 1: something holds them back. 75: the answers were too short to tell.
    """
    more: dict[str, Any] = {"temperature": 0.0, "usage": True, "fields": fields_of(fields)}
    key = (key_env, key_file, KEY_ENV)
    flags = "--key-env or --key-file"
    place = place_of(url, api, model, key, flags, data_dir, True, timeout, more)
    asking: Asking = place.asking

    async def look() -> Any:
        found = await preflight(asking, place.hint)
        return await watch(found.asking, tokens, answers)

    finding = judge(*asyncio.run(look()))
    if as_json:
        print_json(finding.to_json())
    else:
        sys.stdout.write(sentence(finding) + "\n")
    if not finding.good:
        raise typer.Exit(75 if finding.verdict == "too short" else 1)
