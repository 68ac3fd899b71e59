"""What is asked of a classifier, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from agent_orchestra.core.classifier.arrays import Vector

__all__ = ["NOBODY", "Judgement", "Scored", "Turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where a conversation stands. ``previous``: the agent that has it; ``last``: what the assistant said last, with
    its vector, which is needed only where no agent has the conversation.
    """

    previous: str | None
    last: str = ""
    last_vector: Vector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """``probability``: its share among the candidates. ``line``: the nearest text of its definition or examples, and
    ``kind`` what that is; both empty for agents that were too far away to be looked at closely.
    """

    agent_id: str
    probability: float
    line: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """``ranked``: best first. ``confidence``: the probability that the first is right. ``in_scope``: that the text is
    anybody's; ``accepted``: whether it fits well enough. ``margin``: by how much the first's share leads the second's.
    ``stayed``: the agent that had the conversation keeps it.
    """

    ranked: tuple[Scored, ...]
    confidence: float
    in_scope: float
    accepted: bool
    margin: float
    stayed: bool = False


NOBODY = Judgement(ranked=(), confidence=0.0, in_scope=0.0, accepted=False, margin=0.0)
