"""A classifier: made from definitions and what was learned, then read only."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import context
from agent_orchestra.core.classifier.arrays import Bools, Floats, Ints, Vector
from agent_orchestra.core.classifier.calibration import Calibration, Reading, read
from agent_orchestra.core.classifier.corpus import Corpus, Features, Space, checked, gather
from agent_orchestra.core.classifier.fitting import offset
from agent_orchestra.core.classifier.judgement import NOBODY, Judgement, Scored, Turn
from agent_orchestra.core.classifier.knowledge import Knowledge, dump, load
from agent_orchestra.core.classifier.lines import Example, lines_of, texts_of
from agent_orchestra.core.classifier.ngrams import Rarity, count
from agent_orchestra.core.classifier.scoring import NEVER, Scorer, Scores, assemble, joined

__all__ = ["Model", "build", "own_examples", "restore"]

#: A registry that has grown or shrunk by this share has other rare words than it had.
_STALE: Final = 0.1
#: A difference of log-probabilities that is none.
_EQUAL: Final = 1e-5


class _Outcome(NamedTuple):
    """A reading with the conversation considered: log-probabilities, and what they are worth."""

    total: Floats
    confidence: float
    in_scope: float
    accepted: bool
    stayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Judges whose a text is. Made by :func:`fit`, :func:`restore` or :meth:`rebuilt`; threads may share it.

    ``counted``: of how many agents the rarity of words is. ``out_of_fold``: the log-loss (nats) of each example that
    :func:`fit` was given, by a model that had not seen it; NaN for those left out, and where there are too few; empty
    in a model that was not just fitted.
    """

    definitions: tuple[Agent, ...]
    space: Space
    scorer: Scorer
    knowledge: Knowledge
    counted: int
    out_of_fold: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(agent.id for agent in self.definitions)

    @property
    def dimension(self) -> int:
        """Of the vectors that it takes; 0: none, it goes by words alone."""
        return self.space.dimension

    @property
    def learned(self) -> bool:
        """Whether a regression stands beside the definitions."""
        return self.scorer.learned

    @property
    def loss(self) -> float | None:
        """The out-of-fold log-loss, in nats an example."""
        return self.knowledge.loss

    @property
    def examples(self) -> int:
        """How many examples it was fitted on."""
        return self.knowledge.fitted_on

    @property
    def calibration(self) -> Calibration:
        return self.knowledge.calibration

    def judge(
        self,
        text: str,
        vector: Vector | None = None,
        *,
        among: Collection[str] | None = None,
        turn: Turn | None = None,
        limit: int = 5,
    ) -> Judgement:
        """Whose the text is, of all agents or of those ``among`` them.

        Raises ValueError for a vector that is not finite or has another dimension than the model's.
        """
        features = self.space.features(text, vector)
        allowed = None if among is None else self._allowed(among)
        candidates = len(self.definitions) if allowed is None else int(allowed.sum())
        if not candidates:
            return NOBODY
        present = None if turn is None else self._present(turn, allowed)
        scores = self.scorer.scores(features, allowed, present)
        found = self._by_text(read(scores, self.calibration.mix, features.coverage), candidates)
        if turn is not None:
            found = self._in_conversation(found, scores, text, features, turn, present, allowed)
        order = _best(found.total, max(1, min(limit, candidates)))
        shares = np.exp(found.total[order]).tolist()
        return Judgement(
            ranked=tuple(self._scored(scores, n, p) for n, p in zip(order.tolist(), shares, strict=True)),
            confidence=found.confidence,
            in_scope=found.in_scope,
            accepted=found.accepted,
            margin=shares[0] - shares[1] if len(shares) > 1 else 1.0,
            stayed=found.stayed,
        )

    def losses(self, examples: Sequence[Example], vectors: Mapping[str, Vector]) -> Floats:
        """The log-loss (nats) of each example: of its agent, or of being nobody's.

        An agent that the model does not have gets what chance would give.
        """
        numbers = {agent.id: number for number, agent in enumerate(self.definitions)}
        found = np.zeros(len(examples))
        for row, example in enumerate(examples):
            features = self.space.features(example.text, vectors.get(example.text) if self.dimension else None)
            if not self.definitions:
                continue
            reading = read(self.scorer.scores(features), self.calibration.mix, features.coverage)
            if example.agent_id is None:
                found[row] = -np.log(max(1 - self.calibration.in_scope(reading), 1e-9))
            elif example.agent_id in numbers:
                found[row] = -reading.total[numbers[example.agent_id]]
            else:
                found[row] = np.log(len(numbers) + 1)
        return found

    def rebuilt(self, agents: Sequence[Agent], vectors: Mapping[str, Vector]) -> Model:
        """The model of another set of agents, with what was learned of those that stay.

        An agent that is new is scored by its lines and examples at once. ``vectors``: of the texts of all of them; only
        those of new and changed agents are needed while the set is nearly the same, or something was learned. Raises
        ValueError for a vector of another dimension.
        """
        if not self.learned and abs(len(agents) - self.counted) > _STALE * self.counted:
            return build(agents, _recounted(self.knowledge, agents), vectors)
        known = {agent.id: number for number, agent in enumerate(self.definitions)}
        kept = {agent.id for agent in agents if agent.id in known and self.definitions[known[agent.id]] == agent}
        fresh = [agent for agent in agents if agent.id not in kept]
        added = build(fresh, self.knowledge, vectors, self.space.rarity)
        place = {agent.id: len(known) + number for number, agent in enumerate(fresh)}
        order = [place.get(agent.id, known.get(agent.id, 0)) for agent in agents]
        return Model(
            definitions=tuple(agents),
            space=added.space,
            scorer=joined(self.scorer, added.scorer).take(order),
            knowledge=self.knowledge,
            counted=self.counted,
        )

    def dump(self) -> bytes:
        """What was learned, without the definitions; :func:`restore` reads it."""
        return dump(self.knowledge)

    def _allowed(self, among: Collection[str]) -> Bools:
        return np.array([agent.id in among for agent in self.definitions], np.bool_)

    def _present(self, turn: Turn, allowed: Bools | None) -> int | None:
        """The number of the agent that has the conversation, if it may keep it."""
        if turn.previous is None:
            return None
        number = next((n for n, agent in enumerate(self.definitions) if agent.id == turn.previous), None)
        return number if number is None or allowed is None or allowed[number] else None

    def _by_text(self, reading: Reading, candidates: int) -> _Outcome:
        right = 1.0 if candidates == 1 else self.calibration.right_if_inside(reading)
        if reading.lead < _EQUAL:
            # Of agents that are equal, none is likelier to be right than another.
            right = min(right, 1 / int((reading.total >= reading.total[reading.best] - _EQUAL).sum()))
        in_scope = self.calibration.in_scope(reading)
        return _Outcome(reading.total, in_scope * right, in_scope, reading.fit >= self.calibration.threshold)

    def _in_conversation(
        self,
        found: _Outcome,
        scores: Scores,
        text: str,
        features: Features,
        turn: Turn,
        present: int | None,
        allowed: Bools | None,
    ) -> _Outcome:
        asked = [n for n in context.asked_for(text, self.definitions) if allowed is None or allowed[n]]
        if not asked and present is None:
            return self._after(found, turn, allowed) if turn.last else found
        if asked:
            placed = context.switched(found.total, asked, present)
        else:
            assert present is not None
            meaning = bool(features.meaning.any())
            placed = context.placed(found.total, scores.peak, present, text=text, last=turn.last, meaning=meaning)
        confidence = math.exp(float(placed.total[placed.best]))
        if not asked and not placed.stayed:
            return found._replace(total=placed.total, confidence=confidence)
        return _Outcome(placed.total, confidence, max(found.in_scope, confidence), True, placed.stayed)

    def _after(self, found: _Outcome, turn: Turn, allowed: Bools | None) -> _Outcome:
        """The outcome where no agent has the conversation, but the assistant has said something."""
        features = self.space.features(turn.last, turn.last_vector)
        last = self._by_text(
            read(self.scorer.scores(features, allowed), self.calibration.mix, features.coverage), len(self.definitions)
        )
        total = context.agreed(found.total, last.total)
        in_scope = max(found.in_scope, last.in_scope)
        return _Outcome(total, math.exp(float(total.max())) * in_scope, in_scope, found.accepted or last.accepted)

    def _scored(self, scores: Scores, number: int, probability: float) -> Scored:
        nearest = int(scores.nearest[number])
        line, kind = ("", "") if nearest < 0 else (self.scorer.texts[nearest], self.scorer.kinds[nearest])
        return Scored(agent_id=self.definitions[number].id, probability=probability, line=line, kind=kind)


