"""WHAT to run: one pure file per engine. Adding an engine is one file and one line here."""

from __future__ import annotations

from importlib import import_module

from engine_launchers.base import EngineName, Launcher

LAUNCHERS: dict[EngineName, str] = {
    "llama_cpp": "engine_launchers.llama_cpp:LlamaCppLauncher",
}


def load_launcher(name: EngineName) -> Launcher:
    """Return the launcher called `name`; KeyError where this version has none."""
    module, _, cls = LAUNCHERS[name].partition(":")
    launcher: Launcher = getattr(import_module(module), cls)()
    return launcher
