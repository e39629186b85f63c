"""Published measurements as inputs: rows, model facts, cards. What a row does not state is inferred
here and nowhere else, each rule with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.planner.names import Facts, Row
from engine_launchers.model import ModelSpec
from orchestrator.errors import ConfigError, EngineRoomError
from orchestrator.models.config_json import spec_from_config
from orchestrator.planning.gpus import GpuTable

GIB, MIB = 2**30, 2**20

_BENCH_CONTEXT = 8192  # the longest test of the published llama-bench tables
_FIELDS = (
    "engine", "engine_version", "model", "dtype/quantization", "gpu", "gpu_count", "gpu_vram_mib",
    "tensor_parallel", "pipeline_parallel", "gpu_memory_utilization", "max_model_len",
    "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "n_gpu_layers", "observed",
    "note", "tier",
)  # fmt: skip
_DATED = (  # (year, month) from which a release was current, for rows that give a date only
    ((2023, 1), (0, 2)), ((2024, 2), (0, 3)), ((2024, 4), (0, 4)), ((2024, 6), (0, 5)),
    ((2024, 9), (0, 6)), ((2025, 2), (0, 7)), ((2025, 3), (0, 8)), ((2025, 6), (0, 9)),
    ((2025, 8), (0, 10)), ((2025, 10), (0, 11)), ((2025, 12), (0, 12)), ((2026, 1), (0, 14)),
    ((2026, 2), (0, 16)), ((2026, 4), (0, 19)), ((2026, 5), (0, 21)), ((2026, 7), (0, 26)),
    ((2026, 8), (0, 28)), ((2026, 9), (0, 30)),
)  # fmt: skip


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. Raises ConfigError that names the line."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("id", row.get("name")), str):
            raise ConfigError(f"{path}:{number}: not an object with an id or a name")
        rows.append(row)
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Measurements; what a row leaves out is None, a card that it does not name "unnamed"."""
    rows = [{**dict.fromkeys(_FIELDS), **row} for row in read_jsonl(path)]
    for row in rows:
        row["gpu"], row["model"] = row["gpu"] or "unnamed", row["model"] or "?"
        row["engine"], row["tier"] = row["engine"] or "", row["tier"] or "C"
        seen = dict(row["observed"] or {})
        seen.setdefault("outcome_class", (seen.get("outcome") or "ok").partition(":")[0])
        row["observed"] = seen
    return rows


def config_of(facts: Row) -> dict[str, Any]:
    """A facts row with the names of a `config.json`."""
    config = {k: v for k, v in facts.items() if v is not None and k not in {"extra", "experts"}}
    config.update({k: v for k, v in (facts.get("extra") or {}).items() if v is not None})
    experts = facts.get("experts")
    if isinstance(experts, Mapping):
        names = {"shared": "n_shared_experts"}
        config.update({str(names.get(k, k)): v for k, v in experts.items() if v is not None})
    if facts.get("architecture"):
        config["architectures"] = [facts["architecture"]]
    padded = config.get("litgpt_padded_vocab_size")
    if padded:
        config["vocab_size"] = padded
    return config


def quantization(row: Row) -> str | None:
    """The row's precision by our names; None where it is not stated."""
    text = f"{row['dtype/quantization'] or ''} {row['model']}".lower()
    gguf = re.search(r"\b(ud-)?(i?q\d(?:_[a-z0-9]+)*|f16|f32|bf16)\b", text)
    if not row["engine"].startswith(("vllm", "aphrodite")):
        return gguf.group(2).upper() if gguf and not gguf.group(1) else None
    stated = (row["dtype/quantization"] or "").lower()
    for word, name in (
        ("nvfp4", "NVFP4"), ("mxfp4", "MXFP4"), ("bitsandbytes", "NF4"), ("bnb", "NF4"),
        ("awq", "AWQ"), ("gptq", "GPTQ"), ("int8", "INT8"), ("fp8", "FP8"), ("4-bit", "AWQ"),
        ("int4", "AWQ"), ("bf16", "BF16"), ("fp16", "FP16"),
    ):  # fmt: skip
        if word in stated:
            return name
    return None


@dataclass(frozen=True)
class Subject:
    """A row's model, from its config alone and, where it is known, with the artefact's own size."""

    from_config: ModelSpec
    sized: ModelSpec | None


