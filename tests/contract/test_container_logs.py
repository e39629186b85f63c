"""A container's output, as the Docker Engine hands it out, in the engine's log file."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.runtimes.docker.connection import Connection
from orchestrator.runtimes.docker.logs import Follower
from orchestrator.runtimes.shim.output import Output
from tests.containers import Engine

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_a_line_of_any_length_is_written_once_and_whole(
    tmp_path: Path, docker_engine: Engine, python_image: str
) -> None:
    code = "print('A' * 40_000); print('next')"
    client = docker_engine.client
    id = client.create_container(python_image, ["python3", "-c", code], network_disabled=True)["Id"]
    connection, log = Connection(docker_engine.env), tmp_path / "log"
    try:
        client.start(id)
        client.wait(id)
        for _ in range(2):  # the second one finds all of it written
            Follower(connection, id, Output(str(log), 1 << 20, 1), tmp_path).finish()
            assert log.read_text() == f"{'A' * 40_000}\nnext\n"
    finally:
        connection.close()
        client.remove_container(id, force=True)
