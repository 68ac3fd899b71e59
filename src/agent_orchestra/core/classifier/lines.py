"""What the definition of an agent says, line by line: never one paragraph, which would be near to nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier.ngrams import STOP_WORDS

__all__ = ["Example", "Kind", "Line", "Lines", "lines_of", "texts_of"]

Kind = Literal["capability", "example", "description", "keywords", "name"]

#: The topic of a line that belongs to the nearest of its agent's.
NEAREST: Final = -1

_WORD_BREAK: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|[_\-./]+")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE_END: Final = re.compile(r"[.;:!?\n]+(?:\s|$)|,\s+(?:and\s+|or\s+)?|\s+[\u2013\u2014-]\s+")
#: So many parts make a sentence a list.
_LIST: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request of which it is known whose it is; none: nobody's."""

    text: str
    agent_id: str | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A text of a definition. ``topic``: a number inside the agent, or NEAREST. ``prototype``: whether requests are
    compared with it; a title is not like any request, but still tells a regression something. ``only``: where it is
    used, if not everywhere: by ``words`` alone, or with their ``meaning``.
    """

    text: str
    kind: Kind
    topic: int
    weight: float = 1.0
    prototype: bool = True
    only: Literal["words", "meaning"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines of one agent. ``topics``: what each of its topics is called, at least one."""

    lines: tuple[Line, ...]
    topics: tuple[str, ...]


def texts_of(agents: Iterable[Agent]) -> list[str]:
    """Every text of these agents that an encoder has to see, without doubles."""
    return list(
        dict.fromkeys(
            text for agent in agents for text in (*(line.text for line in lines_of(agent).lines), *agent.examples)
        )
    )


def lines_of(agent: Agent) -> Lines:
    """The lines of an agent without its examples: each text once, at least one line.

    Where there are several capabilities each is a topic of its own, and everything else joins the nearest; otherwise
    the agent is one topic.
    """
    found: dict[str, Line] = {}
    spoken = dict.fromkeys(_sentence(capability) for capability in agent.capabilities)
    capabilities = tuple(text for text in spoken if text)
    several = len(capabilities) > 1
    rest = NEAREST if several else 0
    topics = [number if several else 0 for number in range(len(capabilities))]
    for topic, text in zip(topics, capabilities, strict=True):
        found[text] = Line(text=text, kind="capability", topic=topic)
    parts = (line for topic, text in zip(topics, capabilities, strict=True) for line in _of_capability(text, topic))
    for line in (*parts, *_of_description(agent, rest), *_of_keywords(agent, rest)):
        found.setdefault(line.text, line)
    if not found:
        text = _spaced(agent.name or agent.id)
        found[text] = Line(text=text, kind="name", topic=0)
    return Lines(lines=tuple(found.values()), topics=capabilities if several else ("",))


def _sentence(capability: str) -> str:
    return capability.strip() if " " in capability.strip() else _spaced(capability)


def _of_capability(text: str, topic: int) -> Iterable[Line]:
    """The two halves of "title: body"."""
    title, colon, body = text.partition(": ")
    if colon and body.strip():
        yield Line(text=body.strip(), kind="capability", topic=topic)
        yield Line(text=title, kind="capability", topic=topic, prototype=False)


def _of_description(agent: Agent, topic: int) -> Iterable[Line]:
    description = agent.description.strip()
    if not description:
        return
    name = _spaced(agent.name or agent.id)
    first = _SENTENCE_END.split(description, maxsplit=1)[0]
    for text in (description, f"{name}: {description}", f"{name}: {first}"):
        yield Line(text=text, kind="description", topic=topic)
    parts = [part for part in dict.fromkeys(_clauses(description)) if part != description]
    for part in parts:
        yield Line(text=part, kind="description", topic=topic, weight=len(parts) ** -0.5)


def _of_keywords(agent: Agent, topic: int) -> Iterable[Line]:
    """Keywords that the name does not have already. The more there are the less each says: some are chance words."""
    known = {*_spaced(agent.name).casefold().split(), *_spaced(agent.id).casefold().split()}
    every = [word for word in dict.fromkeys(map(str.strip, agent.keywords)) if word and word.casefold() not in known]
    # Where nothing else tells what an agent is for, even such a word does.
    words = [word for word in every if word.casefold() not in STOP_WORDS] or every
    if len(words) > 1:
        # One word alone means much, and so is near to whatever else says little.
        yield Line(text=", ".join(words), kind="keywords", topic=topic, only="meaning")
    for word in words:
        only = "words" if len(words) > 1 else None
        yield Line(text=word, kind="keywords", topic=topic, weight=len(words) ** -0.5, only=only)


def _spaced(name: str) -> str:
    """A name as words: "refundRequests" and "refund_requests" are two each."""
    return " ".join(_WORD_BREAK.sub(" ", name).split())


def _clauses(text: str) -> list[str]:
    """The parts of each sentence that is a list; the parts of another sentence say less than the whole."""
    found: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        parts = [part for part in (p.strip(" .,;:") for p in _CLAUSE_END.split(sentence) if p) if len(part) > 2]
        if len(parts) >= _LIST:
            found += parts
    return found
