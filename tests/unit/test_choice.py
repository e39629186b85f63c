"""Which engine is taken: those that are here, those that could be, and what is said about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import orchestrator.startup
from engine_launchers import load_launcher
from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.errors import ConfigError, EngineMissing, EngineRoomError, ModelInvalid
from orchestrator.resources import demo_dir
from orchestrator.settings import load_settings
from orchestrator.startup import Decision, Planning, decide
from tests.plans import box

ADAPTERS = demo_dir() / "adapters"


class Stock(Shelf):
    """A shelf on which just these engines stand; the others would have to be installed."""

    def __init__(self, *here: EngineName, impossible: Mapping[EngineName, str] = {}) -> None:
        super().__init__(Path("/nowhere"), {"PATH": ""})
        self.here, self.impossible = here, impossible

    def find(
        self,
        engine: EngineName,
        hardware: HardwareProfile,
        *,
        version: str | None = None,
        path: Path | None = None,
    ) -> Engine | Requirement:
        if path is not None:
            return super().find(engine, hardware, path=path)
        if engine in self.impossible:
            raise EngineMissing(self.impossible[engine])
        found = super().find(engine, hardware, version=version)
        assert isinstance(found, Requirement)
        if engine not in self.here:
            return found
        return Engine(
            name=engine,
            version=found.version,
            origin="installed",
            program=f"/opt/{engine}",
            flavour=found.flavour,
        )


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decide on an imagined machine: `on("RTX 4090")(Stock("vllm"), force_backend="vllm")`."""

    def machine(card: str | None = None) -> Any:
        hardware = box(card) if card else box("none", ram_gb=64)
        monkeypatch.setattr(orchestrator.startup, "probe", lambda **_: hardware)

        def choose(shelf: Shelf, offer: bool = False, **settings: Any) -> Decision:
            return decide(load_settings(settings, {}), shelf, offer=lambda need: offer)

        return choose

    return machine


def test_what_is_installed_is_taken_and_what_is_missing_is_named(on: Any) -> None:
    plain = on("RTX 4090")(Stock("llama_cpp"))
    assert plain.plan.engine == "llama_cpp"
    assert "vllm is not installed: run `engineroom engines install vllm`" in plain.second
    assert plain.second in plain.plan.reasons
    assert isinstance(plain.engine, Engine)
    wanted = on("RTX 4090")(Stock("llama_cpp"), offer=True)
    assert (wanted.plan.engine, wanted.second) == ("vllm", "")
    assert isinstance(wanted.engine, Requirement)


def test_an_engine_that_cannot_be_had_falls_to_the_next_with_the_reason(on: Any) -> None:
    shelf = Stock("llama_cpp", impossible={"vllm": "vllm 0.32.0 does not run on windows-amd64"})
    made = on("RTX 4090")(shelf)
    assert made.plan.engine == "llama_cpp"
    assert [r.why for r in made.plan.rejected if r.what == "vllm"] == [shelf.impossible["vllm"]]
    with pytest.raises(EngineMissing, match="windows-amd64"):
        on("RTX 4090")(shelf, force_backend="vllm")


def test_nothing_installed_says_how_to_get_the_best(on: Any) -> None:
    with pytest.raises(EngineMissing, match=r"engines install llama_server`, or add --yes"):
        on()(Stock())
    with pytest.raises(EngineMissing, match="engines install pytorch"):
        on()(Stock("llama_cpp"), force_backend="pytorch")


def test_gguf_prefers_the_native_server_and_takes_the_other_by_name(on: Any) -> None:
    both = Stock("llama_server", "llama_cpp")
    assert on()(both).plan.engine == "llama_server"
    assert on()(both, force_backend="llama_cpp").plan.engine == "llama_cpp"


def test_a_given_program_is_used_as_it_is(on: Any) -> None:
    made = on()(Stock(), force_backend="llama_cpp", engine_path=Path(sys.executable))
    assert isinstance(made.engine, Engine)
    assert (made.engine.origin, made.engine.program) == ("path", os.path.abspath(sys.executable))
    for wrong, words in (
        ({"engine_path": "/x"}, "say which engine"),
        ({"engine_path": "/x", "engine_version": "1", "force_backend": "vllm"}, "give one"),
        ({"engine_args": "--port 1"}, "--port is set by Engine Room"),
        ({"engine_args": "--api-key=x"}, "--api-key is set by Engine Room"),
        ({"engine_args": "--hos 0.0.0.0"}, "--hos is set by Engine Room"),
        ({"engine_args": "--served_model_name x"}, "--served_model_name is set by"),
        ({"engine_args": "--config_file x"}, "--config_file is set by"),
        ({"engine_url": "http://a:1/v1", "force_backend": "vllm"}, "without a path"),
    ):
        with pytest.raises(ConfigError, match=words):
            on()(Stock(), **wrong)


def test_a_build_for_the_processor_is_planned_without_the_cards(on: Any) -> None:
    class CpuOnly(Stock):
        def find(self, engine: EngineName, *args: Any, **kwargs: Any) -> Engine | Requirement:
            return super().find(engine, *args, **kwargs).model_copy(update={"flavour": "cpu"})

    made = on("RTX 4090")(CpuOnly("llama_cpp", "llama_server"))
    assert made.plan.gpus == ()
    assert any("built for the processor" in reason for reason in made.plan.reasons)


