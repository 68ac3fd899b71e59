"""Which instance of an agent takes a call. A policy is a plain function over the loads of the instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Load", "round_robin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What balancing knows of an instance: how many calls it has, how many it may have, and whether it is ejected."""

    instance_id: str
    in_flight: int
    concurrency: int
    ejected: bool = False

    @property
    def free(self) -> bool:
        return not self.ejected and self.in_flight < self.concurrency


def round_robin(loads: Sequence[Load], turn: int) -> int | None:
    """The index of the next free instance at or after ``turn``, going round; none when no instance is free."""
    for step in range(len(loads)):
        index = (turn + step) % len(loads)
        if loads[index].free:
            return index
    return None
