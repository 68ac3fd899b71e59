"""Which instance of an agent takes a call. A policy is a plain function over the loads of the instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Load", "round_robin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What balancing knows of an instance: how many calls it has, how many it may have, and whether it is ejected.

    ``rank``: those of the lowest rank come first; the others are for when none of these is free. ``paused``: it would
    let a call wait, so one that would not is better.
    """

    instance_id: str
    in_flight: int
    concurrency: int
    rank: int = 0
    paused: bool = False
    ejected: bool = False

    @property
    def free(self) -> bool:
        return not self.ejected and self.in_flight < self.concurrency


def round_robin(loads: Sequence[Load], turn: int) -> int | None:
    """The index of the best free instance at or after ``turn``, going round; none when no instance is free.

    Best is the lowest rank of those that are not paused, and the lowest rank of all when every one is.
    """
    best: int | None = None
    for step in range(len(loads)):
        index = (turn + step) % len(loads)
        load = loads[index]
        if load.free and (best is None or (load.paused, load.rank) < (loads[best].paused, loads[best].rank)):
            best = index
    return best
