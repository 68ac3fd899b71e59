"""What a call has cost, by prices that are known; never by ones that are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

import pytest
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from agent_orchestra.adapters.models.model import VendorModel, usage_of
from agent_orchestra.adapters.models.prices import cost_of
from agent_orchestra.adapters.models.providers import Provider
from agent_orchestra.adapters.models.vendors import VENDORS, ProviderConfig
from agent_orchestra.core.prompt import Prompt, Wrote
from tests.adapters.models.recorded import open_models
from tests.services.replay import ReplayServer
from tests.services.replay import read_case as recorded

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = pytest.mark.timeout(120)

MILLION: Final = 1_000_000
HI: Final = Prompt(turns=[Wrote(content="hi")])


def cost(provider: str, model: str, **used: Any) -> float | None:
    return cost_of(RequestUsage(**used), provider=provider, model=model)[0]


@pytest.mark.parametrize(
    ("provider", "model", "used", "dollars"),
    [
        # For a million tokens: 0.15 in, 0.60 out, 0.075 from the cache.
        ("openai", "gpt-4o-mini", {"input_tokens": MILLION}, 0.15),
        ("openai", "gpt-4o-mini", {"output_tokens": MILLION}, 0.60),
        ("openai", "gpt-4o-mini", {"input_tokens": 12, "output_tokens": 5}, 12 * 0.15e-6 + 5 * 0.60e-6),
        ("openai", "gpt-4o-mini-2024-07-18", {"input_tokens": 12, "output_tokens": 5}, 0.0000048),
        ("openai", "gpt-4o-mini", {"input_tokens": 3_000, "cache_read_tokens": 1_000}, 2_000 * 0.15e-6 + 75e-6),
        # 3 in, 15 out, 0.30 from the cache, 3.75 to it.
        ("anthropic", "claude-sonnet-4-5", {"input_tokens": 1_000, "output_tokens": 100}, 0.003 + 0.0015),
        (
            "anthropic",
            "claude-sonnet-4-5",
            {"input_tokens": 1_000, "cache_read_tokens": 600, "cache_write_tokens": 300, "output_tokens": 10},
            100 * 3e-6 + 600 * 0.30e-6 + 300 * 3.75e-6 + 10 * 15e-6,
        ),
        # 1 in, 5 out, 1.25 to the cache for minutes and 2 for an hour.
        ("anthropic", "claude-haiku-4-5", {"input_tokens": 1_000, "cache_write_tokens": 1_000}, 0.00125),
        (
            "anthropic",
            "claude-haiku-4-5",
            {"input_tokens": 1_000, "cache_write_tokens": 1_000, "cache_write_1h_tokens": 1_000},
            0.002,
        ),
        # 1.25 in and 10 out, and more for a long prompt.
        ("google", "gemini-2.5-pro", {"input_tokens": 1_000, "output_tokens": 1_000}, 0.01125),
        ("google", "gemini-2.5-pro", {"input_tokens": 300_000}, 0.75),
    ],
)
def test_a_known_price_is_applied(provider: str, model: str, used: Mapping[str, int], dollars: float) -> None:
    assert cost(provider, model, **used) == pytest.approx(dollars, rel=1e-9)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "no-such-model"),
        ("anthropic", "no-such-model"),
        ("google", "no-such-model"),
        # A server of one's own costs what it costs, whatever it calls its models.
        ("local", "no-such-model"),
        ("local", "gpt-4o-mini"),
        ("no-such-vendor", "gpt-4o-mini"),
        ("openai", "claude-sonnet-4-5"),
        ("openai", ""),
    ],
)
def test_an_unknown_price_is_not_zero(provider: str, model: str) -> None:
    usage = RequestUsage(input_tokens=1_000, output_tokens=1_000)
    assert cost_of(usage, provider=provider, model=model) == (None, None)


def test_what_nobody_counted_has_no_cost() -> None:
    for usage in (RequestUsage(), RequestUsage(unmeasured_requests=1, input_tokens=10, output_tokens=10)):
        assert cost_of(usage, provider="openai", model="gpt-4o-mini") == (None, None)


def test_a_price_has_the_date_of_its_list() -> None:
    _, dated = cost_of(RequestUsage(input_tokens=1), provider="openai", model="gpt-4o-mini")
    assert dated is not None
    assert date(2024, 1, 1) < date.fromisoformat(dated) <= datetime.now(UTC).date()


def known_models() -> list[tuple[str, str]]:
    return [
        (provider.id, model.id)
        for provider in get_snapshot().providers
        if provider.id in VENDORS
        for model in provider.models
    ]


#: How much of each was used, of thousands of tokens: also so much that a price has another step.
AMOUNT: Final = st.just(0) | st.integers(0, 9_999) | st.integers(0, 2 * MILLION)


@given(
    named=st.sampled_from(known_models()),
    plain=AMOUNT,
    output=AMOUNT,
    read=AMOUNT,
    written=AMOUNT,
    hourly=st.booleans(),
    tier=st.sampled_from([None, "default", "standard", "flex", "priority", "a new one"]),
)
def test_a_cost_is_what_the_price_list_makes_of_it(
    named: tuple[str, str], plain: int, output: int, read: int, written: int, hourly: bool, tier: str | None
) -> None:
    provider, model = named
    usage = RequestUsage(
        input_tokens=plain + read + written,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=written if hourly else 0,
    )
    found, _ = cost_of(usage, provider=provider, model=model, tier=tier)
    if not (usage.input_tokens or usage.output_tokens):
        assert found is None
        return
    context: Any = None if tier is None else {"service_tier": tier}
    try:
        now = datetime.now(UTC)
        price = calc_price(usage, model, provider_id=provider, genai_request_timestamp=now, price_context=context)
    except (LookupError, ValueError):
        assert found is None
    else:
        assert found == pytest.approx(float(price.total_price), rel=1e-9, abs=1e-11)


# --- of whole calls


def response(model: str | None, **used: Any) -> ModelResponse:
    return ModelResponse(parts=[], usage=RequestUsage(**used), model_name=model)


@pytest.fixture
async def asked() -> VendorModel:
    return VendorModel(TestModel(), Provider(VENDORS["openai"], ProviderConfig()), "gpt-4o-mini")


async def test_calls_cost_together_what_they_cost_one_by_one(asked: VendorModel) -> None:
    used = {"input_tokens": 1_000, "output_tokens": 500}
    one = usage_of([response("gpt-4o-mini", **used)], asked)
    both = usage_of([response("gpt-4o-mini", **used), response("gpt-4o-mini-2024-07-18", **used)], asked)
    assert one.cost_usd == pytest.approx(0.00045)
    assert both.cost_usd == pytest.approx(0.0009)
    assert both.price_date == one.price_date
    assert (both.input_tokens, both.output_tokens) == (2_000, 1_000)
    # Where the vendor does not say who answered, it was the one that was asked.
    assert usage_of([response(None, **used)], asked).cost_usd == one.cost_usd


async def test_where_the_cost_of_one_call_is_unknown_that_of_all_is(asked: VendorModel) -> None:
    used = {"input_tokens": 1_000, "output_tokens": 500}
    for unknown in (response("no-such-model", **used), response("gpt-4o-mini")):
        for responses in ([response("gpt-4o-mini", **used), unknown], [unknown, response("gpt-4o-mini", **used)]):
            usage = usage_of(responses, asked)
            assert (usage.cost_usd, usage.price_date) == (None, None)
            # What was counted is told all the same.
            assert usage.input_tokens >= 1_000
    nothing = usage_of([], asked)
    assert (nothing.cost_usd, nothing.price_date, nothing.input_tokens) == (None, None, 0)


@pytest.mark.usefixtures("model_requests")
async def test_an_answer_has_its_cost_where_it_is_known() -> None:
    case = recorded("openai-chat/text")
    whole: dict[str, Any] = dict(case.response["body"])
    usage = {"prompt_tokens": 1_000, "completion_tokens": 500, "total_tokens": 1_500}
    async with ReplayServer() as server, open_models(server.url) as models:
        for changed, dollars in (
            ({"model": "gpt-4o-mini-2024-07-18", "usage": usage}, 0.00045),
            ({"model": "gpt-4o-mini-2024-07-18", "usage": usage, "service_tier": "default"}, 0.00045),
            ({"model": "a-new-one", "usage": usage}, None),
            ({"model": "gpt-4o-mini-2024-07-18", "usage": None}, None),
            ({"model": "gpt-4o-mini-2024-07-18", "usage": {**usage, "prompt_tokens": 0, "completion_tokens": 0}}, None),
        ):
            server.answer(200, {**whole, **changed})
            reply = await models.ask("openai:gpt-4o-mini", HI)
            assert reply.usage.cost_usd == (None if dollars is None else pytest.approx(dollars)), json.dumps(changed)
            assert (reply.usage.price_date is None) == (dollars is None)
        server.answer(200, {**whole, "model": "gpt-4o-mini", "usage": usage})
        reply = await models.ask("local:gpt-4o-mini", HI)
        assert reply.usage.input_tokens == 1_000
        assert reply.usage.cost_usd is None


@pytest.mark.usefixtures("model_requests")
async def test_what_was_written_to_a_cache_for_an_hour_costs_more() -> None:
    whole: dict[str, Any] = dict(recorded("anthropic/cache_read").response["body"])
    usage = {"input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 1_000, "cache_read_input_tokens": 0}
    async with ReplayServer() as server, open_models(server.url) as models:
        for hourly, dollars in ((0, 1_000 * 1.25e-6), (1_000, 1_000 * 2e-6), (400, 600 * 1.25e-6 + 400 * 2e-6)):
            written = {"ephemeral_5m_input_tokens": 1_000 - hourly, "ephemeral_1h_input_tokens": hourly}
            server.answer(200, {**whole, "model": "claude-haiku-4-5", "usage": {**usage, "cache_creation": written}})
            reply = await models.ask("anthropic:claude-haiku-4-5", HI)
            assert reply.usage.cache_write_tokens == 1_000
            assert reply.usage.input_tokens == 1_010
            assert reply.usage.cost_usd == pytest.approx(10 * 1e-6 + 5e-6 + dollars)
