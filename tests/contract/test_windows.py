"""The batch files: their command lines are ones that Engine Room takes. They cannot be run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli.main import app
from orchestrator.settings import DOCUMENT_VARIABLES, PREFIX, Settings, load_settings

FILES = sorted((Path(__file__).resolve().parents[2] / "deploy" / "windows").glob("*.bat"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
ENGINES = {"llama_server", "llama_cpp", "pytorch"}


def one(pattern: str, text: str) -> str:
    """What the only match of a pattern holds."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return str(found)


def test_those_of_the_documents_are_there() -> None:
    assert [file.name for file in FILES] == ["run_host.bat", "run_host_optimized.bat"]


@each_file
def test_windows_can_read_it(file: Path) -> None:
    data = file.read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == data.count(b"\r\n") > 10
    lines = data.decode().split("\r\n")
    assert lines[0] == "@echo off"
    depth = 0  # an unescaped ) in an echo would end the block that it stands in
    for line in lines:
        if depth and line.strip().startswith("echo"):
            assert not set("()") & set(line)
        depth += line.endswith("(") - (line.strip() == ")")
    assert depth == 0


@each_file
def test_only_llama_cpp_and_pytorch_are_offered(file: Path) -> None:
    text = file.read_text()
    offered = one(r"^for %%E in \((.*?)\) do", text).split()
    assert set(offered) <= ENGINES
    assert one(r'set "FORCE_BACKEND=(.*?)"', text) in offered
    assert f"choose one of: {' '.join(offered)} 1>&2" in text


@each_file
def test_its_command_line_is_one_that_is_taken(file: Path) -> None:
    text = file.read_text()
    words = one(r"^wsl\.exe --shell-type login engineroom (.*)$", text).split()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for engine in one(r"^for %%E in \((.*?)\) do", text).split():
        named = [engine if word == "%FORCE_BACKEND%" else word for word in words]
        name, *rest = [x for word in named for x in (["demo"] if word == "%*" else [word])]
        given = commands[name].make_context(name, rest).params
        settings = load_settings({k: v for k, v in given.items() if k in Settings.model_fields})
        assert settings.force_backend == engine
        assert settings.model == "demo"
        assert settings.install_missing


@each_file
def test_the_variables_that_go_on_to_linux_mean_something_there(file: Path) -> None:
    names = one(r'set "WSLENV=(.*?):%WSLENV%"', file.read_text()).split(":")
    ours = {PREFIX + field.upper() for field in Settings.model_fields} | set(DOCUMENT_VARIABLES)
    assert {name.split("/")[0] for name in names} <= ours | {"HF_TOKEN"}
    assert "ADAPTER_PATH/p" in names  # a path, to be put in Linux's words
