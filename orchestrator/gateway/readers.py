"""Every path that is served below the framework, and who reads its bodies."""

from __future__ import annotations

from orchestrator.gateway import ollama_orders, orders, texts_orders, typed_orders

READERS: dict[str, orders.Reader] = {
    **orders.OURS,
    **typed_orders.READERS,
    **texts_orders.READERS,
    **ollama_orders.READERS,
}
