"""Which instance of an agent takes a call. A policy is a plain function over the loads of the instances.

Every function gives the index of one of the loads for which ``usable`` holds, or none where it holds for none. What
makes an instance usable (it is not full, not ejected, not behind a rate limit) is decided by who asks, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, Protocol, TypeVar

__all__ = [
    "Algorithm",
    "Load",
    "least_connections",
    "peak_ewma",
    "round_robin",
    "score",
    "sticky",
    "weighted",
    "weighted_round_robin",
]

#: Pairs that are drawn before all are looked at.
_DRAWS: Final = 4
#: A mean of so many seconds, and so many calls at once, are worth nothing in :func:`score`.
_WORST_SECONDS: Final = 10.0
_WORST_IN_FLIGHT: Final = 10
#: What a call is taken to cost where nothing is known yet: little, so that each instance is tried.
_UNKNOWN_SECONDS: Final = 1e-4


class Algorithm(StrEnum):
    """How calls are spread; each is the function of its name."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED = "weighted"
    PEAK_EWMA = "peak_ewma"


class Load(Protocol):
    """What balancing knows of an instance now.

    ``weight``: its share beside the others, over 0. ``in_flight``: calls that it has. ``mean_seconds``: of its answers
    in the window, and ``success_rate`` in [0, 1]; 0 and 1 where there were none. ``healthy``: its last checks and calls
    say so. ``peak_seconds``: what a call there costs now, weighted exponentially, where peaks count at once.
    """

    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def mean_seconds(self) -> float: ...
    @property
    def success_rate(self) -> float: ...
    @property
    def healthy(self) -> bool: ...
    def peak_seconds(self, now: float) -> float: ...


L = TypeVar("L")
W = TypeVar("W", bound=Load)


def round_robin(loads: Sequence[L], usable: Callable[[L], bool], turn: int) -> int | None:
    """The first at or after ``turn``, going round."""
    for step in range(len(loads)):
        index = (turn + step) % len(loads)
        if usable(loads[index]):
            return index
    return None


def weighted_round_robin(
    loads: Sequence[W], usable: Callable[[W], bool], credits_: Sequence[float]
) -> tuple[int | None, Sequence[float]]:
    """Each in proportion to its weight, interleaved rather than in bursts; also gives the credits for the next time.

    Each usable one gains its weight, the richest is chosen and pays what all have gained, as in nginx's smooth weighted
    round robin. ``credits_``: one number for each, zeros at first.
    """
    after = list(credits_)
    gained = 0.0
    best: int | None = None
    for index, load in enumerate(loads):
        if usable(load):
            gained += load.weight
            after[index] += load.weight
            if best is None or after[index] > after[best]:
                best = index
    if best is not None:
        after[best] -= gained
    return best, after


def least_connections(loads: Sequence[W], usable: Callable[[W], bool], turn: int) -> int | None:
    """The one with the fewest calls for its weight; of equals the first at or after ``turn``."""
    return _lowest(loads, usable, lambda load: (load.in_flight + 1) / load.weight, turn)


def weighted(loads: Sequence[W], usable: Callable[[W], bool], turn: int) -> int | None:
    """The one with the highest :func:`score` for its weight; of equals the first at or after ``turn``."""
    return _lowest(loads, usable, lambda load: -score(load) * load.weight, turn)


def score(load: Load) -> float:
    """How good an instance is, in [0, 1], from its speed, success, calls and health."""
    return (
        0.3 * (1 - min(load.mean_seconds / _WORST_SECONDS, 1))
        + 0.3 * load.success_rate
        + 0.2 * (1 - min(load.in_flight / _WORST_IN_FLIGHT, 1))
        + 0.2 * load.healthy
    )


def peak_ewma(loads: Sequence[W], usable: Callable[[W], bool], chance: Callable[[], float], now: float) -> int | None:
    """Of two drawn at random, the one where a call costs less: peak latency times the calls that it would share with.

    "The power of two choices" (Mitzenmacher, 2001) with the cost of Finagle's balancer. ``chance`` gives numbers in
    [0, 1). Where pairs that are drawn are not usable, the two are drawn among those that are.
    """
    count = len(loads)
    for _ in range(_DRAWS if count > 1 else 0):
        one = int(chance() * count)
        other = (one + 1 + int(chance() * (count - 1))) % count
        if usable(loads[one]) and usable(loads[other]):
            return _cheaper(loads, one, other, now)
    left = [index for index, load in enumerate(loads) if usable(load)]
    if len(left) < 2:
        return left[0] if left else None
    one = int(chance() * len(left))
    return _cheaper(loads, left[one], left[(one + 1 + int(chance() * (len(left) - 1))) % len(left)], now)


def sticky(loads: Sequence[W], usable: Callable[[W], bool], key: str) -> int | None:
    """The one that belongs to a key; as long as it is usable, always the same, whatever comes and goes besides.

    Rendezvous hashing (Thaler and Ravishankar, 1998): each has a rank for the key, the highest is chosen. Weights do
    not count.
    """
    return _lowest(loads, usable, lambda load: _rank(f"{key}\0{load.id}"), 0)


def _lowest(loads: Sequence[W], usable: Callable[[W], bool], cost: Callable[[W], float], turn: int) -> int | None:
    best: int | None = None
    lowest = 0.0
    for step in range(len(loads)):
        index = (turn + step) % len(loads)
        load = loads[index]
        if usable(load):
            found = cost(load)
            if best is None or found < lowest:
                best, lowest = index, found
    return best


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def _cheaper(loads: Sequence[Load], one: int, other: int, now: float) -> int:
    return one if _cost(loads[one], now) <= _cost(loads[other], now) else other


def _cost(load: Load, now: float) -> float:
    return max(load.peak_seconds(now), _UNKNOWN_SECONDS) * (load.in_flight + 1) / load.weight
