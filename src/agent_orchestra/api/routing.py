"""Routing over HTTP: decide without carrying out, look at decisions, say what was right, report, go back."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, status
from pydantic import BaseModel, ConfigDict, Field

from agent_orchestra.api.auth import Administrator, Caller, Reader, Runner
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import (
    AgentsHealthOut,
    Capability,
    Content,
    Context,
    MatchOut,
    Page,
    ProcessOut,
    RegistryOut,
    UserId,
    time_of,
)
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.core.routing import Stage, Strategy, route_json
from agent_orchestra.definitions import Id
from agent_orchestra.runtime.decisions import Decision
from agent_orchestra.runtime.routing import Opinion
from agent_orchestra.runtime.versions import Version, VersionState

__all__ = ["RoutingStatusOut", "StatusOut", "router", "routing_status_out"]

router = APIRouter(prefix="/v1", tags=["routing"])

_ASKS = described(400, 404, 409, 413, 415, 422, 503, 507)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Out(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class RouteBody(_Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"content": "Do I need a visa for Japan?"}]})

    content: Content
    conversation_id: Id | None = None
    """The decision is made as the next message of this conversation would have it."""
    user_id: UserId | None = None
    context: Context = Field(default_factory=dict)
    capability: Capability | None = None
    agent_id: Id | None = None


class DecisionCandidateOut(_Out):
    agent: str
    confidence: float
    """The probability that it is the right one."""
    matched: MatchOut | None
    """What in its definition is nearest to the request."""


class DecisionOut(_Out):
    id: str
    agent: str | None
    """None where no agent fits."""
    confidence: float
    stage: Stage
    """What decided."""
    reason: str
    candidates: list[DecisionCandidateOut]
    """Best first. Where no agent fits, the nearest."""
    margin: float
    secondary: list[str]
    """Agents that may be needed besides."""
    in_scope: float
    """The probability that the request is any agent's."""
    explored: bool
    propensity: float
    """The probability with which this policy chose this agent."""
    policy: str
    """The strategy, and the version of what was learned that the decision used; 0 where it used none."""
    degraded: list[str]
    """Codes of what was missing or failed."""
    ms: float
    """Milliseconds that the decision took."""
    content: str
    conversation_id: str | None
    executed: bool
    """Whether a request went this way; its id is the decision's."""
    created_at: datetime


class _FeedbackBody(_Body):
    decision_id: Id
    user_id: UserId | None = None
    """Whose word it is, where it is not that of the key's owner."""


class OpinionBody(_FeedbackBody):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"decision_id": "01a1f906-b943-7710-b511-93a84319b162", "opinion": "right"}]}
    )

    opinion: Opinion
    """Of the decision: the chosen agent is right, wrong, or no agent is right."""
    source: Literal["thumbs", "outcome"] | None = None
    """Else thumbs for right and wrong, and human for nobody."""


class CorrectionBody(_FeedbackBody):
    agent_id: Id
    """The right agent."""
    source: Literal["human", "handoff", "outcome"] = "human"


class FeedbackOut(_Out):
    sequence: int
    decision_id: str
    agent: str | None
    """The right one; none where no agent is, or where it is only known which is not."""
    rejected: str | None
    """The wrong one."""
    source: Source
    created_at: datetime


class OverlapOut(_Out):
    agent_id: str
    other_id: str
    line: str
    other_line: str
    similarity: float
    """At most 1."""


class ConfusionOut(_Out):
    agent_id: str
    other_id: str
    """Where the line would lead if it were not known to be the agent's."""
    line: str
    kind: str
    margin: float


class VersionOut(_Out):
    version: int
    state: VersionState
    encoder: str
    """Empty where words alone were compared."""
    examples: int
    loss: float | None
    """Out-of-fold log-loss, in nats an example."""
    champion_loss: float | None
    """That of the version before, on the same examples."""
    created_at: datetime


class RoutingStatusOut(_Out):
    strategy: Strategy
    encoder: str | None
    """What compares meanings; without one, words are compared."""
    fault: str | None
    """Why there is no encoder, or what it failed with last."""
    model: str | None
    """The model that is asked where there is doubt."""
    model_fault: str | None
    """Why it cannot be asked."""
    version: int
    """Of what was learned; 0 where the definitions alone decide."""
    learning_fault: str | None
    """What the last attempt to learn failed with."""


class StatusOut(_Out):
    version: str
    uptime: float
    """Seconds."""
    in_flight: int
    ready: bool
    checks: dict[str, bool]
    agents: AgentsHealthOut
    registry: RegistryOut
    process: ProcessOut | None
    """For the tenant of the operator only."""
    routing: RoutingStatusOut


class ReportOut(_Out):
    status: RoutingStatusOut
    overlaps: list[OverlapOut]
    """Pairs of agents whose lines are nearest to each other, nearest first."""
    confusions: list[ConfusionOut]
    unreachable: list[str]
    """Agents that even their own lines do not lead to."""
    versions: list[VersionOut]
    """Newest first."""
    feedback: int
    """Entries that are learned from."""


class RollbackOut(_Out):
    active: VersionOut | None
    """What decides now; none where the definitions alone do."""


class SuggestionsBody(_Body):
    count: Annotated[int, Field(ge=1, le=50)] = 10


