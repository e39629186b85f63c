"""The last of this folder: what `down` does, and what it leaves."""

from __future__ import annotations

import pytest

from tests.docker.stack import Stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def test_down_drains_through_the_open_door_and_leaves_nothing(stack: Stack) -> None:
    stack.compose("stop", "supervisor")
    assert stack.container("supervisor")["State"]["ExitCode"] == 0
    health = stack.http.get("/health").json()
    assert (health["status"], health["supervisor"]) == ("draining", "away")
    stack.compose("down", "-v", "--remove-orphans")
    for words in (("container", "ls", "-a"), ("volume", "ls"), ("network", "ls")):
        assert stack.left(*words) == []
