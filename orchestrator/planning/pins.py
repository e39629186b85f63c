"""What a person set is what runs: a fit that would drop a pinned field is none. Pure."""

from __future__ import annotations

from engine_launchers.base import EngineName, Fit, Rejection
from orchestrator.planning.candidates import Wish

# The wish's name of each tuning field that has another.
_WISHES = {"max_concurrency": "users"}
_REMEDY = {
    "gpu_layers": "only llama_server and llama_cpp on a GPU have this setting",
    "gpu_memory_fraction": "only vllm on a GPU has this setting",
    "tensor_parallel": "only vllm on that many equal GPUs can",
    "max_concurrency": "this engine answers one request at a time, llama_server, vllm and pytorch "
    "answer more",
}


def keeping(fit: Fit, wish: Wish, engine: EngineName) -> Fit | Rejection:
    """The fit with every pinned field as it was asked for, or why `engine` cannot have it so.

    Threads, tensor parallel 1, and no layers on the GPU where none is used, change nothing about an
    engine that does not ask for them: they are noted as they were set.
    """
    for field in sorted(wish.pinned() - {"quantization"}):
        asked = getattr(wish, _WISHES.get(field, field))
        got = getattr(fit.tuning, field)
        if got == asked:
            continue
        nothing = {"threads": True, "tensor_parallel": asked == 1,
                   "gpu_layers": asked == 0 and not fit.gpus}  # fmt: skip
        if not nothing.get(field):
            remedy = _REMEDY.get(field, f"{got} is what it would run with")
            why = f"{field} {asked:g} was asked for: {remedy}"
            return Rejection(what=engine, why=why, need=asked, have=got, unit=field)
        fit = fit.model_copy(update={"tuning": fit.tuning.model_copy(update={field: asked})})
    return fit
