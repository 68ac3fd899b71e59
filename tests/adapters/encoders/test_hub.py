"""An encoder of the hub is fetched once, whole or not at all; afterwards nothing is asked of anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from agent_orchestra.adapters.encoders.folder import describe, open_folder
from agent_orchestra.adapters.encoders.hub import default_folder, folder_of, install, is_hub_name
from agent_orchestra.adapters.encoders.opening import installed_folder, open_encoder
from agent_orchestra.errors import ConfigurationError, Unavailable
from agent_orchestra.runtime.encoding import Encoder
from tests.adapters.encoders.graphs import graph, made
from tests.services.hub import Hub, HubModel, running_hub
from tests.services.service import PROJECT

NAME: Final = "owner/small-model"
_INSTALL: Final = """
import sys
from pathlib import Path
from agent_orchestra.adapters.encoders.hub import install

print(install(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.fixture
def hub() -> Generator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "encoders"


@pytest.fixture
def small(tmp_path: Path) -> dict[str, bytes]:
    """The files of an encoder of a few bytes."""
    folder = made(tmp_path / "made")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def large(encoder_folder: Path) -> dict[str, bytes]:
    """The files of a real one, which is large enough not to be in git itself."""
    return {
        "onnx/model_quantized.onnx": (encoder_folder / "model.onnx").read_bytes(),
        "tokenizer.json": (encoder_folder / "tokenizer.json").read_bytes(),
    }


def run(program: str, hub: Hub, into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Installs in a process of its own, which finds the hub by its environment."""
    return subprocess.run(
        [sys.executable, "-c", program, NAME, str(into)],
        cwd=PROJECT,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(into.parent / "home"), **environment},
        check=False,
        capture_output=True,
        text=True,
    )


def left(into: Path) -> set[str]:
    """What is there, below the owners; locks are left lying, as locks of files are."""
    return {path.name for path in into.glob("*/*") if path.suffix != ".lock"}


def test_a_model_is_fetched_once(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    others = {"onnx/model.onnx": b"full", "onnx/model_O4.onnx": b"half", "README.md": b"#", "model.safetensors": b"no"}
    hub.models[NAME] = HubModel(files={**large, **others, "config.json": b'{"max_position_embeddings": 512}'})
    folder = install(NAME, into, hub=hub.url)
    assert folder == into / NAME
    told = describe(folder)
    assert (told.file, told.dimension) == ("onnx/model_quantized.onnx", 384)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*large, "config.json"}
    assert left(into) == {"small-model"}

    hub.asked.clear()
    assert install(NAME, into, hub=hub.url) == folder
    assert hub.asked == []


async def test_afterwards_it_is_opened_without_a_network(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=small)
    install(NAME, into, hub=hub.url)
    hub.asked.clear()
    encoder = await open_encoder(NAME, vendor=no_vendor, into=into)
    assert (await encoder.encode(["lost"])).shape == (1, 3)
    assert hub.asked == []


def test_a_name_that_is_not_installed_says_how(into: Path) -> None:
    with pytest.raises(ConfigurationError, match="fetch it: orchestra encoder install owner/small-model"):
        installed_folder(NAME, into)


def test_a_revision_is_an_encoder_of_its_own(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=small, branch="v1.0")
    folder = install(f"{NAME}@v1.0", into, hub=hub.url)
    assert folder == into / "owner" / "small-model@v1.0"
    assert installed_folder(f"{NAME}@v1.0", into) == folder
    commit = hub.models[NAME].commit
    assert install(f"{NAME}@{commit}", into, hub=hub.url) != folder
    with pytest.raises(ConfigurationError, match="'owner/small-model' has no revision 'v2'"):
        install(f"{NAME}@v2", into, hub=hub.url)


def test_a_file_may_be_named(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files={**small, "onnx/model_fp16.onnx": graph()})
    assert describe(install(NAME, into, hub=hub.url)).file == "model.onnx"
    with pytest.raises(
        ConfigurationError, match=r"has no such file; its ONNX files: model\.onnx, onnx/model_fp16\.onnx"
    ):
        install(NAME, into, file="onnx/other.onnx", hub=hub.url)
    assert describe(installed_folder(NAME, into)).file == "model.onnx"


def test_another_file_takes_the_place_of_the_one_that_is_there(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files={**small, "model_uint8.onnx": graph(output="emb_of_tokens")})
    assert describe(install(NAME, into, hub=hub.url)).file == "model_uint8.onnx"
    assert describe(install(NAME, into, file="model.onnx", hub=hub.url)).file == "model.onnx"
    assert left(into) == {"small-model"}


def test_an_installed_one_that_is_broken_is_fetched_again(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=small)
    folder = install(NAME, into, hub=hub.url)
    (folder / "model.onnx").write_bytes(b"broken")
    assert install(NAME, into, hub=hub.url) == folder
    open_folder(folder)


def test_what_a_killed_attempt_has_left_is_no_encoder(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=large)
    hub.holds = True
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(into.parent / "home")}
    with subprocess.Popen([sys.executable, "-c", _INSTALL, NAME, str(into)], cwd=PROJECT, env=environment) as process:
        assert hub.held.wait(30), "the model was never asked for"
        process.kill()
    with pytest.raises(ConfigurationError, match="no encoder of that name"):
        installed_folder(NAME, into)

    hub.holds = False
    assert describe(install(NAME, into, hub=hub.url)).dimension == 384
    assert left(into) == {"small-model"}


def test_of_two_at_once_one_waits(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=large)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(install, NAME, into, hub=hub.url) for _ in range(2)]
    assert {each.result() for each in both} == {into / NAME}
    assert len(hub.fetched()) == len(large)


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=large)
    hub.breaks_after = 20_000_000
    assert describe(install(NAME, into, hub=hub.url)).dimension == 384
    assert len(hub.fetched()) == len(large) + 1


def test_a_file_that_is_not_what_the_hub_says_leaves_nothing(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=large)
    hub.spoils = True
    with pytest.raises(Unavailable, match="did not come as the hub"):
        install(NAME, into, hub=hub.url)
    assert left(into) == set()
    hub.spoils = False
    install(NAME, into, hub=hub.url)


def test_a_model_that_is_not_there(hub: Hub, into: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no model 'owner/small-model', or it is private"):
        install(NAME, into, hub=hub.url)
    assert left(into) == set()


def test_a_model_for_which_terms_must_be_accepted(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=small, gated=True)
    with pytest.raises(ConfigurationError, match=f"are to be accepted at {hub.url}/{NAME}; do so, and set HF_TOKEN"):
        install(NAME, into, hub=hub.url)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused(hub: Hub, into: Path, small: dict[str, bytes], status: int) -> None:
    hub.status = status
    with pytest.raises(ConfigurationError, match="HF_TOKEN"):
        install(NAME, into, hub=hub.url)


def test_a_private_model_with_its_token(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=small, token="hf_right")
    assert "or it is private; check the name, or set HF_TOKEN" in run(_INSTALL, hub, into, HF_TOKEN="hf_wrong").stderr
    told = run(_INSTALL, hub, into, HF_TOKEN="hf_right")
    assert told.stdout.strip() == str(into / NAME)
    assert told.stderr == ""


def test_a_hub_that_fails(hub: Hub, into: Path) -> None:
    hub.status = 500
    with pytest.raises(Unavailable, match=r"failed on 'owner/small-model' \(500\); try again later"):
        install(NAME, into, hub=hub.url)


def test_a_hub_that_is_not_there(into: Path) -> None:
    with running_hub() as hub:
        pass
    with pytest.raises(Unavailable, match="check the network, or copy the folder from a machine that has it"):
        install(NAME, into, hub=hub.url)
    assert left(into) == set()


def test_a_model_without_onnx(hub: Hub, into: Path) -> None:
    hub.models[NAME] = HubModel(files={"model.safetensors": b"", "tokenizer.json": b""})
    with pytest.raises(ConfigurationError, match=r"has no ONNX file for a CPU; its ONNX files: none\."):
        install(NAME, into, hub=hub.url)


def test_a_model_without_a_tokenizer(hub: Hub, into: Path) -> None:
    hub.models[NAME] = HubModel(files={"model.onnx": graph()})
    with pytest.raises(ConfigurationError, match=r"has no tokenizer\.json"):
        install(NAME, into, hub=hub.url)


def test_a_model_that_does_not_encode_is_not_installed(hub: Hub, into: Path, small: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files={**small, "model.onnx": b"garbage"})
    with pytest.raises(ConfigurationError, match="the encoder in 'owner/small-model' cannot be used"):
        install(NAME, into, hub=hub.url)
    assert left(into) == set()


def test_a_place_that_cannot_be_written_to(hub: Hub, tmp_path: Path, small: dict[str, bytes]) -> None:
    (tmp_path / "file").touch()
    hub.models[NAME] = HubModel(files=small)
    with pytest.raises(ConfigurationError, match=r"cannot be written to '.*': Not a directory"):
        install(NAME, tmp_path / "file", hub=hub.url)


def test_a_file_that_finds_no_room(hub: Hub, into: Path, large: dict[str, bytes]) -> None:
    hub.models[NAME] = HubModel(files=large)
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n{_INSTALL}"
    told = run(limited, hub, into)
    assert f"ConfigurationError: '{NAME}' cannot be written to '{into / 'owner'}': File too large" in told.stderr
    assert left(into) == set()


@pytest.mark.parametrize(
    "name", ["", "model", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a b/c", "/a/b", "a/b\n", "ä/b"]
)
def test_a_name_that_is_none(into: Path, name: str) -> None:
    assert not is_hub_name(name)
    with pytest.raises(ConfigurationError, match="is no name of a model"):
        install(name, into)


def test_the_default_folder_is_the_users_cache() -> None:
    assert default_folder().parts[-2:] == ("agent-orchestra", "encoders")
    assert folder_of(NAME) == default_folder() / NAME


async def test_a_setting_that_is_a_folder(encoder_folder: Path, into: Path) -> None:
    encoder = await open_encoder(str(encoder_folder), vendor=no_vendor, into=into)
    assert encoder.dimension == 384
    await encoder.close()


@pytest.mark.parametrize("setting", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
async def test_a_setting_that_is_no_folder(into: Path, setting: str) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no folder .* check routing\.encoder"):
        await open_encoder(setting, vendor=no_vendor, into=into)


@pytest.mark.parametrize("setting", ["openai:text-embedding-3-small", "local:org/model:latest", "openai-responses:x"])
async def test_a_setting_that_is_a_vendors(setting: str) -> None:
    with pytest.raises(AskedVendorError, match=setting):
        await open_encoder(setting, vendor=no_vendor)


class AskedVendorError(Exception):
    pass


def no_vendor(setting: str) -> Encoder:
    raise AskedVendorError(setting)
