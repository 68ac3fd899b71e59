"""Which agent a request goes to, and why."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.routing import KeywordIndex, Query, Route, Score, Stage, resolve, route, terms
from agent_orchestra.errors import NoAgentMatches

WORDS = ["invoice", "refund", "flight", "hotel", "password", "login", "holiday", "report", "chart", "deploy"]
IDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


def by_id(*agents: Agent) -> dict[str, Agent]:
    return {agent.id: agent for agent in agents}


def decide(query: Query, agents: dict[str, Agent], fallback: str | None = None) -> Route:
    """The decision as the service takes it: the scores come from the agents that are available."""
    return route(query, agents, KeywordIndex(agents.values()).scores(query.text), fallback)


def worker(agent_id: str, *keywords: str, priority: int = 0, capabilities: tuple[str, ...] = ()) -> Agent:
    return Agent(id=agent_id, kind="offline", keywords=keywords, priority=priority, capabilities=capabilities)


BILLING = worker("billing", "invoice", "refund", capabilities=("Invoices", "refunds"))
TRAVEL = worker("travel", "flight", "hotel", capabilities=("booking",))
SUPPORT = worker("support", "password", "login", capabilities=("accounts", "refunds"))
TEAM = by_id(BILLING, TRAVEL, SUPPORT)

words = st.lists(st.sampled_from(WORDS), max_size=4).map(tuple)
agents = st.lists(
    st.builds(
        Agent,
        id=st.sampled_from(IDS),
        kind=st.just("offline"),
        name=st.sampled_from(["", *WORDS]),
        domain=st.none() | st.sampled_from(WORDS),
        description=words.map(" ".join),
        examples=words,
        keywords=words,
        capabilities=words,
        priority=st.integers(-3, 3),
    ),
    unique_by=lambda agent: agent.id,
    max_size=6,
).map(lambda found: by_id(*found))
texts = st.lists(st.sampled_from([*WORDS, "the", "of", "nothing", "said"]), max_size=8).map(" ".join)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Query, dict[str, Agent], str | None]:
    team = draw(agents)
    named = st.none() | st.sampled_from(sorted(team)) if team else st.none()
    query = Query(
        text=draw(texts),
        agent_id=draw(named),
        capability=draw(st.none() | st.sampled_from(WORDS)),
        active_agent=draw(st.none() | st.sampled_from(IDS)),
    )
    return query, team, draw(st.none() | st.sampled_from(IDS))


def decided(query: Query, team: dict[str, Agent], fallback: str | None) -> Route | None:
    try:
        return decide(query, team, fallback)
    except NoAgentMatches:
        return None


# --- words


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("invoices", "invoice"),
        ("refunds", "refund"),
        ("policies", "policy"),
        ("ties", "ty"),
        ("boxes", "box"),
        ("shoes", "shoe"),
        ("trees", "tree"),
        ("zombaies", "zombaie"),
        ("status", "status"),
        ("boss", "boss"),
        ("gas", "gas"),
        ("bus", "bus"),
        ("plan", "plan"),
        ("s", "s"),
    ],
)
def test_plurals_are_folded_as_harman_says(word: str, folded: str) -> None:
    assert list(terms(word)) == [folded]


def test_a_text_becomes_its_words_without_case_and_stop_words() -> None:
    assert list(terms("Where are the INVOICES of Straße_42, please?")) == ["invoice", "strasse", "42"]
    assert list(terms("")) == []
    assert list(terms("how are you, and why?")) == []


@given(st.sampled_from(WORDS))
def test_singular_and_plural_meet(word: str) -> None:
    assert list(terms(word)) == list(terms(word + "s")) == list(terms(word.upper()))


@given(st.text())
def test_words_of_any_text_are_words(text: str) -> None:
    for term in terms(text):
        assert term
        assert not any(character.isspace() for character in term)


# --- scores


def test_scores_come_best_first_with_the_words_that_matched() -> None:
    scores = KeywordIndex(TEAM.values()).scores("refund my invoices; the password is refunds")
    assert [score.agent_id for score in scores] == ["billing", "support"]
    assert scores[0].matched == ("invoice", "refund")
    assert set(scores[1].matched) == {"password", "refund"}
    assert scores[0].value > scores[1].value > 0


def test_a_text_of_nobodys_words_has_no_scores() -> None:
    index = KeywordIndex(TEAM.values())
    assert index.scores("quantum chromodynamics") == []
    assert index.scores("") == []
    assert KeywordIndex([]).scores("invoice") == []


def test_a_word_counts_once_however_often_it_is_said() -> None:
    index = KeywordIndex(TEAM.values())
    assert index.scores("invoice invoice Invoices") == index.scores("invoice")


def test_a_rare_word_tells_more_than_a_common_one() -> None:
    team = [worker("one", "common", "rare"), worker("two", "common"), worker("three", "common")]
    index = KeywordIndex(team)
    (rare,) = index.scores("rare")
    common = {score.agent_id: score.value for score in index.scores("common")}
    assert rare.value > common["one"] == common["two"]


def test_a_keyword_tells_more_than_a_capability_than_an_example_than_a_description() -> None:
    places = {
        "keywords": Agent(id="k1", kind="x", keywords=("probe",)),
        "capabilities": Agent(id="k2", kind="x", capabilities=("probe",)),
        "domain": Agent(id="k3", kind="x", domain="probe"),
        "examples": Agent(id="k4", kind="x", examples=("probe",)),
        "description": Agent(id="k5", kind="x", description="probe"),
    }
    scores = KeywordIndex(places.values()).scores("probe")
    assert [score.agent_id for score in scores] == ["k1", "k2", "k3", "k4", "k5"]


def test_a_keyword_of_several_words_is_one_clue_shared_among_them() -> None:
    index = KeywordIndex([worker("one", "sign in page"), worker("two", "login")])
    one, two = (index.scores(text)[0].value for text in ("sign", "login"))
    assert one < two


@given(agents, texts)
def test_scores_are_positive_sorted_and_one_an_agent(team: dict[str, Agent], text: str) -> None:
    scores = KeywordIndex(team.values()).scores(text)
    values = [score.value for score in scores]
    assert values == sorted(values, reverse=True)
    assert all(value > 0 and math.isfinite(value) for value in values)
    assert len({score.agent_id for score in scores}) == len(scores)
    said = set(terms(text))
    assert all(score.matched and said.issuperset(score.matched) for score in scores)


# --- routes


@given(questions())
def test_a_route_keeps_its_promises(question: tuple[Query, dict[str, Agent], str | None]) -> None:
    query, team, fallback = question
    found = decided(query, team, fallback)
    if found is None:
        return
    ids = [candidate.agent_id for candidate in found.candidates]
    confidences = [candidate.confidence for candidate in found.candidates]
    assert found.primary.agent_id in team
    assert set(ids) <= set(team)
    assert len(set(ids)) == len(ids)
    assert all(0.0 <= confidence <= 1.0 for confidence in confidences)
    assert confidences == sorted(confidences, reverse=True)
    assert found.alternatives == found.candidates[1:]
    assert found.reason


@given(questions())
def test_a_route_is_the_same_whatever_the_order_of_agents_and_scores(
    question: tuple[Query, dict[str, Agent], str | None],
) -> None:
    query, team, fallback = question
    reversed_team = dict(reversed(team.items()))
    scores = KeywordIndex(team.values()).scores(query.text)
    first, second = decided(query, team, fallback), decided(query, reversed_team, fallback)
    assert first == second
    if first is not None:
        assert route(query, team, list(reversed(scores)), fallback) == first


@given(questions())
def test_there_is_a_route_wherever_something_leads_somewhere(
    question: tuple[Query, dict[str, Agent], str | None],
) -> None:
    query, team, fallback = question
    if query.agent_id is not None or query.capability is not None:
        return
    leads = bool(KeywordIndex(team.values()).scores(query.text)) or query.active_agent in team or fallback in team
    assert (decided(query, team, fallback) is not None) is leads


@given(questions())
def test_the_stage_says_what_decided(question: tuple[Query, dict[str, Agent], str | None]) -> None:
    query, team, fallback = question
    found = decided(query, team, fallback)
    if found is None:
        return
    chosen = found.primary.agent_id
    match found.stage:
        case Stage.EXPLICIT:
            assert chosen == query.agent_id
            assert found.primary.confidence == 1.0
        case Stage.CAPABILITY:
            assert query.capability in team[chosen].capabilities
        case Stage.KEYWORDS:
            assert any(score.agent_id == chosen for score in KeywordIndex(team.values()).scores(query.text))
        case Stage.CONVERSATION:
            assert chosen == query.active_agent
        case Stage.FALLBACK:
            assert chosen == fallback
            assert found.primary.confidence == 0.0


def test_the_callers_own_choice_comes_first() -> None:
    query = Query(text="refund my invoice", agent_id="travel", active_agent="support")
    found = decide(query, TEAM, "support")
    assert (found.primary.agent_id, found.stage, found.alternatives) == ("travel", Stage.EXPLICIT, ())


def test_a_named_agent_must_have_the_capability_that_is_asked_for() -> None:
    assert decide(Query(text="x", agent_id="billing", capability="INVOICES"), TEAM).primary.agent_id == "billing"
    with pytest.raises(NoAgentMatches) as caught:
        decide(Query(text="x", agent_id="billing", capability="booking"), TEAM)
    assert caught.value.data == {"capabilities": ["Invoices", "refunds"]}


def test_a_capability_that_one_agent_has_is_certain() -> None:
    found = decide(Query(text="about a flight", capability="invoices", active_agent="travel"), TEAM)
    assert (found.primary.agent_id, found.primary.confidence) == ("billing", 1.0)
    assert found.stage is Stage.CAPABILITY
    assert "'invoices'" in found.reason


def test_among_several_able_agents_the_words_decide() -> None:
    found = decide(Query(text="refund after a login with my password", capability="refunds"), TEAM)
    assert [candidate.agent_id for candidate in found.candidates] == ["support", "billing"]
    assert found.stage is Stage.CAPABILITY


def test_among_able_equals_the_priority_decides_then_the_id() -> None:
    team = by_id(*(worker(name, capabilities=("do",), priority=p) for name, p in (("a", 0), ("c", 5), ("b", 5))))
    found = decide(Query(text="say", capability="do"), team)
    assert [candidate.agent_id for candidate in found.candidates] == ["b", "c", "a"]


def test_a_capability_that_nobody_has_names_those_that_there_are() -> None:
    with pytest.raises(NoAgentMatches) as caught:
        decide(Query(text="invoice", capability="juggling", active_agent="billing"), TEAM, "billing")
    assert caught.value.data == {"capabilities": ["Invoices", "accounts", "booking", "refunds"]}


def test_the_words_decide_and_the_reason_quotes_them() -> None:
    found = decide(Query(text="My hotel and my flight"), TEAM, "support")
    assert (found.primary.agent_id, found.stage) == ("travel", Stage.KEYWORDS)
    assert "'hotel'" in found.reason
    assert "'flight'" in found.reason


def test_between_equal_words_the_priority_decides_then_the_id() -> None:
    team = by_id(worker("a", "word"), worker("b", "word", priority=1), worker("c", "word", priority=1))
    assert [c.agent_id for c in decide(Query(text="word"), team).candidates] == ["b", "c", "a"]


def test_the_active_agent_keeps_a_close_call_and_loses_a_clear_one() -> None:
    team = by_id(worker("here", "report"), worker("there", "report", "chart"))
    assert decide(Query(text="report"), team).primary.agent_id == "here"
    close = decide(Query(text="report", active_agent="there"), team)
    assert (close.primary.agent_id, close.stage) == ("there", Stage.KEYWORDS)
    assert "already in this conversation" in close.reason
    clear = decide(Query(text="report with a chart", active_agent="here"), team)
    assert clear.primary.agent_id == "there"
    assert "already in this conversation" not in clear.reason


@given(agents, texts, st.sampled_from(IDS))
def test_being_active_never_costs_an_agent_its_place(team: dict[str, Agent], text: str, active: str) -> None:
    before = decided(Query(text=text), team, None)
    after = decided(Query(text=text, active_agent=active), team, None)
    if before is not None and before.primary.agent_id == active:
        assert after is not None
        assert after.primary.agent_id == active


def test_without_words_the_conversation_stays_with_its_agent() -> None:
    found = decide(Query(text="and then?", active_agent="travel"), TEAM, "support")
    assert (found.primary.agent_id, found.stage) == ("travel", Stage.CONVERSATION)
    assert 0 < found.primary.confidence < 1


def test_an_active_agent_that_is_gone_does_not_count() -> None:
    found = decide(Query(text="and then?", active_agent="gone"), TEAM, "support")
    assert (found.primary.agent_id, found.stage) == ("support", Stage.FALLBACK)


def test_the_last_resort_and_none() -> None:
    found = decide(Query(text="quantum chromodynamics"), TEAM, "support")
    assert (found.primary.agent_id, found.primary.confidence, found.stage) == ("support", 0.0, Stage.FALLBACK)
    for fallback in (None, "gone"):
        with pytest.raises(NoAgentMatches) as caught:
            decide(Query(text="quantum chromodynamics"), TEAM, fallback)
        assert caught.value.data == {"agents": ["billing", "support", "travel"]}
        assert "fallback_agent" in caught.value.detail
    with pytest.raises(NoAgentMatches):
        decide(Query(text="invoice"), {}, "support")


def test_scores_of_agents_that_cannot_take_work_do_not_count() -> None:
    scores = [
        Score(agent_id="gone", value=9.0, matched=("invoice",)),
        Score(agent_id="billing", value=1.0, matched=("invoice",)),
    ]
    found = route(Query(text="invoice"), TEAM, scores, None)
    assert [candidate.agent_id for candidate in found.candidates] == ["billing"]


def test_at_most_four_candidates_are_named() -> None:
    team = by_id(*(worker(name, "word", capabilities=("do",)) for name in IDS))
    assert len(decide(Query(text="word"), team).candidates) == 4
    assert len(decide(Query(text="word", capability="do"), team).candidates) == 4
    assert len(decide(Query(text="nothing", capability="do"), team).candidates) == 4


def test_confidence_grows_with_the_share_and_with_the_weight() -> None:
    team = by_id(worker("a", "one", "two", "three"), worker("b", "one"), Agent(id="c", kind="x", description="four"))

    def confidence(text: str) -> float:
        return decide(Query(text=text), team).primary.confidence

    assert confidence("one") <= 0.5, "two agents that fit equally share the belief"
    assert confidence("one") < confidence("one two") < confidence("one two three") < confidence("two")
    assert confidence("four") < confidence("two") < confidence("two three")


# --- actions


def test_an_action_is_an_id_before_a_capability_before_a_prefix() -> None:
    team = by_id(
        worker("refunds"),
        worker("billing", capabilities=("refunds", "travel.book")),
        worker("travel"),
    )
    assert resolve("refunds", team).id == "refunds"
    assert resolve("travel.book", team).id == "billing"
    assert resolve("travel.cancel", team).id == "travel"
    assert resolve("Travel.Book", team).id == "billing"


def test_among_able_agents_the_priority_decides_then_the_id() -> None:
    team = by_id(*(worker(name, capabilities=("do",), priority=p) for name, p in (("a", 0), ("c", 5), ("b", 5))))
    assert resolve("do", team).id == "b"
    assert resolve("do", by_id(*(dataclasses.replace(agent, priority=0) for agent in team.values()))).id == "a"


@pytest.mark.parametrize("action", ["", "nothing", ".", "billing", "x.refunds", "billing."])
def test_an_action_that_means_nobody(action: str) -> None:
    with pytest.raises(NoAgentMatches, match="no agent is named"):
        resolve(action, by_id(TRAVEL))


@given(st.sampled_from(sorted(TEAM)), st.text(min_size=1))
def test_an_action_of_an_agent_is_the_agents_whatever_it_is_called(agent_id: str, anything: str) -> None:
    assert resolve(f"{agent_id}.{anything}", TEAM).id == agent_id
