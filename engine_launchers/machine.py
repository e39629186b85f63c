"""What one machine offers: accelerators, memory, cores. Sizes are bytes, rates bytes per second."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine_launchers.value import Value

_MOST = 1 << 50  # bytes, or bytes per second: more is a mistake
Vendor = Literal["nvidia", "amd", "apple", "intel"]
LinkKind = Literal["nvlink", "xgmi", "pcie", "cpu"]  # `cpu`: through the processor or its sockets


class GpuProcess(Value):
    """A process that holds memory of a GPU. What the driver hides is None."""

    pid: int
    name: str | None = None
    used: int | None = None


class GpuPulse(Value):
    """How a GPU is now, None where its driver does not tell. `busy` is a share of time, 0 to 1."""

    busy: float | None = None
    celsius: float | None = None
    watts: float | None = None


class Gpu(Value):
    """One accelerator as its driver reports it.

    `compute_capability` is NVIDIA's (major, minor), None for other vendors. `memory_bandwidth` is
    in bytes per second, None where the driver does not tell. `runtime_version` is the newest CUDA
    (or ROCm) that the driver can run. `link` describes the way to the host, such as
    "PCIe 4.0 x16". `unified` says that its memory is the machine's RAM. `architecture` is AMD's
    target, such as "gfx942"; `cores` counts Apple's GPU cores. `processes` are all that hold its
    memory now. `pulse` is how it was when it was probed, and not printed. A MIG slice is a Gpu of
    its own, with `mig` set and the card's uuid in `parent_uuid`.

    `index` is the driver's own, per vendor and in PCI order, even where a variable such as
    CUDA_VISIBLE_DEVICES hides or reorders GPUs: the order of `HardwareProfile.gpus` is then the
    one in which an engine numbers them from 0. Slices are numbered on after the cards.
    """

    index: int
    uuid: str
    name: str
    vendor: Vendor
    vram_total: int = Field(ge=0, le=_MOST)
    vram_free: int = Field(ge=0, le=_MOST)
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    runtime_version: str | None = None
    memory_bandwidth: int | None = Field(None, gt=0, le=_MOST)
    link: str | None = None
    mig: bool = False
    parent_uuid: str | None = None
    unified: bool = False
    architecture: str | None = None
    cores: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    pulse: GpuPulse = Field(GpuPulse(), exclude=True)


class GpuLink(Value):
    """How two GPUs of one machine reach each other; `a` < `b` are indices, `lanes` NVLinks."""

    a: int
    b: int
    kind: LinkKind
    lanes: int | None = None


class HardwareProfile(Value):
    """What one machine offers to this process, after cgroup limits and CPU affinity.

    `cpu_cores` counts physical cores that this process may use, never below 1. `memory_bandwidth`
    is what a threaded read kernel reached over those cores, None where it was not measured.
    `notes` says what could not be read, and why; a note is never fatal.
    """

    gpus: tuple[Gpu, ...] = ()
    links: tuple[GpuLink, ...] = ()
    ram_total: int = Field(gt=0, le=_MOST)
    ram_available: int = Field(ge=0, le=_MOST)
    cpu_cores: int = Field(ge=1, le=65_536)
    cpu_name: str | None = None
    numa_nodes: int = Field(1, ge=1)
    isa: tuple[str, ...] = ()
    memory_bandwidth: int | None = Field(None, gt=0, le=_MOST)
    platform: str
    notes: tuple[str, ...] = ()

    @property
    def gpu_count(self) -> int:
        """Number of accelerators."""
        return len(self.gpus)

    @property
    def total_vram_gb(self) -> float:
        """All accelerators' memory in GiB."""
        return sum(gpu.vram_total for gpu in self.gpus) / 2**30

    @property
    def best_gpu(self) -> Gpu | None:
        """The accelerator with the most memory, the newest of equals; None without one."""
        return max(
            self.gpus, key=lambda gpu: (gpu.vram_total, gpu.compute_capability or (0, 0)),
            default=None,
        )  # fmt: skip
