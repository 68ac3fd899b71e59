"""Agents over HTTP."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from agent_orchestra.api.auth import Administrator, Caller, Reader
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import (
    AgentOut,
    ChecksOut,
    HealthReportOut,
    Page,
    agent_health_out,
    agent_out,
    process_out,
)
from agent_orchestra.core.agent import Filter, Role, Status
from agent_orchestra.definitions import AgentChanges, AgentDefinition, AgentReplacement, Id
from agent_orchestra.runtime.registry import Registered

__all__ = ["router"]

router = APIRouter(prefix="/v1/agents", tags=["agents"])

_CHANGES = described(400, 403, 404, 409, 413, 415, 422, 503, 507)
_Word = Annotated[str | None, Query(min_length=1, max_length=500)]


@router.post("", status_code=status.HTTP_201_CREATED, responses=_CHANGES)
async def register_agent(body: AgentDefinition, response: Response, caller: Administrator) -> AgentOut:
    """Adds an agent."""
    entry = await caller.orchestra.register_agent(body.to_agent(body.id), tenant=caller.tenant)
    response.headers["Location"] = f"/v1/agents/{entry.agent.id}"
    return await _with_warnings(entry, caller)


@router.get("", responses=described(422))
async def list_agents(
    caller: Reader,
    role: Role | None = None,
    capability: _Word = None,
    domain: _Word = None,
    provider: _Word = None,
    status: Status | None = None,
    cursor: _Word = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Page[AgentOut]:
    """The agents, by id, that have all that is asked for."""
    wanted = Filter(role=role, capability=capability, domain=domain, provider=provider, status=status)
    found = [
        e for e in caller.orchestra.get_agents(wanted, tenant=caller.tenant) if cursor is None or e.agent.id > cursor
    ]
    items = [agent_out(caller.orchestra.monitoring.agent(entry)) for entry in islice(found, limit)]
    return Page[AgentOut](items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/health", responses=described(422))
async def get_agents_health(
    caller: Reader, cursor: _Word = None, limit: Annotated[int, Query(ge=1, le=500)] = 100
) -> HealthReportOut:
    """How many agents can answer, how each of them and each of its instances is, and what they need."""
    orchestra, monitoring = caller.orchestra, caller.orchestra.monitoring
    found = [entry for entry in orchestra.get_agents(tenant=caller.tenant) if cursor is None or entry.agent.id > cursor]
    agents = [agent_health_out(monitoring.agent(entry)) for entry in islice(found, limit)]
    service = await monitoring.service()
    return HealthReportOut(
        **dataclasses.asdict(orchestra.agents_health(tenant=caller.tenant)),
        agents=agents,
        next=agents[-1].id if len(found) > limit else None,
        checks=ChecksOut(database=service.database, providers=dict(service.providers)),
        process=process_out(service.process) if caller.is_operator else None,
    )


@router.get("/resolve", responses=described(404, 422))
async def resolve_agent(caller: Reader, action: Annotated[str, Query(min_length=1, max_length=500)]) -> AgentOut:
    """The agent that an action's name means: its id, one of its capabilities, or ``id.anything``."""
    entry = caller.orchestra.resolve_agent(action, tenant=caller.tenant)
    return agent_out(caller.orchestra.monitoring.agent(entry))


@router.get("/{agent_id}", responses=described(404, 422))
async def get_agent(agent_id: Id, caller: Reader) -> AgentOut:
    """One agent."""
    return await _with_warnings(caller.orchestra.get_agent(agent_id, tenant=caller.tenant), caller)


@router.put("/{agent_id}", responses=_CHANGES)
async def replace_agent(agent_id: Id, body: AgentReplacement, caller: Administrator) -> AgentOut:
    """Replaces the definition of an agent. Calls that run finish on what they began with."""
    entry = await caller.orchestra.update_agent(body.to_agent(agent_id), tenant=caller.tenant)
    return await _with_warnings(entry, caller)


@router.patch("/{agent_id}", responses=_CHANGES)
async def change_agent(agent_id: Id, body: AgentChanges, caller: Administrator) -> AgentOut:
    """Changes the fields that are given, such as ``enabled``; kept over a restart."""
    entry = await caller.orchestra.change_agent(agent_id, tenant=caller.tenant, **body.changed())
    return await _with_warnings(entry, caller)


@router.delete("/{agent_id}", status_code=status.HTTP_204_NO_CONTENT, responses=described(403, 404, 422, 503, 507))
async def unregister_agent(agent_id: Id, caller: Administrator) -> None:
    """Removes an agent. What it is answering now is still answered."""
    await caller.orchestra.unregister_agent(agent_id, tenant=caller.tenant)


async def _with_warnings(entry: Registered, caller: Caller) -> AgentOut:
    warnings = await caller.orchestra.routing.warnings(entry.agent.id, tenant=caller.tenant)
    return agent_out(caller.orchestra.monitoring.agent(entry), warnings)
