"""Fits the gate of ``core/classifier/context.py``, and says how it does on dialogues and services that it has not seen.

``python -m benchmarks.routing_context`` takes the dialogues of ``../shared/routing/sgd_dev`` and the encoder in
``../shared/encoder``. The gate sees turns of conversations that an agent has; the others are decided by the request and
the assistant's last turn, and count in the last column.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent_orchestra.adapters.encoders.folder import open_folder
from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Model, Vector, context
from agent_orchestra.core.classifier.arrays import Bools, Floats
from agent_orchestra.core.classifier.calibration import read
from agent_orchestra.core.classifier.regression import logistic

SHARED: Final = Path(__file__).resolve().parent.parent.parent / "shared"
#: A switch that is missed counts as two turns that were led astray: whoever asked must ask again, and find a way out.
_SWITCH_WEIGHT: Final = 2.0
_RIDGE: Final = 0.3
_FOLDS: Final = 10
_SEEDS: Final = 5
_BINS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """``right``, ``present``: numbers of agents. ``total``: log-probabilities by the request, and by the last turn too
    where no agent is present; there are no ``signals`` then."""

    dialogue: str
    right: int
    present: int | None
    total: Floats
    signals: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of turns that went right; ``everything``: with those of conversations that no agent has."""

    turns: float
    switches: float
    stays: float
    error: float
    everything: float


def main() -> int:
    rows = [json.loads(line) for line in (SHARED / "routing/sgd_dev/test.jsonl").read_text("utf-8").splitlines()]
    agents = [_agent(fields) for fields in json.loads((SHARED / "routing/sgd_dev/registry.json").read_text("utf-8"))]
    texts = dict.fromkeys([*classifier.texts_of(agents), *(row[key] for row in rows for key in ("text", "system"))])
    vectors = asyncio.run(_encoded([text for text in texts if text]))
    print("### The gate of a conversation, with an encoder\n")
    print(compared(list(measured(rows, agents, vectors)), len(agents), context.BY_MEANING))
    print("\n### The gate of a conversation, by words alone\n")
    print(compared(list(measured(rows, agents, {})), len(agents), context.BY_WORDS))
    return 0


def _agent(fields: Any) -> Agent:
    return Agent(
        id=fields["id"],
        kind="prompt",
        name=fields["name"],
        description=fields["description"],
        capabilities=tuple(fields["capabilities"]),
    )


def compared(turns: Sequence[Turn], agents: int, shipped: Sequence[float]) -> str:
    """A Markdown table of how the shipped weights do, beside weights fitted on all of these turns and on some."""
    held = [turn for turn in turns if turn.present is not None]
    weights = fitted(held)
    ways = {
        "as shipped": [_apply(held, shipped)],
        "fitted on the same turns": [_apply(held, weights.tolist())],
        "fitted on other dialogues": [_left_out(held, by_dialogue(held, seed)) for seed in range(_SEEDS)],
        "fitted on dialogues without the service": [_left_out(held, by_service(held, agents))],
    }
    return "\n".join(
        [
            f"{len(turns):,} turns, {len(held):,} of them with an agent, {sum(map(_switches, held))} switches.\n",
            "| weights | turns with an agent | switches | stays | calibration error | all turns |",
            "|---|---:|---:|---:|---:|---:|",
            *(_row(name, [shares(turns, leaving) for leaving in runs]) for name, runs in ways.items()),
            f"\nFitted: ({', '.join(f'{weight:.2f}' for weight in weights)})",
        ]
    )


async def _encoded(texts: Sequence[str]) -> Mapping[str, Vector]:
    encoder = open_folder(SHARED / "encoder")
    try:
        return dict(zip(texts, await encoder.encode(texts), strict=True))
    finally:
        await encoder.close()


def measured(rows: Sequence[Any], agents: Sequence[Agent], vectors: Mapping[str, Vector]) -> Iterator[Turn]:
    """What the classifier and the gate's signals say of every turn; no vectors: by words alone."""
    model = classifier.fit(agents, [], vectors)
    number = {agent.id: at for at, agent in enumerate(agents)}
    for row in rows:
        present = number.get(row["previous_agent"])
        total, peak = _scored(model, row["text"], vectors, present)
        signals = np.zeros(0)
        if present is not None:
            signals = context.signals(total, peak, present, text=row["text"], last=row["system"])
        elif row["system"]:
            total = context.agreed(total, _scored(model, row["system"], vectors, None)[0])
        yield Turn(
            dialogue=row["id"].partition("#")[0],
            right=number[row["agent"]],
            present=present,
            total=total,
            signals=signals,
        )


