"""From all that a person said about the model to the artefacts that may be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.models.adapters import Asked, always, base_of, is_adapter_folder, with_adapters
from orchestrator.models.resolve import Resolved, resolve


def chosen(
    model: str,
    demo: Path,
    quantization: str | None = None,
    adapter_path: str | None = None,
    adapters: Sequence[str] = (),
    aliases: Sequence[str] = (),
) -> Resolved:
    """What `model` stands for, with its adapters.

    A folder that holds an adapter stands for its base model with the adapter applied. `adapters`
    are `NAME=PATH`. Raises what `resolve` and `with_adapters` raise, ConfigError for a name that
    is given twice.
    """
    path = Path(model).expanduser()
    if len(model) < 1024 and is_adapter_folder(path):
        if adapter_path:
            raise ConfigError(
                f"{model} is an adapter itself, and ADAPTER_PATH={adapter_path} another: give the "
                "base model as BASE_MODEL and the second adapter as adapters: NAME=PATH"
            )
        model, adapter_path = base_of(path), model
    asked = [always(adapter_path)] if adapter_path else []
    for each in adapters:
        name, _, place = each.partition("=")
        asked.append(Asked(name, Path(place)))
    found = with_adapters(resolve(model, demo, quantization), asked)
    _refuse_twins(found.name, aliases, {each.name for each in asked})
    return found


def _refuse_twins(model: str, aliases: Sequence[str], adapters: set[str]) -> None:
    names = [model, *aliases, *adapters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"the name {twice[0]} would stand for two things: the model, its aliases and its "
            "adapters need names of their own"
        )