def build(
    agents: Sequence[Agent], knowledge: Knowledge, vectors: Mapping[str, Vector], rarity: Rarity | None = None
) -> Model:
    """The model of these agents, with what is known. ``rarity``: of words, where more is known than what was learned.

    Raises ValueError for vectors of another dimension.
    """
    lines = [line.text for agent in agents for line in lines_of(agent).lines]
    space = Space((rarity or knowledge.rarity).seen(lines), knowledge.dimension)
    examples = (*own_examples(agents), *knowledge.examples)
    corpus = gather(agents, examples, {**vectors, **knowledge.vectors}, space)
    nobody = [
        space.features(example.text, knowledge.vectors.get(example.text))
        for example in knowledge.examples
        if example.agent_id is None
    ]
    learned = _coefficients(corpus, knowledge)
    known = {topic.agent_id for topic in knowledge.topics}
    fresh = np.array([learned is not None and agent.id not in known for agent in agents], np.bool_)
    scorer = assemble(corpus, len(agents), knowledge.dimension, learned, nobody, fresh)
    return Model(definitions=tuple(agents), space=space, scorer=scorer, knowledge=knowledge, counted=len(agents))


def own_examples(agents: Iterable[Agent]) -> list[Example]:
    """The examples that definitions hold."""
    return [Example(text=text, agent_id=agent.id) for agent in agents for text in agent.examples]


