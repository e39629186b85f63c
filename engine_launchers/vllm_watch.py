"""How vLLM 0.32 shows its progress, and how it sleeps.

`/metrics` is answered by the server process, from what the engine's core last told it: with the
core stopped it goes on answering and nothing changes. A step that only prefills counts no tokens;
it fills the cache, so its usage is watched too. Lines of the log name process and source file
before what is matched here. What concerns graphs and compilation was read in the sources, not seen.

Sleep needs `--enable-sleep-mode` on a GPU and VLLM_SERVER_DEV_MODE=1 for its routes. Level 1 keeps
the weights in RAM; level 2 drops them, so that they have to be read again before there is a cache.
"""

from __future__ import annotations

from engine_launchers.series import SeriesRule
from engine_launchers.watch import Call, PhaseRule, SleepTraits, WatchTraits

_PHASES = (
    PhaseRule(pattern=r"non-default args:", name="reading the flags", percent=2),
    PhaseRule(pattern=r"Resolved architecture:", name="reading the configuration", percent=5),
    PhaseRule(pattern=r"Initializing a V1 LLM engine", name="starting the engine", percent=10),
    PhaseRule(pattern=r"world_size=\d+ rank=", name="starting the workers", percent=15),
    PhaseRule(pattern=r"Starting to load model", name="loading weights", percent=20),
    PhaseRule(
        pattern=r"Loading safetensors checkpoint shards:\s+(?P<percent>\d+)%",
        name="loading weights",
        percent=20,
        until=70,
    ),
    PhaseRule(pattern=r"Loading weights took", name="weights are loaded", percent=70),
    PhaseRule(pattern=r"Warming up model|torch\.compile takes", name="compiling", percent=72),
    PhaseRule(pattern=r"KV cache size:", name="making the cache", percent=80),
    PhaseRule(
        pattern=r"Capturing CUDA graphs?\b.*?(?P<percent>\d+)%",
        name="capturing graphs",
        percent=82,
        until=95,
    ),
    PhaseRule(pattern=r"init engine .* took", name="the engine is up", percent=95),
    PhaseRule(pattern=r"Starting vLLM server on", name="opening the port", percent=97),
    PhaseRule(pattern=r"Application startup complete", name="making a first token", percent=99),
)
_WEIGHTS = Call(path="/wake_up?tags=weights")
_READ = Call(path="/collective_rpc", body={"method": "reload_weights"})
_CACHE = Call(path="/wake_up?tags=kv_cache")
_ENDINGS = {"stop": "stop", "length": "length", "abort": "cancelled", "error": "failed"}
_SERIES = (
    SeriesRule(ours="requests_running", theirs="vllm:num_requests_running"),
    SeriesRule(ours="requests_waiting", theirs="vllm:num_requests_waiting"),
    SeriesRule(ours="kv_cache_used_ratio", theirs="vllm:kv_cache_usage_perc"),
    SeriesRule(
        ours="requests_total",
        theirs="vllm:request_success_total",
        label="finished_reason",
        words=_ENDINGS,
    ),
    SeriesRule(ours="prompt_tokens_total", theirs="vllm:prompt_tokens_total"),
    SeriesRule(ours="cached_tokens_total", theirs="vllm:prompt_tokens_cached_total"),
    SeriesRule(ours="generated_tokens_total", theirs="vllm:generation_tokens_total"),
    SeriesRule(ours="steps_total", theirs="vllm:iteration_tokens_total_count"),
    SeriesRule(ours="preemptions_total", theirs="vllm:num_preemptions_total"),
    SeriesRule(ours="prefill_seconds_total", theirs="vllm:request_prefill_time_seconds_sum"),
    SeriesRule(ours="decode_seconds_total", theirs="vllm:request_decode_time_seconds_sum"),
    SeriesRule(ours="ttft_seconds", theirs="vllm:time_to_first_token_seconds"),
    SeriesRule(ours="itl_seconds", theirs="vllm:inter_token_latency_seconds"),
    SeriesRule(ours="queue_seconds", theirs="vllm:request_queue_time_seconds"),
)
WATCH = WatchTraits(
    metrics_path="/metrics",
    counters=(
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:iteration_tokens_total_count",
        "vllm:kv_cache_usage_perc",
    ),
    phases=_PHASES,
    sleep=SleepTraits(
        down={1: (Call(path="/sleep?level=1"),), 2: (Call(path="/sleep?level=2"),)},
        up={1: (Call(path="/wake_up"),), 2: (_WEIGHTS, _READ, _CACHE)},
    ),
    series=_SERIES,
)
