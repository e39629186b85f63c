"""The two servers of llama.cpp: slots, adapters, flags, and what they take of the memory."""

from __future__ import annotations

from typing import Any

import pytest

from engine_launchers.base import CrashCause, EnginePlan, Fit, Listen, Rejection, Tuning
from engine_launchers.llama_cpp import LlamaCppLauncher
from engine_launchers.llama_server import LlamaServerLauncher
from engine_launchers.machine import HardwareProfile
from engine_launchers.model import Adapter, CacheGroup, ModelSpec
from tests.plans import GIB, MISTRAL, artefact, box, planned

NATIVE, PYTHON = LlamaServerLauncher(), LlamaCppLauncher()
Q4 = artefact(MISTRAL, "Q4_K_M")


def adapted(*names: str, always: str = "") -> ModelSpec:
    adapters = tuple(
        Adapter(name=n, path=f"/a/{n}.gguf", format="gguf", weight_bytes=10**7, always=n == always)
        for n in names
    )
    return Q4.model_copy(update={"adapters": adapters})


def fit(model: ModelSpec = Q4, hardware: HardwareProfile | None = None, **wish: Any) -> Fit:
    pinned = frozenset({"max_concurrency"}) if wish.pop("pin", False) else frozenset[str]()
    found = NATIVE.fit(model, hardware or box("none", ram_gb=16), Tuning(**wish), pinned)
    assert isinstance(found, Fit), found
    return found


def plan(model: ModelSpec, found: Fit) -> EnginePlan:
    return EnginePlan(
        id="x", engine="llama_server", engine_version="x", tier="CPU_ONLY", model=model,
        tuning=found.tuning, estimate=found.estimate, aliases=("other",), gpus=found.gpus,
    )  # fmt: skip


def after(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_slot_has_the_planned_context() -> None:
    found = fit(max_model_len=1000, max_concurrency=4)
    argv = NATIVE.command(plan(Q4, found), Listen(port=4711)).argv
    assert (after(argv, "-c"), after(argv, "-np")) == ("4000", "4")
    assert after(argv, "--kv-unified-per-slot") == "1000"
    assert "--no-kv-unified" in argv
    one = fit(max_model_len=1000, max_concurrency=1)
    assert found.estimate[-1].kv == 4 * one.estimate[-1].kv  # each rounded up to 1024
    assert one.estimate[-1].kv == 1024 * 131_072


def test_slots_cost_no_context_and_pinned_slots_do() -> None:
    small = box("none", ram_gb=7)
    found = fit(hardware=small, max_model_len=8192, max_concurrency=4)
    assert found.tuning.max_model_len == 8192
    assert 1 <= (found.tuning.max_concurrency or 0) < 4
    assert any("of 4 sequences: more full contexts do not fit" in r for r in found.reasons)
    pinned = fit(hardware=small, max_model_len=8192, max_concurrency=4, pin=True)
    assert pinned.tuning.max_concurrency == 4
    assert (pinned.tuning.max_model_len or 0) < 8192


def test_users_that_do_not_fit_are_refused_with_how_many_would() -> None:
    wish = Tuning(max_model_len=8192, max_concurrency=64)
    pins = frozenset({"max_concurrency", "max_model_len"})
    refused = NATIVE.fit(Q4, box("none", ram_gb=16), wish, pins)
    assert isinstance(refused, Rejection)
    assert "64 x 8192 tokens" in refused.why
    count = int(refused.why.split("; ")[-1].split()[0])
    kept = NATIVE.fit(
        Q4, box("none", ram_gb=16), wish.model_copy(update={"max_concurrency": count}), pins
    )
    assert isinstance(kept, Fit)
    many = NATIVE.fit(Q4, box("none"), Tuning(max_concurrency=257), pins)
    assert isinstance(many, Rejection)
    assert "256 at most" in many.why


def test_the_tier_is_served_by_the_native_server_and_says_nothing_of_a_wish() -> None:
    taken = planned(MISTRAL, box("none"))
    assert taken.id == "llama-server-q4-k-m-tp1"
    assert not any("the tier wishes llama_cpp" in reason for reason in taken.reasons)
    told = {r.what: r.why for r in taken.rejected}
    prefers = "fits, the tier prefers llama_server (place 1 of 4, not 2)"
    assert told["llama-cpp-q4-k-m-tp1"] == prefers
    assert planned(MISTRAL, box("none"), users=3).tuning.max_concurrency == 3


def test_gpus_are_told_all_layers_and_their_shares() -> None:
    found = fit(hardware=box("RTX 4090:2"), max_model_len=4096, flash_attention=True)
    argv = NATIVE.command(plan(Q4, found), Listen(port=4711)).argv
    assert after(argv, "-ngl") == "all"  # to this server, -1 means as many as it likes
    assert after(argv, "-sm") == "layer"
    assert after(argv, "-fa") == "on"
    cpu = NATIVE.command(plan(Q4, fit()), Listen(port=4711)).argv
    assert not {"-ngl", "-sm", "-ts"} & set(cpu)
    assert after(cpu, "-fa") == "auto"


def test_an_adapter_is_a_number_and_the_model_itself_turns_all_off() -> None:
    model = adapted("garden", "pirate")
    found = fit(model)
    off = {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]}
    told = {s.name: (s.adapter, s.fields) for s in NATIVE.served(plan(model, found))}
    assert told == {
        model.id: (None, off),
        "other": (None, off),
        "garden": ("garden", {"lora": [{"id": 0, "scale": 1.0}]}),
        "pirate": ("pirate", {"lora": [{"id": 1, "scale": 1.0}]}),
    }
    argv = NATIVE.command(plan(model, found), Listen(port=4711)).argv
    assert after(argv, "--lora") == "/a/garden.gguf,/a/pirate.gguf"
    assert "--lora-init-without-apply" in argv
    assert found.estimate[-1].weights == pytest.approx(fit().estimate[-1].weights + 2e7, abs=2)
    assert all(s.fields == {} for s in NATIVE.served(plan(Q4, fit())))


