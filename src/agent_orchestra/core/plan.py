"""A plan for several agents on one request: who works on it, in which order, and what is wrong with it.

:mod:`agent_orchestra.core.coordination` says what becomes of one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar, cast

from agent_orchestra.core import expression
from agent_orchestra.core.agent import ID_PATTERN, ID_RULE, is_id
from agent_orchestra.core.expression import NotAnExpressionError
from agent_orchestra.core.routing import Route
from agent_orchestra.core.values import Json, JsonObject, is_number, nearest
from agent_orchestra.errors import Fault, InvalidInput

__all__ = [
    "MAX_MEMBERS",
    "RESULT_FIELDS",
    "SCHEMAS",
    "Aggregation",
    "Member",
    "OnFailure",
    "Plan",
    "Strategy",
    "before",
    "check",
    "in_order",
    "made",
    "members_of",
    "mentions",
    "plan_json",
    "plan_of",
    "read",
]

E = TypeVar("E", bound=StrEnum)

MAX_MEMBERS: Final = 64
#: What conditions, scores and agents see of a result.
RESULT_FIELDS: Final = ("id", "agent", "status", "output", "value", "error")

_LONGEST_TIMEOUT: Final = 86_400


class Strategy(StrEnum):
    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"
    CONDITIONAL = "conditional"


class Aggregation(StrEnum):
    """How results become one.

    CONCATENATE: all outputs in order, a blank line between them. FIRST_GOOD: the earliest in order that succeeded; once
    it is known nobody else is asked. MAJORITY_VOTE: what most agree on, by their value or by the words of their output;
    of equals the earliest. BEST_SCORE: the highest score; of equals the earliest. SYNTHESIS: what an agent makes of
    all.
    """

    CONCATENATE = "concatenate"
    FIRST_GOOD = "first_good"
    MAJORITY_VOTE = "majority_vote"
    BEST_SCORE = "best_score"
    SYNTHESIS = "synthesis"


class OnFailure(StrEnum):
    """What the failure of a member means for the others. STOP: what runs is cancelled, and no other begins."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One place in a plan. ``when``: a condition in CEL. ``timeout``: seconds; none means the request's own."""

    id: str
    agent: str
    depends_on: tuple[str, ...] = ()
    when: str | None = None
    on_failure: OnFailure = OnFailure.CONTINUE
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who works on a request, and how. :func:`check` says whether it can be run. Without members the router names them.

    ``synthesizer``: the agent that makes one answer of all. ``score``: CEL over ``result`` (and ``input``,
    ``context``), a number. ``route``: CEL over ``input`` and ``context``, or ``router``: a function, of the forms that
    an agent's function may have; either gives the id of a member, or a list of them.
    """

    strategy: Strategy
    members: tuple[Member, ...]
    aggregate: Aggregation = Aggregation.CONCATENATE
    synthesizer: str | None = None
    score: str | None = None
    route: str | None = None
    router: Callable[..., object] | None = None


def in_order(plan: Plan, chosen: Sequence[str] = ()) -> list[Member]:
    """The members in the order that decides who is earlier: what each depends on first, else as they are listed.

    Of a conditional plan those that were chosen, in that order.
    """
    by_id = {member.id: member for member in plan.members}
    if plan.strategy is Strategy.CONDITIONAL:
        return [by_id[id_] for id_ in chosen]
    ordered: list[Member] = []
    left = dict(by_id)
    while left:
        # A cycle is refused when the plan is set; were there one, its members would come as they are listed.
        free = (m for m in left.values() if not any(d in left for d in m.depends_on))
        following = next(free, None) or next(iter(left.values()))
        ordered.append(left.pop(following.id))
    return ordered


def before(plan: Plan, member_id: str) -> set[str]:
    """The ids of what a member depends on, directly or through others."""
    by_id = {member.id: member for member in plan.members}
    found: set[str] = set()
    left = [member_id]
    while left:
        for before in by_id[left.pop()].depends_on:
            if before in by_id and before not in found:
                found.add(before)
                left.append(before)
    return found


def plan_of(route: Route, asked: Plan) -> Plan:
    """The plan with members: the agent of the route, and those that may be needed besides."""
    agents = dict.fromkeys((route.primary.agent_id, *route.secondary))
    return replace(asked, members=members_of(list(agents)))


def members_of(agents: Sequence[str | Member]) -> tuple[Member, ...]:
    """A member for each agent. One that stands there more than once is told apart by number: ``a``, ``a-2``."""
    taken = {entry.id for entry in agents if isinstance(entry, Member)}
    members: list[Member] = []
    for entry in agents:
        if isinstance(entry, Member):
            members.append(entry)
            continue
        id_, number = entry, 1
        while id_ in taken:
            number += 1
            id_ = f"{entry}-{number}"
        taken.add(id_)
        members.append(Member(id=id_, agent=entry))
    return tuple(members)


def mentions(plan: Plan, at: str = "") -> dict[str, str]:
    """The agents that a plan names, each by its place."""
    found = {f"{at}agents.{number}": member.agent for number, member in enumerate(plan.members)}
    if plan.synthesizer is not None:
        found[f"{at}synthesizer"] = plan.synthesizer
    return found


def check(plan: Plan, at: str = "", *, routed: bool = False) -> tuple[Fault, ...]:
    """All that is wrong with a plan, but for agents that are not there.

    ``at``: what stands before each place. ``routed``: the members may be left to the router.
    """
    faults = [
        *_faults_in_number(plan, at, routed=routed),
        *_faults_in_members(plan, at),
        *_faults_in_choice(plan, at),
        *_faults_in_aggregate(plan, at),
    ]
    if not faults:
        faults.extend(_faults_in_conditions(plan, at))
    return tuple(faults)


def _faults_in_number(plan: Plan, at: str, *, routed: bool) -> Iterator[Fault]:
    if not plan.members and routed and plan.strategy is not Strategy.CONDITIONAL:
        return
    if not 1 <= len(plan.members) <= MAX_MEMBERS:
        yield Fault(path=f"{at}agents", message=f"must be a list of 1 to {MAX_MEMBERS} agents")


def _faults_in_members(plan: Plan, at: str) -> Iterator[Fault]:
    ids = [member.id for member in plan.members]
    for number, member in enumerate(plan.members):
        place = f"{at}agents.{number}"
        if not is_id(member.agent):
            yield Fault(path=place, message=f"names no agent: an id {ID_RULE}")
        elif not is_id(member.id):
            yield Fault(path=f"{place}.id", message=ID_RULE)
        elif member.id in ids[:number]:
            yield Fault(path=f"{place}.id", message=f"'{member.id}' stands twice; give each an id of its own")
        if member.timeout is not None and not (is_number(member.timeout) and 0 < member.timeout <= _LONGEST_TIMEOUT):
            yield Fault(path=f"{place}.timeout", message=f"must be over 0 and at most {_LONGEST_TIMEOUT} seconds")
        if member.on_failure not in set(OnFailure):
            message = f"there is no '{member.on_failure}'; {nearest(str(member.on_failure), list(OnFailure))}"
            yield Fault(path=f"{place}.on_failure", message=message)
        if isinstance(member.depends_on, str):
            yield Fault(path=f"{place}.depends_on", message="must be a list of ids")
            return
        if member.depends_on and plan.strategy is Strategy.CONDITIONAL:
            yield Fault(path=f"{place}.depends_on", message="is not for 'conditional': the router gives the order")
        for which, before in enumerate(member.depends_on):
            path = f"{place}.depends_on.{which}"
            if before not in ids:
                yield Fault(path=path, message=f"there is no '{before}' here; {nearest(before, ids)}")
    if (cycle := _cycle(plan)) is not None:
        number, which, names = cycle
        path = f"{at}agents.{number}.depends_on.{which}"
        yield Fault(path=path, message=f"goes round in a circle: {' -> '.join(names)}")


def _cycle(plan: Plan) -> tuple[int, int, list[str]] | None:
    """The first member of a cycle, which of its dependencies leads into it, and the way round."""
    by_id = {member.id: member for member in plan.members}
    for number, member in enumerate(plan.members):
        for which, first in enumerate(member.depends_on):
            came: dict[str, str] = {first: member.id}
            left = [first]
            while left and member.id not in left:
                here = left.pop()
                for before in by_id[here].depends_on if here in by_id else ():
                    if before not in came:
                        came[before] = here
                        left.append(before)
            if member.id in left:
                way = [member.id]
                while (step := came[way[-1]]) != member.id:
                    way.append(step)
                return number, which, [member.id, *reversed(way)]
    return None


def _faults_in_choice(plan: Plan, at: str) -> Iterator[Fault]:
    given = (plan.route is not None) + (plan.router is not None)
    if plan.strategy is Strategy.CONDITIONAL:
        if given != 1:
            yield Fault(path=f"{at}route", message="'conditional' needs one router: an expression, or a function")
    elif given:
        yield Fault(path=f"{at}route", message=f"is for 'conditional' only, not for '{plan.strategy}'")


def _faults_in_aggregate(plan: Plan, at: str) -> Iterator[Fault]:
    for name, value, of in (
        ("synthesizer", plan.synthesizer, Aggregation.SYNTHESIS),
        ("score", plan.score, Aggregation.BEST_SCORE),
    ):
        if plan.aggregate is of and value is None:
            yield Fault(path=f"{at}{name}", message=f"is required for '{of}'")
        elif plan.aggregate is not of and value is not None:
            yield Fault(path=f"{at}{name}", message=f"is for the aggregate '{of}' only, not for '{plan.aggregate}'")
    if plan.synthesizer is not None and not is_id(plan.synthesizer):
        yield Fault(path=f"{at}synthesizer", message=f"names no agent: an id {ID_RULE}")


def _faults_in_conditions(plan: Plan, at: str) -> Iterator[Fault]:
    """What does not compile. A condition may name the members that have always ended before it."""
    order = [member.id for member in in_order(plan, [member.id for member in plan.members])]
    for number, member in enumerate(plan.members):
        if plan.strategy is Strategy.PARALLEL:
            ended: Collection[str] = before(plan, member.id)
        elif plan.strategy is Strategy.SEQUENTIAL:
            ended = order[: order.index(member.id)]
        else:
            ended = [other for other in order if other != member.id]
        names = {"results": dict.fromkeys(ended, RESULT_FIELDS)}
        yield from _faults_in(f"{at}agents.{number}.when", member.when, names)
    yield from _faults_in(f"{at}score", plan.score, {"result": RESULT_FIELDS})
    yield from _faults_in(f"{at}route", plan.route, {})


def _faults_in(path: str, text: str | None, names: Mapping[str, expression.Fields]) -> Iterator[Fault]:
    if text is not None:
        try:
            expression.compile(text, {"input": None, "context": None, **names})
        except NotAnExpressionError as error:
            yield Fault(path=path, message=str(error))


_ID: Final[JsonObject] = {"type": "string", "pattern": ID_PATTERN}
_EXPRESSION: Final[JsonObject] = {"type": "string", "minLength": 1, "maxLength": expression.MAX_CHARS}
_MEMBER: Final[Mapping[str, JsonObject]] = {
    "agent": _ID,
    "id": {**_ID, "description": "What the others call it; without it the agent's own id."},
    "depends_on": {
        "description": "The members that must have ended before it begins.",
        "type": "array",
        "items": _ID,
        "maxItems": MAX_MEMBERS,
    },
    "when": {**_EXPRESSION, "description": "A condition in CEL over results, input and context."},
    "on_failure": {"enum": [*map(str, OnFailure)], "default": OnFailure.CONTINUE.value},
    "timeout": {"description": "Seconds.", "type": "number", "exclusiveMinimum": 0, "maximum": _LONGEST_TIMEOUT},
}
#: The JSON Schema of what :func:`read` reads, by name.
SCHEMAS: Final[Mapping[str, JsonObject]] = {
    "strategy": {
        "description": "Whether they work one after the other, all at once, or as a router chooses.",
        "enum": [*map(str, Strategy)],
        "default": Strategy.PARALLEL.value,
    },
    "agents": {
        "description": "Who works on it: ids of agents, or more about each.",
        "type": "array",
        "items": {
            "anyOf": [
                _ID,
                {"type": "object", "properties": _MEMBER, "required": ["agent"], "additionalProperties": False},
            ]
        },
        "minItems": 1,
        "maxItems": MAX_MEMBERS,
    },
    "aggregate": {
        "description": "How their results become one answer.",
        "enum": [*map(str, Aggregation)],
        "default": Aggregation.CONCATENATE.value,
    },
    "synthesizer": {**_ID, "description": "With 'synthesis': the agent that makes one answer of all."},
    "score": {**_EXPRESSION, "description": "With 'best_score': a number, in CEL over result, input and context."},
    "route": {**_EXPRESSION, "description": "With 'conditional': ids of members, in CEL over input and context."},
}


def read(given: JsonObject, *, at: str = "", router: Callable[..., object] | None = None, routed: bool = False) -> Plan:
    """The plan that JSON describes, which has the shape of :data:`SCHEMAS`.

    ``at`` and ``routed`` as for :func:`check`; ``router``: the function, which JSON cannot hold. Raises
    :class:`InvalidInput` with the place of each thing that is wrong, and the nearest that would be right.
    """
    faults: list[Fault] = []
    _known(given, [*SCHEMAS], at, faults)
    listed = given.get("agents", ())
    most = MAX_MEMBERS if isinstance(listed, Sequence) and not isinstance(listed, str) else -1
    listed = cast("Sequence[Json]", listed) if most > 0 else ()
    if most < 0 or len(listed) > most or ("agents" in given and not listed):
        faults.append(Fault(path=f"{at}agents", message=f"must be a list of 1 to {MAX_MEMBERS} agents"))
        listed = ()
    entries = [_member(entry, f"{at}agents.{number}", faults) for number, entry in enumerate(listed)]
    return _made(
        entries,
        strategy=given.get("strategy", Strategy.PARALLEL.value),
        aggregate=given.get("aggregate", Aggregation.CONCATENATE.value),
        synthesizer=_text(given, "synthesizer", at, faults),
        score=_text(given, "score", at, faults),
        route=_text(given, "route", at, faults),
        router=router,
        at=at,
        routed=routed,
        faults=faults,
    )


def made(
    agents: Sequence[str | Member] | None,
    *,
    strategy: str = Strategy.PARALLEL,
    aggregate: str = Aggregation.CONCATENATE,
    synthesizer: str | None = None,
    score: str | None = None,
    router: str | Callable[..., object] | None = None,
) -> Plan:
    """The plan for these agents; none means those that the router chooses. Raises as :func:`read`."""
    faults: list[Fault] = []
    if agents is not None and not agents:
        faults.append(Fault(path="agents", message="is empty; name agents, or leave it out to have them chosen"))
    if isinstance(agents, str) or not all(
        isinstance(entry, str | Member) for entry in cast("Sequence[object]", agents or ())
    ):
        faults.append(Fault(path="agents", message="must be a list of ids, or of Members"))
        agents = ()
    return _made(
        agents or (),
        strategy=strategy,
        aggregate=aggregate,
        synthesizer=synthesizer,
        score=score,
        route=router if isinstance(router, str) else None,
        router=None if isinstance(router, str) else router,
        at="",
        routed=True,
        faults=faults,
    )


def _made(
    agents: Sequence[str | Member],
    *,
    strategy: Json,
    aggregate: Json,
    synthesizer: str | None,
    score: str | None,
    route: str | None,
    router: Callable[..., object] | None,
    at: str,
    routed: bool,
    faults: list[Fault],
) -> Plan:
    plan = Plan(
        strategy=_one_of(Strategy, strategy, f"{at}strategy", faults) or Strategy.PARALLEL,
        members=members_of(agents),
        aggregate=_one_of(Aggregation, aggregate, f"{at}aggregate", faults) or Aggregation.CONCATENATE,
        synthesizer=synthesizer,
        score=score,
        route=route,
        router=router,
    )
    if not faults:
        faults.extend(check(plan, at, routed=routed))
    if faults:
        raise InvalidInput("; ".join(map(str, faults)), faults=tuple(faults))
    return plan


def _member(given: Json, place: str, faults: list[Fault]) -> str | Member:
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping) or not isinstance(agent := given.get("agent"), str):
        faults.append(Fault(path=place, message="must be the id of an agent, or an object with 'agent'"))
        return "-"
    _known(given, [*_MEMBER], f"{place}.", faults)
    ids = given.get("depends_on", ())
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not all(isinstance(id_, str) for id_ in ids):
        faults.append(Fault(path=f"{place}.depends_on", message="must be a list of the ids of members"))
        ids = ()
    timeout = given.get("timeout")
    if "timeout" in given and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        faults.append(Fault(path=f"{place}.timeout", message="must be a number of seconds"))
        timeout = None
    on_failure = given.get("on_failure", OnFailure.CONTINUE.value)
    own = _text(given, "id", f"{place}.", faults)
    return Member(
        id=agent if own is None else own,
        agent=agent,
        depends_on=tuple(cast("Sequence[str]", ids)),
        when=_text(given, "when", f"{place}.", faults),
        on_failure=_one_of(OnFailure, on_failure, f"{place}.on_failure", faults) or OnFailure.CONTINUE,
        timeout=cast("float | None", timeout),
    )


def _known(given: JsonObject, known: Sequence[str], at: str, faults: list[Fault]) -> None:
    faults.extend(
        Fault(path=f"{at}{name}", message=f"is not known here; {nearest(name, known)}")
        for name in given
        if name not in known
    )


def _text(given: JsonObject, name: str, at: str, faults: list[Fault]) -> str | None:
    value = given.get(name)
    if name not in given or isinstance(value, str):
        return cast("str | None", value)
    faults.append(Fault(path=f"{at}{name}", message="must be a text"))
    return None


def _one_of(kind: type[E], given: Json, path: str, faults: list[Fault]) -> E | None:
    try:
        return kind(given)
    except ValueError:
        what = f"'{given[:80]}'" if isinstance(given, str) else "that"
        faults.append(Fault(path=path, message=f"there is no {what}; {nearest(str(given), [*kind])}"))
        return None


def plan_json(plan: Plan) -> dict[str, Json]:
    """A plan as plain JSON, as far as it can be: of a function its name."""
    router = plan.router
    return {
        "strategy": plan.strategy.value,
        "agents": [
            {
                "id": member.id,
                "agent": member.agent,
                "depends_on": list(member.depends_on),
                "when": member.when,
                "on_failure": member.on_failure.value,
                "timeout": member.timeout,
            }
            for member in plan.members
        ],
        "aggregate": plan.aggregate.value,
        "synthesizer": plan.synthesizer,
        "score": plan.score,
        "route": plan.route,
        "router": None
        if router is None
        else f"{getattr(router, '__module__', '')}:{getattr(router, '__qualname__', type(router).__qualname__)}",
    }
