"""What every encoder promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest

from agent_orchestra.adapters.encoders.folder import open_folder
from agent_orchestra.adapters.models.embeddings import open_vendor_encoder
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.runtime.encoding import Encoder
from tests.adapters.encoders.graphs import made
from tests.services.vendors import running_llmock

TEXTS = ["lost money", "a parcel", "lost a parcel", "money"]


@pytest.fixture(params=["folder", pytest.param("openai", marks=pytest.mark.slow)])
async def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Encoder]:
    if request.param == "folder":
        folder = open_folder(made(tmp_path))
        yield folder
        await folder.close()
        return
    with running_llmock() as vendors:
        providers = Providers({"openai": ProviderConfig(api_key="sk-test", base_url=vendors.openai)})
        vendor = open_vendor_encoder(providers, "openai:text-embedding-3-small")
        yield vendor
        await vendor.close()
        await providers.close()


async def test_each_text_has_a_row_of_unit_length(encoder: Encoder) -> None:
    rows = await encoder.encode(TEXTS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


async def test_a_texts_vector_does_not_depend_on_the_others(encoder: Encoder) -> None:
    together = await encoder.encode(TEXTS)
    alone = [(await encoder.encode([text]))[0] for text in TEXTS]
    at_once = await asyncio.gather(*(encoder.encode([text]) for text in TEXTS))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(together, np.concatenate(at_once), rtol=1e-5)


async def test_a_text_that_says_nothing_has_a_row_of_zeros(encoder: Encoder) -> None:
    first, blank, last = await encoder.encode(["lost", " \n", "money"])
    assert not blank.any()
    assert first.any()
    assert last.any()


async def test_no_texts_have_no_rows(encoder: Encoder) -> None:
    assert len(await encoder.encode([])) == 0


async def test_many_and_long_texts_are_encoded(encoder: Encoder) -> None:
    rows = await encoder.encode([*TEXTS * 50, "lost money " * 100_000, "日本 \U0001f600 \x00 \ud800"])
    assert rows.shape == (202, encoder.dimension)
    assert rows.any(axis=1).all()


async def test_its_name_stays_the_same(encoder: Encoder) -> None:
    before = encoder.name
    await encoder.encode(TEXTS)
    assert encoder.name == before != ""


async def test_closing_twice_is_no_error(encoder: Encoder) -> None:
    await encoder.close()
    await encoder.close()
