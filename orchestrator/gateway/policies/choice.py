"""From a model's setting `routing` to its policy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.control import Routing
from orchestrator.gateway.policies.base import Policy
from orchestrator.gateway.policies.least import Least
from orchestrator.gateway.policies.pair import Pair
from orchestrator.gateway.policies.prefix import Prefix

MANY = 16


def policy_for(routing: Routing, ids: Sequence[str], draw: Callable[[int], int]) -> Policy:
    """The policy over replicas of these ids, in this order; `draw(n)` is random below n.

    `auto` is prefix affinity for requests that have one (chats, sessions, long prompts), and for
    the others least in flight, or two choices from 16 replicas on.
    """
    if routing == "least" or len(ids) < 2:
        return Least()
    if routing == "p2c":
        return Pair(draw)
    return Prefix(ids, Pair(draw) if len(ids) >= MANY else Least())
