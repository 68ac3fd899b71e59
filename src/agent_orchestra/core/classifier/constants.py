"""What is known before there is any example.

Fitted by ``python -m benchmarks.routing_constants`` on the definitions and train texts of CLINC150 (150 agents; 10
agents, with and without their capability lines) and MetaTool. They stand as they are for a registry without examples,
with or without an encoder, and are the prior of what examples teach.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats

__all__ = ["LEXICAL", "LEXICAL_LEARNED", "SEMANTIC", "SEMANTIC_LEARNED", "Prior"]


class Prior(NamedTuple):
    """``mix``: weights of the scores learned, near and centre. ``inside``: of the fit to anybody, a + b * fit.
    ``right``: of the signals. ``threshold``: the fit below which a request is nobody's.
    """

    mix: Floats
    inside: Floats
    right: Floats
    threshold: float


def _prior(mix: list[float], inside: list[float], right: list[float], threshold: float) -> Prior:
    return Prior(np.array(mix), np.array(inside), np.array(right), threshold)


SEMANTIC: Final = _prior(
    [0.00, 0.98, 0.12], [-5.61, 6.95], [0.47, 1.34, 1.00, 0.08, 0.00, 0.45, -0.77, 0.20, 0.59], 0.96
)
SEMANTIC_LEARNED: Final = _prior(
    [0.90, 0.35, 0.15], [-5.54, 5.80], [1.07, 0.96, 1.04, -0.35, 0.55, 0.14, -0.26, 1.05, 0.23], 1.17
)
LEXICAL: Final = _prior(
    [0.00, 0.65, 0.53], [-0.99, 5.78], [0.72, 0.42, 0.97, -0.15, 0.00, 0.57, -0.16, 0.47, 1.00], 0.27
)
LEXICAL_LEARNED: Final = _prior(
    [1.23, 0.35, 0.19], [-1.62, 5.66], [1.05, 0.32, 1.08, -0.32, 0.66, 0.15, -0.11, 0.69, 0.48], 0.41
)
