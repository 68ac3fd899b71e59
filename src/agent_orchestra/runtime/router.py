"""Gathers what a route is decided from, and has it decided."""

from __future__ import annotations

from agent_orchestra.core.conversation import Conversation
from agent_orchestra.core.request import Request
from agent_orchestra.core.routing import Query, Route, route
from agent_orchestra.errors import AgentDisabled, NoInstanceAvailable
from agent_orchestra.runtime.registry import Roster

__all__ = ["Router"]


class Router:
    """Decides from the words of the agents' definitions; ``fallback`` is the agent of last resort."""

    def __init__(self, *, fallback: str | None) -> None:
        self._fallback = fallback

    def route(self, request: Request, conversation: Conversation | None, roster: Roster) -> Route:
        """The route of a request.

        Raises :class:`AgentNotFound`, :class:`AgentDisabled` or :class:`NoInstanceAvailable` for an agent that was
        named and cannot answer, :class:`NoAgentMatches` when none fits.
        """
        if request.agent_id is not None:
            named = roster.get(request.agent_id)
            if not named.agent.enabled:
                raise AgentDisabled(f"agent '{request.agent_id}' is disabled; enable it, or leave the choice open")
            if request.agent_id not in roster.available:
                reason = f": {named.fault}" if named.fault else ""
                raise NoInstanceAvailable(f"agent '{request.agent_id}' is {named.status}{reason}")
        return route(
            Query(
                text=request.content,
                agent_id=request.agent_id,
                capability=request.capability,
                active_agent=conversation.active_agent if conversation else None,
            ),
            roster.available,
            roster.index.scores(request.content) if request.agent_id is None else (),
            self._fallback,
        )
