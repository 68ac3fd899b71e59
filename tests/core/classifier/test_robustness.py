"""Whatever comes in, a judgement comes out, or one clear error."""

from __future__ import annotations

import numpy as np
import pytest

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import (
    Example,
    Turn,
    Vector,
    confusions,
    fit,
    overlaps,
    texts_of,
    unreachable,
    untaught,
)

BILLING = Agent(id="billing", kind="offline", description="Questions about invoices, payments and refunds.")
TRAVEL = Agent(id="travel", kind="offline", description="Flights, trains, hotels and visas for business trips.")
SUPPORT = Agent(id="support", kind="offline", description="Problems with signing in, passwords and crashes of the app.")
THREE = (BILLING, TRAVEL, SUPPORT)


def vectors_of(texts: list[str], dimension: int = 8) -> dict[str, Vector]:
    """Vectors that mean nothing, but are always the same."""
    found: dict[str, Vector] = {}
    for text in texts:
        vector = np.random.default_rng(sum(text.encode())).normal(size=dimension).astype(np.float32)
        found[text] = (vector / np.sqrt(vector @ vector)).astype(np.float32)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "?!...",
        "\x00\x01\x1b[31m",
        "a" * 1_000_000,
        "refund " * 200_000,
        "我想查一下我的发票",
        "ฉันต้องการเงินคืน",
        "أين فاتورتي؟",
        "\ud800",
        "🙂🙃",
        "İstanbul'a uçuş",
    ],
)
def test_any_text_gets_a_judgement(text: str) -> None:
    judgement = fit(THREE, [], {}).judge(text)
    assert {scored.agent_id for scored in judgement.ranked} == {"billing", "travel", "support"}
    assert 0 <= judgement.confidence <= 1
    assert 0 <= judgement.in_scope <= 1
    assert sum(scored.probability for scored in judgement.ranked) == pytest.approx(1, abs=1e-5)


def test_a_text_without_any_known_word_is_nobodys() -> None:
    model = fit(THREE, [], {})
    for text in ("", "asdf qwer", "hello", "what is it", "🙂"):
        assert not model.judge(text).accepted, text


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    model = fit(THREE, [], {})
    text = "refund my payment " * 1_000
    assert model.judge(text + "flight to Lisbon " * 10_000) == model.judge(text)


def test_a_registry_without_agents_has_nobody_to_name() -> None:
    judgement = fit([], [], {}).judge("Where is my invoice?")
    assert judgement.ranked == ()
    assert judgement.confidence == 0
    assert not judgement.accepted


def test_a_single_agent_takes_what_is_its_own_and_refuses_the_rest() -> None:
    model = fit([BILLING], [Example(text="Where is my invoice?", agent_id="billing")], {})
    assert model.judge("I want to see my invoices").accepted
    assert not model.judge("asdf qwer").accepted
    assert not model.learned


def test_an_agent_without_any_text_is_known_by_its_name() -> None:
    model = fit([BILLING, Agent(id="weatherForecast", kind="offline")], [], {})
    assert model.judge("the weather forecast for tomorrow").ranked[0].agent_id == "weatherForecast"
    assert unreachable(model) == []


def test_of_two_agents_with_the_same_text_the_first_leads_and_neither_is_likely() -> None:
    twins = [BILLING, Agent(id="accounts", kind="offline", name="billing", description=BILLING.description), TRAVEL]
    for model in (fit(twins, [], {}), fit(twins, [], vectors_of(texts_of(twins)))):
        vector = vectors_of(["refund"])["refund"] if model.dimension else None
        judgement = model.judge("I want a refund of my payment", vector)
        assert [scored.agent_id for scored in judgement.ranked][:2] == ["billing", "accounts"]
        assert judgement.confidence <= 0.5
    assert overlaps(fit(twins, [], {}))[0].similarity == pytest.approx(1, abs=0.05)
    assert unreachable(fit(twins, [], {})) == ["accounts"]


