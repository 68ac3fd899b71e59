"""The constants of ``core/classifier/constants.py``: ``python -m benchmarks.routing_constants`` prints them.

They are what a classifier knows before it has examples of its own. They are fitted on the definitions and train texts
of CLINC150 (150 agents; 10 agents, with and without their capability lines) and MetaTool in ``../shared/routing``, with
the encoder of ``../shared/encoder`` and without, all four registries counting the same. The tables say how well they do
on each registry when they are fitted on the other three.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from agent_orchestra.adapters.encoders.folder import open_folder
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example, Model, Vector, fit, texts_of
from agent_orchestra.core.classifier.arrays import Bools, Floats, Ints, sigmoid
from agent_orchestra.core.classifier.calibration import OUTSIDE_SHARE, REFUSED, fit_mix, read
from agent_orchestra.core.classifier.constants import Prior
from agent_orchestra.core.classifier.corpus import Features
from agent_orchestra.core.classifier.fitting import as_stranger
from agent_orchestra.core.classifier.regression import logistic
from agent_orchestra.core.classifier.scoring import Scores

SHARED: Final = Path(__file__).resolve().parent.parent.parent / "shared"
#: Requests of each registry.
_REQUESTS: Final = 1_500
#: Examples an agent, where the constants are a prior of what examples teach.
_SHOTS: Final = 5
#: Where the weights of the scores start from: learned, near, centre.
_START: Final = np.array([1.0, 0.3, 0.15])
#: Near and centre of definitions alone. By meaning, a centroid of descriptions and their parts is like no request; by
#: words alone it gathers what single lines lack.
_MEANING_START: Final = np.array([0.8, 0.08])
_WORDS_START: Final = np.array([0.3, 0.15])
_RIDGE: Final = 10.0
_BINS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    agents: Sequence[Agent]
    train: Sequence[Example]


class Request(NamedTuple):
    """A request that the model has not seen, and the number of its agent."""

    text: Features
    scores: Scores
    own: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Of the requests of a suite: ``fits``, ``signals``, and whether the best agent is ``right``. ``strange``: the fits
    of the same requests when their own agents are taken away.
    """

    fits: Floats
    signals: Floats
    right: Bools
    strange: Floats


def main() -> int:
    loaded = suites()
    texts = {text for suite in loaded for text in (*texts_of(suite.agents), *(row.text for row in suite.train))}
    vectors = asyncio.run(encoded(sorted(texts)))
    ways: Sequence[tuple[str, Mapping[str, Vector], int]] = (
        ("SEMANTIC", vectors, 0),
        ("SEMANTIC_LEARNED", vectors, _SHOTS),
        ("LEXICAL", {}, 0),
        ("LEXICAL_LEARNED", {}, _SHOTS),
    )
    for name, known, shots in ways:
        mix, signals = measured(loaded, known, shots)
        print(f"\n{name} = {shown(solved(signals, mix))}\n")
        print("| left out | right | calibration error |\n|---|---:|---:|")
        for number, suite in enumerate(loaded):
            others = solved([each for n, each in enumerate(signals) if n != number], mix)
            right = float(signals[number].right.mean())
            print(f"| {suite.name} | {100 * right:.1f} % | {calibration_error(signals[number], others):.3f} |")
    return 0


def suites() -> list[Suite]:
    broad = _agents("clinc/registry_10.json")
    plain = [replace(agent, capabilities=()) for agent in broad]
    return [
        Suite(
            name="150 intents", agents=_agents("clinc/registry_150.json"), train=_rows("clinc/train.jsonl", "intent")
        ),
        Suite(name="10 domains", agents=broad, train=_rows("clinc/train.jsonl", "agent")),
        Suite(name="10 domains by their descriptions", agents=plain, train=_rows("clinc/train.jsonl", "agent")),
        Suite(
            name="100 tools", agents=_agents("metatool_a/registry.json"), train=_rows("metatool_a/train.jsonl", "agent")
        ),
    ]


def _agents(path: str) -> list[Agent]:
    fields: list[Any] = json.loads((SHARED / "routing" / path).read_text("utf-8"))
    return [
        Agent(
            id=one["id"],
            kind="prompt",
            name=one["name"],
            description=one["description"],
            capabilities=tuple(one["capabilities"]),
            keywords=tuple(one["keywords"]),
        )
        for one in fields
    ]


