"""What a process may not read is said with what to do; what is not there is another matter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ModelInvalid, PullFailed
from orchestrator.models.adapters import is_adapter_folder
from orchestrator.models.hub import Hub


def test_a_token_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    there = tmp_path / "token"
    there.write_bytes(b"\xff\xfe")
    for path in (there, tmp_path):  # no text, and no file
        with pytest.raises(PullFailed, match=f"token in {path} cannot be read"):
            Hub.from_env({"HF_TOKEN_PATH": str(path)})
    assert Hub.from_env({"HF_TOKEN_PATH": str(tmp_path / "none")}).token is None
    there.write_text("  \n")
    assert Hub.from_env({"HF_TOKEN_PATH": str(there)}).token is None
    there.write_text("abc\n")
    assert Hub.from_env({"HF_TOKEN_PATH": str(there)}).token == "abc"


def test_a_folder_that_may_not_be_looked_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")  # root may look everywhere

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(ModelInvalid, match=r"may not look into it.*chmod -R a\+rX"):
        is_adapter_folder(tmp_path / "model")
