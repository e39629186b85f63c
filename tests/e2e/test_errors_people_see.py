"""What a person can get wrong is one sentence, an exit code, and nothing left running."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.resources import demo_dir
from orchestrator.settings import load_settings
from tests.harness import SLACK, clean_env, free_ports, processes_of

DEMO = demo_dir() / "demo.Q4_K_M.gguf"


def engineroom(
    tmp_path: Path, *words: str, expect: int, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; its one sentence is the last line of standard error."""
    command = [sys.executable, "-m", "orchestrator", *words]
    full = clean_env(ENGINEROOM_DATA_DIR=str(tmp_path / "data"), **env)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=full,
        timeout=60 * SLACK, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done
    assert "Traceback" not in done.stdout + done.stderr
    assert processes_of(str(tmp_path)) == []
    assert not load_settings({"data_dir": str(tmp_path / "data")}, {}).run.exists()
    return done


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("engineroom: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_wrong_path(tmp_path: Path) -> None:
    done = engineroom(tmp_path, "serve", "/no/model.gguf", expect=65)
    assert "'/no/model.gguf': no such file" in sentence(done)


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.gguf")
    done = engineroom(tmp_path, "plan", str(tmp_path / "f.gguf"), expect=65)
    assert "not a regular file" in sentence(done)


def test_a_truncated_model(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(DEMO.read_bytes()[:700_000])
    assert "truncated download?" in sentence(engineroom(tmp_path, "serve", str(cut), expect=65))
    text = tmp_path / "text.gguf"
    text.write_text("hello " * 100)
    assert "GGUF magic" in sentence(engineroom(tmp_path, "serve", str(text), expect=65))


@pytest.mark.parametrize("which", ["port", "admin-port"])
def test_a_port_in_use(tmp_path: Path, which: str) -> None:
    (other,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"port": str(other), "admin-port": str(other + 1 if other < 65000 else 2000)}
        ports[which] = str(port)
        flags = [word for flag, value in ports.items() for word in (f"--{flag}", value)]
        said = sentence(engineroom(tmp_path, "serve", "--yes", *flags, expect=75))
    assert f"127.0.0.1:{port}" in said
    assert not (tmp_path / "data").exists()
    assert which.replace("-", "_") in said


def test_a_missing_compiler(tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    flags = ["--yes", "--port", str(port), "--admin-port", str(admin_port)]
    done = engineroom(tmp_path, "serve", *flags, expect=69, PATH=str(tmp_path))
    assert "needs c++, which is missing" in sentence(done)


@pytest.mark.parametrize(
    ("words", "env", "expected"),
    [
        (["--port", "-1"], {}, "flag --port"),
        (["--port", "70000"], {}, "flag --port"),
        (["--context", "1"], {}, "flag --context"),
        (["--tied", "--port", "0", "--admin-port", "0"], {}, "--tied: standard input"),
        (["--port", "9000", "--admin-port", "9000"], {}, "choose two"),
        (["--quantization", "3bit"], {}, "'4bit', '8bit' or 'none'"),
        (["--host", "0.0.0.0"], {}, "ALLOW_ANONYMOUS=1"),
        ([], {"FORCE_BACKEND": "llama"}, "'llama_server', 'llama_cpp' or 'pytorch'"),
        (["--adapter", "x"], {}, "'x': give an adapter as NAME=PATH"),
        (["--alias", "demo"], {}, "the name demo would stand for two things"),
        (["--engine-args", "--port 1"], {}, "--port is set by Engine Room"),
        (["--engine-path", "/x"], {}, "say which engine it is with --engine"),
        ([], {"ENGINEROOM_PROT": "1"}, "ENGINEROOM_PROT"),
        (["--config", "/no/file.yaml"], {}, "/no/file.yaml: cannot be read"),
    ],
)
def test_bad_settings(tmp_path: Path, words: list[str], env: dict[str, str], expected: str) -> None:
    assert expected in sentence(engineroom(tmp_path, "serve", "--yes", *words, expect=78, **env))


def test_an_engine_that_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    for words, env in (([], {}), (["--engine", "vllm"], {}), ([], {"FORCE_BACKEND": "pytorch"})):
        said = sentence(engineroom(tmp_path, "serve", *words, expect=69, **env))
        assert "is not installed: run `engineroom engines install " in said
        assert "or add --yes" in said


def test_a_missing_adapter_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = engineroom(tmp_path, "serve", expect=65, ADAPTER_PATH="/no/adapter")
    assert "adapter adapter: /no/adapter: no such file or folder" in sentence(done)


def test_a_bad_key_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "engineroom.yaml"
    file.write_text("prot: 8001\n")
    done = engineroom(tmp_path, "serve", "--config", str(file), expect=78)
    assert "unknown key 'prot'; did you mean port?" in sentence(done)


def test_no_memory_for_what_is_pinned(tmp_path: Path) -> None:
    done = engineroom(tmp_path, "plan", "demo", "--context", "9999999", expect=69)
    assert (
        "context 9999999 was asked for, demo was made for 4096 tokens: ask for 4096 or less"
        in sentence(done)
    )


@pytest.mark.parametrize("words", [["ps"], ["logs"], ["restart"], ["chat", "x"], ["stop", "--all"]])
def test_commands_without_a_server_say_so(tmp_path: Path, words: list[str]) -> None:
    assert "no engineroom runs" in sentence(engineroom(tmp_path, *words, expect=69))


def test_errors_as_json(tmp_path: Path) -> None:
    done = engineroom(tmp_path, "plan", "/no/model.gguf", "--json", expect=65)
    assert json.loads(done.stdout)["error"]["code"] == "model_invalid"


def test_plan_and_probe_print_json_that_round_trips(tmp_path: Path) -> None:
    plan = json.loads(engineroom(tmp_path, "plan", "--json", expect=0).stdout)
    assert plan["tier"]
    assert plan["command"]["argv"][0].endswith("bin/llama-server")
    probe = json.loads(engineroom(tmp_path, "probe", "--json", expect=0).stdout)
    assert probe["cpu_cores"] >= 1
    text = engineroom(tmp_path, "plan", expect=0).stdout
    assert f"tier {plan['tier']}" in text
    assert "--metrics" in text


def test_help_reads_well(tmp_path: Path) -> None:
    text = engineroom(tmp_path, "--help", expect=0).stdout
    for command in ("probe", "plan", "serve", "ps", "logs", "restart", "stop", "chat"):
        assert command in text
    assert engineroom(tmp_path, "--version", expect=0).stdout.startswith("engineroom 0.")
    assert "name a model, or give --all" in engineroom(tmp_path, "stop", expect=2).stderr


def test_setup_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = root / "tools" / "setup.sh"
    bare = {"PATH": str(tmp_path)}
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/sh", script, "serve"], capture_output=True, text=True, env=bare, check=False
    )
    assert done.returncode == 69
    assert done.stderr.startswith("missing: python3")
    assert len(done.stderr.splitlines()) == 1
