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
    [0.00, 0.79, 0.34], [-5.62, 6.97], [0.48, 1.40, 0.97, 0.01, 0.00, 0.67, -0.80, 0.39, 0.25], 0.95
)
SEMANTIC_LEARNED: Final = _prior(
    [0.90, 0.36, 0.15], [-5.51, 5.78], [1.05, 0.95, 1.03, -0.29, 0.50, 0.11, -0.37, 1.07, 0.22], 1.16
)
LEXICAL: Final = _prior(
    [0.00, 0.66, 0.53], [-0.93, 5.79], [0.73, 0.39, 1.00, -0.18, 0.00, 0.55, -0.16, 0.41, 0.98], 0.26
)
LEXICAL_LEARNED: Final = _prior(
    [1.19, 0.36, 0.19], [-1.55, 5.60], [0.89, 0.29, 1.12, -0.32, 0.58, 0.15, -0.01, 0.71, 0.49], 0.39
)
