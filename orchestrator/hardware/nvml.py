"""NVIDIA GPUs through NVML. A missing or broken driver is a note, never an error."""

from __future__ import annotations

import pynvml

from engine_launchers.machine import Gpu


def nvidia_gpus() -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The GPUs that NVML lists, and notes on what could not be read."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if isinstance(error, pynvml.NVMLError_LibraryNotFound):
            return (), ("no NVIDIA driver library on this machine",)
        return (), (f"NVIDIA driver does not answer: {error}",)
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return tuple(_gpu(i, driver) for i in range(pynvml.nvmlDeviceGetCount())), ()
    except pynvml.NVMLError as error:
        return (), (f"NVIDIA devices could not be read: {error}",)
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gpu(index: int, driver: str) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        vendor="nvidia",
        vram_total=memory.total,
        vram_free=memory.free,
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=driver,
    )
