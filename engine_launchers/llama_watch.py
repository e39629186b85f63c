"""How llama.cpp's two servers show their progress.

`llama-server` answers `/metrics` between two steps of its loop, so that a long step delays it; its
counters stand still meanwhile. It counts the cached tokens of prompts apart. `llama_cpp.server` has
no metrics and one lock: what it sends, and its processor time, are all that tells.
"""

from __future__ import annotations

from engine_launchers.series import SeriesRule
from engine_launchers.watch import PhaseRule, WatchTraits

NATIVE = WatchTraits(
    metrics_path="/metrics",
    counters=(
        "llamacpp:tokens_predicted_total",
        "llamacpp:prompt_tokens_total",
        "llamacpp:n_decode_total",
    ),
    phases=(
        PhaseRule(pattern=r"llama_server: initializing", name="starting", percent=1),
        PhaseRule(pattern=r"load_model: loading model", name="loading weights", percent=5),
        PhaseRule(pattern=r"threadpool init", name="making the context", percent=85),
        PhaseRule(pattern=r"initializing, n_slots", name="making the slots", percent=92),
        PhaseRule(pattern=r"llama_server: model loaded", name="making a first token", percent=98),
    ),
    series=(
        SeriesRule(ours="requests_running", theirs="llamacpp:requests_processing"),
        SeriesRule(ours="requests_waiting", theirs="llamacpp:requests_deferred"),
        SeriesRule(ours="prompt_tokens_total", theirs="llamacpp:prompt_tokens_total"),
        SeriesRule(ours="prompt_tokens_total", theirs="llamacpp:prompt_tokens_cached_total"),
        SeriesRule(ours="cached_tokens_total", theirs="llamacpp:prompt_tokens_cached_total"),
        SeriesRule(ours="generated_tokens_total", theirs="llamacpp:tokens_predicted_total"),
        SeriesRule(ours="steps_total", theirs="llamacpp:n_decode_total"),
        SeriesRule(ours="prefill_seconds_total", theirs="llamacpp:prompt_seconds_total"),
        SeriesRule(ours="decode_seconds_total", theirs="llamacpp:tokens_predicted_seconds_total"),
    ),
)
PYTHON = WatchTraits(
    phases=(
        PhaseRule(pattern=r"^llama_model_loader: ", name="reading the header", percent=5),
        PhaseRule(pattern=r"^print_info: ", name="reading the vocabulary", percent=10),
        PhaseRule(pattern=r"^load_tensors: ", name="loading weights", percent=15),
        PhaseRule(pattern=r"^\.*repack: ", name="repacking weights", percent=30),
        PhaseRule(pattern=r"^llama_context: ", name="making the context", percent=85),
        PhaseRule(pattern=r"^llama_kv_cache: ", name="making the cache", percent=90),
        PhaseRule(pattern=r"^sched_reserve: ", name="planning the graph", percent=94),
        PhaseRule(pattern=r"Application startup complete", name="making a first token", percent=98),
    ),
    serial=True,
)
