"""The shapes of arrays that the classifier's modules share, and sums of exponentials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bools", "Floats", "Ints", "Vector", "group_starts", "grouped", "log_softmax", "picked", "sigmoid"]

Vector: TypeAlias = NDArray[np.float32]
"""One embedding, of unit length."""

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Entry = TypeVar("Entry")


def picked(entries: Sequence[Entry], numbers: Ints) -> tuple[Entry, ...]:
    """The entries with these numbers, in their order."""
    return tuple(entries[int(number)] for number in numbers)


def log_softmax(scores: Floats) -> Floats:
    """A vector of scores, shifted so that their exponentials sum to one."""
    highest = float(scores.max())
    return scores - (highest + math.log(float(np.exp(scores - highest).sum())))


def group_starts(groups: Ints) -> Ints:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.int64)


def grouped(scores: Floats, starts: Ints) -> Floats:
    """Log-sum-exp over runs of a vector that begin at ``starts``."""
    highest = scores.max()
    return np.log(np.add.reduceat(np.exp(np.maximum(scores - highest, -80.0)), starts)) + highest


def sigmoid(z: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-min(max(z, -30.0), 30.0)))
