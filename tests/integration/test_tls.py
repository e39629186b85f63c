"""The gateway behind a certificate: the same answers, streams and errors over HTTPS."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from tests.harness import Room
from tests.streams import check_stream

pytestmark = pytest.mark.slow

RoomMaker = Callable[..., Room]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, trustme.CA]:
    """A certificate for this machine, its key, and who signed it."""
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return cert, key, ca


def test_everything_goes_over_https(
    make_room: RoomMaker, pair: tuple[Path, Path, trustme.CA]
) -> None:
    cert, key, ca = pair
    room = make_room(tls_cert=str(cert), tls_key=str(key)).start()
    assert room.url.startswith("https://")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        body = {"prompt": "Hi", "max_new_tokens": 20}
        assert client.post(f"{room.url}/generate", json=body).json()["token_count"] == 20
        with client.stream("POST", f"{room.url}/generate_stream", json=body) as answer:
            check_stream([x[6:] for x in answer.iter_lines() if x.startswith("data: ")], 20)
        refused = client.post(f"{room.url}/generate", json={"prompt": ""})
        assert refused.status_code == 400
        assert client.get(f"{room.url}/health/ready").status_code == 200
    plain = room.url.replace("https", "http")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{plain}/health", trust_env=False)
    said = subprocess.run(
        [sys.executable, "-m", "orchestrator", "chat", "Hi", "--data-dir", str(room.data)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("w0")


@pytest.mark.parametrize("wrong", ["half", "open", "other", "missing"])
def test_a_pair_that_is_none_is_told_before_anything_starts(
    make_room: RoomMaker, pair: tuple[Path, Path, trustme.CA], tmp_path: Path, wrong: str
) -> None:
    cert, key, ca = pair
    mine = tmp_path / "key.pem"
    mine.touch(mode=0o600)
    mine.write_bytes(key.read_bytes())
    settings = {"tls_cert": str(cert), "tls_key": str(mine)}
    if wrong == "half":
        del settings["tls_key"]
    elif wrong == "open":
        mine.chmod(0o644)
    elif wrong == "other":
        mine.write_bytes(ca.issue_cert("localhost").private_key_pem.bytes())
    else:
        settings["tls_cert"] = str(tmp_path / "none.pem")
    room = make_room(**settings)
    room.launch()
    assert room.wait_end() == 78
    told = room.log.read_text()
    assert "tls_" in told, told
    assert json.dumps(key.read_text())[20:60] not in told
