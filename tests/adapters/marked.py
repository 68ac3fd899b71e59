"""A marked function that other modules borrow."""

from __future__ import annotations

from agent_orchestra import agent


@agent(id="borrowed")
def borrowed(content: str) -> str:
    return content
