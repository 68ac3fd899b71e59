"""Agent Orchestra: the control plane that makes one reliable service of many AI agents.

    async with open_orchestra("orchestra.db") as orchestra:
        await orchestra.register_agent(Agent(id="echo", kind="function", keywords=("say",)), run=lambda text: text)
        answer = await orchestra.process_request("say hello")

Names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from agent_orchestra.adapters.discovery import agent
    from agent_orchestra.core.agent import Agent, Balancing, Filter, Limits, Role, Status
    from agent_orchestra.core.conversation import Conversation, InputPolicy
    from agent_orchestra.core.message import Author, Message
    from agent_orchestra.core.plan import Member
    from agent_orchestra.core.request import Answer, Reply, Usage
    from agent_orchestra.core.resilience import Recovery
    from agent_orchestra.core.stream import StreamEvent
    from agent_orchestra.errors import AgentUnavailable, OrchestraError
    from agent_orchestra.runtime.executor import Call
    from agent_orchestra.runtime.orchestra import Orchestra
    from agent_orchestra.runtime.telemetry import Log

__all__ = [
    "Agent",
    "AgentUnavailable",
    "Answer",
    "Author",
    "Balancing",
    "Call",
    "Conversation",
    "Filter",
    "InputPolicy",
    "Limits",
    "Member",
    "Message",
    "Orchestra",
    "OrchestraError",
    "Recovery",
    "Reply",
    "Role",
    "Status",
    "StreamEvent",
    "Usage",
    "__version__",
    "agent",
    "open_orchestra",
]

_HOMES = {
    "Agent": "core.agent",
    "Balancing": "core.agent",
    "Filter": "core.agent",
    "Limits": "core.agent",
    "Role": "core.agent",
    "Status": "core.agent",
    "Conversation": "core.conversation",
    "InputPolicy": "core.conversation",
    "Author": "core.message",
    "Message": "core.message",
    "Member": "core.plan",
    "Answer": "core.request",
    "Reply": "core.request",
    "Usage": "core.request",
    "Recovery": "core.resilience",
    "StreamEvent": "core.stream",
    "AgentUnavailable": "errors",
    "OrchestraError": "errors",
    "agent": "adapters.discovery",
    "Call": "runtime.executor",
    "Orchestra": "runtime.orchestra",
}


def open_orchestra(
    database: str | Path | None = None, *, config: str | Path | None = None, log: Log | None = None
) -> AbstractAsyncContextManager[Orchestra]:
    """An orchestra inside this program, open over the block.

    ``database``: a path for SQLite, or an address such as ``postgresql://…``; without it, what the settings say.
    ``config``: the settings file; without it ``orchestra.yaml`` in the working folder where there is one. ``log``:
    where to tell what happens; without it the standard library's logger ``agent_orchestra``.

    Raises :class:`ConfigurationError` with the way out, and :class:`InvalidAgent` for an agent of the configuration.
    """
    from agent_orchestra.bootstrap import opened

    return opened(database, config=config, log=log)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("agent-orchestra")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