class SuggestionOut(_Out):
    text: str
    goes_to: str | None
    """The agent that it would be routed to as things are."""
    confidence: float


class SuggestionsOut(_Out):
    suggestions: list[SuggestionOut]
    """Nothing is taken up: add those that are right to the agent's ``examples``."""


@router.post("/route", responses=_ASKS)
async def route_request(body: RouteBody, caller: Runner) -> DecisionOut:
    """Decides where a request would go, and carries nothing out. The decision is put on record."""
    decision = await caller.orchestra.routing.decide(
        body.content,
        conversation_id=body.conversation_id,
        user_id=body.user_id,
        context=body.context,
        capability=body.capability,
        agent_id=body.agent_id,
        tenant=caller.tenant,
    )
    return _decision_out(decision)


@router.get("/decisions", responses=described(422, 503))
async def list_decisions(
    caller: Reader, cursor: Id | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> Page[DecisionOut]:
    """The decisions, newest first: those of requests, and those that were only asked for."""
    found = await caller.orchestra.routing.get_decisions(before=cursor, limit=limit + 1, tenant=caller.tenant)
    items = [_decision_out(decision) for decision in found[:limit]]
    return Page[DecisionOut](items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/decisions/{decision_id}", responses=described(404, 422, 503))
async def get_decision(decision_id: Id, caller: Reader) -> DecisionOut:
    """One decision. That of a request has the request's id."""
    return _decision_out(await caller.orchestra.routing.get_decision(decision_id, tenant=caller.tenant))


@router.post("/feedback", status_code=status.HTTP_201_CREATED, responses=_ASKS)
async def give_feedback(body: OpinionBody | CorrectionBody, caller: Runner) -> FeedbackOut:
    """Keeps what somebody says of a decision. It is learned from when enough has come together."""
    kept = await caller.orchestra.routing.give_feedback(
        body.decision_id,
        opinion=body.opinion if isinstance(body, OpinionBody) else None,
        agent_id=body.agent_id if isinstance(body, CorrectionBody) else None,
        source=Source(body.source) if body.source is not None else None,
        author=_author(caller, body.user_id),
        tenant=caller.tenant,
    )
    return _feedback_out(kept)


@router.get("/routing/report", responses=described(503))
async def get_routing_report(caller: Reader) -> ReportOut:
    """Which agents collide and by which lines, which are hard to reach, and what was learned."""
    report = await caller.orchestra.routing.report(tenant=caller.tenant)
    return ReportOut(
        status=routing_status_out(caller),
        overlaps=[OverlapOut(**dataclasses.asdict(overlap)) for overlap in report.overlaps],
        confusions=[ConfusionOut(**dataclasses.asdict(confusion)) for confusion in report.confusions],
        unreachable=list(report.unreachable),
        versions=[_version_out(version) for version in report.versions],
        feedback=report.feedback,
    )


@router.post("/routing/rollback", responses=described(409, 503, 507))
async def roll_back_routing(caller: Administrator) -> RollbackOut:
    """Withdraws what was learned last, and sets the feedback aside that made it."""
    version = await caller.orchestra.routing.roll_back(tenant=caller.tenant)
    return RollbackOut(active=_version_out(version) if version is not None else None)


@router.post("/agents/{agent_id}/suggestions", responses=described(400, 404, 409, 413, 415, 422, 502, 503, 504))
async def suggest_examples(agent_id: Id, body: SuggestionsBody, caller: Administrator) -> SuggestionsOut:
    """Has the model of ``routing.llm`` write examples for an agent."""
    found = await caller.orchestra.routing.suggest_examples(agent_id, count=body.count, tenant=caller.tenant)
    return SuggestionsOut(suggestions=[SuggestionOut(**dataclasses.asdict(suggestion)) for suggestion in found])


def routing_status_out(caller: Caller) -> RoutingStatusOut:
    """How routing is in this process."""
    return RoutingStatusOut(**dataclasses.asdict(caller.orchestra.routing.status(tenant=caller.tenant)))


def _author(caller: Caller, user_id: str | None) -> str:
    """Whose word it is. Who holds a key vouches for the names of the users that it speaks for."""
    key = caller.principal.key_id or "local"
    return f"{key}/{user_id}" if user_id is not None else key


def _decision_out(decision: Decision) -> DecisionOut:
    told: dict[str, Any] = route_json(decision.route)
    chosen = decision.route.stage is not Stage.NONE
    return DecisionOut(
        id=decision.id,
        agent=decision.route.primary.agent_id if chosen else None,
        confidence=decision.route.primary.confidence if chosen else 0.0,
        content=decision.text,
        conversation_id=decision.conversation_id,
        executed=decision.executed,
        created_at=time_of(decision.created_ms),
        **told,
    )


def _feedback_out(kept: Feedback) -> FeedbackOut:
    return FeedbackOut(
        sequence=kept.sequence,
        decision_id=kept.decision_id,
        agent=kept.agent_id,
        rejected=kept.rejected,
        source=kept.source,
        created_at=time_of(kept.created_ms),
    )


def _version_out(version: Version) -> VersionOut:
    return VersionOut(
        version=version.number,
        state=version.state,
        encoder=version.encoder,
        examples=version.examples,
        loss=version.loss,
        champion_loss=version.champion_loss,
        created_at=time_of(version.created_ms),
    )
