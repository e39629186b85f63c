"""Where engines listen: never where strangers would reach them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.contradictions import refuse_contradictions
from orchestrator.errors import ConfigError
from orchestrator.launching import runtimes
from orchestrator.settings import load_settings

OPEN = ("0.0.0.0", "::", "::ffff:0.0.0.0", "8.8.8.8", "2600::1")


@pytest.mark.parametrize("host", OPEN)
def test_an_address_that_is_open_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"engine_host: .* is open to other machines"):
        refuse_contradictions(load_settings({"engine_host": host}, env={}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.1.2.3", "172.18.0.2", "fd00::1", "a.b"])
def test_one_of_a_network_of_its_own_is_taken(host: str) -> None:
    refuse_contradictions(load_settings({"engine_host": host}, env={}))


@pytest.mark.parametrize("address", OPEN)
async def test_a_name_is_looked_at_by_what_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("orchestrator.launching.address_of", lambda host: address)
    settings = load_settings({"engine_host": "engines", "data_dir": str(tmp_path)}, env={})
    with pytest.raises(ConfigError, match=r"engine_host: .* is open to other machines"):
        async with runtimes(settings, tmp_path, lambda *told, **more: None):
            pass