def _scored(model: Model, text: str, vectors: Mapping[str, Vector], present: int | None) -> tuple[Floats, Floats]:
    features = model.space.features(text, vectors.get(text))
    scores = model.scorer.scores(features, also=present)
    return read(scores, model.calibration.mix, features.coverage).total, scores.peak


def fitted(turns: Sequence[Turn]) -> Floats:
    """The gate's weights for these turns."""
    leaves = np.array([_switches(turn) for turn in turns])
    signals = np.stack([turn.signals for turn in turns])
    each = np.where(leaves, _SWITCH_WEIGHT, 1.0)
    return logistic(signals, leaves.astype(float), each, np.zeros(len(context.SIGNALS)), ridge=_RIDGE)


def by_dialogue(turns: Sequence[Turn], seed: int) -> Iterator[tuple[Bools, Bools]]:
    """Turns to fit on, and turns to test on: of other dialogues."""
    names = sorted({turn.dialogue for turn in turns})
    fold = dict(zip(np.random.default_rng(seed).permutation(names), np.arange(len(names)) % _FOLDS, strict=True))
    folds = np.array([fold[turn.dialogue] for turn in turns])
    for held in range(_FOLDS):
        yield folds != held, folds == held


def by_service(turns: Sequence[Turn], agents: int) -> Iterator[tuple[Bools, Bools]]:
    """Turns to fit on, of dialogues in which a service does not occur, and turns to test on, that it has or gets."""
    touched: dict[str, set[int | None]] = defaultdict(set)
    for turn in turns:
        touched[turn.dialogue] |= {turn.right, turn.present}
    for service in range(agents):
        yield (
            np.array([service not in touched[turn.dialogue] for turn in turns]),
            np.array([service in (turn.right, turn.present) for turn in turns]),
        )


def _apply(turns: Sequence[Turn], weights: Sequence[float]) -> Floats:
    return np.array([context.leaving(turn.signals, weights) for turn in turns])


def _left_out(turns: Sequence[Turn], folds: Iterator[tuple[Bools, Bools]]) -> Floats:
    """Of each turn the mean of what weights say that have not seen it."""
    said, times = np.zeros(len(turns)), np.zeros(len(turns))
    for fit, test in folds:
        said[test] += _apply([*compress(turns, test)], fitted([*compress(turns, fit)]).tolist())
        times[test] += 1
    return said / times


def shares(turns: Sequence[Turn], leaving: Floats) -> Shares:
    """``leaving``: the probabilities that those of the turns leave which an agent has, in their order."""
    probability = iter(leaving)
    right: list[bool] = []
    sure: list[float] = []
    kinds: list[str] = []
    for turn in turns:
        if turn.present is None:
            found, kind = turn.total, "alone"
        else:
            found = context.divided(turn.total, turn.present, 1 - float(next(probability)), turn.present).total
            kind = "switch" if _switches(turn) else "stay"
        right.append(int(found.argmax()) == turn.right)
        sure.append(float(np.exp(found.max())))
        kinds.append(kind)
    hits, kind_of, held = np.array(right), np.array(kinds), np.array(kinds) != "alone"
    return Shares(
        turns=float(hits[held].mean()),
        switches=float(hits[kind_of == "switch"].mean()),
        stays=float(hits[kind_of == "stay"].mean()),
        error=_calibration_error(np.array(sure)[held], hits[held]),
        everything=float(hits.mean()),
    )


def _calibration_error(sure: Floats, right: Bools) -> float:
    """The expected calibration error over bins of equal width (M. Naeini et al., AAAI 2015)."""
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    return sum(abs(float((sure[bins == b] - right[bins == b]).sum())) for b in range(_BINS)) / len(sure)


def _switches(turn: Turn) -> bool:
    return turn.right != turn.present


def _row(name: str, runs: Sequence[Shares]) -> str:
    means = [
        f"{100 * float(np.mean([getattr(run, figure) for run in runs])):.1f} %"
        for figure in ("turns", "switches", "stays", "error", "everything")
    ]
    return f"| {name} | {' | '.join(means)} |"


if __name__ == "__main__":
    sys.exit(main())
