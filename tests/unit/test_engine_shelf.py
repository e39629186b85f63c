"""An engine's environment is whole or made anew; nothing of an installation outlives it.

Real installers, over wheels that the tests write: pip and uv are both run.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from engine_launchers.machine import HardwareProfile
from orchestrator.engines.choosing import Compile, Requirement, requirement
from orchestrator.engines.doctor import examine
from orchestrator.engines.marker import MARKER, write_marker
from orchestrator.engines.overview import overview
from orchestrator.engines.shelf import Engine, Shelf
from orchestrator.engines.table import EngineTable, load_engine_table, parse_engine_table
from orchestrator.errors import EngineMissing
from tests.harness import clean_env, eventually, until
from tests.machines import machines

HERE = "linux-x86_64"
MACHINE = HardwareProfile(ram_total=1, ram_available=1, cpu_cores=1, platform=HERE)
ELSEWHERE = MACHINE.model_copy(update={"platform": "windows-AMD64"})
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel with one module that knows its version."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    asked = "".join(f"Requires-Dist: {each}\n" for each in requires)
    parts = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asked}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    parts[f"{info}/RECORD"] = "".join(f"{part},,\n" for part in [*parts, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        for part, text in parts.items():
            packed.writestr(part, text)


def need(version: str = "1.0", **changes: object) -> Requirement:
    made = Requirement(
        engine="vllm",
        version=version,
        flavour="cpu",
        program="bin/python",
        packages=(f"tiny=={version}",),
        check=(("{python}", "-c", f"import tiny; assert tiny.version == {version!r}"),),
    )
    return made.model_copy(update=changes)


def table(*versions: str) -> EngineTable:
    rows = [
        {
            "version": version,
            "check": [f"import tiny; assert tiny.version == {version!r}"],
            "flavours": {
                "cpu": {
                    "platforms": [HERE],
                    "requirements": [f"tiny=={version}"],
                    "disk_gib": 0.001,
                }
            },
        }
        for version in versions
    ]
    entry = {"program": "bin/python", "command": "vllm", "distribution": "vllm", "versions": rows}
    return parse_engine_table({"engines": {"vllm": entry}})


def surroundings(tmp_path: Path, with_uv: bool) -> dict[str, str]:
    """An environment whose installers see nothing but the wheels that the tests wrote."""
    path = tmp_path / "bin"
    path.mkdir(exist_ok=True)
    if with_uv:
        assert UV, "uv is not installed: it is among the `dev` dependencies"
        (path / "uv").symlink_to(UV)
    return {
        "PATH": f"{path}:/usr/bin:/bin",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_OFFLINE": "1",
        "UV_NO_INDEX": "1",
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(params=["uv", pytest.param("pip", marks=pytest.mark.slow)])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> Mapping[str, str]:
    """With uv on PATH, and without."""
    return surroundings(tmp_path, request.param == "uv")


def install(shelf: Shelf, wanted: Requirement) -> list[str]:
    lines: list[str] = []
    asyncio.run(shelf.install(wanted, lambda line, _: lines.append(line)))
    return lines


def test_versions_side_by_side_once_each_and_away_again(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "wheels", "tiny", version)
    shelf = Shelf(tmp_path / "envs", env, table("2.0", "1.0"))
    wanted = shelf.find("vllm", MACHINE)
    assert isinstance(wanted, Requirement)
    assert install(shelf, need("1.0"))
    found = shelf.find("vllm", MACHINE)  # an older one does, until the newest is there
    assert isinstance(found, Engine)
    assert found.version == "1.0"
    assert install(shelf, wanted)
    assert install(shelf, wanted) == []
    assert [row.version for row in shelf.installed()] == ["2.0", "1.0"]
    for version in ("1.0", "2.0"):
        found = shelf.find("vllm", MACHINE, version=version)
        assert isinstance(found, Engine)
        assert (found.version, found.origin, found.flavour) == (version, "installed", "cpu")
        code = "import tiny; print(tiny.version)"
        said = subprocess.run([found.program, "-c", code], capture_output=True, check=True)
        assert said.stdout.decode().strip() == version
    assert list((tmp_path / "envs" / "vllm-2.0").rglob("tiny.*.pyc"))  # whatever the user's wish
    with pytest.raises(EngineMissing, match=r"2\.0 \(cpu\), 1\.0 \(cpu\) is installed: say which"):
        shelf.remove("vllm")
    assert shelf.remove("vllm", "2.0").folder.name == "vllm-2.0"
    assert [row.version for row in shelf.installed()] == ["1.0"]
    assert not (tmp_path / "envs" / "vllm-2.0").exists()


def made(shelf: Shelf, wanted: Requirement) -> Path:
    """An environment that is whole by its marker, with our own interpreter as its program."""
    folder = shelf.path(wanted)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    write_marker(folder, wanted)
    return folder


def test_upgrade_and_rollback_where_the_table_no_longer_lists_what_is_installed(
    tmp_path: Path,
) -> None:
    before, after = Shelf(tmp_path, {}, table("1.0")), Shelf(tmp_path, {}, table("2.0"))
    made(before, before.wanted("vllm", MACHINE).model_copy(update={"check": ()}))

    def used(version: str | None = None) -> str:
        found = after.find("vllm", MACHINE, version=version)
        return f"{found.version} {found.origin if isinstance(found, Engine) else 'missing'}"

    assert used() == used("1.0") == "1.0 installed"
    assert used("2.0") == "2.0 missing"
    rows = [(row.version, row.state, row.newest) for row in overview(after, MACHINE)]
    assert rows == [("1.0", "installed", False), ("2.0", "installable", True)]
    first = next(examine(after, MACHINE))
    assert (first.about, first.level) == ("vllm-1.0", "note")
    assert "no longer in the table" in first.text
    made(after, after.wanted("vllm", MACHINE))
    assert used() == "2.0 installed"
    assert used("1.0") == "1.0 installed"
    assert after.remove("vllm", "2.0").version == "2.0"
    assert used() == "1.0 installed"
    (old,) = after.installed()
    said = old.marker.model_copy(update={"built_for": ("AMX",)})
    (old.folder / MARKER).write_text(said.model_dump_json())
    assert used() == "2.0 missing"  # it was compiled for another processor


def test_what_is_half_removed_is_no_engine_and_is_tidied_up(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {}, table("1.0"))
    folder = made(shelf, need())
    folder.rename(tmp_path / ".removing-vllm-1.0")
    assert shelf.installed() == []
    assert isinstance(shelf.find("vllm", MACHINE), Requirement)
    (wrong,) = [each for each in examine(shelf, MACHINE) if each.level == "wrong"]
    assert "interrupted removal" in wrong.text
    (maker,) = [each for each in examine(shelf, MACHINE) if each.about == "installer"]
    assert maker.text == UV  # beside our interpreter, though not on PATH
    (tmp_path / "vllm-1.0").mkdir()  # and an installation that was interrupted, too
    assert shelf.remove("vllm", "1.0").folder == folder
    assert [each for each in tmp_path.iterdir() if each.is_dir()] == []


def test_an_installation_touches_nothing_in_use_and_puts_back_what_it_cannot_replace(
    tmp_path: Path,
) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text("#!/bin/sh\necho 'error: no disk'\nexit 1\n")
    uv.chmod(0o755)
    shelf = Shelf(tmp_path / "envs", {"PATH": str(uv.parent)}, table("1.0"))
    folder = made(shelf, need(built_for=("AMX",)))
    program = folder / "bin" / "sleep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([str(program), "300"]) as running:
        until(lambda: str(program) in psutil.Process(running.pid).cmdline(), 10, "it runs")
        with pytest.raises(EngineMissing, match=f"in use by process {running.pid}: stop it"):
            install(shelf, need())
        running.kill()
    with pytest.raises(EngineMissing, match="error: no disk"):
        install(shelf, need())
    assert [row.marker.built_for for row in shelf.installed()] == [("AMX",)]
    assert not list(shelf.folder.glob(".old-*"))
    folder.rename(folder.with_name(".old-vllm-1.0"))  # one that was killed at that
    folder.mkdir()
    with pytest.raises(EngineMissing, match="error: no disk"):
        install(shelf, need())
    assert program.exists()


def test_without_its_compiler_the_processors_build_is_wanted_by_everyone(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"PATH": str(tmp_path)})
    card = machines()["cloud-l4"]
    for wanted in (shelf.wanted("llama_server", card), shelf.find("llama_server", card)):
        assert isinstance(wanted, Requirement)
        assert wanted.flavour == "cpu"
        assert "since nvcc is missing" in wanted.note
    (row,) = [each for each in overview(shelf, card) if each.engine == "llama_server"]
    assert (row.flavour, row.state) == ("cpu", "installable")
    assert "since nvcc is missing" in row.why
    assert shelf.wanted("llama_server", card, flavour="cuda").flavour == "cuda"
    (tmp_path / "nvcc").symlink_to("/bin/true")
    assert shelf.wanted("llama_server", card).flavour == "cuda"


def test_what_is_left_out_and_what_a_package_stands_for(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    wheel(tmp_path / "wheels", "tiny", "1.0", "helper", "unwanted>=3", "extra; extra == 'more'")
    wheel(tmp_path / "wheels", "helper", "0.1")
    code = (
        "import importlib.metadata as m, helper; assert m.version('other') == '1.0+cpu'; "
        "assert m.requires('other')"
    )
    wanted = need(
        without=("unwanted",), stands_for={"other": "1.0+cpu"}, check=(("{python}", "-c", code),)
    )
    install(Shelf(tmp_path / "envs", env, table("1.0")), wanted)


def test_a_failed_check_is_a_failed_installation_and_the_next_one_heals_it(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    wheel(tmp_path / "wheels", "tiny", "1.0")
    shelf = Shelf(tmp_path / "envs", env, table("1.0"))
    broken = need(check=(("{python}", "-c", "raise SystemExit('error: no such thing')"),))
    log = tmp_path / "envs" / "vllm-1.0.log"
    with pytest.raises(EngineMissing, match=f"error: no such thing \\(log: {log}\\)"):
        install(shelf, broken)
    assert "error: no such thing" in log.read_text()
    assert shelf.installed() == []
    (left,) = [each for each in examine(shelf, MACHINE) if each.level == "wrong"]
    assert "was left by an interrupted installation" in left.text
    install(shelf, need())
    assert shelf.installed()
    assert not [each for each in examine(shelf, MACHINE) if each.level == "wrong"]
    (tmp_path / "envs" / "vllm-1.0" / MARKER).unlink()
    assert isinstance(shelf.find("vllm", MACHINE), Requirement)


_KILLED = """
import asyncio, json, sys
from pathlib import Path
from orchestrator.engines.choosing import Requirement
from orchestrator.engines.shelf import Shelf
from tests.unit.test_engine_shelf import table
need = Requirement.model_validate_json(sys.argv[1])
shelf = Shelf(Path(sys.argv[2]), json.loads(sys.argv[3]), table("1.0"))
asyncio.run(shelf.install(need, lambda *_: None))
"""


@pytest.mark.slow
async def test_killed_half_way_it_is_finished_by_the_next_when_its_children_have_ended(
    tmp_path: Path,
) -> None:
    env = surroundings(tmp_path, with_uv=True)
    wheel(tmp_path / "wheels", "tiny", "1.0")
    shelf = Shelf(tmp_path / "envs", env, table("1.0"))
    pid, gate = tmp_path / "pid", tmp_path / "gate"
    os.mkfifo(gate)
    code = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid())); open({str(gate)!r}).read()"
    half = need(check=(("{python}", "-c", code),))
    argv = [sys.executable, "-c", _KILLED, half.model_dump_json(), str(shelf.folder)]
    first = await asyncio.create_subprocess_exec(*argv, json.dumps(env))
    await eventually(lambda: pid.exists() and pid.read_text(), 30, "the check runs")
    first.send_signal(signal.SIGKILL)
    await first.wait()
    assert shelf.installed() == []
    told: list[str] = []
    second = asyncio.create_task(shelf.install(need(), lambda line, _: told.append(line)))
    await eventually(lambda: any("waiting" in line for line in told), 10, "the next one waits")
    (note,) = [each for each in examine(shelf, MACHINE) if each.about == "vllm-1.0"]
    assert note.text == "is being installed or removed now"
    gate.write_text("")  # the child of the first comes to its end
    engine = await second
    assert engine.program == str(shelf.folder / "vllm-1.0" / "bin" / "python")


async def test_an_installation_that_is_given_up_leaves_no_compiler_running(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    fake = tmp_path / "uv"
    fake.write_text(  # like Ninja: its compilers have process groups of their own
        f"#!{sys.executable}\nimport subprocess\n"
        "compiler = subprocess.Popen(['/bin/sleep', '300'], process_group=0)\n"
        f"open({str(pids)!r}, 'w').write(str(compiler.pid))\n"
        "compiler.wait()\n"
    )
    fake.chmod(0o755)
    shelf = Shelf(tmp_path / "envs", {"PATH": str(tmp_path)}, table("1.0"))
    task = asyncio.create_task(shelf.install(need(), lambda *_: None))
    await eventually(lambda: pids.exists() and pids.read_text().strip(), 10, "the compiler runs")
    compiler = psutil.Process(int(pids.read_text()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(
        lambda: not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE,
        30,
        "the compiler is gone",
    )


def test_build_scripts_never_see_our_keys(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    fake = tmp_path / "uv"
    fake.write_text(f"#!/bin/sh\n/usr/bin/env >> {seen}\n")
    fake.chmod(0o755)
    env = {"PATH": str(tmp_path), "ENGINEROOM_API_KEYS": "sekret", "PYTHONPATH": "/elsewhere"}
    with pytest.raises(EngineMissing):  # nothing was really made
        install(Shelf(tmp_path / "envs", env, table("1.0")), need(check=()))
    assert "PATH=" in seen.read_text()
    assert "sekret" not in seen.read_text()
    assert "/elsewhere" not in seen.read_text()


def compiled() -> Compile:
    return Compile(
        package="x==1",
        folder=".",
        tools=(),
        target="all",
        define={},
        env={},
        needs={"nvcc": "the CUDA toolkit"},
        take=(),
        into="bin",
        wheel=None,
    )


def test_what_is_missing_here_is_one_sentence(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "envs", {"PATH": str(tmp_path)}, table("1.0"))
    with pytest.raises(EngineMissing, match=r"needs c\+\+, which is missing: install it"):
        shelf.preflight(need(source=compiled()))
    (tmp_path / "c++").symlink_to("/bin/true")
    with pytest.raises(EngineMissing, match="needs nvcc, which is missing: install the CUDA"):
        shelf.preflight(need(source=compiled()))
    shelf.preflight(need())
    with pytest.raises(EngineMissing, match=r"needs 1048576 GiB of disk .* GiB free"):
        shelf.preflight(need(disk_bytes=1 << 50))


def test_a_build_for_another_processor_is_not_taken(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {}, table("1.0"))
    wanted = requirement(shelf.table, "vllm", MACHINE)
    for isa, usable in ((None, True), (("AVX2", "AMX"), False)):
        python = shelf.path(wanted) / "bin" / "python"
        if not python.exists():
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        write_marker(shelf.path(wanted), wanted.model_copy(update={"built_for": isa}))
        assert isinstance(shelf.find("vllm", MACHINE), Engine) == usable
    (wrong,) = [each for each in examine(shelf, MACHINE) if each.level == "wrong"]
    assert "built for a processor with AVX2 AMX" in wrong.text
    assert wrong.remedy.startswith("run `engineroom engines install")


def console_script(tmp_path: Path, version: str) -> Path:
    """vLLM as pip would have installed it into an environment of the user's."""
    home = tmp_path / f"theirs-{version}"
    info = home / "lib" / "python3.11" / "site-packages" / f"vllm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (home / "bin").mkdir()
    script = home / "bin" / "vllm"
    script.write_text(f"#!{home}/bin/python3\nnever run\n")
    script.chmod(0o755)
    return script


