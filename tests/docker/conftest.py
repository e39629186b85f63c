"""One stack for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker.stack import Stack, composes, have_docker, images


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, supervisor with its engine, and Prometheus, all healthy."""
    assert have_docker(), "no Docker Engine answers: run `make e2e-docker`"
    images()
    made = Stack(composes()[0], tmp_path_factory.mktemp("secrets"))
    try:
        made.up("gateway", "supervisor", "prometheus")
        yield made
    finally:
        made.down()