def test_capabilities_that_repeat_each_other_are_no_fault() -> None:
    agent = Agent(id="shop", kind="offline", capabilities=("order-pizza", "order_pizza", "food: order pizza", " "))
    model = fit([agent, TRAVEL], [], {})
    assert model.judge("order a pizza").ranked[0].agent_id == "shop"


def test_a_vector_of_another_dimension_is_refused() -> None:
    model = fit(THREE, [], vectors_of(texts_of(THREE)))
    with pytest.raises(ValueError, match="shape"):
        model.judge("refund", np.zeros(9, np.float32))
    with pytest.raises(ValueError, match="shape"):
        fit(THREE, [], {"a": np.zeros(3, np.float32), "b": np.zeros(4, np.float32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(bad: float) -> None:
    model = fit(THREE, [], vectors_of(texts_of(THREE)))
    vector = np.full(8, bad, np.float32)
    with pytest.raises(ValueError, match="finite"):
        model.judge("refund", vector)
    with pytest.raises(ValueError, match="finite"):
        fit(THREE, [], {"a": vector})


def test_a_request_without_a_vector_is_judged_by_its_words() -> None:
    model = fit(THREE, [], vectors_of(texts_of(THREE)))
    assert model.judge("the refund of an invoice").ranked[0].agent_id == "billing"


def test_examples_that_cannot_be_used_change_nothing() -> None:
    useless = [
        Example(text="refund please", agent_id="nobody-of-that-name"),
        Example(text="a flight please", agent_id="billing", weight=0.0),
    ]
    assert fit(THREE, useless, {}).judge("refund") == fit(THREE, [], {}).judge("refund")


def test_examples_of_one_agent_alone_do_not_make_it_the_answer_to_everything() -> None:
    examples = [Example(text=f"refund number {n} please", agent_id="billing") for n in range(20)]
    model = fit(THREE, examples, {})
    assert model.judge("refund my payment").ranked[0].agent_id == "billing"
    assert model.judge("a hotel for a business trip").ranked[0].agent_id == "travel"


def test_one_example_is_enough_to_learn_from() -> None:
    model = fit(THREE, [Example(text="my card was swallowed", agent_id="billing")], {})
    assert model.learned
    assert model.judge("the machine swallowed my card").ranked[0].agent_id == "billing"


def test_requests_like_those_known_to_be_nobodys_are_refused() -> None:
    examples = [Example(text=f"refund of order {n}", agent_id="billing") for n in range(10)]
    examples += [Example(text=f"flight number {n} to Rome", agent_id="travel") for n in range(10)]
    strange = [Example(text=f"refund of a flight to the moon {n}", agent_id=None) for n in range(5)]
    without, knowing = fit(THREE, examples, {}), fit(THREE, [*examples, *strange], {})
    assert knowing.examples == without.examples + 5
    text = "refund of a flight to the moon"
    assert not knowing.judge(text).accepted
    assert knowing.judge(text).in_scope < without.judge(text).in_scope / 2
    assert knowing.judge("refund of order 4").accepted


def test_reports_of_a_registry_without_agents_are_empty() -> None:
    model = fit([], [], {})
    assert (overlaps(model), confusions(model), unreachable(model)) == ([], [], [])


def test_a_conversation_with_an_agent_that_is_gone_is_judged_by_its_text() -> None:
    model = untaught(THREE, {})
    alone = model.judge("I want a refund of my payment")
    assert model.judge("I want a refund of my payment", turn=Turn(previous="retired")) == alone


def test_a_thousand_agents_are_judged() -> None:
    agents = [
        Agent(id=f"agent-{n}", kind="offline", description=f"Handles matter{n} of client{n % 100}.")
        for n in range(1_000)
    ]
    model = fit(agents, [], {})
    assert model.judge("please see to matter123").ranked[0].agent_id == "agent-123"
