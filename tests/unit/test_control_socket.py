"""Where the socket lies that supervisor and gateway share: its folder is never changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.launching import socket_folder
from orchestrator.outpost import config_of
from orchestrator.settings import load_settings


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o7777


@pytest.mark.parametrize("kept", [0o755, 0o700, 0o1777])
def test_a_folder_that_is_there_keeps_its_modes(tmp_path: Path, kept: int) -> None:
    tmp_path.chmod(kept)
    socket_folder(tmp_path)
    assert mode(tmp_path) == kept


def test_a_missing_one_is_made_for_us_alone(tmp_path: Path) -> None:
    socket_folder(tmp_path / "control")
    assert mode(tmp_path / "control") == 0o700


@pytest.mark.parametrize("open_to", [0o777, 0o775, 0o757])
def test_one_where_others_can_replace_the_socket_is_refused(tmp_path: Path, open_to: int) -> None:
    tmp_path.chmod(open_to)
    with pytest.raises(ConfigError, match="others can replace what lies in"):
        socket_folder(tmp_path)
    assert mode(tmp_path) == open_to


def test_a_strangers_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # what is root's is trusted
        os.chown(tmp_path, 65533, -1)
    monkeypatch.setattr(os, "getuid", lambda: 65532)
    with pytest.raises(ConfigError, match="others can replace what lies in"):
        socket_folder(tmp_path)


def test_a_file_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    with pytest.raises(ConfigError, match=r"control_socket: folder .* cannot be made"):
        socket_folder(tmp_path / "control")


def test_both_sides_mean_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"control_socket": "~/er/c.sock", "data_dir": str(tmp_path)}
    settings = load_settings(given, env={})
    assert settings.control == tmp_path / "er" / "c.sock"
    assert config_of(settings).control_socket == str(settings.control)
