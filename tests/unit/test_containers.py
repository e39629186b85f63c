"""What is decided of containers without a Docker Engine: body, files, cards, ends, progress."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine_launchers.base import EnginePlan, ExitResult, LaunchSpec, Tuning
from engine_launchers.container import Container
from engine_launchers.containers import in_container
from orchestrator.contradictions import refuse_contradictions
from orchestrator.engines.images import in_image
from orchestrator.engines.table import load_engine_table
from orchestrator.errors import ConfigError, EngineMissing, LaunchFailed
from orchestrator.runtimes.base import ContainerHold, HandleRecord
from orchestrator.runtimes.docker.body import Surroundings, body, exit_result, with_cure
from orchestrator.runtimes.docker.here import installation
from orchestrator.runtimes.docker.mounts import own_container, translated, wanted
from orchestrator.runtimes.docker.pulling import Layers, with_tag
from orchestrator.settings import load_settings
from orchestrator.supervision.patience import Patience
from tests.plans import box, planned

AROUND = Surroundings("abc", "engines", (1000, 1000), memory=8 << 30)


def record(**more: object) -> HandleRecord:
    container = Container(image="x:1", gpus=more.pop("gpus", ()), plan="p")
    return HandleRecord(
        name="m-0",
        generation=2,
        spec=LaunchSpec(argv=("vllm", "serve"), container=container, **more),
        hold=ContainerHold(container="engineroom-abc-m-0-2"),
        folder=Path("/f"),
        log=Path("/l"),
    )


# --- the body -----------------------------------------------------------------------------------


def test_cards_are_asked_for_by_uuid() -> None:
    host = body(record(gpus=("GPU-1", "GPU-2")), AROUND)["HostConfig"]
    (request,) = host["DeviceRequests"]
    assert request == {
        "Driver": "nvidia",
        "DeviceIDs": ["GPU-1", "GPU-2"],
        "Capabilities": [["gpu"]],
    }
    assert body(record(), AROUND)["HostConfig"]["DeviceRequests"] == []


def test_podman_is_given_cards_by_their_cdi_names() -> None:
    around = Surroundings("abc", "engines", (0, 0), memory=1 << 30, podman=True)
    host = body(record(gpus=("GPU-1",)), around)["HostConfig"]
    assert host["DeviceRequests"] == []
    assert [each["PathOnHost"] for each in host["Devices"]] == ["nvidia.com/gpu=GPU-1"]


@pytest.mark.parametrize(
    ("asked", "limit"), [(1 << 30, 1 << 30), (None, 8 << 30), (1 << 40, 8 << 30)]
)
def test_memory_is_always_limited(asked: int | None, limit: int) -> None:
    host = body(record(memory_max=asked), AROUND)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == limit
    assert host["ShmSize"] <= limit


def test_the_environment_is_the_commands_own() -> None:
    made = body(record(env={"VLLM_NO_USAGE_STATS": "1"}), AROUND)
    assert made["Env"] == [
        "HOME=/tmp", "TMPDIR=/tmp", "USER=engineroom", "VLLM_NO_USAGE_STATS=1",
    ]  # fmt: skip


def test_a_spec_without_an_image_is_refused() -> None:
    plain = record()
    bare = plain.model_copy(update={"spec": LaunchSpec(argv=("x",))})
    with pytest.raises(LaunchFailed, match="no container image"):
        body(bare, AROUND)


@pytest.mark.parametrize(
    ("state", "result"),
    [
        ({"ExitCode": 0}, ExitResult(code=0)),
        ({"ExitCode": 3}, ExitResult(code=3)),
        ({"ExitCode": 143}, ExitResult(signal=15)),
        ({"ExitCode": 137}, ExitResult(signal=9)),
        ({"ExitCode": 137, "OOMKilled": True}, ExitResult(signal=9, oom_killed=True)),
        ({"ExitCode": 1, "OOMKilled": True}, ExitResult(code=1)),
        ({"ExitCode": 255}, ExitResult(code=255)),
    ],
)
def test_how_it_ended(state: dict[str, object], result: ExitResult) -> None:
    assert exit_result(state) == result


def test_a_known_refusal_comes_with_its_cure() -> None:
    said = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
    assert "nvidia-container-toolkit" in with_cure(said)
    assert with_cure("something else") == "something else"


# --- files --------------------------------------------------------------------------------------


def test_a_split_model_comes_with_all_its_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for each in (*parts, tmp_path / "other-00001-of-00003.gguf", tmp_path / "secret"):
        each.write_text("x")
    assert [target for _, target in wanted([str(parts[0])])] == [str(each) for each in parts]


def test_a_hubs_snapshot_comes_with_what_its_links_point_to(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert [target for _, target in wanted([str(snapshot)])] == [str(blobs), str(snapshot)]


def test_a_link_is_mounted_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_text("x")
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    link = str(tmp_path / "link.gguf")
    assert wanted([link]) == ((str(tmp_path / "real.gguf"), link),)


_MOUNTS = "700 690 8:1 /docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"


def test_our_own_container_is_known_by_its_mounts() -> None:
    id = "0123456789abcdef" * 4
    assert own_container(_MOUNTS.format(id=id)) == id
    podman = f"1 2 0:3 /containers/overlay-containers/{id}/userdata/hostname /etc/hostname rw - x"
    assert own_container(podman) == id
    assert own_container("36 35 98:0 / / rw - ext4 /dev/root rw\n") is None


def test_files_of_a_containers_volumes_are_named_as_the_machine_has_them() -> None:
    own = [
        {"Destination": "/", "Source": ""},
        {"Destination": "/models", "Source": "/srv/models"},
        {"Destination": "/models/big", "Source": "/var/lib/docker/volumes/big/_data"},
    ]
    here = [("/models/a.gguf", "/models/a.gguf"), ("/models/big/b", "/models/big/b")]
    assert translated(here, own) == (
        ("/srv/models/a.gguf", "/models/a.gguf"),
        ("/var/lib/docker/volumes/big/_data/b", "/models/big/b"),
    )
    with pytest.raises(LaunchFailed, match="inside this container"):
        translated([("/app/demo.gguf", "/app/demo.gguf")], own)


def test_an_installation_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "installation"
    name = installation(file)
    assert installation(file) == name
    file.write_text("../odd")
    assert installation(file) not in {name, "../odd"}


# --- pulls --------------------------------------------------------------------------------------


def test_a_pull_gets_on_and_never_back() -> None:
    layers, seen = Layers(), []
    detail = {"current": 50, "total": 100}
    for told in (
        {"status": "Pulling from library/x", "id": "1"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Pulling fs layer", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": detail},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 100}},
        {"status": "Extracting", "id": "a", "progressDetail": detail},
        {"status": "Already exists", "id": "b"},
        {"status": "Pull complete", "id": "a"},
        {"status": "Status: Downloaded newer image"},
    ):
        layers.hear(told)
        seen.append(layers.percent)
    assert seen == sorted(seen)
    assert (seen[0], seen[3], seen[-1]) == (0.0, 20.0, 100.0)


@pytest.mark.parametrize(
    ("image", "whole"),
    [
        ("llama", "llama:latest"),
        ("host:5000/llama", "host:5000/llama:latest"),
        ("llama:1", "llama:1"),
        ("llama@sha256:00", "llama@sha256:00"),
    ],
)
def test_an_image_without_a_tag_is_its_latest(image: str, whole: str) -> None:
    assert with_tag(image) == whole


async def forever() -> None:
    await asyncio.Event().wait()


async def test_waiting_can_be_ended() -> None:
    patience = Patience()
    waits = asyncio.create_task(patience.wait(forever()))
    await asyncio.sleep(0)
    patience.end()
    with pytest.raises(LaunchFailed, match="stopped before"):
        await waits


# --- from settings to a spec --------------------------------------------------------------------


def plan(**visible: str) -> EnginePlan:
    made = planned("mistral-7b-instruct-v0.3", box("RTX 4090"))
    changed = {"runtime": "docker", "image": "vllm:1", "visible": visible, "tuning": Tuning()}
    return made.model_copy(update=changed)


def test_cards_named_by_number_are_not_hidden_by_number_inside() -> None:
    numbered = plan(CUDA_VISIBLE_DEVICES="2,3", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    spec = in_container(LaunchSpec(argv=("x",), env=numbered.visible), numbered)
    assert spec.env == {}
    assert spec.container == Container(image="vllm:1", gpus=("2", "3"), plan=numbered.id)
    named = plan(CUDA_VISIBLE_DEVICES="GPU-1")
    spec = in_container(LaunchSpec(argv=("x",), env=named.visible, files=("/more",)), named)
    assert spec.env == named.visible
    assert spec.files == (named.model.source, "/more")


def test_an_engine_in_an_image() -> None:
    table, machine = load_engine_table(), box("RTX 4090")
    found = in_image(table, "vllm", machine)
    assert (found.origin, found.program, found.flavour) == ("image", "vllm", "cuda")
    assert found.image == "vllm/vllm-openai:v0.32.0"
    own = in_image(table, "pytorch", machine, image="ours:1", path=Path("/opt/python"))
    assert (own.image, own.program) == ("ours:1", "/opt/python")
    with pytest.raises(EngineMissing, match=r"engine.image"):
        in_image(table, "pytorch", machine)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine_image": "x", "force_backend": "vllm"}, "set runtime to docker"),
        ({"engine_image": "x", "runtime": "docker"}, "say which engine"),
        (
            {"engine_url": "http://h:1", "runtime": "docker", "force_backend": "vllm"},
            "not started in a container",
        ),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse_contradictions(load_settings(given, env={}))


@pytest.mark.parametrize("image", ["-x", "a b", "--privileged", "x;y", ""])
def test_an_image_name_is_no_option(image: str) -> None:
    with pytest.raises(ConfigError, match=r"engine.image"):
        load_settings({"engine_image": image}, env={})
