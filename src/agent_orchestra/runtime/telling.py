"""What instances tell of their output while they are called, and whether their reply is what they told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import Json, cleaned, faults_in
from agent_orchestra.errors import AgentFailed, RunFailed

__all__ = ["Teller", "Voice", "judged"]


class Teller:
    """Passes on what an instance tells, until its time is over or it has told too much."""

    def __init__(self, emit: Callable[[str, int], None], most: int) -> None:
        self._emit = emit
        self._most = most
        self._open = True
        self.pieces: list[str] = []
        self.length = 0

    def __call__(self, piece: str) -> None:
        if not self._open or not piece:
            return
        piece = cleaned(piece)
        if self.length + len(piece) > self._most:
            raise _too_long(self._most)
        self._emit(piece, self.length)
        self.pieces.append(piece)
        self.length += len(piece)

    def close(self) -> str:
        self._open = False
        return "".join(self.pieces)


class Voice:
    """What one instance tells; of one that was given up nothing is heard any more, whenever it ends."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self.silenced = False
        self.before_first_word: Callable[[], None] | None = None

    def __call__(self, piece: str) -> None:
        if self.silenced:
            return
        if piece and self.before_first_word is not None:
            self.before_first_word()
            self.before_first_word = None
        self._teller(piece)


def _too_long(most: int) -> AgentFailed:
    return AgentFailed(f"the agent's output is longer than {most} characters", cause="output_too_long")


def judged(reply: Reply, teller: Teller) -> tuple[Reply | None, RunFailed | None]:
    if not teller.length:
        try:
            teller(reply.output)
        except AgentFailed as error:
            return None, error
    told = teller.pieces[0] if len(teller.pieces) == 1 else "".join(teller.pieces)
    if told != cleaned(reply.output):
        return None, AgentFailed("the agent's output is not what its stream told", cause="output_mismatch")
    # What no database takes would never come on record, and the request would never end.
    rest: dict[str, Json] = {"value": reply.value, "usage.cost_usd": reply.usage.cost_usd}
    for number, asked in enumerate(reply.tool_calls):
        rest[f"tool_calls.{number}"] = [asked.id, asked.name, asked.arguments]
    for path, given in rest.items():
        if given is not None and (fault := next(faults_in(path, given), None)):
            return None, AgentFailed(f"the agent's reply cannot be stored: {fault}", cause="output_not_storable")
    return reply if told == reply.output else dataclasses.replace(reply, output=told), None
