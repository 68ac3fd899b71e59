"""Embeddings of vendors over the wire: whole and in order, or an encoder that failed and says why."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy as np
import pytest

from agent_orchestra.adapters.models.embeddings import VendorEncoder, open_vendor_encoder
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.errors import ConfigurationError, EncoderFailed
from tests.services.replay import Broken, ReplayServer
from tests.services.vendors import running_llmock

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = pytest.mark.timeout(120)

KEY: Final = "sk-test-0123456789"
OPENAI: Final = "openai:text-embedding-3-small"
GOOGLE: Final = "google:gemini-embedding-001"
LOCAL: Final = "local:nomic-embed-text"
ALL: Final = (OPENAI, GOOGLE, LOCAL)
#: The status and the body of an answer, and the code of what it is.
REFUSALS: Final[list[Any]] = [
    (401, {"error": {"message": f"wrong key {KEY}", "code": "invalid_api_key"}}, "model_authentication_failed"),
    (404, {"error": {"message": "no such model", "code": "model_not_found"}}, "model_not_found"),
    (400, {"error": {"message": "no", "type": "invalid_request_error"}}, "model_request_invalid"),
    (500, b"<html>", "model_server_error"),
    (307, b"", "model_server_error"),
    (200, b"<html>", "model_server_error"),
    (200, {}, "model_server_error"),
    (200, [], "model_server_error"),
    (200, {"data": [{"index": 0}], "embeddings": [{}]}, "model_server_error"),
    (200, {"data": [{"index": 0, "embedding": ["x"]}], "embeddings": [{"values": ["x"]}]}, "model_server_error"),
    (200, {"data": [{"index": 0, "embedding": "??"}], "embeddings": [{"values": None}]}, "model_server_error"),
    (200, {"data": [], "embeddings": []}, "model_server_error"),
]


@asynccontextmanager
async def opened(setting: str, url: str, **config: Any) -> AsyncGenerator[VendorEncoder]:
    vendor = setting.partition(":")[0]
    base_url = url if vendor == "google" else f"{url}/v1"
    key = None if vendor == "local" else KEY
    providers = Providers({vendor: ProviderConfig(api_key=key, base_url=base_url, **config)})
    try:
        yield open_vendor_encoder(providers, setting)
    finally:
        await providers.close()


def answered(setting: str, *vectors: Sequence[float]) -> Mapping[str, object]:
    """What the vendor sends for so many texts, as it documents it."""
    if setting == GOOGLE:
        return {"embeddings": [{"values": vector} for vector in vectors]}
    data = [
        {"object": "embedding", "index": index, "embedding": vector if setting == LOCAL else packed(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def packed(vector: Sequence[float]) -> str:
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize("setting", ALL)
async def test_each_vendor_is_asked_in_its_own_way(setting: str) -> None:
    async with ReplayServer() as server, opened(setting, server.url) as encoder:
        assert (encoder.name, encoder.dimension) == (setting, 0)
        server.answer(200, answered(setting, [3, 4], [0, 0.5]))
        rows = await encoder.encode(["one", "two"])
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    assert rows.dtype == np.float32
    assert encoder.dimension == 2
    (asked,) = server.requests
    if setting == GOOGLE:
        assert asked.path == "/v1beta/models/gemini-embedding-001:batchEmbedContents"
        assert asked.headers["x-goog-api-key"] == KEY
        assert asked.body["requests"][1] == {
            "model": "models/gemini-embedding-001",
            "content": {"parts": [{"text": "two"}]},
            "taskType": "SEMANTIC_SIMILARITY",
        }
    else:
        assert asked.path == "/v1/embeddings"
        assert asked.headers.get("authorization") == (f"Bearer {KEY}" if setting == OPENAI else None)
        model = setting.partition(":")[2]
        assert asked.body == {"model": model, "input": ["one", "two"], "encoding_format": "base64"}


async def test_a_model_of_google_reads_its_task_in_words() -> None:
    async with ReplayServer() as server, opened("google:gemini-embedding-2", server.url) as encoder:
        server.answer(200, answered(GOOGLE, [1, 0]))
        await encoder.encode(["one"])
    (request,) = server.requests[0].body["requests"]
    assert request["content"] == {"parts": [{"text": "task: sentence similarity | query: one"}]}
    assert "taskType" not in request


async def test_vectors_go_to_the_texts_of_their_index() -> None:
    async with ReplayServer() as server, opened(LOCAL, server.url) as encoder:
        told: Any = answered(LOCAL, [1, 0], [0, 1])
        server.answer(200, {**told, "data": told["data"][::-1]})
        assert (await encoder.encode(["one", "two"])).tolist() == [[1, 0], [0, 1]]


async def test_blank_texts_are_zeros_and_not_sent() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url) as encoder:
        assert (await encoder.encode([])).shape == (0, 0)
        assert (await encoder.encode(["", " \n"])).shape == (2, 0)
        server.answer(200, answered(OPENAI, [1, 0]))
        assert (await encoder.encode([" ", "one", ""])).tolist() == [[0, 0], [1, 0], [0, 0]]
        assert (await encoder.encode([""])).tolist() == [[0, 0]]
    assert [request.body["input"] for request in server.requests] == [["one"]]


async def test_many_texts_go_in_batches_and_long_ones_are_cut() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url) as encoder:
        for count in (96, 4, 25, 5):
            server.answer(200, answered(OPENAI, *([float(number + 1), 1] for number in range(count))))
        rows = await encoder.encode([f"text {number}" for number in range(100)])
        np.testing.assert_allclose(rows[96], rows[0])
        assert (await encoder.encode(["x" * 1_000_000] * 30)).shape == (30, 2)
    assert [len(request.body["input"]) for request in server.requests] == [96, 4, 25, 5]
    assert {len(text) for text in server.requests[2].body["input"]} == {4_000}


async def test_what_is_no_unicode_is_sent_without_it() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url) as encoder:
        server.answer(200, answered(OPENAI, [1, 0]))
        await encoder.encode(["a\ud800b"])
    assert server.requests[0].body["input"] == ["a\ufffdb"]


@pytest.mark.parametrize("setting", ALL)
@pytest.mark.parametrize(("status", "body", "code"), REFUSALS)
async def test_what_a_vendor_refuses_is_an_encoder_that_failed(
    setting: str, status: int, body: object, code: str
) -> None:
    async with ReplayServer() as server, opened(setting, server.url) as encoder:
        server.answer(status, body)
        with pytest.raises(EncoderFailed) as caught:
            await encoder.encode(["one"])
    assert caught.value.data == {"encoder": setting, "vendor_error": code}
    assert KEY not in caught.value.detail


@pytest.mark.parametrize("vector", [[0, 0], [float("nan"), 1], [], [[1, 0]], 7])
async def test_what_has_no_direction_is_no_vector(vector: Any) -> None:
    async with ReplayServer() as server, opened(LOCAL, server.url) as encoder:
        server.answer(200, answered(LOCAL, vector))
        with pytest.raises(EncoderFailed, match="local failed on 'nomic-embed-text'"):
            await encoder.encode(["one"])
    assert encoder.dimension == 0


async def test_vectors_of_another_length_than_before_are_refused() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url) as encoder:
        server.answer(200, answered(OPENAI, [1, 0]))
        await encoder.encode(["one"])
        server.answer(200, answered(OPENAI, [1, 0, 0]))
        with pytest.raises(EncoderFailed, match="other_dimensions"):
            await encoder.encode(["two"])
        server.answer(200, answered(OPENAI, [1, 0], [1, 0]))
        with pytest.raises(EncoderFailed, match="other_dimensions"):
            await encoder.encode(["a text for which two come"])


@pytest.mark.parametrize("setting", ALL)
async def test_a_server_that_hangs_up_or_breaks_off_cannot_be_reached(setting: str) -> None:
    async with ReplayServer() as server, opened(setting, server.url) as encoder:
        server.hang_up()
        with pytest.raises(EncoderFailed, match="cannot be reached") as caught:
            await encoder.encode(["one"])
        assert caught.value.data["vendor_error"] == "model_unreachable"
        server.answer(200, answered(setting, [1, 0]), fault=Broken(inside=True))
        with pytest.raises(EncoderFailed, match="cannot be reached"):
            await encoder.encode(["one"])
        server.answer(200, answered(setting, [1, 0]))
        assert (await encoder.encode(["one"])).tolist() == [[1, 0]]


@pytest.mark.parametrize("setting", ALL)
async def test_a_server_that_is_not_there_cannot_be_reached(setting: str) -> None:
    async with ReplayServer() as server:
        url = server.url
    async with opened(setting, url) as encoder:
        with pytest.raises(EncoderFailed, match="cannot be reached"):
            await encoder.encode(["one"])


@pytest.mark.parametrize("setting", ALL)
async def test_a_server_that_does_not_answer_is_given_up(setting: str) -> None:
    async with ReplayServer() as server, opened(setting, server.url, timeout=0.1) as encoder:
        server.silence()
        with pytest.raises(EncoderFailed, match="did not answer in time") as caught:
            await encoder.encode(["one"])
    assert caught.value.data["vendor_error"] == "model_timeout"


async def test_who_gives_up_ends_the_call() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url) as encoder:
        server.silence()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await encoder.encode(["one"])
        server.answer(200, answered(OPENAI, [1, 0]))
        assert (await encoder.encode(["one"])).tolist() == [[1, 0]]


async def test_a_pause_that_the_vendor_asks_for_is_kept() -> None:
    async with ReplayServer() as server, opened(OPENAI, server.url, max_wait=0) as encoder:
        server.answer(429, {"error": {"code": "rate_limit_exceeded", "type": "requests"}}, {"retry-after": "60"})
        for _ in range(2):
            with pytest.raises(EncoderFailed) as caught:
                await encoder.encode(["one"])
            assert caught.value.data["vendor_error"] == "model_rate_limited"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("anthropic:claude", "there are no embeddings behind 'anthropic:'; known: openai, google, local"),
        ("openai-responses:gpt-5", "there are no embeddings behind 'openai-responses:'"),
        ("opnai:text-embedding-3-small", "routing.encoder: there is no provider 'opnai'; did you mean 'openai'?"),
        ("openai:", "routing.encoder: what follows 'openai:' must be"),
        ("openai:text-embedding-3-small", "there is no key for openai, which 'text-embedding-3-small' needs"),
    ],
)
def test_a_setting_that_cannot_be_opened_says_why(setting: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_vendor_encoder(Providers({}), setting)
    assert why in caught.value.detail


@pytest.mark.slow
async def test_a_server_that_others_have_written_answers() -> None:
    with running_llmock() as llmock:
        providers = Providers({"openai": ProviderConfig(api_key=KEY, base_url=llmock.openai)})
        encoder = open_vendor_encoder(providers, OPENAI)
        rows = await encoder.encode(["one", "two", "one"])
        await encoder.close()
        await providers.close()
    assert rows.shape == (3, 1536)
    np.testing.assert_array_equal(rows[0], rows[2])