def subject(row: Row, facts: Facts) -> Subject | None:
    """The model that a row ran, None where shape or precision are not known."""
    known = facts.find(row["model"])
    precision = quantization(row)
    if precision is None:
        return None
    if known is None:
        found = facts.listed(row["model"], precision)
        return Subject(found, None) if found else None
    is_gguf = not row["engine"].startswith(("vllm", "aphrodite"))
    config = config_of(known)
    size = known.get("safetensors_total_bytes")
    own_precision = config.get("quantization_config") or config.get("kaito_quantMethod")
    matches = bool(own_precision) == (precision not in {"BF16", "FP16"})
    kind: Any = "gguf" if is_gguf else "safetensors"
    common: dict[str, Any] = {"model_id": row["model"], "source": "/published", "format": kind}
    if is_gguf or not own_precision:
        config.pop("quantization_config", None)
    sized = None
    try:
        if size and matches and not is_gguf:
            sized = spec_from_config(config, quantization=precision, weight_bytes=size, **common)
        plain = spec_from_config(config, quantization=precision, **common)
    except EngineRoomError:
        return Subject(sized, sized) if sized else None
    if sized and sized.weight_bytes > 1.5 * plain.weight_bytes:
        sized = None  # the repository holds its weights twice
    return Subject(plain, sized)


def shape(row: Row, facts: Facts) -> ModelSpec | None:
    """The row's model where only its shape is known."""
    known = facts.find(row["model"])
    if known is None:
        return None
    config = config_of(known)
    config.pop("quantization_config", None)
    size = known.get("safetensors_total_bytes") or 1
    try:
        return spec_from_config(
            config, model_id=row["model"], source="/published", quantization="BF16",
            weight_bytes=size,
        )  # fmt: skip
    except EngineRoomError:
        return None


def version(row: Row) -> tuple[tuple[int, int], bool]:
    """((major, minor), whether it is the V1 engine core) of a vLLM row."""
    text = row["engine_version"] or ""
    number = re.search(r"\b0\.(\d+)", text)
    dated = re.search(r"\b(20\d\d)-(\d\d)", text)
    found = (0, int(number.group(1))) if number else None
    if found is None and dated:
        when = (int(dated.group(1)), int(dated.group(2)))
        found = max((v for since, v in _DATED if since <= when), default=(0, 2))
    found = found or (0, 30)
    if "V0" in text:
        return found, False
    return found, "V1" in text or found >= (0, 8)


class Cards:
    """Memory of cards: what the row prints, else what such cards report."""

    def __init__(self, rows: Iterable[Row], table: GpuTable) -> None:
        self._rows = [(_plain(row["name"]), row["nvidia_smi_mib"] * MIB) for row in rows]
        self._table = table

    def reported(self, row: Row) -> float | None:
        """Bytes that the driver prints for the row's card; None where the card is not named."""
        if row["gpu_vram_mib"]:
            return float(row["gpu_vram_mib"] * MIB)
        nominal = re.search(r"(\d+) ?GB", row["gpu"])
        if nominal and re.match(r"unnamed|\(|\d", row["gpu"]):
            return float(nominal.group(1)) * GIB * 0.985  # "24GB class"
        name = re.split(r"\(|\bclass\b", row["gpu"])[0].strip()
        wanted = _plain(name)
        for known, size in self._rows:
            if wanted and known == wanted:
                return float(size)
        spec = self._table.find(name) if name else None
        if spec is None:
            return None
        return float(spec.reported_mib * MIB if spec.reported_mib else spec.memory_gb * GIB)

    def stated_free(self, row: Row) -> float | None:
        """Bytes that a row says were free, such as "(6.9 GiB free)"."""
        found = re.search(r"\(([\d.]+) GiB free", row["gpu"])
        return float(found.group(1)) * GIB if found else None

    def spec(self, row: Row) -> Any:
        """The table's entry for the row's card, None where it has none."""
        name = re.split(r"\(|\bclass\b", row["gpu"])[0].strip()
        return self._table.find(name) if name else None


def _plain(name: str) -> str:
    drop = {"nvidia", "geforce", "tesla", "amd", "apple", "intel", "radeon", "graphics"}
    return " ".join(word for word in re.split(r"[\s-]+", name.lower()) if word not in drop)


def stated_context(row: Row) -> int | None:
    """Tokens of context that a llama.cpp row ran with, 512 where an old build kept its default."""
    if row["max_model_len"]:
        return int(row["max_model_len"])
    if row["observed"].get("bench") is not None or "llama-bench" in (row.get("note") or ""):
        return _BENCH_CONTEXT
    return 512


def flash_attention(row: Row) -> bool:
    """Whether flash attention was on: said so, or a build that turns it on by itself."""
    said = f"{row.get('note') or ''} {row.get('quote') or ''}".lower()
    if re.search(r"flash_attn\s*=\s*1|-fa (on|1)\b|flash attention on", said):
        return True
    year = re.search(r"\b(20\d\d)(?:-(\d\d))?", row["engine_version"] or "")
    return bool(year and (int(year.group(1)), int(year.group(2) or 1)) >= (2025, 9))


def offloaded(row: Row) -> int:
    """`n_gpu_layers` as a number: "33/33" and "all" are -1, "29/41" is 29."""
    if not row["gpu_count"]:
        return 0
    text = str(row["n_gpu_layers"] or "all")
    taken, _, whole = text.partition("/")
    if not taken.isdigit() or taken == whole or int(taken) >= 99:
        return -1
    return int(taken)
