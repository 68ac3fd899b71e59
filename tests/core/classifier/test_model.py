"""What holds of every judgement, and what is kept when registries change and classifiers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import (
    Example,
    Judgement,
    Model,
    Turn,
    Vector,
    confusions,
    fit,
    overlaps,
    restore,
    texts_of,
    unreachable,
    untaught,
)

AGENTS = (
    Agent(
        id="billing",
        kind="offline",
        description="Questions about invoices, payments, refunds and subscription plans.",
        capabilities=("invoices", "refunds", "subscriptions"),
        keywords=("invoice", "charge", "receipt"),
    ),
    Agent(id="travel", kind="offline", description="Flights, trains, hotels, visas and luggage for business trips."),
    Agent(
        id="support", kind="offline", description="Technical problems with signing in, passwords, errors, and the app."
    ),
    Agent(id="handbook", kind="offline", description="The company's rules on holidays, sick leave and remote work."),
)
LEGAL = Agent(id="legal", kind="offline", description="Contracts, licences and questions of copyright.")
SAID = {
    "billing": (
        "I was charged twice",
        "can I get my money back",
        "send me the receipt",
        "change my plan",
        "what do I owe",
    ),
    "travel": (
        "book a flight to Rome",
        "do I need a visa",
        "how much luggage can I take",
        "a train to Paris",
        "any hotel",
    ),
    "support": ("I forgot my password", "the app crashes", "it shows an error", "I cannot sign in", "nothing loads"),
    "handbook": (
        "how many vacation days",
        "I am ill today",
        "may I work from home",
        "parental leave",
        "who is my lead",
    ),
}
EXAMPLES = [Example(text=text, agent_id=agent) for agent, texts in SAID.items() for text in texts]
REQUESTS = (
    "where is my invoice",
    "the app shows an error",
    "a flight and a hotel",
    "I am sick",
    "asdf",
    "refund my plan",
)


def vector(text: str) -> Vector:
    """A vector of 16 numbers in which texts with the same words are near."""
    total = np.zeros(16)
    for word in text.casefold().split():
        total += np.random.default_rng(sum(word.encode())).normal(size=16)
    return (total / max(np.sqrt(total @ total), 1e-9)).astype(np.float32)


def vectors(agents: Sequence[Agent] = AGENTS) -> dict[str, Vector]:
    return {text: vector(text) for text in (*texts_of(agents), *(example.text for example in EXAMPLES))}


LEARNED = fit(AGENTS, EXAMPLES, vectors())
BY_WORDS = fit(AGENTS, EXAMPLES, {})


def judged(model: Model) -> list[Judgement]:
    return [model.judge(text, vector(text) if model.dimension else None) for text in REQUESTS]


@given(text=st.text(max_size=60), encoded=st.booleans(), limit=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_a_judgement_is_a_ranking_with_probabilities(text: str, encoded: bool, limit: int) -> None:
    model = LEARNED if encoded else BY_WORDS
    found = model.judge(text, vector(text) if encoded else None, limit=limit)
    shares = [scored.probability for scored in found.ranked]
    assert len(found.ranked) == min(limit, len(AGENTS))
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1 + 1e-5
    assert 0 <= found.confidence <= found.in_scope <= 1
    assert 0 <= found.margin <= 1 + 1e-6


@given(among=st.sets(st.sampled_from([agent.id for agent in AGENTS] + ["unknown"])))
@settings(max_examples=30, deadline=None)
def test_only_the_candidates_are_ranked(among: set[str]) -> None:
    found = LEARNED.judge("a refund of the flight", vector("a refund of the flight"), among=among)
    assert {scored.agent_id for scored in found.ranked} == among - {"unknown"}
    if not found.ranked:
        assert not found.accepted


def test_the_same_input_gives_the_same_classifier() -> None:
    assert judged(fit(AGENTS, EXAMPLES, vectors())) == judged(LEARNED)
    assert fit(AGENTS, EXAMPLES, {}).dump() == BY_WORDS.dump()


def test_requests_find_their_agents_and_the_lines_that_matched() -> None:
    found = BY_WORDS.judge("I was charged for this twice")
    assert found.ranked[0].agent_id == "billing"
    assert (found.ranked[0].line, found.ranked[0].kind) == ("I was charged twice", "example")
    found = untaught(AGENTS, {}).judge("a question on subscriptions")
    assert (found.ranked[0].line, found.ranked[0].kind) == ("subscriptions", "capability")


@pytest.mark.parametrize("model", [LEARNED, BY_WORDS, fit(AGENTS, [], {}), fit([], [], {})])
def test_what_is_dumped_is_restored(model: Model) -> None:
    stored = restore(model.dump(), model.definitions, vectors() if model.dimension else {})
    for one, other in zip(judged(stored), judged(model), strict=True):
        assert one.ranked[:1] == other.ranked[:1]
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.accepted == other.accepted
    assert (stored.learned, stored.examples, stored.loss) == (model.learned, model.examples, model.loss)
    assert stored.dump() == model.dump()


@pytest.mark.parametrize("learned", [b"", b"nothing", LEARNED.dump()[:-200], LEARNED.dump()[40:]])
def test_bytes_that_are_no_dump_are_refused(learned: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        restore(learned, AGENTS, vectors())


def test_a_dump_is_not_applied_to_vectors_of_another_dimension() -> None:
    with pytest.raises(ValueError, match="shape"):
        restore(LEARNED.dump(), AGENTS, {"refund": np.zeros(5, np.float32)})


def test_a_registry_that_has_not_changed_judges_as_before() -> None:
    for one, other in zip(judged(LEARNED.rebuilt(AGENTS, {})), judged(LEARNED), strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_a_new_agent_is_found_at_once_and_the_others_keep_what_was_learned() -> None:
    for model in (LEARNED, BY_WORDS, untaught(AGENTS, {})):
        grown = model.rebuilt(
            (*AGENTS, LEGAL), {text: vector(text) for text in texts_of([LEGAL])} if model.dimension else {}
        )
        text = "questions of copyright and licences"
        encoded = vector(text) if model.dimension else None
        assert grown.agents == (*model.agents, "legal")
        assert grown.learned == model.learned
        assert grown.judge(text, encoded).ranked[0].agent_id == "legal"
        kept = [found.ranked[0].agent_id for found in judged(model)[:4]]
        assert [found.ranked[0].agent_id for found in judged(grown)[:4]] == kept


def test_an_agent_that_leaves_and_comes_back_has_forgotten_nothing() -> None:
    back = LEARNED.rebuilt(AGENTS[1:], {}).rebuilt(AGENTS, vectors())
    for one, other in zip(judged(back), judged(LEARNED), strict=True):
        assert one.ranked[0].agent_id == other.ranked[0].agent_id
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_agents_may_come_in_another_order() -> None:
    turned = LEARNED.rebuilt(AGENTS[::-1], {})
    assert turned.agents == LEARNED.agents[::-1]
    for one, other in zip(judged(turned), judged(LEARNED), strict=True):
        assert one.ranked[0].agent_id == other.ranked[0].agent_id
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_a_definition_that_changes_is_read_anew() -> None:
    changed = replace(AGENTS[3], description="Recipes for soups, cakes and bread.")
    model = untaught(AGENTS, {}).rebuilt((*AGENTS[:3], changed), {})
    assert model.judge("a recipe for bread").ranked[0].agent_id == "handbook"


def test_losses_are_small_where_the_classifier_is_right() -> None:
    right = Example(text="I was charged twice", agent_id="billing")
    wrong = Example(text="I was charged twice", agent_id="travel")
    nobodys = Example(text="asdf", agent_id=None)
    unknown = Example(text="asdf", agent_id="retired")
    losses = BY_WORDS.losses([right, wrong, nobodys, unknown], {})
    assert losses[0] < losses[1]
    assert losses[2] < 1
    assert losses[3] == pytest.approx(np.log(len(AGENTS) + 1))


def test_losses_out_of_fold_stand_beside_the_examples_they_are_of() -> None:
    given = [EXAMPLES[0], Example(text="it rains", agent_id=None), Example(text="?", agent_id="retired"), *EXAMPLES[1:]]
    model = fit(AGENTS, given, {})
    assert len(model.out_of_fold) == len(given)
    assert np.isnan(model.out_of_fold[2])
    assert np.isfinite(np.delete(model.out_of_fold, 2)).all()


def test_a_conversation_stays_where_it_is_until_something_else_is_meant() -> None:
    turn = Turn(previous="travel", last="For how many nights would you like the hotel?")
    assert BY_WORDS.judge("four, please", turn=turn).stayed
    assert BY_WORDS.judge("four, please", turn=turn).ranked[0].agent_id == "travel"
    assert BY_WORDS.judge("let me talk to billing", turn=turn).ranked[0].agent_id == "billing"


def test_reports_name_what_collides() -> None:
    twin = Agent(id="flights", kind="offline", description="Flights, trains and hotels for business trips.")
    worst = overlaps(untaught((*AGENTS, twin), {}))[0]
    assert {worst.agent_id, worst.other_id} == {"travel", "flights"}
    lost = replace(AGENTS[1], examples=("the app shows an error when I sign in", "book a flight", "book a train"))
    strayed = confusions(untaught((AGENTS[0], lost, AGENTS[2]), {}))
    assert (strayed[0].agent_id, strayed[0].other_id) == ("travel", "support")
    assert unreachable(LEARNED) == []


def test_an_agent_that_comes_with_its_lines_alone_is_found_among_agents_with_many_examples() -> None:
    more = [
        replace(example, text=f"{example.text} {end}") for example in EXAMPLES for end in ("please", "now", "today")
    ]
    for known in (vectors(), {}):
        encoded = {**known, **{example.text: vector(example.text) for example in more}} if known else {}
        model = fit(AGENTS, [*EXAMPLES, *more], encoded)
        new = {text: vector(text) for text in texts_of([LEGAL])} if known else {}
        text = "contracts and licences"
        found = model.rebuilt((*AGENTS, LEGAL), new).judge(text, vector(text) if known else None)
        assert found.ranked[0].agent_id == "legal"
        assert found.confidence > 0.5
