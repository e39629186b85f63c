"""WHAT to run: one pure file per engine. Adding an engine is one file and one line here."""

from __future__ import annotations

from importlib import import_module

from engine_launchers.base import EngineName, Launcher

ENGINES: dict[EngineName, str] = {
    "vllm": "engine_launchers.vllm:VllmLauncher",
    "llama_server": "engine_launchers.llama_server:LlamaServerLauncher",
    "llama_cpp": "engine_launchers.llama_cpp:LlamaCppLauncher",
    "pytorch": "engine_launchers.pytorch:PyTorchLauncher",
}


def load_launcher(name: EngineName) -> Launcher:
    """Return the launcher called `name`; KeyError where there is none."""
    module, _, cls = ENGINES[name].partition(":")
    launcher: Launcher = getattr(import_module(module), cls)()
    return launcher
