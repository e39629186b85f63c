"""How the next tokens are chosen: every request by its own rules, in one batch.

The library is set to take the largest logit. Where a request samples, this logits processor draws
the token and raises its logit to infinity; greedy rows keep the model's logits untouched, so greedy
text equals that of `generate`. Order: penalties, temperature, top-k, top-p, min-p.

A draw is one uniform number per token, got by hashing (seed, number of the token), and put through
the inverse of the cumulative probabilities. It depends on nothing else: not on the neighbours in
the batch, not on the order of arrival, not on a state that a preempted request would lose. So the
same seed and request give the same text, as far as the logits are the same: sums are rounded
differently in batches of different shape, and where two tokens' shares meet, such a difference can
move a draw, like a tie in greedy decoding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from pytorch_bodies import Sampling
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

_GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Row:
    """One request that gets a token in this step; `step` counts its tokens from 0."""

    sampling: Sampling
    step: int
    prompt: list[int]
    generated: list[int]

    @property
    def samples(self) -> bool:
        """Whether a draw is needed at all."""
        return self.sampling.temperature >= _GREEDY_BELOW and self.sampling.top_k != 1

    @property
    def filters(self) -> bool:
        """Whether some tokens are cut off before the draw."""
        rules = self.sampling
        return rules.top_k > 0 or rules.top_p < 1 or rules.min_p > 0

    @property
    def penalizes(self) -> bool:
        """Whether what was said before changes the logits."""
        rules = self.sampling
        return (
            rules.repetition_penalty != 1
            or rules.presence_penalty != 0
            or rules.frequency_penalty != 0
        )


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that only the two integers decide."""
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(step.to_bytes(8, "little"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def apply(scores: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """`scores` [rows, vocabulary], float32, changed in place: the largest is the choice."""
    for at, row in enumerate(rows):
        if row.penalizes:
            _penalize(scores[at], row)
    plain = [at for at, row in enumerate(rows) if row.samples and not row.filters]
    filtered = [at for at, row in enumerate(rows) if row.samples and row.filters]
    if plain:
        order = None
        _draw(scores, rows, plain, _shares(scores, rows, plain), order)
    if filtered:
        shares, order = _cut(_scaled(scores, rows, filtered), [rows[at] for at in filtered])
        _draw(scores, rows, filtered, shares, order)
    return scores


def _penalize(logits: torch.Tensor, row: Row) -> None:
    """Repetition counts prompt and answer; presence and frequency count the answer."""
    rules = row.sampling
    if rules.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.generated}), device=logits.device)
        old = logits[seen]
        factor = rules.repetition_penalty
        logits[seen] = torch.where(old > 0, old / factor, old * factor)
    if row.generated and (rules.presence_penalty or rules.frequency_penalty):
        said = torch.tensor(row.generated, device=logits.device)
        tokens, counts = torch.unique(said, return_counts=True)
        logits[tokens] -= rules.presence_penalty + rules.frequency_penalty * counts


def _scaled(scores: torch.Tensor, rows: list[Row], chosen: list[int]) -> torch.Tensor:
    """Logits of the chosen rows over their temperatures, the largest at 0 so none overflows."""
    heat = torch.tensor([rows[at].sampling.temperature for at in chosen], device=scores.device)
    some = scores[chosen]
    some -= some.amax(-1, keepdim=True)
    return some.div_(heat.unsqueeze(-1))


def _shares(scores: torch.Tensor, rows: list[Row], chosen: list[int]) -> torch.Tensor:
    return torch.softmax(_scaled(scores, rows, chosen), -1, dtype=torch.float64)


def _cut(logits: torch.Tensor, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares in falling order with 0 for what is cut off, and the tokens that they belong to."""
    device = logits.device
    vocabulary = logits.shape[-1]
    tops = [min(row.sampling.top_k or vocabulary, vocabulary) for row in rows]
    ordered, tokens = torch.topk(logits, max(tops), sorted=True)
    places = torch.arange(max(tops), device=device)
    ordered = ordered.masked_fill(
        places >= torch.tensor(tops, device=device).unsqueeze(-1), -torch.inf
    )
    shares = torch.softmax(ordered, -1, dtype=torch.float64)
    top_p = torch.tensor([row.sampling.top_p for row in rows], device=device, dtype=torch.float64)
    min_p = torch.tensor([row.sampling.min_p for row in rows], device=device, dtype=torch.float64)
    before = shares.cumsum(-1) - shares
    out = (before >= top_p.unsqueeze(-1)) | (shares < min_p.unsqueeze(-1) * shares[:, :1])
    out[:, 0] = False
    return shares.masked_fill(out, 0), tokens


def _draw(
    scores: torch.Tensor,
    rows: list[Row],
    chosen: list[int],
    shares: torch.Tensor,
    order: torch.Tensor | None,
) -> None:
    """Raise the logit of the token at each row's draw; `order` maps places to tokens."""
    luck = [uniform(rows[at].sampling.seed, rows[at].step) for at in chosen]
    sums = shares.cumsum(-1)
    target = torch.tensor(luck, device=scores.device, dtype=torch.float64).unsqueeze(-1)
    place = torch.searchsorted(sums, target * sums[:, -1:], right=True)
    place = place.clamp_(max=shares.shape[-1] - 1)
    token = (place if order is None else order.gather(-1, place)).squeeze(-1)
    scores[torch.tensor(chosen, device=scores.device), token] = torch.inf


class PerRequestSampling(ContinuousBatchingLogitsProcessor):
    """The library's hook: told the requests of a step, then given their logits.

    Needs synchronous batches without CUDA graphs: what `prepare_tensor_args` notes down must be
    what the next call computes with.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {"sampling": Sampling}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """The library's per-token argument is not used."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_with_new_token: list[FutureRequestState]
    ) -> torch.Tensor:
        """Note down whose logits come next."""
        self._rows = [_row(request.state) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    @torch.compiler.disable
    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """See `apply`."""
        return apply(scores, self._rows)


def _row(state: object) -> Row:
    """A preempted request comes back with its answer as part of its initial tokens."""
    initial: list[int] = state.initial_tokens  # type: ignore[attr-defined]
    split = state._true_initial_tokens or len(initial)  # type: ignore[attr-defined]
    generated = initial[split:] + state.generated_tokens  # type: ignore[attr-defined]
    rules = state.logit_processor_kwargs["sampling"]  # type: ignore[attr-defined]
    return Row(rules, len(generated), initial[:split], generated)
