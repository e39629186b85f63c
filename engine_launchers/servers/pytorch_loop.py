"""The library's batching loop: made, tried once, watched, and stopped.

It runs in a thread of its own. Batches are synchronous and without CUDA graphs, as
`pytorch_sampling` needs; attention is SDPA, which the library can page on CPU and CUDA alike.
Blocks of equal prompt beginnings are shared, except where adapters exist: what one adapter
computed must not serve another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_bodies import Sampling
from pytorch_model import Loaded, LoadFailed, activate, first_line, trim
from pytorch_sampling import PerRequestSampling
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)

log = logging.getLogger("pytorch_server")
FIRST_STEP_S = 600.0  # for the cache's allocation and a compiler's work


class Loop:
    """One manager of the library over one loaded model."""

    def __init__(self, loaded: Loaded, places: int) -> None:
        self._loaded, self._places = loaded, places
        self._manager = self._make()

    def _make(self) -> Any:
        loaded = self._loaded
        manager = loaded.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=loaded.num_blocks,
                page_size=loaded.block_size,
                max_batch_tokens=loaded.batch_tokens,
                max_requests_per_batch=self._places,
                allow_block_sharing=not loaded.adapters,
                per_request_processors=True,
                max_queue_size=0,  # the waiting line is ours, and bounded
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,  # it would fetch kernels
            ),
        )
        chain = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([PerRequestSampling()]))
        chain.tensors_required = 1
        manager.logit_processor = chain
        return manager

    def start(self) -> None:
        """Start and compute two tokens, so that missing memory is missed now: LoadFailed."""
        if self._loaded.compile:
            compile_layers(self._loaded.model, bool(self._loaded.adapters))
        self._manager.start()
        first = self._manager.add_request(
            [0], max_new_tokens=2, eos_token_id=-1, sampling=Sampling(temperature=0)
        )
        deadline = time.monotonic() + FIRST_STEP_S
        while time.monotonic() < deadline and self.death() is None:
            told = self._manager.get_result(timeout=0.1)
            if told is not None and told.request_id == first and told.is_finished():
                if told.error is None:
                    trim()  # the first step of packed layers takes more than those that follow
                    return
                break
        raise LoadFailed(f"kv: the first step failed: {self.death() or 'no answer'}")

    def death(self) -> str | None:
        """Why the loop computes no more, None while it lives."""
        error = self._manager.background_thread_status.fatal_error
        if error is not None:
            return first_line(error)
        return None if self._manager.is_running() else "its thread has ended"

    def add(
        self,
        name: str,
        prompt: list[int],
        tokens: int,
        sampling: Sampling,
        eos: tuple[int, ...],
        told: Callable[[Any], None],
    ) -> bool:
        """Let a request in; `told` gets every output, on the calling event loop. False if dead."""
        self._manager.register_result_handler(name, told)
        added = self._manager.add_request(
            prompt,
            request_id=name,
            max_new_tokens=tokens,
            streaming=True,
            eos_token_id=list(eos) or -1,
            sampling=sampling,
        )
        return added is not None

    def cancel(self, name: str) -> None:
        """Free a request's place and blocks; outputs that are on their way are dropped."""
        router = self._manager.output_router
        with router._lock:
            router.result_handlers.pop(name, None)
        self._manager.cancel_request(name)

    def switch(self, adapter: str) -> None:
        """Activate an adapter between two steps; waits for the step that runs."""
        with self._manager.pause():
            activate(self._loaded.model, self._loaded.adapters.get(adapter, ""))

    @property
    def iterations(self) -> int:
        """Steps computed so far."""
        return int(getattr(self._manager, "current_batch", 0))

    @property
    def blocks_used(self) -> int:
        """KV blocks that are not free, those kept for equal beginnings among them."""
        processor = self._manager.batch_processor
        if processor is None:
            return 0
        return round((1 - processor.cache.compute_free_capacity()) * self._loaded.num_blocks)

    def stop(self, seconds: float) -> None:
        """End the loop's thread, whatever it computes for; gives up after `seconds`."""
        self._manager.stop(block=True, timeout=seconds, hard_stop=True)


def compile_layers(model: Any, adapters: bool) -> None:
    """torch.compile for the feed-forward part of every layer; says in the log what came of it.

    The library's own way compiles the whole step for padded shapes, which on a CPU reads the whole
    padded cache for every token: 15 times slower than none, measured. Attention over paged blocks
    is outside of what the compiler takes, so the parts that are compiled are those between.
    """
    if adapters:
        log.warning("compile: off: adapters change the layers while serving")
        return
    parts = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not parts:
        log.warning("compile: off: no feed-forward parts by the name of mlp in this model")
        return
    began = time.monotonic()
    try:
        for part in parts:
            part.compile(dynamic=True)
        for rows in (1, 2, 5):
            width = int(model.config.get_text_config().hidden_size)
            with torch.no_grad():
                parts[0](torch.zeros(1, rows, width, dtype=model.dtype, device=model.device))
    except Exception as error:  # noqa: BLE001 a compiler's failure of any kind leaves the plain way
        for part in parts:
            part._compiled_call_impl = None
        log.warning("compile: off: %s", first_line(error))
        return
    log.info("compile: %d parts, first in %.1f s", len(parts), time.monotonic() - began)