def _rows(path: str, label: str) -> list[Example]:
    rows = [json.loads(line) for line in (SHARED / "routing" / path).read_text("utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    return [Example(text=row["text"], agent_id=row[label]) for row in rows]


async def encoded(texts: Sequence[str]) -> Mapping[str, Vector]:
    encoder = open_folder(SHARED / "encoder")
    try:
        return dict(zip(texts, await encoder.encode(texts), strict=True))
    finally:
        await encoder.close()


def measured(loaded: Sequence[Suite], vectors: Mapping[str, Vector], shots: int) -> tuple[Floats, list[Signals]]:
    """The weights of the scores, and the signals of each suite that they lead to."""
    scored = [_scored(suite, vectors, shots) for suite in loaded]
    start = _START if shots else _MEANING_START if vectors else _WORDS_START
    mixes = [
        fit_mix(np.stack([_stacked(one.scores) for one in each]), _own(each), np.ones(len(each)), start)
        for _, each in scored
    ]
    mix = np.exp(np.mean(np.log(mixes), 0))
    mix = mix if shots else np.r_[0.0, mix]
    return mix, [_signals(model, each, mix) for model, each in scored]


def _scored(suite: Suite, vectors: Mapping[str, Vector], shots: int) -> tuple[Model, list[Request]]:
    """A model of a suite with so many examples an agent, and its scores of requests that it has not seen."""
    seen: Counter[str | None] = Counter()
    examples: list[Example] = []
    others: list[Example] = []
    for row in suite.train:
        seen[row.agent_id] += 1
        (examples if seen[row.agent_id] <= shots else others).append(row)
    texts = (*texts_of(suite.agents), *(example.text for example in examples))
    model = fit(suite.agents, examples, {text: vectors[text] for text in texts} if vectors else {})
    found: list[Request] = []
    for row in others[:_REQUESTS]:
        text = model.space.features(row.text, vectors.get(row.text))
        found.append(Request(text, model.scorer.scores(text), model.agents.index(row.agent_id or "")))
    return model, found


def _signals(model: Model, requests: Sequence[Request], mix: Floats) -> Signals:
    good = [read(one.scores, mix, one.text.coverage) for one in requests]
    strange = [
        as_stranger(model.scorer, one.text, reading.total, mix, one.own)
        for one, reading in zip(requests, good, strict=True)
    ]
    return Signals(
        fits=np.array([reading.fit for reading in good]),
        signals=np.array([reading.signals for reading in good]),
        right=np.array([reading.best for reading in good]) == _own(requests),
        strange=np.array([reading.fit for reading in strange]),
    )


def _own(requests: Sequence[Request]) -> Ints:
    return np.array([one.own for one in requests])


def _stacked(scores: Scores) -> Floats:
    return scores.kinds.T.astype(np.float64)


def solved(suites: Sequence[Signals], mix: Floats) -> Prior:
    """The constants that fit these suites best."""
    fits = np.concatenate([np.r_[each.fits, each.strange] for each in suites])
    inside = np.concatenate([np.repeat([1.0, 0.0], len(each.fits)) for each in suites])
    signals = np.concatenate([each.signals for each in suites])
    right = np.concatenate([each.right for each in suites]).astype(float)
    line = np.stack([np.ones(len(fits)), fits], 1)
    even = logistic(line, inside, np.ones(len(fits)), np.zeros(2), ridge=1e-3)
    return Prior(
        mix=mix,
        inside=even - np.array([math.log(OUTSIDE_SHARE), 0.0]),
        right=logistic(signals, right, np.ones(len(right)), np.zeros(len(suites[0].signals[0])), ridge=_RIDGE),
        threshold=sum(float(np.quantile(each.fits, REFUSED)) for each in suites) / len(suites),
    )


def shown(prior: Prior) -> str:
    def rounded(values: Floats) -> str:
        return f"[{', '.join(f'{value:.2f}' for value in values)}]"

    return f"_prior({rounded(prior.mix)}, {rounded(prior.inside)}, {rounded(prior.right)}, {prior.threshold:.2f})"


def calibration_error(suite: Signals, prior: Prior) -> float:
    """The expected calibration error of the confidence, over requests that are all somebody's."""
    inside = np.array([sigmoid(prior.inside[0] + prior.inside[1] * fit) for fit in suite.fits])
    sure = inside * np.array([sigmoid(float(prior.right @ signals)) for signals in suite.signals])
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = [float((sure - suite.right)[bins == b].sum()) for b in range(_BINS)]
    return sum(abs(gap) for gap in gaps) / len(sure)


if __name__ == "__main__":
    sys.exit(main())
