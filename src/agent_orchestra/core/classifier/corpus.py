"""The texts that a classifier is made from, as rows of numbers: lines of definitions and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier.arrays import Bools, Floats, Ints, Vector, group_starts, grouped, picked
from agent_orchestra.core.classifier.lines import NEAREST, Example, Kind, lines_of
from agent_orchestra.core.classifier.ngrams import WIDTH, Rarity, Sketcher

__all__ = ["SHARPNESS", "Corpus", "Encoded", "Features", "Space", "Topic", "gather", "spell"]

#: Weight of the sketch in a similarity, beside 1 of the embedding.
SKETCH_SHARE: Final = 0.3
#: Inverse temperature of similarities of length-one vectors.
SHARPNESS: Final = 20.0
#: What "what is my" counts where words are all there is: a small registry cannot tell by rarity that it means nothing.
_STOP_SHARE: Final = 0.4


class Topic(NamedTuple):
    """What an agent can be asked for. ``name``: the capability line, empty where the agent has only one topic."""

    agent_id: str
    name: str


class Features(NamedTuple):
    """A text in numbers: ``meaning`` (dimension,), ``words`` (WIDTH,), both scaled for :class:`Space`."""

    meaning: Floats
    words: Floats
    coverage: float


class Encoded(NamedTuple):
    """A text with its vector, where it has one."""

    text: str
    vector: Vector | None


class Space:
    """Where texts become vectors [meaning | words] of squared length 1 + SKETCH_SHARE, with or without an embedding."""

    def __init__(self, rarity: Rarity, dimension: int, *, known_from: int = 1) -> None:
        """``known_from``: see :class:`~agent_orchestra.core.classifier.ngrams.Sketcher`."""
        self.rarity = rarity
        self.dimension = dimension
        self.sketcher = Sketcher(rarity, stop_share=1.0 if dimension else _STOP_SHARE, known_from=known_from)

    def features(self, text: str, vector: Vector | None) -> Features:
        """Raises ValueError for a vector of another dimension, or one that is not finite."""
        sketch = self.sketcher.sketch(text)
        if not self.dimension:
            return Features(np.zeros(0, np.float32), sketch.values * _ALONE, sketch.coverage)
        if vector is None:
            return Features(np.zeros(self.dimension, np.float32), sketch.values * _ALONE, sketch.coverage)
        return Features(checked(vector, self.dimension), sketch.values * _BESIDE, sketch.coverage)

    def rows(self, texts: Sequence[str], vectors: Mapping[str, Vector]) -> Floats:
        """(texts, dimension + WIDTH): the features of many texts. Raises ValueError as :meth:`features` does."""
        x = np.zeros((len(texts), self.dimension + WIDTH), np.float32)
        x[:, self.dimension :] = self.sketcher.sketches(texts)
        x[:, self.dimension :] *= _ALONE
        for row, text in enumerate(texts if self.dimension else ()):
            if text in vectors:
                x[row, : self.dimension] = checked(vectors[text], self.dimension)
                x[row, self.dimension :] *= _BESIDE / _ALONE
        return x


_BESIDE: Final = np.float32(SKETCH_SHARE**0.5)
_ALONE: Final = np.float32((1 + SKETCH_SHARE) ** 0.5)


def checked(vector: Vector, dimension: int) -> Vector:
    """The vector, if it has this dimension and only finite numbers. Raises ValueError."""
    if vector.shape != (dimension,):
        raise ValueError(f"a vector of shape {vector.shape} was given; the classifier's have {dimension} numbers")
    if not np.isfinite(vector.sum()):
        raise ValueError("a vector holds what is no finite number")
    return vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Rows of texts. ``x``: (rows, dimension + WIDTH); ``agent``, ``topic``: numbers; ``example``: not a line of a
    definition; ``prototype``: requests are compared with it. ``owner``: the agent of each topic, ascending.
    """

    x: Floats
    agent: Ints
    topic: Ints
    weight: Floats
    example: Bools
    prototype: Bools
    texts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    owner: Ints
    topics: tuple[Topic, ...]

    def take(self, rows: Ints) -> Corpus:
        """Some of the rows, for the same agents and topics."""
        return Corpus(
            x=self.x[rows],
            agent=self.agent[rows],
            topic=self.topic[rows],
            weight=self.weight[rows],
            example=self.example[rows],
            prototype=self.prototype[rows],
            texts=picked(self.texts, rows),
            kinds=picked(self.kinds, rows),
            owner=self.owner,
            topics=self.topics,
        )


