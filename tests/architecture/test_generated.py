"""What is generated is fresh, and what is shipped fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.resources import demo_dir
from orchestrator.settings import Settings, load_settings
from tools.reference import generated


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_generated_files_are_fresh(path: Path) -> None:
    assert path.read_text() == generated()[path], "run `make docs`"


def test_the_example_shows_every_key_with_a_comment_and_its_default(tmp_path: Path) -> None:
    text = next(t for p, t in generated().items() if p.name == "engineroom.yaml")
    shown = yaml.safe_load("\n".join(x[1:] for x in text.splitlines() if x.startswith("#") and
                                     not x.startswith("# ")))  # fmt: skip
    assert set(shown) == set(Settings.model_fields)
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(shown))
    file.chmod(0o600)
    assert load_settings(env={}, file=file) == load_settings(env={})


def test_the_demo_model_is_small_and_whole() -> None:
    files = {path.name: path.stat().st_size for path in demo_dir().iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(files)
    assert {"demo.F16.gguf", "demo.Q4_K_M.gguf"} <= set(files)
    assert sum(files.values()) <= 12_000_000
