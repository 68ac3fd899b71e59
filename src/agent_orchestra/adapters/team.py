"""Agents that are teams: several others on one request, as a plan in their definition says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from agent_orchestra.adapters.code import (
    TARGET_SCHEMA,
    NotThereError,
    check_allowed,
    check_own,
    found,
    is_target,
)
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.plan import SCHEMAS, mentions, read
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import Fault, InvalidAgent, InvalidInput
from agent_orchestra.runtime.coordinator import Coordinator, PlanBackend
from agent_orchestra.runtime.executor import Instance

__all__ = ["TeamKind"]

_AT: Final = "settings."
_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "properties": {
        **SCHEMAS,
        "router": {**TARGET_SCHEMA, "description": "With 'conditional', in place of 'route': a function."},
    },
    "required": ["agents"],
    "additionalProperties": False,
}


class TeamKind:
    """Conforms to :class:`Kind`.

    ``allowed``: the modules whose functions a caller may name as routers who is not the operator.
    """

    def __init__(self, coordinator: Coordinator, *, allowed: Sequence[str]) -> None:
        self._coordinator = coordinator
        self._allowed = frozenset(allowed)

    @property
    def schema(self) -> JsonObject:
        return _SCHEMA

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        router = await self._router(agent, trusted=trusted)
        settings = {name: value for name, value in agent.settings.items() if name != "router"}
        try:
            # In a thread: the first expression loads what compiles them.
            plan = await asyncio.to_thread(read, settings, at=_AT, router=router)
        except InvalidInput as error:
            raise InvalidAgent(agent.id, error.faults) from error
        named = mentions(plan, _AT)
        own = tuple(
            Fault(path=path, message="is the team itself") for path, agent_id in named.items() if agent_id == agent.id
        )
        if own:
            raise InvalidAgent(agent.id, own)
        return [Instance(id="team", backend=PlanBackend(self._coordinator, plan), mentions=named)]

    async def _router(self, agent: Agent, *, trusted: bool) -> Callable[..., object] | None:
        target = agent.settings.get("router")
        if target is None:
            return None
        if not isinstance(target, str) or not is_target(target):
            raise _wrong(agent, f"'{str(target)[:80]}' is not of the form 'module:function'")
        if not trusted:
            check_allowed(target, self._allowed)
        try:
            router = await asyncio.to_thread(found, target)
            self._coordinator.check_router(router)
        except NotThereError as error:
            raise _wrong(agent, str(error)) from error
        except InvalidInput as error:
            raise _wrong(agent, error.faults[0].message) from error
        if not trusted:
            check_own(target, router)
        return router


def _wrong(agent: Agent, message: str) -> InvalidAgent:
    return InvalidAgent(agent.id, (Fault(path="settings.router", message=message),))
