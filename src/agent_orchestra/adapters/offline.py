"""Agents that answer without any vendor, from passages that their definition holds."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Any, Final, cast

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import JsonObject
from agent_orchestra.core.words import terms
from agent_orchestra.errors import AttachmentNotSupported, Fault, InvalidAgent
from agent_orchestra.runtime.executor import Call, Emit, Instance

__all__ = ["OfflineBackend", "OfflineKind"]

_MOST_TEXTS: Final = 256
_MOST_CHARS: Final = 4_000
_NOT_BLANK: Final = "^[^\\u0000]*[^\\s\\u001c-\\u001f\\u0085\\u0000][^\\u0000]*$"
_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "properties": {
        "knowledge": {
            "description": "The texts to answer from. Each paragraph of a text is a passage.",
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": _MOST_CHARS, "pattern": _NOT_BLANK},
            "minItems": 1,
            "maxItems": _MOST_TEXTS,
        },
        "passages": {
            "description": "How many passages an answer has at the most.",
            "type": "integer",
            "minimum": 1,
            "maximum": 10,
            "default": 2,
        },
    },
    "required": ["knowledge"],
    "additionalProperties": False,
}
_PREFACE: Final = "(offline, from this agent's own notes)"
_NOTHING: Final = "(offline) Nothing in this agent's own notes matches that. It can tell about: {topics}"


class OfflineKind:
    """Conforms to :class:`Kind`."""

    @property
    def schema(self) -> JsonObject:
        return _SCHEMA

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:  # noqa: ARG002  nothing to trust
        knowledge, passages = _checked(agent)
        return [Instance(id="offline", backend=OfflineBackend(knowledge, passages))]


def _checked(agent: Agent) -> tuple[Sequence[str], int]:
    settings = agent.settings
    faults = [
        Fault(path=f"settings.{name}", message="is not known for offline agents")
        for name in settings
        if name not in ("knowledge", "passages")
    ]
    knowledge = settings.get("knowledge")
    if isinstance(knowledge, str) or not isinstance(knowledge, Sequence) or not 1 <= len(knowledge) <= _MOST_TEXTS:
        faults.append(Fault(path="settings.knowledge", message=f"must be a list of 1 to {_MOST_TEXTS} texts"))
        knowledge = ()
    for number, text in enumerate(knowledge):
        if not isinstance(text, str) or not text.strip() or len(text) > _MOST_CHARS:
            message = f"must be a text of 1 to {_MOST_CHARS} characters, not blank"
            faults.append(Fault(path=f"settings.knowledge.{number}", message=message))
    passages = settings.get("passages", 2)
    if isinstance(passages, float) and passages.is_integer():
        passages = int(passages)
    if not isinstance(passages, int) or isinstance(passages, bool) or not 1 <= passages <= 10:
        faults.append(Fault(path="settings.passages", message="must be a whole number from 1 to 10"))
        passages = 2
    if faults:
        raise InvalidAgent(agent.id, tuple(faults))
    return cast("Sequence[str]", knowledge), passages


class OfflineBackend:
    """Conforms to :class:`Backend`. The same question always gets the same answer.

    Ranks passages by BM25 (Robertson et al., TREC-3, 1994; the ``bm25s`` library, variant "lucene") over words without
    case, plural and stop words.
    """

    def __init__(self, knowledge: Sequence[str], most: int) -> None:
        self._passages = [p.strip() for text in knowledge for p in re.split(r"\n\s*\n", text) if p.strip()]
        self._most = most
        self._index: Any = None

    async def run(self, call: Call, emit: Emit) -> Reply:
        if call.attachments:
            media_type = call.attachments[0].media_type
            raise AttachmentNotSupported("an agent that answers offline reads text only", media_type=media_type)
        # The library and the index come with the first question: numpy is slow to import.
        found = await asyncio.to_thread(self._found, call.content) if self._index is None else self._found(call.content)
        if found:
            pieces = [_PREFACE, *(f"\n\n{passage}" for passage in found)]
        else:
            topics = ", ".join(call.agent.capabilities) or call.agent.description or call.agent.name or call.agent.id
            pieces = [_NOTHING.format(topics=topics)]
        for piece in pieces:
            emit(piece)
            await asyncio.sleep(0)
        return Reply(output="".join(pieces))

    def _found(self, content: str) -> Sequence[str]:
        """The passages that share a term with the content, best first."""
        if self._index is None:
            self._index = _indexed(self._passages)
        known = self._index.vocab_dict
        query = [term for term in dict.fromkeys(terms(content)) if term in known]
        if not query:
            return ()
        scores = self._index.get_scores(query)
        best = sorted(range(len(self._passages)), key=lambda number: (-scores[number], number))[: self._most]
        floor = float(scores[best[0]]) / 3
        return [self._passages[number] for number in best if scores[number] > floor]


def _indexed(passages: Sequence[str]) -> Any:
    import bm25s  # pyright: ignore[reportMissingTypeStubs]  it has none

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index: Any = bm25s.BM25(method="lucene")
    # A passage of stop words only has no terms; the library needs one.
    index.index([list(terms(passage)) or [""] for passage in passages], show_progress=False)
    return index
