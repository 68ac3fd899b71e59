"""No test asks a vendor by accident: models refuse, and no key is found, unless a test says otherwise."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator

import pydantic_ai.models
import pytest

from agent_orchestra import Agent, Orchestra
from agent_orchestra.adapters.models.vendors import VENDORS
from agent_orchestra.errors import ModelFailed, ModelRequestInvalid, ProviderKeyMissing
from agent_orchestra.testing import temporary_orchestra
from tests.services.replay import ReplayServer

MODELS = ("openai:gpt-4o", "openai-responses:gpt-4o", "anthropic:claude-sonnet-4-5", "google:gemini-2.5-flash")


@pytest.fixture
async def server() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as opened:
        yield opened


@pytest.fixture
async def keyed(server: ReplayServer) -> AsyncGenerator[Orchestra]:
    """An orchestra that has keys, and would find every vendor."""
    own = {"base_url": server.url, "api_key": "test"}
    async with temporary_orchestra(providers={"openai": own, "anthropic": own, "google": own}) as orchestra:
        yield orchestra


def test_models_may_not_be_asked() -> None:
    assert pydantic_ai.models.ALLOW_MODEL_REQUESTS is False


def test_no_key_is_in_the_environment() -> None:
    assert not [name for vendor in VENDORS.values() for name in vendor.variables if name in os.environ]


async def test_without_the_fixture_no_vendor_is_asked(keyed: Orchestra, server: ReplayServer) -> None:
    for model in MODELS:
        for emit in (None, print):
            with pytest.raises(ModelRequestInvalid) as caught:
                await keyed.ask_model(model, "hello", emit=emit)
            assert "ALLOW_MODEL_REQUESTS" in str(caught.value.__cause__)
    await keyed.register_agent(Agent(id="agent", kind="prompt", settings={"models": list(MODELS)}))
    with pytest.raises(ModelRequestInvalid):
        await keyed.process_request("hello", agent_id="agent")
    assert server.requests == []


@pytest.mark.usefixtures("model_requests")
async def test_with_the_fixture_one_on_loopback_is(keyed: Orchestra, server: ReplayServer) -> None:
    assert pydantic_ai.models.ALLOW_MODEL_REQUESTS is True
    for number, model in enumerate(MODELS):
        server.answer(500)
        with pytest.raises(ModelFailed):
            await keyed.ask_model(model, "hello")
        assert len(server.requests) == number + 1


async def test_a_key_is_missing_even_where_the_developer_has_one() -> None:
    async with temporary_orchestra() as orchestra:
        for model in MODELS:
            with pytest.raises(ProviderKeyMissing):
                await orchestra.ask_model(model, "hello")


def test_after_the_fixture_they_may_not_be_asked_again() -> None:
    assert pydantic_ai.models.ALLOW_MODEL_REQUESTS is False
