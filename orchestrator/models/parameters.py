"""From a config to the weights it implies: every tensor's shape, by place. Pure.

Architectures differ in a handful of ways (biases, gates, norms, experts, latent attention, states);
`orchestrator.models.blocks` knows those. What is not known has the shape of Llama.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.models import blocks
from orchestrator.models.blocks import Tensor
from orchestrator.models.facts import INTERMEDIATE, VOCAB, Facts
from orchestrator.models.layer_kinds import kinds


@dataclass(frozen=True)
class ParameterCount:
    """The tensors of a model by place; the properties count their elements.

    `table` is the token table (and per-layer tables), `head` the language model head (empty where
    it is the token table), `blocks` one tuple per repeating layer, `rest` all else.
    """

    table: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    blocks: tuple[tuple[Tensor, ...], ...]
    rest: tuple[Tensor, ...]
    family: str = ""
    heads: int = 0
    kv_heads: int = 0
    expert_count: int = 0
    experts_used: int = 0

    @property
    def tied(self) -> bool:
        """Whether the head is the token table."""
        return not self.head

    @property
    def embedding(self) -> int:
        """Elements of the token table."""
        return total(self.table)

    @property
    def output(self) -> int:
        """Elements of the head."""
        return total(self.head)

    @property
    def layers(self) -> tuple[int, ...]:
        """Elements of each repeating layer."""
        return tuple(total(block) for block in self.blocks)

    @property
    def experts(self) -> int:
        """Elements of all routed experts, a share of the layers."""
        return sum(each.size for block in self.blocks for each in block if each.expert)

    @property
    def other(self) -> int:
        """Elements of the rest: final norm, vision tower."""
        return total(self.rest)

    @property
    def total(self) -> int:
        """All elements."""
        return self.embedding + self.output + sum(self.layers) + self.other

    @property
    def active(self) -> int:
        """Elements that one token passes through."""
        if not self.expert_count:
            return self.total
        return self.total - self.experts + self.experts * self.experts_used // self.expert_count


def total(tensors: Iterable[Tensor]) -> int:
    """Elements of some tensors together."""
    return sum(each.size for each in tensors)


def count(config: Mapping[str, Any]) -> ParameterCount:
    """List what a model with this config consists of. Raises ModelInvalid naming a missing key."""
    facts = Facts(config)
    vocab, hidden = facts.need(VOCAB), facts.hidden
    if not facts.number("moe_intermediate_size"):
        facts.need(INTERMEDIATE)
    table = [Tensor("token_embd", vocab, facts.number("word_embed_proj_dim", hidden) or hidden)]
    per_layer = facts.number("hidden_size_per_layer_input")
    rest = [blocks.norm(facts, hidden)]
    if per_layer:
        width = per_layer * facts.layers
        rows = facts.number("vocab_size_per_layer_input", vocab)
        table.append(Tensor("per_layer_token_embd", rows, width))
        rest += [Tensor("per_layer_model_proj", width, hidden), blocks.norm(facts, per_layer)]
    if facts.is_a("opt", "gpt2"):
        table.append(Tensor("position_embd", facts.number("max_position_embeddings") + 2, hidden))
    head = [] if facts.tied else [Tensor("output", vocab, hidden)]
    if head and facts.family == "phi":
        head.append(blocks.vector(vocab))
    return ParameterCount(
        table=tuple(table),
        head=tuple(head),
        blocks=_blocks(facts),
        rest=(*rest, *blocks.vision(config.get("vision_config"), hidden)),
        family=facts.family,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        expert_count=facts.experts,
        experts_used=facts.experts_used,
    )


def _blocks(facts: Facts) -> tuple[tuple[Tensor, ...], ...]:
    """All blocks; those that are alike are one object, which is what makes a count cheap."""
    made: dict[tuple[str, bool, int], tuple[Tensor, ...]] = {}
    found = []
    for index, kind in enumerate(kinds(facts)):
        shape = (kind, blocks.has_experts(facts, index), blocks.mlp_width(facts, index))
        if shape not in made:
            made[shape] = blocks.block(facts, kind, index)
        found.append(made[shape])
    return tuple(found)