class _Entry(NamedTuple):
    text: str
    kind: Kind
    agent: int
    topic: int
    weight: float
    prototype: bool


def spell(agents: Sequence[Agent], examples: Sequence[Example], *, meaning: bool) -> tuple[list[_Entry], list[Topic]]:
    """The lines of these agents and their examples, and the agents' topics. Who is not among them has no examples.

    ``meaning``: whether there are embeddings, or words alone.
    """
    other = "words" if meaning else "meaning"
    entries: list[_Entry] = []
    topics: list[Topic] = []
    for number, agent in enumerate(agents):
        definition = lines_of(agent)
        for line in definition.lines:
            if line.only == other:
                continue
            topic = NEAREST if line.topic == NEAREST else len(topics) + line.topic
            entries.append(_Entry(line.text, line.kind, number, topic, line.weight, line.prototype))
        topics += [Topic(agent.id, name) for name in definition.topics]
    numbers = {agent.id: number for number, agent in enumerate(agents)}
    for example in examples:
        number = -1 if example.agent_id is None else numbers.get(example.agent_id, -1)
        if number >= 0 and example.weight > 0:
            entries.append(_Entry(example.text, "example", number, NEAREST, example.weight, True))
    return entries, topics


def gather(agents: Sequence[Agent], examples: Sequence[Example], vectors: Mapping[str, Vector], space: Space) -> Corpus:
    """The rows of these agents, their lines first. Raises ValueError for vectors that do not fit the space."""
    entries, topics = spell(agents, examples, meaning=bool(space.dimension))
    x = space.rows([entry.text for entry in entries], vectors)
    numbers = {agent.id: number for number, agent in enumerate(agents)}
    agent = np.array([entry.agent for entry in entries], np.int64)
    owner = np.array([numbers[topic.agent_id] for topic in topics], np.int64)
    return Corpus(
        x=x,
        agent=agent,
        topic=_placed(x, agent, np.array([entry.topic for entry in entries], np.int64), owner),
        weight=np.array([entry.weight for entry in entries], np.float32),
        example=np.array([entry.kind == "example" for entry in entries], np.bool_),
        prototype=np.array([entry.prototype for entry in entries], np.bool_),
        texts=tuple(entry.text for entry in entries),
        kinds=tuple(entry.kind for entry in entries),
        owner=owner,
        topics=tuple(topics),
    )


def _placed(x: Floats, agent: Ints, topic: Ints, owner: Ints) -> Ints:
    """Topics, where rows without one take that of their agent whose lines are nearest."""
    topic = topic.copy()
    free = topic == NEAREST
    single = np.bincount(owner, minlength=1)[agent] == 1 if len(owner) else free
    topic[free & single] = np.searchsorted(owner, agent[free & single])
    for number in np.unique(agent[topic == NEAREST]):
        open_rows = np.flatnonzero((agent == number) & (topic == NEAREST))
        held = np.flatnonzero((agent == number) & (topic != NEAREST))
        held = held[np.argsort(topic[held], kind="stable")]
        starts = group_starts(topic[held])
        sizes = np.diff(np.r_[starts, len(held)])
        for row in open_rows:
            scores = grouped(SHARPNESS * (x[held] @ x[row]), starts) - np.log(sizes)
            topic[row] = topic[held[starts[scores.argmax()]]]
    return topic