def restore(learned: bytes, agents: Sequence[Agent], vectors: Mapping[str, Vector]) -> Model:
    """The model of these agents, with what :meth:`Model.dump` wrote.

    Raises ValueError for what it did not write, and where the vectors are of another dimension.
    """
    known = load(learned)
    for vector in vectors.values():
        checked(vector, known.dimension)
    return build(agents, known, vectors)


def _recounted(known: Knowledge, agents: Sequence[Agent]) -> Knowledge:
    return replace(known, rarity=count(text for text in texts_of(agents)))


def _coefficients(corpus: Corpus, known: Knowledge) -> Floats | None:
    """A regression's coefficients for the topics of the corpus. Of a topic that is new, its lines alone speak; one of a
    new agent has no part in the regression.
    """
    if known.coefficients is None:
        return None
    places = {topic: number for number, topic in enumerate(known.topics)}
    agents = {topic.agent_id for topic in known.topics}
    found = np.zeros((len(known.coefficients), len(corpus.topics)), np.float32)
    base = offset(corpus)
    for number, topic in enumerate(corpus.topics):
        if topic in places:
            found[:, number] = known.coefficients[:, places[topic]]
        if topic.agent_id in agents:
            found[:-1, number] += base[:, number]
        else:
            found[-1, number] = NEVER
    return found


def _best(total: Floats, limit: int) -> Ints:
    """The numbers of the highest totals, best first, the lower number among equals."""
    some = np.argpartition(-total, limit - 1)[:limit] if limit < len(total) else np.arange(len(total))
    return some[np.lexsort((some, -total[some]))]
