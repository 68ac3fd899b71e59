"""Vectors: each text is encoded as seldom as can be, and an encoder that does not answer is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.adapters.sql.learning import SqlVectorStore
from agent_orchestra.core.classifier import Vector
from agent_orchestra.errors import EncoderFailed
from agent_orchestra.runtime.embeddings import Embeddings
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import Lines
from tests.runtime.test_classifying import PATIENT, Words
from tests.services.waiting import wait_until

MINE: Final = ("acme",)
#: More texts of requests than are kept.
MANY: Final = 600


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncGenerator[Database]:
    database = await open_database(f"sqlite:///{tmp_path / 'orchestra.db'}")
    yield database
    await database.close()


def embeddings_of(
    encoder: Words, stored: Database, *, timeout: float = PATIENT, pause: float = PATIENT, lines: Lines | None = None
) -> Embeddings:
    telemetry = Telemetry(lines or Lines(), detailed=False)
    return Embeddings(encoder, SqlVectorStore(stored), timeout=timeout, pause=pause, telemetry=telemetry)


# --- of requests


async def test_vectors_come_in_the_order_of_the_texts(stored: Database) -> None:
    encoder = Words()
    found = await embeddings_of(encoder, stored).of_request(["book a flight", "mow the lawn", "book a flight"])
    expected = await Words().encode(["book a flight", "mow the lawn", "book a flight"])
    assert np.array_equal(np.stack(found), expected)
    assert encoder.asked == [("book a flight", "mow the lawn")]


async def test_a_text_that_comes_again_is_not_encoded_again(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    await embeddings.of_request(["book a flight"])
    await embeddings.of_request(["to Rome", "book a flight"])
    assert encoder.asked == [("book a flight",), ("to Rome",)]


async def test_only_what_came_lately_is_kept(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    for number in range(MANY):
        await embeddings.of_request([f"request {number}"])
    calls = len(encoder.asked)
    await embeddings.of_request([f"request {MANY - 1}"])
    assert len(encoder.asked) == calls
    await embeddings.of_request(["request 0"])
    assert len(encoder.asked) == calls + 1


async def test_a_request_gets_its_vectors_however_many_others_come_meanwhile(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    await embeddings.of_request(["where to?"])
    encoder.held = {"to Rome"}
    waiting = asyncio.create_task(embeddings.of_request(["to Rome", "where to?"]))
    await wait_until(lambda: encoder.waiting == 1, "nothing was encoded")
    for number in range(MANY):
        await embeddings.of_request([f"request {number}"])
    encoder.let()
    assert np.array_equal(np.stack(await waiting), await Words().encode(["to Rome", "where to?"]))


async def test_of_a_long_text_the_beginning_is_read(stored: Database) -> None:
    encoder = Words()
    await embeddings_of(encoder, stored).of_request(["word " * 100_000])
    assert [len(text) for text in encoder.encoded] == [8_000]


async def test_what_fails_is_told_by_its_code_and_never_by_the_text(stored: Database) -> None:
    encoder, lines = Words(), Lines()
    encoder.fails = True
    embeddings = embeddings_of(encoder, stored, lines=lines)
    with pytest.raises(EncoderFailed, match="the encoder is broken"):
        await embeddings.of_request(["my secret"])
    assert embeddings.last_error == "the encoder is broken"
    assert lines.of("encoder_failed") == [{"encoder": "words", "code": "encoder_failed"}]
    assert "my secret" not in str(lines.all)


async def test_an_encoder_that_hangs_is_not_waited_for(stored: Database) -> None:
    encoder = Words()
    encoder.held = {"book a flight"}
    embeddings = embeddings_of(encoder, stored, timeout=0.01)
    with pytest.raises(EncoderFailed, match="took too long"):
        await embeddings.of_request(["book a flight"])
    assert encoder.waiting == 0
    assert embeddings.last_error == "the encoder took too long"


async def test_an_encoder_that_failed_is_left_alone_by_those_who_come_next(stored: Database) -> None:
    encoder = Words()
    encoder.fails = True
    embeddings = embeddings_of(encoder, stored)
    for text in ("book a flight", "mow the lawn", "book a flight"):
        with pytest.raises(EncoderFailed):
            await embeddings.of_request([text])
    assert encoder.asked == [("book a flight",)]


async def test_what_is_known_already_needs_no_encoder(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    await embeddings.of_request(["book a flight"])
    encoder.fails = True
    with pytest.raises(EncoderFailed):
        await embeddings.of_request(["mow the lawn"])
    assert len(await embeddings.of_request(["book a flight"])) == 1


async def test_after_a_pause_the_encoder_is_used_again(stored: Database) -> None:
    encoder = Words()
    encoder.fails = True
    embeddings = embeddings_of(encoder, stored, pause=0.1)
    with pytest.raises(EncoderFailed, match="broken"):
        await embeddings.of_request(["book a flight"])
    encoder.fails = False
    found = asyncio.create_task(as_soon_as_possible(embeddings, "book a flight"))
    await wait_until(found.done, "the encoder is not used again")
    assert len(await found) == 1
    assert encoder.asked == [("book a flight",)] * 2
    assert embeddings.last_error is None


async def as_soon_as_possible(embeddings: Embeddings, text: str) -> Sequence[Vector]:
    while True:
        with suppress(EncoderFailed):
            return await embeddings.of_request([text])
        await asyncio.sleep(0.01)


async def test_who_gives_up_does_not_make_the_encoder_a_failure(stored: Database) -> None:
    encoder = Words()
    encoder.held = {"book a flight"}
    embeddings = embeddings_of(encoder, stored)
    waiting = asyncio.create_task(embeddings.of_request(["book a flight"]))
    await wait_until(lambda: encoder.waiting == 1, "nothing was encoded")
    waiting.cancel()
    await asyncio.wait({waiting})
    encoder.let()
    assert len(await embeddings.of_request(["mow the lawn"])) == 1


# --- of definitions


async def test_definitions_are_kept_for_the_next_start(stored: Database) -> None:
    first, second = Words(), Words()
    before = await embeddings_of(first, stored).of_definitions(MINE, "acme", ["a", "b", "a"])
    after = await embeddings_of(second, stored).of_definitions(MINE, "acme", ["b", "a"])
    assert first.asked == [("a", "b")]
    assert second.asked == []
    assert {text: vector.tolist() for text, vector in before.items()} == {
        text: vector.tolist() for text, vector in after.items()
    }


async def test_only_new_definitions_are_encoded(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    await embeddings.of_definitions(MINE, "acme", ["a", "b"])
    assert set(await embeddings.of_definitions(MINE, "acme", ["b", "c"])) == {"b", "c"}
    assert encoder.asked == [("a", "b"), ("c",)]


async def test_without_definitions_the_encoder_is_not_asked(stored: Database) -> None:
    encoder = Words()
    assert await embeddings_of(encoder, stored).of_definitions(MINE, "acme", []) == {}
    assert encoder.asked == []


async def test_the_vectors_of_one_encoder_are_not_given_for_another(stored: Database) -> None:
    await embeddings_of(Words("one"), stored).of_definitions(MINE, "acme", ["a"])
    other = Words("another", dimension=16)
    found = await embeddings_of(other, stored).of_definitions(MINE, "acme", ["a"])
    assert other.asked == [("a",)]
    assert found["a"].shape == (16,)


async def test_vectors_are_taken_from_those_tenants_alone_that_are_named(stored: Database) -> None:
    encoder = Words()
    embeddings = embeddings_of(encoder, stored)
    await embeddings.of_definitions(("default",), "default", ["a"])
    await embeddings.of_definitions(("acme", "default"), "acme", ["a"])
    assert encoder.asked == [("a",)]
    await embeddings.of_definitions(("globex",), "globex", ["a"])
    assert encoder.asked == [("a",), ("a",)]


async def test_definitions_take_the_time_that_they_need(stored: Database) -> None:
    encoder = Words()
    encoder.held = {"a"}
    embeddings = embeddings_of(encoder, stored, timeout=0.01)
    waiting = asyncio.create_task(embeddings.of_definitions(MINE, "acme", ["a"]))
    await wait_until(lambda: encoder.waiting == 1, "nothing was encoded")
    with pytest.raises(EncoderFailed, match="took too long"):
        await embeddings.of_request(["a"])
    encoder.let()
    assert set(await waiting) == {"a"}


async def test_of_definitions_that_could_not_be_encoded_nothing_is_kept(stored: Database) -> None:
    encoder = Words()
    encoder.fails = True
    with pytest.raises(EncoderFailed):
        await embeddings_of(encoder, stored).of_definitions(MINE, "acme", ["a"])
    encoder.fails = False
    assert set(await embeddings_of(encoder, stored).of_definitions(MINE, "acme", ["a"])) == {"a"}
    assert encoder.asked == [("a",)] * 2


async def test_a_vector_of_another_length_under_the_same_name_is_made_anew(stored: Database) -> None:
    await embeddings_of(Words(dimension=16), stored).of_definitions(MINE, "acme", ["a"])
    found = await embeddings_of(Words(dimension=32), stored).of_definitions(MINE, "acme", ["a"])
    assert found["a"].shape == (32,)


async def test_what_it_was_given_it_closes(stored: Database) -> None:
    encoder = Words()
    await embeddings_of(encoder, stored).close()
    assert encoder.closed
