"""What all engines count, in our words; and which series of an engine's `/metrics` means which.

Every launcher gives its rules as data. The supervisor reads an engine's exposition by them and
shows the result under these names, with the model, the engine and the replica.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from engine_launchers.value import Value

Kind = Literal["gauge", "counter", "histogram"]
ENDINGS = ("stop", "length", "cancelled", "failed", "other")


class Series(Value):
    """One name of the vocabulary. `reasons`: it has a label of that name, with these values."""

    name: str
    kind: Kind
    text: str
    reasons: tuple[str, ...] = ()


def _of(kind: Kind, name: str, text: str, reasons: tuple[str, ...] = ()) -> Series:
    return Series(name=f"engineroom_engine_{name}", kind=kind, text=text, reasons=reasons)


VOCABULARY: dict[str, Series] = {
    each.name.removeprefix("engineroom_engine_"): each
    for each in (
        _of("gauge", "requests_running", "Requests that the engine works on."),
        _of("gauge", "requests_waiting", "Requests that wait in the engine's own queue."),
        _of("gauge", "kv_cache_used_ratio", "Share of the KV cache that is taken, 0 to 1."),
        _of(
            "counter", "requests_total", "Requests that the engine ended, by how.", reasons=ENDINGS
        ),
        _of("counter", "prompt_tokens_total", "Tokens of prompts, cached ones included."),
        _of("counter", "cached_tokens_total", "Tokens of prompts found in the prefix cache."),
        _of("counter", "generated_tokens_total", "Tokens that the engine generated."),
        _of("counter", "steps_total", "Steps of the batching loop; stands still when it hangs."),
        _of("counter", "preemptions_total", "Requests put back for want of KV cache."),
        _of("counter", "prefill_seconds_total", "Time in prefill, summed over requests."),
        _of("counter", "decode_seconds_total", "Time in decode, summed over requests."),
        _of("histogram", "ttft_seconds", "Time to first token, as the engine sees it."),
        _of("histogram", "itl_seconds", "Time between two tokens, as the engine sees it."),
        _of("histogram", "queue_seconds", "Time that requests waited in the engine's own queue."),
    )
}


class SeriesRule(Value):
    """`theirs`, summed over its labels, is our `ours`; `over`: as a share of that other series.

    A histogram is named without its `_bucket`. Where ours has a reason, it is the value of their
    label `label` as `words` translates it; what is not among them is "other".
    """

    ours: str
    theirs: str
    over: str | None = None
    label: str | None = None
    words: dict[str, str] = Field(default_factory=dict)

    @field_validator("ours")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in VOCABULARY:
            raise ValueError(f"{name} is not in the vocabulary")
        return name

    @model_validator(mode="after")
    def _fits(self) -> SeriesRule:
        series = VOCABULARY[self.ours]
        if (self.label is not None) != bool(series.reasons):
            raise ValueError(f"{self.ours}: a label is given where the series has reasons")
        if not set(self.words.values()) <= set(series.reasons):
            raise ValueError(f"{self.ours}: words that it does not have")
        if self.over is not None and series.kind != "gauge":
            raise ValueError(f"{self.ours}: only a gauge can be a share")
        return self
