"""AdaptiveInferenceEngine: Engine Room as a library, the same server underneath.

`load_model` starts what `engineroom serve` starts, as a child of this interpreter, on free loopback
ports, with a key that only we know and a private folder for its state; engines that are installed
are shared. The child ends with this interpreter, however that ends. Environment variables and the
settings file count here as they do for `engineroom serve`; arguments beat them.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import sys
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine_launchers.base import EnginePlan
from engine_launchers.machine import HardwareProfile
from orchestrator.child import Child, private_folder, remove_folder
from orchestrator.detector import HardwareDetector, InferenceBackend
from orchestrator.errors import ConfigError, LaunchFailed, UnknownModel
from orchestrator.loaded import GenerationResult, LoadedModel, request_body
from orchestrator.settings import PREFIX, Settings, load_settings

# What the library decides by itself, and what a person names by an argument of `load_model`.
_OURS = {"host", "port", "admin_host", "admin_port", "allow_anonymous", "api_keys", "api_keys_file"}
_ARGUMENTS = {"model": "model_path", "force_backend": "backend"}
# Nobody but this interpreter waits for answers, and nothing shall outlive it for long; there is
# nobody to ask before an engine is installed.
_CHOSEN = {"drain_s": 5.0, "lease_s": 30.0, "install_missing": True}
_END_MARGIN_S = 15.0


class AdaptiveInferenceEngine:
    """One model at a time, on the engine that suits this machine.

    `auto_detect=False` leaves the choice of the engine to you: `load_model` wants a `backend` then.
    (What fits into memory is computed all the same.) `data_dir` and `engines_dir` are the settings
    of those names; a private folder under `data_dir` holds the state. `settings` are other settings
    by name, such as `start_stall_s=900`. `command` is what starts the command line, by default
    this interpreter's own.

    A context manager, also an asynchronous one. May be used from several threads; two of them in
    one interpreter do not know of each other. Raises the classes of `orchestrator.errors`.
    """

    def __init__(
        self,
        auto_detect: bool = True,
        *,
        data_dir: str | Path | None = None,
        engines_dir: str | Path | None = None,
        command: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        if taken := sorted(set(settings) & (_OURS | set(_ARGUMENTS))):
            raise ConfigError(
                f"argument {taken[0]}: not for here; the library or load_model sets it"
            )
        self.auto_detect = auto_detect
        self._command = tuple(command) or (sys.executable, "-m", "orchestrator")
        self._settings = {**settings, "data_dir": data_dir, "engines_dir": engines_dir}
        self._changing = threading.RLock()
        self._running: LoadedModel | None = None
        self._load({})  # a misspelt setting is told here

    # --- the model --------------------------------------------------------------------------------

    def load_model(
        self,
        model_path: str | Path,
        backend: InferenceBackend | str | None = None,
        force_cpu: bool = False,
        *,
        context: int | None = None,
        threads: int | None = None,
        quantization: str | None = None,
        adapter_path: str | Path | None = None,
    ) -> EnginePlan:
        """Start serving a model, and return the plan when it can answer.

        `backend` overrides the machine's choice, `force_cpu` leaves every GPU alone. `context`
        (tokens per sequence), `threads` and `quantization` ("4bit", "8bit" or "none") are pinned
        where they are given. `adapter_path` is a LoRA adapter to apply; a `model_path` that is an
        adapter's folder stands for its base model with it. The first model of an engine installs
        it, which takes minutes; the steps go to the logger `orchestrator.adaptive` at level INFO. A
        model that is loaded is drained and ended first. Blocks: in a coroutine use
        `asyncio.to_thread`.

        Raises ConfigError, ModelInvalid, NoEngineFits, EngineMissing or LaunchFailed.
        """
        asked: dict[str, Any] = {
            "model": str(model_path),
            "force_backend": self._backend(backend),
            "force_cpu": force_cpu or None,
            "context": context,
            "threads": threads,
            "quantization": quantization,
            "adapter_path": str(adapter_path) if adapter_path else None,
        }
        settings = self._load(asked)
        with self._changing:
            self.unload()
            self._running = self._start(settings, asked)
            return self.plan

    def unload(self) -> None:
        """Let running requests finish (`drain_s`), then end the model's server. Idempotent."""
        with self._changing:
            running, self._running = self._running, None
            if running is not None:
                running.end()

    def close(self) -> None:
        """The same as `unload`."""
        self.unload()

    @property
    def model(self) -> str | None:
        """The name of the loaded model."""
        running = self._running
        return running.name if running else None

    @property
    def plan(self) -> EnginePlan:
        """The plan in use: smaller than the first one where memory ran out since."""
        running = self._loaded()
        answer = running.ask_admin(f"/admin/models/{running.name}/plan")
        return EnginePlan.model_validate_json(json.dumps(answer))

    @property
    def hardware(self) -> HardwareProfile:
        """The machine as the loaded model's plan saw it; as it is now where none is loaded."""
        running = self._running
        if running is None:
            return HardwareDetector().detect()
        return HardwareProfile.model_validate_json(json.dumps(running.ask_admin("/admin/hardware")))

    # --- answers ----------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        repetition_penalty: float = 1.0,
        *,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        do_sample: bool = True,
    ) -> GenerationResult:
        """One whole answer; see `docs/reference/http.md` for the ranges. Blocks.

        `do_sample=False` is greedy. Raises a RequestError with the gateway's sentence.
        """
        body = request_body(
            prompt, max_new_tokens, temperature, top_p, repetition_penalty, stop, seed, do_sample
        )
        return self._loaded().generate(body)

    def generate_stream(
        self,
        prompt: str,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        repetition_penalty: float = 1.0,
        *,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        do_sample: bool = True,
    ) -> AsyncGenerator[str, None]:
        """The pieces of an answer's text as they come.

        Leaving the loop cancels the request at the engine, at once with `contextlib.aclosing`,
        else when the generator is collected. An answer that breaks off raises: what ends without
        an exception is whole.
        """
        body = request_body(
            prompt, max_new_tokens, temperature, top_p, repetition_penalty, stop, seed, do_sample
        )
        return self._loaded().pieces(body, keep=self)

    # --- with -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    # --- inside -----------------------------------------------------------------------------------

    def _loaded(self) -> LoadedModel:
        running = self._running
        if running is None:
            raise UnknownModel("no model is loaded: call load_model first")
        return running

    def _load(self, asked: Mapping[str, Any]) -> Settings:
        """The settings that result from `asked` and all the other places. Raises ConfigError."""
        given = self._given(asked)
        return load_settings(given, said=lambda name: f"argument {_ARGUMENTS.get(name, name)}")

    def _given(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What this program said itself, the latest last; None is not said."""
        said = (*self._settings.items(), *asked.items())
        return {name: value for name, value in said if value is not None}

    def _backend(self, backend: InferenceBackend | str | None) -> str | None:
        names = ", ".join(each.value for each in InferenceBackend)
        if backend is None:
            if not self.auto_detect:
                raise ConfigError(f"auto_detect=False: give load_model a backend, one of {names}")
            return None
        try:
            chosen = InferenceBackend(backend)
        except ValueError:
            raise ConfigError(f"argument backend: {backend!r} is none of {names}") from None
        return chosen.value

    def _start(self, settings: Settings, asked: Mapping[str, Any]) -> LoadedModel:
        key = secrets.token_urlsafe(32)
        chosen = {k: v for k, v in _CHOSEN.items() if k not in settings.model_fields_set}
        ours = {"host": "127.0.0.1", "port": 0, "admin_host": "127.0.0.1", "admin_port": 0}
        final = {
            **self._given(asked),
            **chosen,
            **ours,
            "api_keys": key,
            "engines_dir": settings.engines,
        }
        final.pop("data_dir", None)
        variables = {PREFIX + name.upper(): _text(name, value) for name, value in final.items()}
        folder = private_folder(settings.data / "library")
        argv = [*self._command, "serve", "--tied", "--json", "--data-dir", str(folder)]
        limit = 2 * settings.stop_grace_s + _END_MARGIN_S
        limit += chosen.get("drain_s", settings.drain_s)
        child: Child | None = None
        try:
            child = Child(argv, {**os.environ, **variables}, folder / "serve.log")
            where = child.wait_ready()
        except BaseException as error:
            if child is not None:
                child.end(limit)
            if not isinstance(error, LaunchFailed):  # that one names a log in it
                remove_folder(folder)
            raise
        return LoadedModel(self, child, where, key, folder, limit)


class PyTorchEngine(AdaptiveInferenceEngine):
    """The PyTorch engine by name: models as they were trained, and LoRA adapters on them."""

    def load_model(
        self,
        model_path: str | Path,
        backend: InferenceBackend | str | None = InferenceBackend.PYTORCH,
        force_cpu: bool = False,
        *,
        context: int | None = None,
        threads: int | None = None,
        quantization: str | None = None,
        adapter_path: str | Path | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
    ) -> EnginePlan:
        """As AdaptiveInferenceEngine's; `load_in_4bit` is `quantization="4bit"`: NF4 while loading.

        `model_path` may be an adapter's folder: its base model is loaded with it.
        """
        wanted = [w for w, on in (("4bit", load_in_4bit), ("8bit", load_in_8bit)) if on]
        if len({*wanted, *((quantization,) if quantization else ())}) > 1:
            raise ConfigError("load_in_4bit, load_in_8bit and quantization: choose one")
        return super().load_model(
            model_path,
            backend,
            force_cpu,
            context=context,
            threads=threads,
            quantization=wanted[0] if wanted else quantization,
            adapter_path=adapter_path,
        )


def _text(name: str, value: object) -> str:
    """A setting as an environment variable says it."""
    if not isinstance(value, tuple | list):
        return str(value)
    return shlex.join(map(str, value)) if name == "engine_args" else ",".join(map(str, value))
