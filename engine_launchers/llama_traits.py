"""What llama.cpp's two servers share, for it is the library's: speed, and memory that runs out."""

from __future__ import annotations

import re

from engine_launchers.base import CrashCause
from engine_launchers.traits import CpuTraits, SpeedTraits

OUT_OF_MEMORY: tuple[tuple[CrashCause, re.Pattern[str]], ...] = (
    (
        CrashCause.GPU_OOM,
        re.compile(r"cudaMalloc failed: out of memory|CUDA error: out of memory|ErrorOutOfDevice"),
    ),
    (
        CrashCause.HOST_OOM,
        re.compile(r"std::bad_alloc|failed to allocate .*buffer|Cannot allocate memory"),
    ),
)

# 8B and 70B on 19 kinds of GPU (2024 builds) lie on bytes / (share x bandwidth) plus 0.1 ms a
# layer; on CPUs decode reaches 0.9 to 0.98 of what a threaded read kernel does, unless the
# cores cannot unpack as fast: 17 to 22 GFLOP/s each, as its neighbours let it, on an Intel
# server whose AMX kernels are left out of the build; 72 or more on an AMD one with AVX-512.
SPEED = SpeedTraits(
    bandwidth_share={"16bit": 0.97, "8bit": 0.97, "4bit": 0.97},
    memory_share={"hbm": 0.62, "unified": 0.80, "ram": 0.97},
    seconds_per_layer=1.0e-4,
    seconds_per_token=1.2e-3,
    compute_share=0.35,
    cpu=CpuTraits(
        decode_flops={"AMX": 20e9, "AVX-512": 72e9},
        seconds_per_layer=5e-5,
        seconds_per_token=4.1e-4,
    ),
)
