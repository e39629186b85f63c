"""One real vLLM on the processor, by the launcher's command, under the process runtime's shim."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import psutil

from engine_launchers.base import EnginePlan, ExitResult, Fit, Listen, Tuning
from engine_launchers.model import Adapter, ModelSpec
from engine_launchers.vllm import VllmLauncher
from orchestrator.advice import without_gpus
from orchestrator.hardware import probe
from orchestrator.models.folder import folder_spec
from orchestrator.resources import demo_dir
from orchestrator.runtimes.base import Handle
from orchestrator.runtimes.process import ProcessOptions, ProcessRuntime, is_alive
from tests.harness import SLACK, free_ports, until

T = TypeVar("T")
START_S = 400.0  # 25 s on an idle machine


class Program(Protocol):
    """An engine that is installed."""

    @property
    def program(self) -> str: ...


class Engine:
    """One vLLM under a shim, and an event loop for its lease."""

    def __init__(self, folder: Path, program: str, plan: EnginePlan, **env: str) -> None:
        self.plan, self.launcher = plan, VllmLauncher()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        (folder / "logs").mkdir()
        options = ProcessOptions(
            folder=folder / "instances", logs=folder / "logs", sockets=folder, lease_s=60,
            grace_s=10, log_max_bytes=2**24, log_files=2,
        )  # fmt: skip
        runtime = ProcessRuntime(options, os.environ)
        listen = Listen(port=free_ports(1)[0])
        spec = self.launcher.command(plan, listen).with_engine(program)
        spec = spec.model_copy(update={"env": {**spec.env, **env}})
        self.handle: Handle = self.do(runtime.start(runtime.record("v", 1, spec)))
        key = env.get("VLLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=listen.base_url, timeout=120 * SLACK, trust_env=False, headers=headers
        )

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    @property
    def log(self) -> list[str]:
        path = self.handle.record.log
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    def ready(self) -> Engine:
        until(self._answers, START_S, "vLLM answers")
        return self

    def _answers(self) -> bool:
        assert is_alive(self._leader), "\n".join(self.log[-40:])
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def _leader(self) -> Any:
        assert self.handle.record.child is not None
        return self.handle.record.child

    def tree(self) -> list[psutil.Process]:
        leader = psutil.Process(self._leader.pid)
        return [leader, *leader.children(recursive=True)]

    def part(self, title: str) -> psutil.Process:
        return next(each for each in self.tree() if each.cmdline()[0].startswith(title))

    def stop(self, grace_s: float = 10) -> ExitResult:
        return self.do(self.handle.stop(grace_s))

    def wait(self) -> ExitResult:
        return self.do(self.handle.wait())

    def close(self) -> None:
        if is_alive(self._leader):
            self.stop()
        self.http.close()
        self.do(_settled())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # --- asking ---

    def complete(self, prompt: str, **fields: Any) -> dict[str, Any]:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 32, "temperature": 0, **fields}
        answer = self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def stream(self, prompt: str, **fields: Any) -> list[dict[str, Any]]:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 32, "temperature": 0, **fields}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        return [json.loads(each) for each in data[:-1]]


async def _settled() -> None:
    """Let every other task of this loop end: they close what they hold."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*rest, return_exceptions=True), 10 * SLACK)


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def random_adapter(folder: Path, rank: int = 8) -> Adapter:
    """A LoRA adapter for the demo's queries and values that changes what it says."""
    folder.mkdir()
    luck, tensors = random.Random(7), dict[str, tuple[int, int]]()
    for layer in range(3):
        for name, out in (("q_proj", 256), ("v_proj", 128)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{base}.lora_A.weight"] = (rank, 256)
            tensors[f"{base}.lora_B.weight"] = (out, rank)
    header: dict[str, Any] = {}
    data = b""
    for name, (rows, columns) in tensors.items():
        values = [luck.gauss(0, 0.3) for _ in range(rows * columns)]
        raw = struct.pack(f"<{len(values)}f", *values)
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": place}
        data += raw
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "task_type": "CAUSAL_LM",
              "target_modules": ["q_proj", "v_proj"], "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Adapter(
        name="other", path=str(folder), format="safetensors", rank=rank, weight_bytes=len(data)
    )


def plan_of(
    *adapters: Adapter,
    pinned: frozenset[str] = frozenset(),
    model: ModelSpec | None = None,
    **wish: Any,
) -> EnginePlan:
    """What the launcher plans for the demo on this machine without its GPUs."""
    model = model or folder_spec(demo_dir(), "demo").model_copy(update={"adapters": adapters})
    hardware = without_gpus(probe(), "tests run on the processor")
    names = pinned | {"max_concurrency"}
    fit = VllmLauncher().fit(model, hardware, Tuning(max_model_len=2048, **wish), names)
    assert isinstance(fit, Fit), fit
    return EnginePlan(
        id="v", engine="vllm", engine_version="0.32.0", tier="CPU_ONLY", model=model,
        tuning=fit.tuning, pinned=names, estimate=fit.estimate, reasons=fit.reasons,
    )  # fmt: skip
