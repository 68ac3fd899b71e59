"""What fitting needs and gives. It takes seconds of a whole core, and so happens away from the requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent_orchestra.core import classifier
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example, Model, Vector
from agent_orchestra.core.feedback import better

__all__ = ["Fitted", "Fitter", "Job", "fitted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be fitted: agents, examples, the vectors of all their texts, and what decides now.

    ``champion``: what the active version has learned; empty where the definitions alone decide. ``unseen``: for each
    example whether the champion had not seen it.
    """

    agents: Sequence[Agent]
    examples: Sequence[Example]
    vectors: Mapping[str, Vector]
    champion: bytes
    unseen: Sequence[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What was learned, and whether it may decide.

    ``loss``, ``champion_loss``: the mean log-loss (nats) on the examples that the champion had not seen, the former
    out of fold; none where there are none.
    """

    learned: bytes
    examples: int
    loss: float | None
    champion_loss: float | None
    better: bool


class Fitter(Protocol):
    """Fits, somewhere else than in the event loop."""

    async def fit(self, job: Job) -> Fitted:
        """Raises :class:`FitFailed`. Cancelling it ends the work."""
        ...


def fitted(job: Job) -> Fitted:
    """Does a job. The judges of both are examples that neither has seen."""
    candidate = classifier.fit(job.agents, job.examples, job.vectors)
    known = np.isfinite(candidate.out_of_fold)
    judges = [number for number, fresh in enumerate(job.unseen) if fresh and known[number]]
    ours, theirs = candidate.out_of_fold[judges], _champion(job).losses([job.examples[n] for n in judges], job.vectors)
    weights = np.array([job.examples[number].weight for number in judges])
    return Fitted(
        learned=candidate.dump(),
        examples=candidate.examples,
        loss=float(np.average(ours, weights=weights)) if weights.sum() > 0 else candidate.loss,
        champion_loss=float(np.average(theirs, weights=weights)) if weights.sum() > 0 else None,
        better=better(ours, theirs, weights),
    )


def _champion(job: Job) -> Model:
    try:
        if job.champion:
            return classifier.restore(job.champion, job.agents, job.vectors)
    except ValueError:
        # Of an older release, or of another encoder: it could not decide any more either.
        pass
    return classifier.untaught(job.agents, job.vectors)
