"""The API against its own OpenAPI document, by Schemathesis over a real socket.

`make fuzz-api EXAMPLES=500` is the long run; the suite makes fewer of each operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Room

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "10")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection"
)


@pytest.mark.slow
@pytest.mark.timeout(3000 if "SCHEMA_EXAMPLES" in os.environ else 400)
def test_what_is_generated_from_the_schema_finds_nothing_undocumented(
    make_room: Callable[..., Room], tmp_path: Path
) -> None:
    """Good bodies and bad ones, NUL included, for every operation."""
    room = make_room("--most-tokens", "4", serial=False).start()
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{room.url}/openapi.json",
        "--url", room.url, "--checks", CHECKS, "--mode", "all", "--generation-allow-x00", "true",
        "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--no-color",
        "--continue-on-failure", "--request-timeout", "30",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Tested: " in done.stdout, done.stdout[-3000:]
    assert len(room.http.get(f"{room.url}/openapi.json").json()["paths"]) >= 15
    assert room.engine()["restarts"] == 0, json.dumps(room.engine())
    assert room.generate("x", max_new_tokens=1).status_code == 200