def test_an_engine_on_path_is_used_where_its_version_is_known(tmp_path: Path) -> None:
    script = console_script(tmp_path, "1.0")
    shelf = Shelf(tmp_path / "envs", {"PATH": str(script.parent)}, table("2.0", "1.0"))
    found = shelf.find("vllm", ELSEWHERE)
    assert found == Engine(name="vllm", version="1.0", origin="PATH", program=str(script))
    with pytest.raises(EngineMissing, match=r"does not run on windows.*; .*/vllm is not used: it"):
        shelf.find("vllm", ELSEWHERE, version="2.0")


def test_another_version_on_path_is_refused_with_the_reason(tmp_path: Path) -> None:
    script = console_script(tmp_path, "0.9")
    shelf = Shelf(tmp_path / "envs", {"PATH": str(script.parent)}, table("2.0", "1.0"))
    found = shelf.find("vllm", MACHINE)
    assert isinstance(found, Requirement)
    assert "is version 0.9, and flags are known for 2.0, 1.0" in found.note
    given = shelf.find("vllm", MACHINE, path=script)
    assert given == Engine(name="vllm", version="0.9", origin="path", program=str(script))
    script.write_text("#!/bin/sh\n")  # nothing tells its version now
    shelf = Shelf(tmp_path / "envs", {"PATH": str(script.parent)}, table("2.0", "1.0"))
    found = shelf.find("vllm", MACHINE)
    assert isinstance(found, Requirement)
    assert "is not used: it does not tell its version" in found.note
    assert isinstance(shelf.find("vllm", MACHINE, path=script), Engine)
    with pytest.raises(EngineMissing, match="nowhere is not a program that can be run"):
        shelf.find("vllm", MACHINE, path=tmp_path / "nowhere")


