"""Settings: precedence, the documents' variables, and errors that name key, place and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.keys import key_policy
from orchestrator.settings import load_settings


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "engineroom.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults(
    tmp_path: Path,
) -> None:
    file = config(tmp_path, "port: 7001\nadmin_port: 7002\nmax_queue: 7\n")
    env = {"PORT": "7003", "ENGINEROOM_ADMIN_PORT": "7004"}
    got = load_settings({"port": 7005, "admin_port": None}, env, file)
    assert (got.port, got.admin_port, got.max_queue, got.drain_s) == (7005, 7004, 7, 30.0)


def test_the_documents_variables_all_work() -> None:
    env = {
        "BASE_MODEL": "m.gguf", "ADAPTER_PATH": "a", "QUANTIZATION": "None", "HOST": "0.0.0.0",
        "PORT": "9", "FORCE_BACKEND": "LLAMA_CPP", "TENSOR_PARALLEL_SIZE": "2",
        "ENABLE_COMPILE": "1", "ALLOW_ANONYMOUS": "1",
    }  # fmt: skip
    got = load_settings(env=env)
    assert (got.model, got.adapter_path, got.quantization) == ("m.gguf", "a", "none")
    assert (got.host, got.port, got.force_backend) == ("0.0.0.0", 9, "llama_cpp")
    assert (got.tensor_parallel_size, got.enable_compile, got.allow_anonymous) == (2, True, True)


def test_an_empty_variable_is_unset() -> None:
    assert load_settings(env={"PORT": "", "ADAPTER_PATH": ""}) == load_settings(env={})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1\n", ["unknown key 'prot'", "did you mean port?"]),
        ("port: -1\n", ["port", "greater than or equal to 0", "given: -1"]),
        ("port: 70000\n", ["port", "65535"]),
        ("port: 1\nport: 2\n", [":2:", "'port' is given twice"]),
        ("drain_s: .nan\n", ["drain_s", "finite"]),
        ("drain_s: -1\n", ["drain_s"]),
        ("quantization: 3bit\n", ["quantization", "'4bit', '8bit' or 'none'"]),
        ("- a\n", ["`key: value` lines"]),
        ("a: &x [1]\nb: *x\n", [":2:", "aliases"]),
        ("port: !!python/object:os.system 1\n", [":1:"]),
        ("port: [\n", ["engineroom.yaml:"]),
        ("1: 2\n", ["keys must be text"]),
        ("[" * 3000, ["not valid YAML"]),
        ("\tport: 1\n", [":1:"]),
        ("port: 22:22\n", [":1:", "is no number"]),
        ('data_dir: "a\\0b"\n', ["NUL"]),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_the_place(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(env={}, file=config(tmp_path, text))
    assert all(word in caught.value.message for word in ["engineroom.yaml", *words])
    assert "\n" not in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(env={}, file=tmp_path / "none.yaml")
    bad = tmp_path / "latin.yaml"
    bad.write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(env={"ENGINEROOM_CONFIG": str(bad)})


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ({"port": -1}, {}, "flag --port"),
        ({}, {"PORT": "x"}, "environment variable PORT"),
        ({}, {"ENGINEROOM_PORTT": "1"}, "did you mean ENGINEROOM_PORT?"),
    ],
)
def test_the_place_is_named(flags: dict[str, object], env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, env)
    assert words in caught.value.message


def test_a_public_address_needs_keys_or_a_clear_word() -> None:
    with pytest.raises(ConfigError, match="ALLOW_ANONYMOUS=1"):
        key_policy(load_settings(env={"HOST": "0.0.0.0"}))
    assert key_policy(load_settings(env={"HOST": "0.0.0.0", "ALLOW_ANONYMOUS": "1"})).hashes == ()
    keys = key_policy(load_settings(env={"HOST": "0.0.0.0", "ENGINEROOM_API_KEYS": "a, b"}))
    assert len(keys.hashes) == 2


def test_keys_are_never_shown(tmp_path: Path) -> None:
    got = load_settings(env={"ENGINEROOM_API_KEYS": "sekret"})
    assert "sekret" not in repr(got) + got.model_dump_json()
    loose = config(tmp_path, "api_keys: sekret\n")
    loose.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_settings(env={}, file=loose)
    keys = tmp_path / "keys"
    keys.write_text("one\n# comment\n\ntwo\n")
    keys.chmod(0o644)
    settings = load_settings(env={"ENGINEROOM_API_KEYS_FILE": str(keys)})
    with pytest.raises(ConfigError, match="chmod 600"):
        key_policy(settings)
    keys.chmod(0o600)
    assert len(key_policy(settings).hashes) == 2
