"""What the control plane shows of machine, ledger and starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from engine_launchers.machine import GpuPulse
from orchestrator.observability.machine_metrics import MachineMetrics
from orchestrator.supervision.figures import Figures
from orchestrator.supervision.host import Host
from orchestrator.supervision.ledger import Ledger, Room
from orchestrator.supervision.loading import LAUNCHING, Evidence, Load, Phase, by_phase
from tests.harness import sample, until

GIB = 1 << 30


@contextmanager
def reading(disk: Path, every_s: float = 60) -> Iterator[Host]:
    host = Host(disk, every_s)
    host.start()
    yield host
    host.stop()


def shown(ledger: Ledger, rooms: dict[str, Room], disk: Path) -> str:
    registry = CollectorRegistry()
    with reading(disk) as host:
        MachineMetrics(registry, Figures(tuple, ledger, lambda: rooms, host.told).look)
        return generate_latest(registry).decode()


def test_devices_claims_and_gpus(tmp_path: Path) -> None:
    ledger = Ledger({"ram": 6 * GIB})
    ledger.claim("demo-0", {"ram": 4 * GIB, "gpu:0": 10 * GIB})
    ledger.measure("demo-0", {"ram": 3 * GIB})
    pulse = GpuPulse(busy=0.5, watts=200)
    rooms = {
        "ram": Room(16 * GIB, 8 * GIB), "gpu:0": Room(80 * GIB, 79 * GIB, (), pulse),
    }  # fmt: skip
    text = shown(ledger, rooms, tmp_path)

    def of(name: str, device: str, **more: str) -> float:
        return sample(text, f"engineroom_{name}", {"device": device, **more})

    assert of("device_memory_bytes", "gpu:0") == 80 * GIB
    assert of("device_memory_free_bytes", "ram") == 8 * GIB
    assert of("device_memory_spare_bytes", "ram") == 2 * GIB  # the budget less what is held
    assert of("device_memory_spare_bytes", "gpu:0") == 69 * GIB
    assert of("device_memory_budget_bytes", "ram") == 6 * GIB
    assert 'memory_budget_bytes{device="gpu:0"}' not in text
    assert of("ledger_planned_bytes", "ram", replica="demo-0") == 4 * GIB
    assert of("ledger_measured_bytes", "ram", replica="demo-0") == 3 * GIB
    assert of("gpu_utilization_ratio", "gpu:0") == 0.5
    assert of("gpu_power_watts", "gpu:0") == 200
    assert "engineroom_gpu_temperature_celsius{" not in text
    assert sample(text, "engineroom_host_disk_free_bytes", {}) > 0


def test_a_disk_that_is_away_takes_nothing_else_with_it(tmp_path: Path) -> None:
    text = shown(Ledger(), {}, tmp_path / "gone")
    names = {line.split()[0] for line in text.splitlines()}
    assert "engineroom_host_disk_free_bytes" not in names
    assert "engineroom_host_load1" in names


def test_a_disk_that_hangs_holds_up_its_reader_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hangs, usage = threading.Event(), threading.Event(), psutil.disk_usage
    with reading(tmp_path, 0.01) as host:
        until(lambda: "cpu_ratio" in host.told(), 5, "it was read again")

        def hanging(path: str) -> object:
            asked.set()
            hangs.wait(60)
            return usage(path)

        monkeypatch.setattr(psutil, "disk_usage", hanging)
        assert asked.wait(20)
        figures = Figures(tuple, Ledger(), dict, host.told)
        assert figures.look().host["disk_free_bytes"] > 0  # the last that was read
        assert Figures(tuple, Ledger(), dict, Host(tmp_path).told).look().host == {}
        hangs.set()


def test_the_phases_of_a_start_add_up_to_all_of_it() -> None:
    load = Load()
    for at, name in enumerate(["reading", "weights", "weights", "graphs"]):
        load = load.after(1.0, Evidence(logged=at), Phase(name, at), 300)
    spent = by_phase(load, 5.5)
    assert spent == pytest.approx({LAUNCHING: 1, "reading": 1, "weights": 2, "graphs": 1.5})
    assert by_phase(None, 0.2) == {LAUNCHING: 0.2}
    assert sum(by_phase(load, 3.9).values()) == pytest.approx(4.0)  # looks round up
