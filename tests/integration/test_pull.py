"""Pulling from a hub that is a real process, over real sockets, into a cache of the test's own."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.errors import ModelInvalid, PullFailed
from orchestrator.models.catalog import Catalog
from orchestrator.models.hub import Hub
from orchestrator.models.pull import Progress, pull
from orchestrator.models.resolve import resolve
from orchestrator.resources import demo_dir
from tests.fakes.model_files import LLAMA_META, LLAMA_TENSORS, write_folder, write_gguf
from tests.harness import ROOT, clean_env, until

BIG = random.Random(1).randbytes(3_000_000)


@dataclass
class FakeHub:
    """The running hub, and a client's view of it."""

    url: str
    hub: Hub
    files: Path

    def knobs(self, **knobs: Any) -> None:
        httpx.post(f"{self.url}/knobs", json=knobs, trust_env=False)

    def log(self, path: str = "") -> list[dict[str, Any]]:
        found = httpx.get(f"{self.url}/log", trust_env=False).json()
        return [each for each in found if path in each["path"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    files = tmp_path_factory.mktemp("hub")
    write_folder(files / "acme/small", 2)
    (files / "acme/small/README.md").write_text("words")
    (files / "acme/small/pytorch_model.bin").write_bytes(b"\0" * 100)
    (files / "acme/small-GGUF").mkdir()
    (files / "acme/small-GGUF/big.gguf").write_bytes(BIG)
    for i in (1, 2):
        meta: dict[str, Any] = {"split.no": i - 1, "split.count": 2}
        names = list(LLAMA_TENSORS)[i - 1 :: 2]
        write_gguf(
            files / f"acme/small-GGUF/part-{i:05}-of-00002.gguf",
            {**(LLAMA_META if i == 1 else {}), **meta},
            {name: LLAMA_TENSORS[name] for name in names},
        )
    command = [sys.executable, "-m", "tests.fakes.hub", str(files)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip(), files
        process.kill()


@pytest.fixture
def fake(served: tuple[str, Path], tmp_path: Path) -> Iterator[FakeHub]:
    url, files = served
    made = FakeHub(url, Hub(tmp_path / "cache", url), files)
    made.knobs()
    yield made
    made.knobs()


def parts(fake: FakeHub) -> list[Path]:
    return sorted(fake.hub.cache.rglob("*.part"))


def test_a_folder_comes_with_what_serving_needs_and_is_found_again(fake: FakeHub) -> None:
    seen: list[Progress] = []
    done = pull("acme/small", fake.hub, seen.append)
    names = {path.name for path in done.path.iterdir()}
    assert {"config.json", "tokenizer_config.json", "model-00001-of-00002.safetensors"} <= names
    assert not names & {"README.md", "pytorch_model.bin"}
    assert seen[-1].done == seen[-1].total == done.size == done.fetched
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert parts(fake) == []
    before = len(fake.log("resolve"))
    again = pull("acme/small", fake.hub)
    assert (again.path, again.fetched) == (done.path, 0)
    gets = [each for each in fake.log("resolve")[before:] if each["method"] == "GET"]
    assert gets == []
    offline = Hub(fake.hub.cache, fake.url, offline=True)
    found = resolve("acme/small", demo_dir(), hub=lambda: offline)
    assert found.variants[0].source == str(done.path)


def test_a_gguf_and_all_its_parts(fake: FakeHub) -> None:
    done = pull("hf://acme/small-GGUF/part-00001-of-00002.gguf", fake.hub)
    assert done.path.name == "part-00001-of-00002.gguf"
    found = resolve("acme/small-GGUF/part-00001-of-00002.gguf", demo_dir(), hub=lambda: fake.hub)
    assert found.variants[0].params == sum(LLAMA_TENSORS.values())


def test_a_broken_connection_goes_on_where_it_was(fake: FakeHub) -> None:
    fake.knobs(break_after=1_200_000)
    before = len(fake.log())
    done = pull("acme/small-GGUF/big.gguf", fake.hub)
    assert done.path.read_bytes() == BIG
    ranges = [each["range"] for each in fake.log("big.gguf")[-10:] if each["method"] == "GET"]
    assert ranges[-3:] == [None, "bytes=1200000-", "bytes=2400000-"]
    assert len(fake.log()) - before < 12


def test_a_server_without_ranges_is_read_from_the_beginning(fake: FakeHub) -> None:
    folder = fake.hub.repository_dir("acme/small-GGUF") / "blobs"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(BIG).hexdigest()
    (folder / f"{digest}.part").write_bytes(b"rubbish")
    fake.knobs(no_ranges=True)
    assert pull("acme/small-GGUF/big.gguf", fake.hub).path.read_bytes() == BIG


def test_what_is_not_what_was_promised_is_deleted(fake: FakeHub) -> None:
    fake.knobs(wrong=True)
    with pytest.raises(PullFailed, match="not what the hub promised"):
        pull("acme/small-GGUF/big.gguf", fake.hub)
    assert parts(fake) == []
    assert fake.hub.local_file("acme/small-GGUF", "big.gguf") is None
    fake.knobs()
    assert pull("acme/small-GGUF/big.gguf", fake.hub).path.read_bytes() == BIG


def test_a_token_goes_to_the_hub_and_nowhere_else(fake: FakeHub) -> None:
    fake.knobs(token="hf_secret", cdn=True)
    hub = Hub(fake.hub.cache, fake.url, token="hf_secret")
    assert "hf_secret" not in repr(hub)
    assert pull("acme/small-GGUF/big.gguf", hub).path.read_bytes() == BIG
    redirected = [each for each in fake.log("/cdn/") if each["method"] == "GET"]
    assert redirected
    assert redirected[-1]["auth"] is None
    assert redirected[-1]["host"].startswith("localhost")


@pytest.mark.parametrize(
    ("knobs", "address", "error", "message"),
    [
        ({}, "acme/none", ModelInvalid, "has no such model"),
        ({}, "acme/small-GGUF/none.gguf", ModelInvalid, "has no file none.gguf; it has big.gguf"),
        ({}, "acme/small-GGUF", ModelInvalid, "acme/small-GGUF/big.gguf"),
        ({}, "small", ModelInvalid, "owner/name"),
        ({}, "acme/../../etc", ModelInvalid, "owner/name"),
        ({"token": "t"}, "acme/small", ModelInvalid, "HF_TOKEN"),
        ({"gated": True}, "acme/small", PullFailed, "access has to be granted"),
        ({"gated": True}, "acme/small-GGUF/big.gguf", PullFailed, "403: check HF_TOKEN"),
        ({"error": 500}, "acme/small", PullFailed, "answered 500"),
    ],
)
def test_refusals_say_what_to_do(
    fake: FakeHub, knobs: dict[str, Any], address: str, error: type[Exception], message: str
) -> None:
    fake.knobs(**knobs)
    with pytest.raises(error, match=message):
        pull(address, fake.hub)


def test_no_hub_and_offline(tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match="cannot be reached"):
        pull("acme/small", Hub(tmp_path, "http://127.0.0.1:9"))
    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE"):
        pull("acme/small", Hub(tmp_path, "http://127.0.0.1:9", offline=True))
    offline = Hub(tmp_path, "http://127.0.0.1:9", offline=True)
    with pytest.raises(PullFailed, match=r"did you mean starcoder2-3b"):
        resolve("acme/starcoder2-3", demo_dir(), hub=lambda: offline)


def test_a_full_disk_is_told_before_anything_is_fetched(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2_000_000})())
    before = len(fake.log("big.gguf"))
    with pytest.raises(PullFailed, match="HF_HOME"):
        pull("acme/small-GGUF/big.gguf", fake.hub)
    assert len(fake.log("big.gguf")) == before


def test_a_model_outside_the_catalog_is_described_without_its_weights(fake: FakeHub) -> None:
    none, before = Catalog.load({"models": {}}), len(fake.log("safetensors"))
    found = resolve("acme/small", demo_dir(), catalog=lambda: none, hub=lambda: fake.hub)
    spec = found.variants[0]
    assert (spec.source, spec.layers, found.pinned) == ("hf://acme/small", 2, True)
    assert spec.weight_bytes > 0
    assert len(fake.log("safetensors")) == before


def command(fake: FakeHub, *words: str) -> tuple[list[str], dict[str, str]]:
    env = clean_env(HF_HOME=str(fake.hub.cache.parent), HF_ENDPOINT=fake.url, COLUMNS="100")
    env["HF_HUB_CACHE"] = str(fake.hub.cache)
    return [sys.executable, "-m", "orchestrator", "pull", *words], env


def test_a_killed_pull_goes_on_where_it_was(fake: FakeHub) -> None:
    words, env = command(fake, "acme/small-GGUF/big.gguf", "--json")
    fake.knobs(stall_after=2_500_000)
    with subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        until(lambda: [p for p in parts(fake) if p.stat().st_size > 1_000_000], 30, "bytes")
        first.send_signal(signal.SIGKILL)
    here = parts(fake)[0].stat().st_size
    fake.knobs()
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert Path(told["path"]).read_bytes() == BIG
    assert told["bytes"] == len(BIG)
    last = [each for each in fake.log("big.gguf") if each["method"] == "GET"][-1]
    assert last["range"] == f"bytes={here}-"


def test_the_command_speaks_in_sentences(fake: FakeHub) -> None:
    words, env = command(fake, "acme/none")
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 65
    assert "has no such model" in done.stderr
    assert "Traceback" not in done.stderr
    words, env = command(fake, "qwen3-8b")
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "pull one of qwen3-8b-BF16" in done.stderr