def test_adapters_choose_the_artefact_and_have_names(on: Any) -> None:
    every = Stock("vllm", "llama_server", "llama_cpp", "pytorch")
    folder, file = ADAPTERS / "garden", ADAPTERS / "garden.gguf"
    peft = on()(every, adapter_path=str(folder), aliases="shop")
    assert (peft.plan.model.format, peft.plan.aliases) == ("safetensors", ("shop",))
    names = load_launcher(peft.plan.engine).served(peft.plan)
    assert [(n.name, n.adapter) for n in names] == [
        ("demo", "garden"), ("shop", "garden"), ("garden", "garden"),
    ]  # fmt: skip
    gguf = on()(every, adapters=f"plants={file}")
    assert gguf.plan.engine == "llama_server"
    names = load_launcher("llama_server").served(gguf.plan)
    assert [(n.name, n.adapter) for n in names] == [("demo", None), ("plants", "plants")]
    both = on()(every, adapters=f"g={file},g={folder}")
    assert both.plan.model.format == "gguf"
    whole = on()(every, model=str(folder))
    assert (whole.plan.model.id, whole.plan.model.adapters[0].always) == ("demo", True)


def test_wrong_adapters_are_refused_before_any_engine_starts(on: Any, tmp_path: Path) -> None:
    every = Stock("vllm", "llama_server", "llama_cpp", "pytorch")
    (tmp_path / "cut.gguf").write_bytes((ADAPTERS / "garden.gguf").read_bytes()[:5000])
    garden = f"g={ADAPTERS / 'garden.gguf'}"
    for settings, error, words in (
        ({"adapter_path": "/none"}, ModelInvalid, "no such file or folder"),
        ({"adapters": f"cut={tmp_path / 'cut.gguf'}"}, ModelInvalid, "truncated"),
        ({"adapters": f"m={demo_dir() / 'demo.F16.gguf'}"}, ModelInvalid, "not a LoRA adapter"),
        ({"adapters": f"{garden},p={ADAPTERS / 'garden'}"}, ConfigError, "in the format of"),
        ({"adapters": garden, "aliases": "g"}, ConfigError, "two things"),
        ({"adapters": garden.replace("g=", "demo=")}, ConfigError, "two things"),
    ):
        with pytest.raises(error, match=words):
            on()(every, **settings)


def renamed(folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of the garden adapter with other names or sizes in its header; lengths stay."""
    assert len(old) == len(new)
    shutil.copytree(ADAPTERS / "garden", folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(old, new))
    return folder


def test_an_adapter_of_another_model_is_told_before_anything_is_loaded(
    on: Any, tmp_path: Path
) -> None:
    every = Stock("vllm", "llama_server", "llama_cpp", "pytorch")
    deep = renamed(tmp_path / "deep", b".layers.2.", b".layers.7.")
    wide = renamed(tmp_path / "wide", b'"shape":[8,256]', b'"shape":[8,512]')
    for folder, words in ((deep, "it changes layer 8, demo has 3"), (wide, "hidden size of 512")):
        with pytest.raises(ModelInvalid, match=words):
            on()(every, adapter_path=str(folder))
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelInvalid, match="not a regular file"):
        on()(every, adapters=f"p={tmp_path / 'pipe.gguf'}")


def test_force_cpu_plans_a_machine_without_gpus(on: Any) -> None:
    every = Stock("vllm", "llama_server", "llama_cpp")
    plain, cpu = (on("RTX 4090")(every, force_cpu=no) for no in (False, True))
    assert plain.plan.gpus == (0,)
    assert (cpu.plan.gpus, cpu.plan.tier) == ((), "CPU_ONLY")
    assert "force_cpu: 1 GPUs are not used" in cpu.hardware.notes
    assert plain.fingerprint != cpu.fingerprint


def test_an_adapter_that_was_trained_again_is_another_wish(on: Any, tmp_path: Path) -> None:
    file = tmp_path / "g.gguf"
    seen = []
    for second in (1, 2):
        file.write_bytes((ADAPTERS / "garden.gguf").read_bytes())
        os.utime(file, (second, second * 10**9))
        seen.append(on()(Stock("llama_server"), adapters=f"g={file}").fingerprint)
    assert seen[0] != seen[1]


def test_what_could_not_be_installed_leaves_the_next_best(on: Any) -> None:
    on("RTX 4090")(Stock("llama_cpp"))
    failed = EngineMissing("engine vllm 0.32.0 could not be installed: no space")
    settings = load_settings({}, {})
    (made,) = Planning(Stock("llama_cpp"), lambda: settings).next_best(settings, failed)
    assert made.plan.engine == "llama_cpp"
    with pytest.raises(EngineMissing, match="no space"):
        Planning(Stock(), lambda: settings).next_best(settings, failed)


def test_every_wish_is_in_the_fingerprint(on: Any) -> None:
    every = Stock("vllm", "llama_server", "llama_cpp")
    seen = {
        on()(every, **settings).fingerprint
        for settings in ({}, {"aliases": "a"}, {"engine_args": "--seed 1"}, {"context": 512})
    }
    assert len(seen) == 4


def test_a_model_on_a_hub_is_to_be_pulled_first(on: Any) -> None:
    with pytest.raises(EngineRoomError, match=r"run `engineroom pull .*` first"):
        on()(Stock("llama_server"), model="qwen3.5-9b")
