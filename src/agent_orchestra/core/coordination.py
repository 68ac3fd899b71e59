"""Several agents on one request: which begin next, whose result counts, and what is told of it.

A plan is run by asking :func:`next_steps` again after every change of the :class:`State`, and doing what it says, until
it says :class:`Done`; then :func:`aggregate` makes one answer of the results. Nothing here waits or calls anything.

Sequential: one after the other in the order of the list, but never before what a member depends on. Parallel: each as
soon as what it depends on has ended. Conditional: those that the router chooses, one after the other in its order.

A member sees the results before it: in a sequence all that have ended, in parallel those that it depends on, directly
or through others, so that nothing hangs on who was faster. It is skipped where something that it depends on did not
succeed. One that has a condition (``when``) decides by that instead: so ``results.a.status == 'FAILED'`` makes it the
one who steps in. A condition that cannot be computed fails its member, or, where what the member depends on did not
succeed, has it skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, assert_never, cast

from agent_orchestra.core import expression
from agent_orchestra.core.attempt import Attempt, attempt_json, attempt_of
from agent_orchestra.core.plan import (
    Aggregation,
    Member,
    OnFailure,
    Plan,
    Strategy,
    before,
    in_order,
)
from agent_orchestra.core.routing import normalised
from agent_orchestra.core.usage import Usage, usage_json
from agent_orchestra.core.values import Json, JsonObject, nearest
from agent_orchestra.errors import CoordinationFailed, ExpressionFailed

__all__ = [
    "RESULTS",
    "SYNTHESIS",
    "Aggregate",
    "Cancel",
    "Command",
    "Coordination",
    "Done",
    "Result",
    "ResultStatus",
    "Settle",
    "Start",
    "State",
    "Synthesize",
    "aggregate",
    "chosen",
    "concatenated",
    "coordination_json",
    "coordination_of",
    "failure",
    "next_steps",
    "results_json",
    "routed",
    "seen",
    "synthesized",
]

#: The name under which a call's context holds the results before it.
RESULTS: Final = "results"
#: The id of the result of a plan's synthesizer.
SYNTHESIS: Final = "synthesis"


class ResultStatus(StrEnum):
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one member ended.

    ``error`` is the stable code of a failure, ``reason`` why it was skipped or cancelled. ``offset_ms``: when it began,
    after the start of the whole; none where it never did. ``attempts``: each call that was made.
    """

    id: str
    agent: str
    status: ResultStatus
    output: str = ""
    value: Json = None
    error: str | None = None
    detail: str | None = None
    reason: str | None = None
    offset_ms: float | None = None
    duration_ms: float = 0.0
    attempts: tuple[Attempt, ...] = ()
    score: float | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """What is told of a plan that has been run.

    ``results``: one for each member, in order. ``by``: the ids of those whose word the answer is. ``agreed``: with a
    vote, how many gave it. ``note``: why the answer was made otherwise than the plan says, where it was.
    """

    strategy: Strategy
    aggregate: Aggregation
    results: tuple[Result, ...]
    by: tuple[str, ...]
    synthesis: Result | None = None
    agreed: int | None = None
    note: str | None = None

    @property
    def failed_agents(self) -> tuple[str, ...]:
        """The agents of the members that failed, each once."""
        return tuple(dict.fromkeys(r.agent for r in self.results if r.status is ResultStatus.FAILED))

    @property
    def success_rate(self) -> float:
        """The share of those that succeeded among those that were not skipped or cancelled."""
        ended = [r.status for r in self.results if r.status in (ResultStatus.SUCCEEDED, ResultStatus.FAILED)]
        return round(ended.count(ResultStatus.SUCCEEDED) / len(ended), 4) if ended else 0.0

    @property
    def chain(self) -> tuple[Result, ...]:
        """Those that ran, the synthesizer too, in the order in which they began."""
        all_ = (*self.results, self.synthesis) if self.synthesis is not None else self.results
        return tuple(sorted((r for r in all_ if r.offset_ms is not None), key=lambda r: r.offset_ms or 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A plan in the middle. ``results``: by member, of those that have ended. ``chosen``: by the router."""

    content: str
    context: JsonObject = field(default_factory=dict[str, None])
    results: Mapping[str, Result] = field(default_factory=dict[str, Result])
    running: frozenset[str] = frozenset()
    chosen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """These members begin, at once."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """A member ends without having begun."""

    result: Result


@dataclass(frozen=True, slots=True)
class Cancel:
    """These members are no longer needed. Said again as long as they run."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """Every member has its result."""


Command = Start | Settle | Cancel | Done


# --- running


def next_steps(plan: Plan, state: State) -> list[Command]:
    """What is to be done now. Where nothing runs it is never nothing."""
    order = in_order(plan, state.chosen)
    results = dict(state.results)
    settled = [
        _skipped(member, "the router did not choose it")
        for member in plan.members
        if member not in order and member.id not in results
    ]
    results |= {result.id: result for result in settled}
    ended, starting = _ready(plan, replace(state, results=results), order)
    settled += ended
    results |= {result.id: result for result in ended}
    steps: list[Command] = []
    if (over := _over(plan, order, results)) is not None:
        left = [member for member in order if member.id not in results and member.id not in state.running]
        settled += [_skipped(member, over) for member in left]
        starting = []
        if state.running:
            steps.append(Cancel(tuple(sorted(state.running))))
    if starting:
        steps.append(Start(tuple(starting)))
    elif len(state.results) + len(settled) == len(plan.members):
        steps.append(Done())
    return [*map(Settle, settled), *steps]


def _ready(plan: Plan, state: State, order: Sequence[Member]) -> tuple[list[Result], list[str]]:
    """Whose turn it is: those that end without having begun, and those that begin."""
    results = dict(state.results)
    ended: list[Result] = []
    starting: list[str] = []
    for member in order:
        if member.id in results:
            continue
        waits = member.id in state.running or any(id_ not in results for id_ in member.depends_on)
        if not waits and _over(plan, order, results) is None:
            if (result := _judged(plan, replace(state, results=results), member)) is not None:
                results[member.id] = result
                ended.append(result)
                continue
            starting.append(member.id)
        if plan.strategy is not Strategy.PARALLEL:
            break
    return ended, starting


def _over(plan: Plan, order: Sequence[Member], results: Mapping[str, Result]) -> str | None:
    """Why nobody else needs to begin, where that is so."""
    for member in order:
        result = results.get(member.id)
        if result is not None and result.status is ResultStatus.FAILED and member.on_failure is OnFailure.STOP:
            return f"'{member.id}' failed, and nothing goes on without it"
    if plan.aggregate is Aggregation.FIRST_GOOD:
        for member in order:
            result = results.get(member.id)
            if result is None:
                return None
            if result.status is ResultStatus.SUCCEEDED:
                return f"'{member.id}' gave the first good result"
    return None


def _judged(plan: Plan, state: State, member: Member) -> Result | None:
    """None where a member is to begin, else how it ends at once."""
    unmet = next((d for d in member.depends_on if state.results[d].status is not ResultStatus.SUCCEEDED), None)
    became = f"'{unmet}', which it depends on, is {state.results[unmet].status}" if unmet is not None else ""
    if member.when is None:
        return _skipped(member, became) if unmet is not None else None
    values: JsonObject = {
        RESULTS: seen(plan, state, member.id),
        "input": state.content,
        "context": state.context,
    }
    try:
        if expression.Expression(text=member.when).holds(values):
            return None
    except ExpressionFailed as error:
        if unmet is not None:
            return _skipped(member, became)
        return Result(
            id=member.id, agent=member.agent, status=ResultStatus.FAILED, error=error.code, detail=error.detail
        )
    return _skipped(member, "its condition is not true")


def _skipped(member: Member, reason: str) -> Result:
    return Result(id=member.id, agent=member.agent, status=ResultStatus.SKIPPED, reason=reason)


def seen(plan: Plan, state: State, member_id: str) -> dict[str, Json]:
    """The results that a member sees, by id, as its condition and its agent are given them."""
    if plan.strategy is Strategy.PARALLEL:
        visible: Collection[str] = before(plan, member_id)
    else:
        visible = state.results
    order = [*in_order(plan, state.chosen), *plan.members]
    return results_json(state.results[m.id] for m in order if m.id in visible and m.id in state.results)


def results_json(results: Iterable[Result]) -> dict[str, Json]:
    """Results by id, as conditions, scores and agents see them."""
    return {result.id: _seen_json(result) for result in results}


def _seen_json(result: Result) -> dict[str, Json]:
    # These are plan.RESULT_FIELDS, by which expressions are checked.
    return {
        "id": result.id,
        "agent": result.agent,
        "status": result.status.value,
        "output": result.output,
        "value": result.value,
        "error": result.error,
    }


def routed(plan: Plan, state: State) -> Json:
    """What the plan's own route gives. Raises :class:`ExpressionFailed`."""
    assert plan.route is not None
    return expression.Expression(text=plan.route).evaluate({"input": state.content, "context": state.context})


def chosen(plan: Plan, given: Json) -> tuple[str, ...]:
    """The members that a router means: one id, or a list of ids. Raises :class:`CoordinationFailed`."""
    known = [member.id for member in plan.members]
    ids = [given] if isinstance(given, str) and given else given
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not ids:
        raise CoordinationFailed("the router chose nobody: it must give the id of a member, or a list of ids")
    for id_ in ids:
        if not isinstance(id_, str) or id_ not in known:
            shown = f"'{id_[:80]}'" if isinstance(id_, str) else "what is no id"
            raise CoordinationFailed(f"the router chose {shown}; {nearest(str(id_), known)}")
    return tuple(dict.fromkeys(cast("Sequence[str]", ids)))


# --- one answer of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One answer. ``by``: whose word it is. ``scores``: of those that could be scored."""

    output: str
    value: Json
    by: tuple[str, ...]
    agreed: int | None = None
    note: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesize:
    """An agent is to make one answer of the results."""

    agent: str


def aggregate(plan: Plan, state: State) -> Aggregate | Synthesize:
    """What becomes of the results. Raises :class:`CoordinationFailed` where no member succeeded."""
    ended = [state.results[m.id] for m in in_order(plan, state.chosen) if m.id in state.results]
    good = [result for result in ended if result.status is ResultStatus.SUCCEEDED]
    if not good:
        raise failure(ended)
    match plan.aggregate:
        case Aggregation.CONCATENATE:
            return concatenated(good)
        case Aggregation.FIRST_GOOD:
            return _word_of(good[0])
        case Aggregation.MAJORITY_VOTE:
            votes = Counter(_vote(result) for result in good)
            winner = max(good, key=lambda result: votes[_vote(result)])
            return replace(_word_of(winner), agreed=votes[_vote(winner)])
        case Aggregation.BEST_SCORE:
            return _best(plan, state, good)
        case Aggregation.SYNTHESIS:
            assert plan.synthesizer is not None
            return Synthesize(agent=plan.synthesizer)
        case _:
            assert_never(plan.aggregate)


def concatenated(results: Sequence[Result], *, note: str | None = None) -> Aggregate:
    """The outputs of those that succeeded, in order. The value only where it is that of a single one."""
    good = [result for result in results if result.status is ResultStatus.SUCCEEDED]
    if len(good) == 1:
        return replace(_word_of(good[0]), note=note)
    output = "\n\n".join(result.output for result in good if result.output)
    return Aggregate(output=output, value=None, by=tuple(r.id for r in good), note=note)


def synthesized(synthesis: Result, results: Sequence[Result]) -> Aggregate:
    """The word of the synthesizer; where it failed, all outputs, with a note that says so."""
    if synthesis.status is ResultStatus.SUCCEEDED:
        return _word_of(synthesis)
    failed = f"'{synthesis.agent}' was to make one answer of all and failed ({synthesis.error})"
    return concatenated(results, note=f"{failed}, so they stand one after the other; {synthesis.detail}")


def failure(results: Sequence[Result]) -> CoordinationFailed:
    """The error of a coordination in which nobody succeeded."""
    failed = [r for r in results if r.status is ResultStatus.FAILED]
    if not failed:
        reasons = dict.fromkeys(f"{r.id}: {r.reason}" for r in results if r.reason)
        return CoordinationFailed(f"no agent gave a result; {'; '.join(reasons)}"[:2_000])
    codes = ", ".join(f"{r.agent}: {r.error}" for r in failed)
    told = "; ".join(f"'{r.agent}' ({r.error}): {r.detail or r.error}" for r in failed)
    return CoordinationFailed(f"no agent gave a result; {told}"[:4_000], failed=codes)


def _word_of(result: Result) -> Aggregate:
    return Aggregate(output=result.output, value=result.value, by=(result.id,))


def _vote(result: Result) -> str:
    if result.value is not None:
        return json.dumps(result.value, sort_keys=True, ensure_ascii=False)
    return normalised(result.output) or result.output.strip()


def _best(plan: Plan, state: State, good: Sequence[Result]) -> Aggregate:
    assert plan.score is not None
    score = expression.Expression(text=plan.score)
    scores: dict[str, float] = {}
    why = ""
    for result in good:
        try:
            scores[result.id] = score.number(
                {"result": _seen_json(result), "input": state.content, "context": state.context}
            )
        except ExpressionFailed as error:
            why = why or error.detail
    if not scores:
        return replace(_word_of(good[0]), note=f"no result could be scored, so the first good one counts; {why}")
    best = max((result for result in good if result.id in scores), key=lambda result: scores[result.id])
    return replace(_word_of(best), scores=scores)


def coordination_json(told: Coordination) -> dict[str, Json]:
    """A coordination as plain JSON: the one form that the record and the interfaces share."""
    return {
        "strategy": told.strategy.value,
        "aggregate": told.aggregate.value,
        "by": list(told.by),
        "agreed": told.agreed,
        "note": told.note,
        "success_rate": told.success_rate,
        "failed_agents": list(told.failed_agents),
        "results": [_result_json(result) for result in told.results],
        "synthesis": None if told.synthesis is None else _result_json(told.synthesis),
        "chain": [
            {
                "id": result.id,
                "agent": result.agent,
                "status": result.status.value,
                "offset_ms": result.offset_ms,
                "duration_ms": result.duration_ms,
            }
            for result in told.chain
        ],
    }


def _result_json(result: Result) -> dict[str, Json]:
    return {
        "id": result.id,
        "agent": result.agent,
        "status": result.status.value,
        "output": result.output,
        "value": result.value,
        "error": result.error,
        "detail": result.detail,
        "reason": result.reason,
        "offset_ms": result.offset_ms,
        "duration_ms": result.duration_ms,
        "attempts": [attempt_json(attempt) for attempt in result.attempts],
        "score": result.score,
        "usage": usage_json(result.usage),
    }


def coordination_of(stored: Mapping[str, Any]) -> Coordination:
    """The coordination that :func:`coordination_json` wrote."""
    return Coordination(
        strategy=Strategy(stored["strategy"]),
        aggregate=Aggregation(stored["aggregate"]),
        results=tuple(_result_of(result) for result in stored["results"]),
        by=tuple(stored["by"]),
        synthesis=None if stored["synthesis"] is None else _result_of(stored["synthesis"]),
        agreed=stored["agreed"],
        note=stored["note"],
    )


def _result_of(stored: Mapping[str, Any]) -> Result:
    fields: dict[str, Any] = {
        **stored,
        "status": ResultStatus(stored["status"]),
        "attempts": tuple(map(attempt_of, stored["attempts"])),
        "usage": Usage(**stored["usage"]),
    }
    return Result(**fields)
