"""Several agents on one request: who begins when, whose word counts, and which plans are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core import coordination, plan
from agent_orchestra.core.attempt import Attempt
from agent_orchestra.core.coordination import (
    Aggregate,
    Cancel,
    Coordination,
    Done,
    Result,
    ResultStatus,
    Settle,
    Start,
    State,
    Synthesize,
    coordination_json,
    coordination_of,
    next_steps,
)
from agent_orchestra.core.plan import (
    RESULT_FIELDS,
    Aggregation,
    Member,
    OnFailure,
    Plan,
    Strategy,
    in_order,
    made,
    members_of,
    mentions,
    plan_of,
    read,
)
from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.core.usage import Usage, total
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import CoordinationFailed, InvalidInput

IDS = ["a", "b", "c", "d", "e", "f"]


def member(member_id: str, *depends_on: str, when: str | None = None, stop: bool = False) -> Member:
    on_failure = OnFailure.STOP if stop else OnFailure.CONTINUE
    return Member(id=member_id, agent=member_id, depends_on=depends_on, when=when, on_failure=on_failure)


def good(member_id: str, output: str = "", value: Json = None) -> Result:
    return Result(
        id=member_id, agent=member_id, status=ResultStatus.SUCCEEDED, output=output or f"by {member_id}", value=value
    )


def bad(member_id: str, error: str = "agent_failed") -> Result:
    return Result(id=member_id, agent=member_id, status=ResultStatus.FAILED, error=error, detail=f"{member_id} broke")


def cancelled(member_id: str) -> Result:
    return Result(id=member_id, agent=member_id, status=ResultStatus.CANCELLED)


def played(
    of: Plan, ends: Mapping[str, Result], *, order: Sequence[int] = (), chosen: Sequence[str] = (), content: str = "hi"
) -> tuple[State, list[tuple[str, str]]]:
    """A plan run to its end: the state, and what happened. ``order``: which of those that run ends next, by number."""
    state = State(content=content, chosen=tuple(chosen))
    happened: list[tuple[str, str]] = []
    picks = iter([*order, *[0] * 100])
    for _ in range(200):
        cancel: tuple[str, ...] = ()
        for step in next_steps(of, state):
            match step:
                case Settle(result):
                    assert result.id not in state.results
                    state = dataclasses.replace(state, results={**state.results, result.id: result})
                    happened.append(("settle", result.id))
                case Start(ids):
                    assert not state.running & {*ids}
                    assert not {*state.results} & {*ids}
                    state = dataclasses.replace(state, running=state.running | {*ids})
                    happened.extend(("start", id_) for id_ in ids)
                case Cancel(ids):
                    cancel = ids
                case Done():
                    assert not state.running
                    return state, happened
        assert state.running, "nothing runs, and nothing is to be done"
        ended = sorted(state.running)[next(picks) % len(state.running)]
        result = cancelled(ended) if ended in cancel else ends.get(ended, good(ended))
        state = dataclasses.replace(state, results={**state.results, ended: result}, running=state.running - {ended})
        happened.append(("end", ended))
    raise AssertionError("the plan does not end")


def statuses(state: State) -> dict[str, str]:
    return {id_: str(result.status)[:2] for id_, result in sorted(state.results.items())}


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, tuple[str, ...]]:
    ids = IDS[: draw(st.integers(1, 6))]
    strategy = draw(st.sampled_from(Strategy))
    members: list[Member] = []
    for number, id_ in enumerate(ids):
        before = draw(st.lists(st.sampled_from(ids[:number]), unique=True)) if number else []
        # Dependencies lead to earlier members, which are then shuffled: so there is no cycle.
        conditions = ["input == 'hi'", "false", "results.nobody.value > 1"]
        if strategy is Strategy.CONDITIONAL:
            before = []
        if before:
            conditions.append(f"results.{before[0]}.status == 'FAILED'")
        when = draw(st.none() | st.sampled_from(conditions))
        members.append(member(id_, *before, when=when, stop=draw(st.booleans())))
    chosen = tuple(draw(st.lists(st.sampled_from(ids), min_size=1, unique=True)))
    aggregate = draw(st.sampled_from([a for a in Aggregation if a is not Aggregation.SYNTHESIS]))
    score = "double(size(result.output))" if aggregate is Aggregation.BEST_SCORE else None
    shuffled = tuple(draw(st.permutations(members)))
    return Plan(strategy=strategy, members=shuffled, aggregate=aggregate, score=score), chosen


ENDS = st.fixed_dictionaries(
    {id_: st.sampled_from([good(id_, "yes"), good(id_, "No!"), good(id_, value={"n": 1}), bad(id_)]) for id_ in IDS}
)
PICKS = st.lists(st.integers(0, 5), max_size=12)


@given(case=plans(), ends=ENDS, picks=PICKS)
def test_every_plan_ends_with_one_result_for_each_member(
    case: tuple[Plan, tuple[str, ...]], ends: Mapping[str, Result], picks: list[int]
) -> None:
    of, chosen = case
    state, happened = played(of, ends, order=picks, chosen=chosen)
    assert {*state.results} == {m.id for m in of.members}
    assert sorted(id_ for what, id_ in happened if what != "start") == sorted(state.results)
    assert next_steps(of, state) == [Done()]


@given(case=plans(), ends=ENDS, picks=PICKS)
def test_no_member_begins_before_what_it_depends_on_has_ended(
    case: tuple[Plan, tuple[str, ...]], ends: Mapping[str, Result], picks: list[int]
) -> None:
    of, chosen = case
    _, happened = played(of, ends, order=picks, chosen=chosen)
    for member_ in of.members:
        if ("start", member_.id) in happened:
            began = happened.index(("start", member_.id))
            assert {*member_.depends_on} <= {id_ for what, id_ in happened[:began] if what != "start"}
    if of.strategy is not Strategy.PARALLEL:
        assert [what for what, _ in happened if what != "settle"] == ["start", "end"] * (
            len([what for what, _ in happened if what == "start"])
        )


@given(case=plans(), ends=ENDS, picks=PICKS)
def test_who_is_faster_does_not_change_the_answer(
    case: tuple[Plan, tuple[str, ...]], ends: Mapping[str, Result], picks: list[int]
) -> None:
    of, chosen = case
    if any(m.on_failure is OnFailure.STOP for m in of.members):
        # Then who had ended when another failed is what counts.
        of = dataclasses.replace(
            of, members=tuple(dataclasses.replace(m, on_failure=OnFailure.CONTINUE) for m in of.members)
        )

    def answer(order: Sequence[int]) -> Aggregate | Synthesize | str:
        state, _ = played(of, ends, order=order, chosen=chosen)
        try:
            return coordination.aggregate(of, state)
        except CoordinationFailed as error:
            return error.code

    assert answer(picks) == answer(())


def test_in_a_sequence_each_sees_the_results_before_it() -> None:
    of = Plan(strategy=Strategy.SEQUENTIAL, members=members_of(["a", "b", "c"]))
    state, happened = played(of, {"b": bad("b")})
    assert happened == [(w, id_) for id_ in "abc" for w in ("start", "end")]
    assert coordination.seen(of, state, "c")["b"] == {
        "id": "b",
        "agent": "b",
        "status": "FAILED",
        "output": "",
        "value": None,
        "error": "agent_failed",
    }
    seen = coordination.seen(of, state, "c")["b"]
    assert isinstance(seen, Mapping)
    assert [*seen] == [*RESULT_FIELDS]


def test_what_a_member_depends_on_comes_before_it_wherever_it_is_listed() -> None:
    of = Plan(strategy=Strategy.SEQUENTIAL, members=(member("a", "c"), member("b"), member("c")))
    assert [m.id for m in in_order(of)] == ["b", "c", "a"]
    assert [m.id for m in in_order(dataclasses.replace(of, strategy=Strategy.CONDITIONAL), ["c", "a"])] == ["c", "a"]


def test_in_parallel_all_begin_at_once_and_see_only_what_they_depend_on() -> None:
    of = Plan(strategy=Strategy.PARALLEL, members=(member("a"), member("b"), member("c", "a"), member("d", "c")))
    assert next_steps(of, State(content="hi")) == [Start(("a", "b"))]
    state, happened = played(of, {}, order=[0, 1, 0, 0])
    assert happened.index(("start", "c")) < happened.index(("end", "b"))
    assert list(coordination.seen(of, state, "d")) == ["a", "c"]


def test_a_failure_is_not_a_failure_of_all_but_of_those_that_depend_on_it() -> None:
    of = Plan(
        strategy=Strategy.PARALLEL,
        members=(member("a"), member("b"), member("c", "a"), member("d", "c"), member("e", "b")),
    )
    state, _ = played(of, {"a": bad("a")})
    assert statuses(state) == {"a": "FA", "b": "SU", "c": "SK", "d": "SK", "e": "SU"}
    assert state.results["c"].reason == "'a', which it depends on, is FAILED"
    assert state.results["d"].reason == "'c', which it depends on, is SKIPPED"


def test_a_member_with_a_condition_may_step_in_for_one_that_failed() -> None:
    stands_in = member("b", "a", when="results.a.status == 'FAILED'")
    of = Plan(strategy=Strategy.PARALLEL, members=(member("a"), stands_in))
    assert statuses(played(of, {"a": bad("a")})[0]) == {"a": "FA", "b": "SU"}
    state, _ = played(of, {})
    assert statuses(state) == {"a": "SU", "b": "SK"}
    assert state.results["b"].reason == "its condition is not true"


def test_a_condition_that_cannot_be_computed_fails_its_member() -> None:
    doubtful = member("b", "a", when="results.a.value.score > 0.5")
    of = Plan(strategy=Strategy.PARALLEL, members=(member("a"), doubtful))
    assert statuses(played(of, {"a": good("a", value={"score": 1})})[0]) == {"a": "SU", "b": "SU"}
    state, _ = played(of, {"a": good("a", value={})})
    assert (state.results["b"].error, state.results["b"].status) == ("expression_failed", ResultStatus.FAILED)
    # Where what it asks about has failed, that is why.
    state, _ = played(of, {"a": bad("a")})
    assert state.results["b"].reason == "'a', which it depends on, is FAILED"


def test_a_member_that_says_so_stops_the_others_when_it_fails() -> None:
    members = (member("a"), member("b", stop=True), member("c"))
    state, _ = played(Plan(strategy=Strategy.SEQUENTIAL, members=members), {"b": bad("b")})
    assert statuses(state) == {"a": "SU", "b": "FA", "c": "SK"}
    assert state.results["c"].reason == "'b' failed, and nothing goes on without it"
    state, _ = played(Plan(strategy=Strategy.PARALLEL, members=members), {"b": bad("b")}, order=[1])
    assert statuses(state) == {"a": "CA", "b": "FA", "c": "CA"}


def test_with_first_good_nobody_is_asked_once_it_is_known() -> None:
    of = Plan(strategy=Strategy.SEQUENTIAL, members=members_of(["a", "b", "c"]), aggregate=Aggregation.FIRST_GOOD)
    state, _ = played(of, {"a": bad("a")})
    assert statuses(state) == {"a": "FA", "b": "SU", "c": "SK"}
    assert coordination.aggregate(of, state) == Aggregate(output="by b", value=None, by=("b",))
    of = dataclasses.replace(of, strategy=Strategy.PARALLEL)
    # The last is the first to end, and has to wait for the word of those before it.
    state, _ = played(of, {"a": bad("a")}, order=[2, 0])
    assert statuses(state) == {"a": "FA", "b": "SU", "c": "SU"}
    assert coordination.aggregate(of, state) == Aggregate(output="by b", value=None, by=("b",))


@pytest.mark.parametrize(
    ("given_", "ids"), [("b", ("b",)), (["c", "a"], ("c", "a")), (["a", "a"], ("a",))], ids=["one", "many", "twice"]
)
def test_a_router_chooses_who_works_and_in_which_order(given_: Json, ids: tuple[str, ...]) -> None:
    of = Plan(strategy=Strategy.CONDITIONAL, members=members_of(["a", "b", "c"]), route="input")
    assert coordination.chosen(of, given_) == ids
    state, happened = played(of, {}, chosen=ids)
    assert [id_ for what, id_ in happened if what == "start"] == [*ids]
    others = {id_: r.reason for id_, r in state.results.items() if id_ not in ids}
    assert {*others.values()} == {"the router did not choose it"}


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("xyz", "chose 'xyz'; known: a, b"),
        ("bb", "chose 'bb'; did you mean 'b'"),
        ("", "chose nobody"),
        ([], "chose nobody"),
        (None, "chose nobody"),
        (3, "chose nobody"),
        (["a", 3], "what is no id"),
    ],
)
def test_a_router_that_chooses_wrongly_is_one_clear_failure(given_: Json, says: str) -> None:
    of = Plan(strategy=Strategy.CONDITIONAL, members=members_of(["a", "b"]), route="input")
    with pytest.raises(CoordinationFailed, match=says):
        coordination.chosen(of, given_)


def test_a_route_sees_the_content_and_the_context() -> None:
    of = read({"strategy": "conditional", "agents": ["a", "b"], "route": "context.vip && input == 'x' ? 'a' : ['b']"})
    assert coordination.routed(of, State(content="x", context={"vip": True})) == "a"
    assert coordination.routed(of, State(content="y", context={"vip": True})) == ["b"]


def state_of(*results: Result) -> State:
    return State(content="hi", results={result.id: result for result in results})


def aggregated(how: Aggregation, *results: Result, score: str | None = None) -> Aggregate | Synthesize:
    of = Plan(
        strategy=Strategy.PARALLEL,
        members=members_of([result.id for result in results]),
        aggregate=how,
        score=score,
        synthesizer="writer" if how is Aggregation.SYNTHESIS else None,
    )
    return coordination.aggregate(of, state_of(*results))


def test_concatenation_is_in_order_and_leaves_out_what_failed() -> None:
    made_ = aggregated(Aggregation.CONCATENATE, good("a", "one"), bad("b"), good("c", "three", value=3))
    assert made_ == Aggregate(output="one\n\nthree", value=None, by=("a", "c"))
    assert aggregated(Aggregation.CONCATENATE, bad("a"), good("b", "two", value=2)) == Aggregate(
        output="two", value=2, by=("b",)
    )


def test_a_vote_goes_by_value_or_by_words_and_of_equals_the_earliest_wins() -> None:
    words = [good("a", "Yes."), good("b", "no"), good("c", "yes"), good("d", " YES! ")]
    assert aggregated(Aggregation.MAJORITY_VOTE, *words) == Aggregate(output="Yes.", value=None, by=("a",), agreed=3)
    values = [good("a", "x", value={"p": 1, "q": 2}), good("b", "y", value=3), good("c", "z", value={"q": 2, "p": 1})]
    assert aggregated(Aggregation.MAJORITY_VOTE, *values[1:], values[0]) == Aggregate(
        output="z", value={"q": 2, "p": 1}, by=("c",), agreed=2
    )
    tied = aggregated(Aggregation.MAJORITY_VOTE, good("a", "no"), good("b", "yes"))
    assert tied == Aggregate(output="no", value=None, by=("a",), agreed=1)
    assert aggregated(Aggregation.MAJORITY_VOTE, good("a", "?"), good("b", "!"), good("c", "!")) == Aggregate(
        output="!", value=None, by=("b",), agreed=2
    )


def test_the_highest_score_wins_and_what_cannot_be_scored_does_not() -> None:
    results = [good("a", value={"score": 1}), good("b", value={}), good("c", value={"score": 3.5}), bad("d")]
    assert aggregated(Aggregation.BEST_SCORE, *results, score="result.value.score") == Aggregate(
        output="by c", value={"score": 3.5}, by=("c",), scores={"a": 1.0, "c": 3.5}
    )
    none = aggregated(Aggregation.BEST_SCORE, *results, score="result.value.stars")
    assert isinstance(none, Aggregate)
    assert none.by == ("a",)
    assert none.note is not None
    assert none.note.startswith("no result could be scored, so the first good one counts; 'result.value.stars'")


def test_a_synthesis_is_left_to_its_agent_and_falls_back_on_all() -> None:
    assert aggregated(Aggregation.SYNTHESIS, good("a"), bad("b")) == Synthesize(agent="writer")
    results = [good("a"), good("b")]
    said = Result(id="synthesis", agent="writer", status=ResultStatus.SUCCEEDED, output="both")
    assert coordination.synthesized(said, results) == Aggregate(output="both", value=None, by=("synthesis",))
    failed = dataclasses.replace(said, status=ResultStatus.FAILED, error="model_timeout", detail="too late")
    fallen = coordination.synthesized(failed, results)
    assert (fallen.output, fallen.by) == ("by a\n\nby b", ("a", "b"))
    assert fallen.note == (
        "'writer' was to make one answer of all and failed (model_timeout), so they stand one after the other; too late"
    )


def test_where_nobody_succeeds_one_error_names_each_with_its_code() -> None:
    with pytest.raises(CoordinationFailed) as caught:
        aggregated(Aggregation.CONCATENATE, bad("a"), bad("b", "model_timeout"))
    assert caught.value.detail == ("no agent gave a result; 'a' (agent_failed): a broke; 'b' (model_timeout): b broke")
    assert caught.value.data == {"failed": "a: agent_failed, b: model_timeout"}
    of = Plan(strategy=Strategy.PARALLEL, members=(member("a", when="false"),))
    with pytest.raises(CoordinationFailed, match="a: its condition is not true"):
        coordination.aggregate(of, played(of, {})[0])


REFUSED: list[tuple[JsonObject, str]] = [
    ({}, "agents: must be a list of 1 to 64 agents"),
    ({"agents": []}, "agents: must be a list of 1 to 64 agents"),
    ({"agents": "a"}, "agents: must be a list of 1 to 64 agents"),
    ({"agents": ["a"] * 65}, "agents: must be a list of 1 to 64 agents"),
    ({"agents": [3]}, "agents.0: must be the id of an agent, or an object with 'agent'"),
    ({"agents": ["a b"]}, "agents.0: names no agent: an id must be"),
    ({"agents": ["a"], "strategy": "paralel"}, "strategy: there is no 'paralel'; did you mean 'parallel'?"),
    ({"agents": ["a"], "strategy": None}, "strategy: there is no that; known: sequential, parallel, conditional"),
    ({"agents": ["a"], "aggregate": "vote"}, "aggregate: there is no 'vote'; known: concatenate, first_good"),
    ({"agents": ["a"], "agregate": "vote"}, "agregate: is not known here; did you mean 'aggregate'?"),
    (
        {"agents": [{"agent": "a", "dependson": []}]},
        "agents.0.dependson: is not known here; did you mean 'depends_on'?",
    ),
    ({"agents": [{"agent": "a", "id": 3}]}, "agents.0.id: must be a text"),
    ({"agents": [{"agent": "a", "id": ""}]}, "agents.0.id: must be 1 to 64"),
    ({"agents": [{"agent": "a"}, {"agent": "b", "id": "a"}]}, "agents.1.id: 'a' stands twice"),
    ({"agents": [{"agent": "a", "on_failure": "stp"}]}, "agents.0.on_failure: there is no 'stp'; did you mean 'stop'?"),
    ({"agents": [{"agent": "a", "timeout": 0}]}, "agents.0.timeout: must be over 0"),
    ({"agents": [{"agent": "a", "timeout": "1"}]}, "agents.0.timeout: must be a number of seconds"),
    ({"agents": ["a", {"agent": "b", "depends_on": "a"}]}, "agents.1.depends_on: must be a list"),
    (
        {"agents": ["search", {"agent": "b", "depends_on": ["serch"]}]},
        "agents.1.depends_on.0: there is no 'serch' here; did you mean 'search'?",
    ),
    ({"agents": [{"agent": "a", "depends_on": ["a"]}]}, "agents.0.depends_on.0: goes round in a circle: a -> a"),
    (
        {
            "agents": [
                {"agent": "x", "depends_on": ["a"]},
                {"agent": "a", "depends_on": ["b"]},
                {"agent": "b", "depends_on": ["x2", "c"]},
                {"agent": "c", "depends_on": ["a"]},
                {"agent": "x2"},
            ]
        },
        "agents.1.depends_on.0: goes round in a circle: a -> b -> c -> a",
    ),
    ({"agents": [{"agent": "a", "when": "1 +"}]}, "agents.0.when: is not an expression in CEL: line 1, column 4"),
    (
        {"agents": ["a", {"agent": "b", "when": "results.a.status == 'FAILED'"}]},
        "agents.1.when: 'results' has no 'a' here; nothing comes before it",
    ),
    (
        {"strategy": "sequential", "agents": [{"agent": "a", "when": "results.b.value == 1"}, "b"]},
        "agents.0.when: 'results' has no 'b' here; nothing comes before it",
    ),
    (
        {"strategy": "sequential", "agents": ["first", {"agent": "b", "when": "results.frist.value == 1"}]},
        "agents.1.when: 'results' has no 'frist' here; did you mean results.first?",
    ),
    (
        {"strategy": "sequential", "agents": ["a", {"agent": "b", "when": "results.a.sucess"}]},
        "agents.1.when: 'results.a' has no 'sucess' here",
    ),
    (
        {"strategy": "sequential", "agents": ["a", {"agent": "b", "when": "results['a'].statis == 'FAILED'"}]},
        "agents.1.when: 'results.a' has no 'statis' here; did you mean results.a.status?",
    ),
    ({"agents": ["a"], "route": "'a'"}, "route: is for 'conditional' only, not for 'parallel'"),
    ({"agents": ["a"], "strategy": "conditional"}, "route: 'conditional' needs one router"),
    (
        {"agents": ["a", {"agent": "b", "depends_on": ["a"]}], "strategy": "conditional", "route": "'a'"},
        "agents.1.depends_on: is not for 'conditional'",
    ),
    ({"agents": ["a"], "strategy": "conditional", "route": "inptu"}, "route: there is no 'inptu' here"),
    ({"agents": ["a"], "aggregate": "synthesis"}, "synthesizer: is required for 'synthesis'"),
    ({"agents": ["a"], "synthesizer": "b"}, "synthesizer: is for the aggregate 'synthesis' only"),
    ({"agents": ["a"], "aggregate": "best_score"}, "score: is required for 'best_score'"),
    (
        {"agents": ["a"], "aggregate": "best_score", "score": "result.valeu.score"},
        "score: 'result' has no 'valeu' here; did you mean result.value?",
    ),
]


@pytest.mark.parametrize(("given_", "says"), REFUSED, ids=[says.split(";")[0][:60] for _, says in REFUSED])
def test_a_plan_that_cannot_be_run_is_refused_with_its_place(given_: JsonObject, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(given_)
    assert any(says in str(fault) for fault in caught.value.faults), caught.value.faults
    with pytest.raises(InvalidInput) as caught:
        read(given_, at="settings.")
    assert all(fault.path.startswith("settings.") for fault in caught.value.faults)


@given(
    given_=st.dictionaries(
        st.sampled_from(["strategy", "agents", "aggregate", "score", "route", "synthesizer", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "1 +", "parallel", ""]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["agent", "id", "depends_on", "when", "on_failure", "timeout"]), inner, max_size=6
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_whatever_is_given_is_a_plan_or_is_refused(given_: JsonObject) -> None:
    with contextlib.suppress(InvalidInput):
        assert plan.check(read(given_)) == ()


@given(case=plans())
def test_a_plan_without_a_cycle_is_not_said_to_have_one(case: tuple[Plan, tuple[str, ...]]) -> None:
    of = dataclasses.replace(case[0], members=tuple(dataclasses.replace(m, when=None) for m in case[0].members))
    faults = plan.check(of)
    assert not [fault for fault in faults if "circle" in fault.message]


def test_an_agent_may_be_asked_more_than_once() -> None:
    assert [(m.id, m.agent) for m in members_of(["a", "b", "a", Member(id="a-2", agent="a"), "a"])] == [
        ("a", "a"),
        ("b", "b"),
        ("a-3", "a"),
        ("a-2", "a"),
        ("a-4", "a"),
    ]


def test_a_plan_tells_which_agents_it_needs_and_where() -> None:
    of = read({"agents": ["x", {"agent": "y", "id": "z"}], "aggregate": "synthesis", "synthesizer": "w"})
    assert mentions(of, "settings.") == {
        "settings.agents.0": "x",
        "settings.agents.1": "y",
        "settings.synthesizer": "w",
    }


def test_a_plan_without_members_is_for_those_that_the_router_names() -> None:
    asked = made(None, strategy="sequential", aggregate="first_good")
    route = Route(
        candidates=(Candidate(agent_id="b", confidence=0.8), Candidate(agent_id="a", confidence=0.3)),
        stage=Stage.LEXICAL,
        reason="",
        secondary=("a", "b"),
    )
    of = plan_of(route, asked)
    assert (of.strategy, of.aggregate) == (Strategy.SEQUENTIAL, Aggregation.FIRST_GOOD)
    assert [m.agent for m in of.members] == ["b", "a"]
    with pytest.raises(InvalidInput, match="agents: is empty"):
        made([])
    with pytest.raises(InvalidInput, match="agents: must be a list"):
        made(None, strategy="conditional", router="'a'")


def test_plans_that_differ_are_told_apart() -> None:
    def one(content: str) -> str:
        return content

    def other(content: str) -> str:
        return content

    told = [
        json.dumps(plan.plan_json(of))
        for of in (
            made(["a"]),
            made(["b"]),
            made(["a"], strategy="sequential"),
            made([Member(id="a", agent="a", timeout=2)]),
            made(["a"], strategy="conditional", router="'a'"),
            made(["a"], strategy="conditional", router=one),
            made(["a"], strategy="conditional", router=other),
        )
    ]
    assert len({*told}) == len(told)


def test_what_is_told_comes_back_from_its_record() -> None:
    used = Usage(input_tokens=3, output_tokens=2, cost_usd=0.5, price_date="2026-01-01")
    tried = Attempt(agent_id="a", instance_id="i", duration_ms=3.0, error="agent_failed", decision="retry")
    first = good("a", value={"x": [1]})
    told = Coordination(
        strategy=Strategy.PARALLEL,
        aggregate=Aggregation.SYNTHESIS,
        results=(
            dataclasses.replace(first, offset_ms=2.0, duration_ms=3.5, attempts=(tried,), usage=used),
            dataclasses.replace(bad("b"), offset_ms=1.0),
            Result(id="c", agent="b", status=ResultStatus.FAILED, error="x"),
            Result(id="d", agent="d", status=ResultStatus.SKIPPED, reason="not needed"),
        ),
        by=("synthesis",),
        synthesis=dataclasses.replace(good("synthesis"), offset_ms=9.0),
        note="a note",
    )
    stored = json.loads(json.dumps(coordination_json(told)))
    assert coordination_of(stored) == told
    assert [link["id"] for link in stored["chain"]] == ["b", "a", "synthesis"]
    assert stored["failed_agents"] == ["b"]
    assert stored["success_rate"] == round(1 / 3, 4)


def test_a_sum_has_a_price_only_where_all_prices_are_known() -> None:
    paid = Usage(input_tokens=3, output_tokens=2, cost_usd=0.5, price_date="2026-02-01")
    free = Usage()
    older = dataclasses.replace(paid, cost_usd=0.25, price_date="2026-01-01")
    assert total([paid, free, older]) == Usage(input_tokens=6, output_tokens=4, cost_usd=0.75, price_date="2026-01-01")
    assert total([paid, Usage(input_tokens=1)]).cost_usd is None
    assert total([]) == Usage()
