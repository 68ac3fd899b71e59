"""Any folder with an ONNX model and a tokenizer encodes; one that is broken says what is wrong when it is opened."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from agent_orchestra.adapters.encoders.files import Pooling, beside, preferred
from agent_orchestra.adapters.encoders.folder import FolderEncoder, describe, open_folder
from agent_orchestra.errors import ConfigurationError, EncoderFailed
from tests.adapters.encoders.graphs import ROWS, graph, made

INT32 = 6


async def encoded(folder: Path, *texts: str) -> list[list[float]]:
    encoder = open_folder(folder)
    try:
        return (await encoder.encode(texts)).tolist()
    finally:
        await encoder.close()


async def test_what_means_the_same_is_nearer(encoder: FolderEncoder) -> None:
    asked, same, other = await encoder.encode(["where is my parcel", "track a delivery", "bake a cake"])
    assert asked @ same > 0.3 > asked @ other


async def test_vectors_have_unit_length_and_come_in_order(encoder: FolderEncoder) -> None:
    texts = [f"text number {n} " * (n % 7 + 1) for n in range(50)]
    together = await encoder.encode(texts)
    assert together.shape == (50, encoder.dimension)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal((await encoder.encode([text]))[0], vector)


async def test_no_texts_give_no_rows(encoder: FolderEncoder) -> None:
    assert (await encoder.encode([])).shape == (0, encoder.dimension)


@pytest.mark.parametrize("text", ["", "  \n", "\x00\x01", "\u200b"])
async def test_a_text_without_a_token_is_zeros(encoder: FolderEncoder, text: str) -> None:
    assert not (await encoder.encode([text])).any()


@pytest.mark.parametrize("text", ["x", "日本語", "a\ud800b", "\x00 lost \x07", "😀", "[CLS] [SEP]", "x" * 1_000])
async def test_any_other_text_has_a_direction(encoder: FolderEncoder, text: str) -> None:
    (vector,) = await encoder.encode([text])
    assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-5)


async def test_of_a_long_text_the_beginning_counts(encoder: FolderEncoder) -> None:
    beginning = "where is the parcel that I have ordered " * 100
    first, second = await encoder.encode([beginning + "and so on " * 100_000, "   " * 300_000 + beginning])
    np.testing.assert_array_equal(first, second)


async def test_many_at_once_get_their_own(encoder: FolderEncoder) -> None:
    texts = [f"{'a long text about nothing ' * (n % 2 * 20)} number {n}" for n in range(40)]
    alone = [(await encoder.encode([text]))[0] for text in texts]
    at_once = await asyncio.gather(*(encoder.encode([text]) for text in texts))
    np.testing.assert_array_equal(np.concatenate(at_once), alone)


async def test_long_texts_leave_the_event_loop_alone(encoder: FolderEncoder) -> None:
    ticks = 0
    encoding = asyncio.ensure_future(encoder.encode(["a long text about something " * 50] * 20))
    while not encoding.done():
        await asyncio.sleep(0)
        ticks += 1
    assert ticks > 10
    assert any(thread.name.startswith("encoder") for thread in threading.enumerate())


async def test_who_gives_up_is_not_encoded_for(encoder: FolderEncoder) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await encoder.encode(["a long text about something " * 50] * 10_000)
    assert (await encoder.encode(["another text, long enough for the thread " * 10])).any()


async def test_after_it_is_closed_it_fails(encoder: FolderEncoder) -> None:
    long = asyncio.ensure_future(encoder.encode(["a long text about something " * 50] * 100))
    await asyncio.sleep(0)
    await encoder.close()
    await encoder.close()
    for texts in (["short"], ["long " * 100]):
        with pytest.raises(EncoderFailed, match="is closed"):
            await encoder.encode(texts)
    with pytest.raises(EncoderFailed, match="is closed"):
        await long


async def test_its_name_is_that_of_its_files(copied: Path, encoder: FolderEncoder) -> None:
    assert encoder.name.startswith("folder:")
    assert len(encoder.name) == len("folder:") + 12
    assert open_folder(copied).name == encoder.name
    (copied / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert open_folder(copied).name != encoder.name


async def test_vectors_of_tokens_are_averaged(tmp_path: Path) -> None:
    found = await encoded(made(tmp_path), "lost money", "a", "of an unknown word")
    mean = (ROWS[3] + ROWS[4]) / 2
    np.testing.assert_allclose(found, [mean / np.linalg.norm(mean), ROWS[1], ROWS[0]], rtol=1e-5)


async def test_or_the_first_is_taken_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = made(tmp_path, files={"1_Pooling/config.json": {"pooling_mode_cls_token": True}})
    np.testing.assert_allclose(await encoded(folder, "lost money"), [ROWS[3] / 5], rtol=1e-5)
    assert describe(folder).pooling is Pooling.CLS


async def test_inputs_are_those_that_the_model_has(tmp_path: Path) -> None:
    for kind, inputs in ((INT32, ["input_ids"]), (7, ["input_ids", "attention_mask", "position_ids"])):
        folder = made(tmp_path, graph(inputs=inputs, kind=kind))
        np.testing.assert_allclose(await encoded(folder, "a"), [ROWS[1]])


async def test_what_the_folder_says_of_its_length_is_kept_to(tmp_path: Path) -> None:
    positions = graph(np.eye(8, 3, dtype=np.float32), by="position_ids", inputs=["position_ids", "input_ids"])
    with pytest.raises(ConfigurationError, match="its model failed on a text"):
        open_folder(made(tmp_path, positions))
    folder = made(tmp_path, positions, files={"config.json": {"max_position_embeddings": 8}})
    assert (await encoded(folder, "a " * 1_000))[0] == pytest.approx([3**-0.5] * 3)
    assert describe(folder).tokens == 8


async def test_a_description_says_what_there_is(encoder_folder: Path) -> None:
    told = describe(encoder_folder)
    assert (told.file, told.dimension, told.tokens, told.pooling) == ("model.onnx", 384, 256, Pooling.MEAN)
    assert told.file_bytes == (encoder_folder / "model.onnx").stat().st_size


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no folder '.*nowhere' with an encoder"):
        open_folder(tmp_path / "nowhere")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="there is no folder"):
        open_folder(tmp_path / "file")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no encoder: it has no model\.onnx"):
        open_folder(tmp_path)


def test_a_folder_without_a_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no encoder: it has no tokenizer\.json"):
        open_folder(copied)


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b"\xff\xfe", b'{"model": {"type": "none"}}'])
def test_a_tokenizer_of_another_format(copied: Path, content: bytes) -> None:
    (copied / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"its tokenizer\.json is not one of the library 'tokenizers'"):
        open_folder(copied)


def test_a_model_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"garbage", b"\x00" * 10_000, graph()[:60]):
        with pytest.raises(ConfigurationError, match=r"cannot be used: its model\.onnx cannot be loaded"):
            open_folder(made(tmp_path, content))
    assert capfd.readouterr().err == ""


def test_half_of_a_model(copied: Path) -> None:
    whole = (copied / "model.onnx").read_bytes()
    (copied / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        open_folder(copied)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (graph(np.zeros_like(ROWS)), "a vector that has no direction"),
        (graph(np.full_like(ROWS, np.nan)), "a vector that has no direction"),
        (graph(np.full_like(ROWS, np.inf)), "a vector that has no direction"),
        (graph(ROWS[:, :, None]), "neither vectors of texts nor of tokens"),
        (graph(by="pixel_values", inputs=["pixel_values"]), "asks for 'pixel_values'"),
        (graph(cast=True, output="emb"), "its vectors have different lengths: 1, 10, 256"),
    ],
    ids=["zeros", "nan", "infinite", "four dimensions", "another input", "another length"],
)
def test_a_model_that_gives_nonsense(tmp_path: Path, model: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        open_folder(made(tmp_path, model))
    assert str(tmp_path) in caught.value.detail


def test_a_pooling_that_is_not_known(tmp_path: Path) -> None:
    folder = made(tmp_path, files={"1_Pooling/config.json": {"pooling_mode_lasttoken": True}})
    with pytest.raises(ConfigurationError, match="pools its tokens by pooling_mode_lasttoken"):
        open_folder(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    folder = made(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"config\.json' cannot be read"):
        open_folder(folder)


@pytest.mark.parametrize("content", [[], None, {"max_position_embeddings": None}, {"max_position_embeddings": -1}])
async def test_a_configuration_that_says_nothing(tmp_path: Path, content: object) -> None:
    assert describe(made(tmp_path, files={"config.json": content})).tokens == 256


async def test_a_model_may_lie_in_the_folder_onnx(tmp_path: Path) -> None:
    folder = made(tmp_path, at="onnx/model_quantized.onnx")
    shutil.copyfile(folder / "onnx" / "model_quantized.onnx", folder / "onnx" / "model.onnx")
    assert describe(folder).file == "onnx/model_quantized.onnx"


def test_only_files_for_other_processors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none of its ONNX files is for a CPU \(onnx/model_fp16\.onnx\)"):
        open_folder(made(tmp_path, at="onnx/model_fp16.onnx"))


def test_the_file_that_fits_is_preferred() -> None:
    published = [
        f"onnx/model{suffix}.onnx" for suffix in ("", "_O1", "_O4", "_quantized", "_qint8_arm64", "_quint8_avx2")
    ]
    assert preferred(published, ["model_quint8_avx2", "model"]) == "onnx/model_quint8_avx2.onnx"
    assert preferred(published, ["model_qint8_avx512", "model"]) == "onnx/model.onnx"
    assert preferred(["model.onnx", "onnx/model.onnx"], ["model"]) == "model.onnx"
    assert preferred(published) in published
    assert preferred(["model_optimized.onnx"]) == "model_optimized.onnx"
    assert preferred(["one.onnx", "other.onnx"]) is None
    assert preferred(["onnx/model_q4.onnx", "onnx/model_fp16.onnx"]) is None
    assert preferred(["config.json"]) is None


def test_weights_beside_a_model_belong_to_it() -> None:
    assert beside("onnx/model.onnx", ["onnx/model.onnx_data", "onnx/model.onnx", "model.onnx_data"]) == [
        "onnx/model.onnx_data"
    ]


async def test_the_tokenizers_own_padding_is_not_kept(copied: Path, encoder: FolderEncoder) -> None:
    settings = json.loads((copied / "tokenizer.json").read_text())
    assert settings["padding"] is not None, "this tokenizer was meant to have one"
    settings["padding"] = settings["truncation"] = None
    (copied / "tokenizer.json").write_text(json.dumps(settings))
    without = await encoded(copied, "where is my parcel")
    with_it = await encoder.encode(["where is my parcel"])
    np.testing.assert_array_equal(np.array(without, dtype=np.float32), with_it)
