"""Which agent a request goes to, and why."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Judgement, Scored
from agent_orchestra.core.routing import (
    Candidate,
    Choice,
    Match,
    Policy,
    Query,
    Route,
    Rule,
    Signals,
    Stage,
    Strategy,
    Verdict,
    explored,
    judged,
    normalised,
    resolve,
    route,
    route_json,
    route_of,
    ruled,
    wants_verdict,
)
from agent_orchestra.errors import NoAgentMatches

IDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
CAPABILITIES = ["refunds", "booking", "accounts"]


def by_id(*agents: Agent) -> dict[str, Agent]:
    return {agent.id: agent for agent in agents}


def worker(agent_id: str, *, priority: int = 0, capabilities: tuple[str, ...] = ()) -> Agent:
    return Agent(id=agent_id, kind="offline", priority=priority, capabilities=capabilities)


BILLING = worker("billing", capabilities=("Invoices", "refunds"))
TRAVEL = worker("travel", capabilities=("booking",))
SUPPORT = worker("support", capabilities=("accounts", "refunds"))
TEAM = by_id(BILLING, TRAVEL, SUPPORT)


def judgement(
    *ranked: tuple[str, float],
    confidence: float = 0.8,
    accepted: bool = True,
    stayed: bool = False,
    in_scope: float = 0.9,
) -> Judgement:
    """An estimate with these agents and their shares, best first."""
    shares = [share for _, share in ranked]
    return Judgement(
        ranked=tuple(
            Scored(agent_id=agent_id, probability=share, line=f"{agent_id} things", kind="capability")
            for agent_id, share in ranked
        ),
        confidence=confidence,
        in_scope=in_scope,
        accepted=accepted,
        margin=shares[0] - shares[1] if len(shares) > 1 else 1.0,
        stayed=stayed,
    )


def decide(query: Query, signals: Signals | None = None, policy: Policy | None = None) -> Route:
    return route(query, TEAM, signals or Signals(), policy or Policy())


def estimated(*ranked: tuple[str, float], confidence: float = 0.8, accepted: bool = True) -> Signals:
    return Signals(judgement=judgement(*ranked, confidence=confidence, accepted=accepted))


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    ids = draw(st.lists(st.sampled_from(IDS), unique=True, max_size=5))
    raw = sorted(draw(st.lists(st.floats(0.001, 1), min_size=len(ids), max_size=len(ids))), reverse=True)
    total = sum(raw) or 1.0
    return dataclasses.replace(
        judgement(
            *((i, r / total) for i, r in zip(ids, raw, strict=True)),
            confidence=draw(st.floats(0, 1)),
            in_scope=draw(st.floats(0, 1)),
        )
        if ids
        else Judgement(ranked=(), confidence=0.0, in_scope=0.0, accepted=False, margin=0.0),
        accepted=draw(st.booleans()) and bool(ids),
        stayed=draw(st.booleans()) and bool(ids),
    )


agents = st.lists(
    st.builds(
        worker,
        st.sampled_from(IDS),
        priority=st.integers(-3, 3),
        capabilities=st.lists(st.sampled_from(CAPABILITIES), max_size=2, unique=True).map(tuple),
    ),
    unique_by=lambda agent: agent.id,
    max_size=6,
).map(lambda found: by_id(*found))
choices = st.builds(Choice, agents=st.lists(st.sampled_from(IDS), max_size=3).map(tuple), confidence=st.floats(-1, 2))
rules = st.builds(Rule, agent_id=st.sampled_from(IDS), phrases=st.just(("word",)))
signals = st.builds(
    Signals,
    choice=st.none() | choices,
    rule=st.none() | st.tuples(rules, st.just("word")),
    remembered=st.none() | st.sampled_from(IDS),
    judgement=st.none() | judgements(),
    stage=st.sampled_from([Stage.LEXICAL, Stage.SEMANTIC, Stage.LEARNED]),
)
policies = st.builds(
    Policy,
    strategy=st.sampled_from(Strategy),
    fallback=st.none() | st.sampled_from(IDS),
    exploration=st.sampled_from([0.0, 0.1, 0.2]),
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Query, dict[str, Agent], Signals, Policy]:
    team = draw(agents)
    query = Query(
        text="a text",
        agent_id=draw(st.none() | st.sampled_from(sorted(team))) if team else None,
        capability=draw(st.none() | st.sampled_from(CAPABILITIES)),
        active_agent=draw(st.none() | st.sampled_from(IDS)),
    )
    return query, team, draw(signals), draw(policies)


def decided(question: tuple[Query, dict[str, Agent], Signals, Policy]) -> Route | None:
    try:
        return route(*question)
    except NoAgentMatches:
        return None


# --- what holds for every decision


@given(questions())
def test_a_route_keeps_its_promises(question: tuple[Query, dict[str, Agent], Signals, Policy]) -> None:
    found = decided(question)
    if found is None:
        return
    ids = [candidate.agent_id for candidate in found.candidates]
    assert set(ids) <= set(question[1])
    assert len(set(ids)) == len(ids) <= 4
    assert all(0.0 <= candidate.confidence <= 1.0 for candidate in found.candidates)
    assert found.reason
    assert bool(ids) or found.stage is Stage.NONE
    assert found.propensity == 1.0
    assert not found.explored


@given(questions())
def test_a_route_is_the_same_whatever_the_order_of_the_agents(
    question: tuple[Query, dict[str, Agent], Signals, Policy],
) -> None:
    query, team, gathered, policy = question
    assert decided((query, dict(reversed(team.items())), gathered, policy)) == decided(question)


@given(questions())
def test_the_stage_says_what_decided(question: tuple[Query, dict[str, Agent], Signals, Policy]) -> None:
    query, team, _, _ = question
    found = decided(question)
    if found is None:
        assert query.capability is not None
        return
    if query.capability is not None and found.stage is not Stage.NONE:
        assert query.capability in team[found.primary.agent_id].capabilities
    assert whether_it_decided(found, question), found


def whether_it_decided(found: Route, question: tuple[Query, dict[str, Agent], Signals, Policy]) -> bool:
    query, team, gathered, policy = question
    estimate = gathered.judgement
    chosen = found.primary.agent_id if found.stage is not Stage.NONE else None
    accepted = estimate is not None and estimate.accepted
    return {
        Stage.EXPLICIT: chosen == query.agent_id,
        Stage.CUSTOM: gathered.choice is not None and chosen in gathered.choice.agents,
        Stage.RULE: gathered.rule is not None and chosen == gathered.rule[0].agent_id,
        Stage.MEMORY: chosen == gathered.remembered,
        Stage.CAPABILITY: query.capability is not None,
        Stage.CONVERSATION: chosen == query.active_agent or (estimate is not None and estimate.stayed),
        Stage.LEXICAL: accepted,
        Stage.SEMANTIC: accepted,
        Stage.LEARNED: accepted,
        Stage.LLM: False,
        Stage.FALLBACK: chosen == policy.fallback,
        Stage.NONE: policy.fallback not in team,
    }[found.stage]


@given(questions())
def test_a_route_comes_back_from_the_record_as_it_was(
    question: tuple[Query, dict[str, Agent], Signals, Policy],
) -> None:
    found = decided(question)
    if found is not None:
        assert route_of(route_json(found)) == found


def test_a_route_of_the_first_release_is_read() -> None:
    stored = {"stage": "keywords", "reason": "matched the words 'refund'", "candidates": [["billing", 0.7]]}
    assert route_of(stored) == Route(
        candidates=(Candidate(agent_id="billing", confidence=0.7),),
        stage=Stage.LEXICAL,
        reason="matched the words 'refund'",
    )


# --- what is certain


def test_the_callers_own_choice_comes_first() -> None:
    gathered = Signals(
        choice=Choice(agents=("support",)),
        remembered="support",
        judgement=judgement(("support", 0.9), ("billing", 0.1)),
    )
    found = decide(Query(text="refund", agent_id="travel", active_agent="support"), gathered)
    assert (found.primary.agent_id, found.stage, found.alternatives) == ("travel", Stage.EXPLICIT, ())


def test_a_named_agent_must_have_the_capability_that_is_asked_for() -> None:
    assert decide(Query(text="x", agent_id="billing", capability="INVOICES")).primary.agent_id == "billing"
    with pytest.raises(NoAgentMatches) as caught:
        decide(Query(text="x", agent_id="billing", capability="booking"))
    assert caught.value.data == {"capabilities": ["Invoices", "refunds"]}


def test_a_router_of_ones_own_wins_over_rules_memory_and_the_estimate() -> None:
    gathered = Signals(
        choice=Choice(agents=("support", "billing"), confidence=0.6, reason="it is Tuesday"),
        rule=(Rule(agent_id="travel", phrases=("x",)), "x"),
        remembered="travel",
        judgement=judgement(("travel", 0.9), ("billing", 0.1)),
    )
    found = decide(Query(text="x"), gathered)
    assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("support", Stage.CUSTOM, 0.6)
    assert (found.reason, found.secondary) == ("it is Tuesday", ("billing",))


def test_a_choice_of_agents_that_cannot_take_work_is_no_choice() -> None:
    gathered = Signals(choice=Choice(agents=("gone",)), judgement=judgement(("travel", 0.9), ("billing", 0.1)))
    assert decide(Query(text="x"), gathered).primary.agent_id == "travel"


def test_a_rule_wins_over_the_memory_and_says_by_which_phrase() -> None:
    gathered = Signals(rule=(Rule(agent_id="travel", phrases=("visa",)), "visa"), remembered="billing")
    found = decide(Query(text="a visa"), gathered)
    assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("travel", Stage.RULE, 1.0)
    assert found.primary.matched == Match(kind="rule", text="visa")
    assert "'visa'" in found.reason


def test_the_memory_wins_over_the_estimate() -> None:
    gathered = Signals(remembered="billing", judgement=judgement(("travel", 0.9), ("billing", 0.1)))
    found = decide(Query(text="x"), gathered)
    assert (found.primary.agent_id, found.stage) == ("billing", Stage.MEMORY)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("I need a Visa!", "visa"),
        ("charge   back, please", "charge back"),
        ("CHARGE-BACK", "charge back"),
        ("what about my visas", None),
        ("revisable", None),
        ("", None),
    ],
)
def test_rules_match_whole_words_without_case_and_punctuation(text: str, phrase: str | None) -> None:
    rule = Rule(agent_id="travel", phrases=("visa", "charge back"))
    found = ruled(text, [rule], TEAM)
    assert found == ((rule, phrase) if phrase is not None else None)


def test_the_first_rule_of_an_available_agent_holds() -> None:
    first, second, third = (Rule(agent_id=name, phrases=("visa",)) for name in ("gone", "travel", "billing"))
    assert ruled("a visa", [first, second, third], TEAM) == (second, "visa")


@given(st.text())
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


# --- capabilities


def test_a_capability_that_one_agent_has_is_certain() -> None:
    found = decide(Query(text="about a flight", capability="invoices", active_agent="travel"))
    assert (found.primary.agent_id, found.primary.confidence, found.stage) == ("billing", 1.0, Stage.CAPABILITY)
    assert "'invoices'" in found.reason


def test_among_several_able_agents_the_estimate_decides() -> None:
    found = decide(
        Query(text="x", capability="refunds"), estimated(("travel", 0.7), ("support", 0.2), ("billing", 0.1))
    )
    assert [candidate.agent_id for candidate in found.candidates] == ["support", "billing"]
    assert found.stage is Stage.CAPABILITY


def test_among_able_equals_the_active_agent_decides_then_the_priority_then_the_id() -> None:
    team = by_id(*(worker(name, capabilities=("do",), priority=p) for name, p in (("a", 0), ("c", 5), ("b", 5))))
    found = route(Query(text="say", capability="do"), team, Signals(), Policy())
    assert [candidate.agent_id for candidate in found.candidates] == ["b", "c", "a"]
    found = route(Query(text="say", capability="do", active_agent="a"), team, Signals(), Policy())
    assert found.primary.agent_id == "a"


def test_a_capability_that_nobody_has_names_those_that_there_are() -> None:
    with pytest.raises(NoAgentMatches) as caught:
        decide(Query(text="invoice", capability="juggling", active_agent="billing"), policy=Policy(fallback="billing"))
    assert caught.value.data == {"capabilities": ["Invoices", "accounts", "booking", "refunds"]}


# --- estimates


def test_an_estimate_decides_and_the_reason_quotes_the_line() -> None:
    found = decide(Query(text="x"), estimated(("travel", 0.7), ("billing", 0.25), ("support", 0.05), confidence=0.66))
    assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("travel", Stage.LEXICAL, 0.66)
    assert found.primary.matched == Match(kind="capability", text="travel things")
    assert "'travel things'" in found.reason
    assert found.margin == pytest.approx(0.45)
    assert found.secondary == ("billing",)


def test_between_equally_likely_agents_the_priority_decides_then_the_id() -> None:
    team = by_id(worker("a"), worker("b", priority=1), worker("c", priority=1))
    gathered = estimated(("a", 1 / 3), ("c", 1 / 3), ("b", 1 / 3), confidence=0.3)
    found = route(Query(text="word"), team, gathered, Policy())
    assert [candidate.agent_id for candidate in found.candidates] == ["b", "c", "a"]
    assert found.primary.confidence == 0.3


def test_agents_that_cannot_take_work_do_not_count() -> None:
    found = decide(Query(text="x"), estimated(("gone", 0.9), ("billing", 0.1)))
    assert [candidate.agent_id for candidate in found.candidates] == ["billing"]


def test_a_conversation_goes_on_where_the_estimate_says_so() -> None:
    gathered = Signals(judgement=judgement(("travel", 0.6), ("billing", 0.4), accepted=False, stayed=True))
    found = decide(Query(text="and then?", active_agent="travel"), gathered)
    assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("travel", Stage.CONVERSATION, 0.8)


def test_without_an_estimate_the_conversation_stays_with_its_agent() -> None:
    found = decide(Query(text="and then?", active_agent="travel"), policy=Policy(fallback="support"))
    assert (found.primary.agent_id, found.stage) == ("travel", Stage.CONVERSATION)


def test_an_active_agent_that_is_gone_does_not_count() -> None:
    found = decide(Query(text="and then?", active_agent="gone"), policy=Policy(fallback="support"))
    assert (found.primary.agent_id, found.stage) == ("support", Stage.FALLBACK)


def test_what_is_nobodys_goes_to_the_fallback_with_the_nearest_beside_it() -> None:
    gathered = estimated(("travel", 0.6), ("support", 0.3), ("billing", 0.1), confidence=0.1, accepted=False)
    found = decide(Query(text="sing"), gathered, Policy(fallback="support"))
    assert (found.primary.agent_id, found.primary.confidence, found.stage) == ("support", 0.0, Stage.FALLBACK)
    assert [candidate.agent_id for candidate in found.alternatives] == ["travel", "billing"]


@pytest.mark.parametrize("fallback", [None, "gone"])
def test_without_a_fallback_no_agent_fits_and_the_nearest_three_are_told(fallback: str | None) -> None:
    gathered = estimated(("travel", 0.6), ("support", 0.3), ("billing", 0.1), confidence=0.1, accepted=False)
    found = decide(Query(text="sing"), gathered, Policy(fallback=fallback))
    assert (found.stage, found.margin) == (Stage.NONE, 0.0)
    assert [candidate.agent_id for candidate in found.candidates] == ["travel", "support", "billing"]


def test_nobody_is_nearest_where_there_are_no_agents() -> None:
    assert route(Query(text="invoice"), {}, Signals(), Policy(fallback="support")).candidates == ()


# --- a model's word


def doubtful(confidence: float, *, accepted: bool = True) -> Route:
    return decide(
        Query(text="x"), estimated(("travel", 0.6), ("billing", 0.4), confidence=confidence, accepted=accepted)
    )


@pytest.mark.parametrize(
    ("confidence", "wanted"), [(0.05, False), (0.1, True), (0.69, True), (0.7, False), (0.9, False)]
)
def test_a_model_is_asked_only_in_doubt(confidence: float, wanted: bool) -> None:
    assert wants_verdict(doubtful(confidence), Policy()) is wanted
    assert wants_verdict(doubtful(confidence), Policy(strategy=Strategy.LEARNED)) is False
    assert wants_verdict(doubtful(confidence), Policy(strategy=Strategy.LLM)) is True


def test_a_model_is_never_asked_about_what_is_certain() -> None:
    for strategy in Strategy:
        policy = Policy(strategy=strategy, doubt_to=1.1)
        assert not wants_verdict(decide(Query(text="x", agent_id="billing")), policy)
        assert not wants_verdict(decide(Query(text="x"), Signals(remembered="billing")), policy)
        assert not wants_verdict(decide(Query(text="x", capability="booking")), policy)


def test_a_verdict_puts_its_agent_first() -> None:
    verdict = Verdict(agent_id="billing", confidence=0.9, secondary=("travel", "gone"), reasoning="money", model="m")
    found = judged(doubtful(0.5), verdict, TEAM, Policy())
    assert [candidate.agent_id for candidate in found.candidates] == ["billing", "travel"]
    assert (found.stage, found.primary.confidence, found.secondary) == (Stage.LLM, 0.9, ("travel",))
    assert found.reason == "m chose it: money"


def test_a_verdict_for_an_agent_that_is_not_there_changes_nothing() -> None:
    before = doubtful(0.5)
    assert judged(before, Verdict(agent_id="gone", confidence=1.0), TEAM, Policy()) == before


def test_a_verdict_that_nobody_fits_leads_to_the_fallback_or_to_nobody() -> None:
    nobody = Verdict(agent_id=None, confidence=0.9, model="m")
    found = judged(doubtful(0.5), nobody, TEAM, Policy(fallback="support"))
    assert (found.primary.agent_id, found.stage) == ("support", Stage.FALLBACK)
    found = judged(doubtful(0.5), nobody, TEAM, Policy())
    assert (found.stage, found.candidates[0].agent_id) == (Stage.NONE, "travel")


# --- exploration


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([0.01, 0.1, 0.2]))
def test_exploring_gives_every_plausible_agent_its_logged_propensity(chance: float, rate: float) -> None:
    policy = Policy(exploration=rate)
    before = decide(Query(text="x"), estimated(("travel", 0.6), ("billing", 0.35), ("support", 0.01), confidence=0.9))
    found = explored(before, policy, chance)
    assert {candidate.agent_id for candidate in found.candidates} == {"travel", "billing", "support"}
    assert found.primary.agent_id != "support"
    if chance >= rate:
        assert found.primary.agent_id == "travel"
    expected = 1 - rate / 2 if found.primary.agent_id == "travel" else rate / 2
    assert found.propensity == pytest.approx(expected)
    assert found.explored is (found.primary.agent_id != "travel")


@given(questions(), st.floats(0, 1, exclude_max=True))
def test_only_estimates_are_explored(question: tuple[Query, dict[str, Agent], Signals, Policy], chance: float) -> None:
    found = decided(question)
    if found is None:
        return
    after = explored(found, question[3], chance)
    if found.stage not in (Stage.LEXICAL, Stage.SEMANTIC, Stage.LEARNED) or question[3].exploration == 0:
        assert after == found
    assert 0 < after.propensity <= 1
    assert set(after.candidates) == set(found.candidates)


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
