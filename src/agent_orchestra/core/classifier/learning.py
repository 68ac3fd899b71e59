"""The way from agents and examples to a classifier."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier.arrays import Floats, Vector
from agent_orchestra.core.classifier.calibration import Calibration
from agent_orchestra.core.classifier.constants import LEXICAL, LEXICAL_LEARNED, SEMANTIC, SEMANTIC_LEARNED
from agent_orchestra.core.classifier.corpus import Corpus, Encoded, Space, checked, gather
from agent_orchestra.core.classifier.fitting import Learned, learn
from agent_orchestra.core.classifier.knowledge import Knowledge
from agent_orchestra.core.classifier.lines import Example, texts_of
from agent_orchestra.core.classifier.model import Model, build, own_examples
from agent_orchestra.core.classifier.ngrams import count

__all__ = ["fit", "untaught"]

#: Rows times topics beyond which a regression takes minutes, and prototypes have to do.
_LARGEST: Final = 6_000_000


def fit(agents: Sequence[Agent], examples: Sequence[Example], vectors: Mapping[str, Vector], *, seed: int = 0) -> Model:
    """The classifier of these agents, from their definitions and from examples.

    The agents' own examples count as examples of weight 1. Examples of unknown agents, or of no weight, are left out;
    those that are nobody's teach what to refuse. ``vectors``: of :func:`texts_of` and the examples; none at all makes a
    classifier that goes by words alone, and a text without one is taken by its words. Takes seconds with thousands of
    examples. Raises ValueError for vectors of several dimensions, or not finite.
    """
    ids = {agent.id for agent in agents}
    usable = [example for example in examples if _usable(example, ids)]
    before = _of_definitions(agents, usable, vectors)
    space = Space(before.rarity, before.dimension)
    own = own_examples(agents)
    corpus = gather(agents, [*own, *usable], vectors, space)
    if len(agents) < 2 or not corpus.example.any() or len(corpus.agent) * len(corpus.owner) > _LARGEST:
        return replace(build(agents, before, vectors), out_of_fold=np.full(len(examples), np.nan))
    nobody = [Encoded(e.text, vectors.get(e.text)) for e in usable if e.agent_id is None]
    prior = SEMANTIC_LEARNED if space.dimension else LEXICAL_LEARNED
    learned = learn(corpus, nobody, len(agents), space, prior, seed)
    model = build(agents, _taught(before, corpus, learned, len(nobody), len(own)), vectors)
    return replace(model, out_of_fold=_aligned(learned, examples, len(own), ids))


def untaught(agents: Sequence[Agent], vectors: Mapping[str, Vector]) -> Model:
    """The classifier of definitions alone; their examples are texts to be compared with, and nothing is fitted.

    Takes some milliseconds a hundred lines. ``vectors``, errors: as :func:`fit`.
    """
    return build(agents, _of_definitions(agents, (), vectors), vectors)


def _of_definitions(agents: Sequence[Agent], examples: Sequence[Example], vectors: Mapping[str, Vector]) -> Knowledge:
    """What is known before anything is learned from the examples."""
    dimension = len(next(iter(vectors.values()))) if vectors else 0
    for vector in vectors.values():
        checked(vector, dimension)
    return Knowledge(
        dimension=dimension,
        rarity=count([*texts_of(agents), *(example.text for example in examples)]),
        calibration=Calibration.of(SEMANTIC if dimension else LEXICAL),
        examples=tuple(examples),
        vectors={example.text: vectors[example.text] for example in examples if example.text in vectors},
    )


def _doubted(examples: Iterable[Example], learned: Learned, own: int) -> tuple[Example, ...]:
    """The examples with less weight for those that are likely to be wrong; ``own``: how many the definitions hold."""
    if learned.beliefs is None:
        return tuple(examples)
    beliefs = iter(learned.beliefs[own:])
    return tuple(e if e.agent_id is None else replace(e, weight=e.weight * float(next(beliefs))) for e in examples)


def _taught(before: Knowledge, corpus: Corpus, learned: Learned, strangers: int, own: int) -> Knowledge:
    weights = corpus.weight[corpus.example]
    return replace(
        before,
        examples=_doubted(before.examples, learned, own),
        calibration=learned.calibration,
        topics=corpus.topics,
        coefficients=learned.coefficients,
        loss=None if learned.losses is None else float((weights * learned.losses).sum() / weights.sum()),
        fitted_on=len(weights) + strangers,
    )


def _aligned(learned: Learned, examples: Sequence[Example], own: int, ids: Collection[str]) -> Floats:
    """The out-of-fold losses of the examples as they were given; ``own``: how many the definitions hold."""
    found = np.full(len(examples), np.nan)
    if learned.losses is None:
        return found
    known, strange = iter(learned.losses[own:]), iter(learned.strange_losses)
    for row, example in enumerate(examples):
        if _usable(example, ids):
            found[row] = next(strange if example.agent_id is None else known)
    return found


def _usable(example: Example, ids: Collection[str]) -> bool:
    return example.weight > 0 and (example.agent_id is None or example.agent_id in ids)