def test_a_native_server_is_asked_for_its_version_once(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\necho x >> {asked}\necho 'version: 0.5.0-dev (build 1)'\n")
    program.chmod(0o755)
    shelf = Shelf(tmp_path / "envs", {"PATH": f"{tmp_path}:/bin"})
    for _ in range(2):
        found = shelf.find("llama_server", ELSEWHERE)
        assert isinstance(found, Engine)
        assert (found.version, found.origin) == ("0.3.36", "PATH")
    assert asked.read_text() == "x\n"


def test_an_engine_in_use_is_not_removed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {}, table("1.0"))
    wanted = requirement(shelf.table, "vllm", MACHINE)
    python = shelf.path(wanted) / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", python)
    write_marker(shelf.path(wanted), wanted)
    with subprocess.Popen([str(python), "300"]) as running:
        until(lambda: str(python) in psutil.Process(running.pid).cmdline(), 10, "it runs")
        with pytest.raises(EngineMissing, match=f"in use by process {running.pid}: stop it"):
            shelf.remove("vllm")
        running.kill()
    assert shelf.remove("vllm").version == "1.0"
    with pytest.raises(EngineMissing, match="no version is installed: nothing to remove"):
        shelf.remove("vllm")


def test_another_flavour_has_its_name_in_the_folder(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {}, table("1.0"))
    plain, other = need(), need(flavour="cuda", main=False)
    assert shelf.path(plain).name == "vllm-1.0"
    assert shelf.path(other).name == "vllm-1.0-cuda"
    shelf.path(plain).mkdir()
    write_marker(shelf.path(plain), plain)
    assert shelf.path(need(flavour="cuda")).name == "vllm-1.0-cuda"  # the GPU came later
    assert shelf.path(need(main=False)).name == "vllm-1.0"


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", "engines", *words, "--data-dir"]
        return subprocess.run(
            [*argv, str(tmp_path)], capture_output=True, text=True, check=False, env=clean_env()
        )

    rows = json.loads(run("list", "--json").stdout)
    assert {row["engine"] for row in rows} == set(load_engine_table().engines)
    assert run("doctor", "vllm").returncode == 0
    (tmp_path / "envs" / "vllm-0.32.0").mkdir(parents=True)
    sick = run("doctor", "vllm")
    assert sick.returncode == 1
    assert "WRONG vllm-0.32.0: was left by an interrupted installation" in sick.stdout
    unknown = run("install", "ollama")
    assert unknown.returncode == 69
    assert unknown.stderr.startswith("engineroom: no engine is called ollama: this version")
    assert run("remove", "vllm").stdout.startswith("removed ")  # a half one
    assert "nothing to remove" in run("remove", "vllm").stderr