def test_an_adapter_that_is_always_meant_stands_behind_the_models_name() -> None:
    model = adapted("garden", always="garden")
    names = {s.name: s.fields for s in NATIVE.served(plan(model, fit(model)))}
    on = {"lora": [{"id": 0, "scale": 1.0}]}
    assert names == {model.id: on, "other": on, "garden": on}


def test_a_path_with_a_comma_stays_one_path() -> None:
    odd = Adapter(name="odd", path='/a/b,"c".gguf', format="gguf")
    model = Q4.model_copy(update={"adapters": (odd,)})
    argv = NATIVE.command(plan(model, fit(model)), Listen(port=4711)).argv
    assert after(argv, "--lora") == '"/a/b,""c"".gguf"'


def test_the_python_server_takes_one_adapter_for_every_request() -> None:
    two = PYTHON.fit(adapted("garden", "pirate"), box("none", ram_gb=16), Tuning())
    assert isinstance(two, Rejection)
    assert "llama_server changes them by request" in two.why
    model = adapted("garden")
    one = PYTHON.fit(model, box("none", ram_gb=16), Tuning())
    assert isinstance(one, Fit)
    assert any("every request gets the adapter garden" in reason for reason in one.reasons)
    assert {s.adapter for s in PYTHON.served(plan(model, one))} == {"garden"}
    argv = PYTHON.command(plan(model, one), Listen(port=4711)).argv
    assert after(argv, "--lora_path") == "/a/garden.gguf"


def test_states_and_windows_have_checkpoints_that_are_counted() -> None:
    state = CacheGroup(layers=16, kind="state", state_bytes=2**20)
    full = CacheGroup(layers=16, kv_heads=8, head_dim=128, v_head_dim=128)
    model = Q4.model_copy(update={"caches": (full, state)})
    argv = NATIVE.command(plan(model, fit(model)), Listen(port=4711)).argv
    assert after(argv, "--ctx-checkpoints") == "2"
    assert after(NATIVE.command(plan(Q4, fit()), Listen(port=1)).argv, "--ctx-checkpoints") == "0"
    plain = Q4.model_copy(update={"caches": (full,)})
    wish: dict[str, Any] = {"max_model_len": 1024, "max_concurrency": 2}
    more = fit(model, **wish).estimate[-1].overhead - fit(plain, **wish).estimate[-1].overhead
    assert more == 2 * 2 * 16 * 2**20


def test_the_rungs_go_down_in_order_and_end_with_the_cache() -> None:
    current: EnginePlan | None = plan(Q4, fit(max_model_len=2048, max_concurrency=4))
    fields, totals = [], []
    while current is not None:
        totals.append(current.estimate[-1].total)
        fields.append(current.reasons[-1].split(" ")[0] if current.reasons else "")
        current = NATIVE.relax(current, CrashCause.HOST_OOM)
    assert list(dict.fromkeys(fields[1:])) == ["sequences", "context", "batch", "cache"]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    assert totals[-1] < 5 * GIB


def test_a_cache_of_8_bit_turns_flash_attention_on() -> None:
    found = fit(kv_cache_dtype="q8_0")
    argv = NATIVE.command(plan(Q4, found), Listen(port=4711)).argv
    assert (after(argv, "-fa"), after(argv, "-ctk"), after(argv, "-ctv")) == ("on", "q8_0", "q8_0")
