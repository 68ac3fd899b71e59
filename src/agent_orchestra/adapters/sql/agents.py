"""Keeps the definitions of agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import tell
from agent_orchestra.core.agent import Agent, Balancing, Limits, Role
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.resilience import Action, Recovery
from agent_orchestra.errors import AgentExists, AgentNotFound
from agent_orchestra.runtime.registry import Source, StoredAgent

__all__ = ["SqlAgentStore"]

_agents = tables.agents


class SqlAgentStore:
    """Conforms to :class:`AgentStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[int, Sequence[StoredAgent]]:
        async with self._database.read() as connection:
            revision = await _current(connection)
            rows = (await connection.execute(select(_agents).order_by(_agents.c.tenant, _agents.c.id))).all()
        return revision, [
            StoredAgent(
                tenant=row.tenant,
                agent=_agent_of(row.definition),
                source=Source(row.source),
                origin=row.origin,
                updated_ms=row.updated_ms,
            )
            for row in rows
        ]

    async def save(self, stored: StoredAgent, *, new: bool) -> None:
        key = {"tenant": stored.tenant, "id": stored.agent.id}
        values = {
            "definition": _definition_of(stored.agent),
            "source": stored.source.value,
            "origin": stored.origin,
            "updated_ms": stored.updated_ms,
        }
        async with self._database.write() as connection:
            if new:
                try:
                    await connection.execute(insert(_agents).values(**key, **values))
                except IntegrityError as error:
                    raise AgentExists(f"there is already an agent '{stored.agent.id}'") from error
            else:
                mine = (_agents.c.tenant == stored.tenant, _agents.c.id == stored.agent.id)
                changed = await connection.execute(update(_agents).where(*mine).values(**values))
                if not changed.rowcount:
                    raise _missing(stored.agent.id)
            told = {"version": stored.agent.version, "enabled": stored.agent.enabled, "source": stored.source.value}
            kind = "agent.registered" if new else "agent.updated"
            await tell(connection, stored.tenant, kind, stored.agent.id, told)

    async def remove(self, tenant: str, agent_id: str) -> None:
        async with self._database.write() as connection:
            removed = await connection.execute(
                delete(_agents).where(_agents.c.tenant == tenant, _agents.c.id == agent_id)
            )
            if not removed.rowcount:
                raise _missing(agent_id)
            await tell(connection, tenant, "agent.unregistered", agent_id)

    async def revision(self) -> int:
        async with self._database.read() as connection:
            return await _current(connection)


async def _current(connection: AsyncConnection) -> int:
    """Every change makes this another number: rows come, go, or grow in ``updated_ms``."""
    query = select(_agents.c.tenant, _agents.c.id, _agents.c.updated_ms).order_by(_agents.c.tenant, _agents.c.id)
    return hash(tuple(map(tuple, (await connection.execute(query)).all())))


def _missing(agent_id: str) -> AgentNotFound:
    return AgentNotFound(f"there is no agent '{agent_id}'")


def _definition_of(agent: Agent) -> dict[str, Any]:
    return {**dataclasses.asdict(agent), "role": agent.role.value}


def _agent_of(definition: dict[str, Any]) -> Agent:
    """Tolerates what an older release did not write and a newer one wrote besides."""
    fields = _known(Agent, definition)
    for name in ("capabilities", "examples", "keywords"):
        fields[name] = tuple(fields.get(name, ()))
    role = fields.get("role")
    fields["role"] = Role(role) if role in set(Role) else Role.WORKER
    for name, kind in (("limits", Limits), ("balancing", Balancing), ("recovery", Recovery)):
        fields[name] = kind(**_known(kind, fields.get(name, {})))
    return Agent(**fields)


def _known(kind: type[Agent | Limits | Balancing | Recovery], given: dict[str, Any]) -> dict[str, Any]:
    """What this release knows of what is stored; a choice that it does not know is as if nothing had been said."""
    names = {field.name for field in dataclasses.fields(kind)}
    known = {name: value for name, value in given.items() if name in names}
    if "algorithm" in known:
        known["algorithm"] = Algorithm(known["algorithm"]) if known["algorithm"] in set(Algorithm) else None
    if "actions" in known:
        known["actions"] = {code: Action(action) for code, action in known["actions"].items() if action in set(Action)}
    if "exhausted" in known:
        known["exhausted"] = Action(known["exhausted"]) if known["exhausted"] in set(Action) else Action.ABORT
    return known
