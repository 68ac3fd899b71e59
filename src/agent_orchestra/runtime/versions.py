"""What was learned, in versions, and the log that it was learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from agent_orchestra.core.feedback import Feedback

__all__ = ["KEPT_CHARS", "FeedbackLog", "Version", "VersionState", "Versions", "counting"]


#: No more of a text is ever read, and so no more of it is kept with feedback.
KEPT_CHARS: Final = 8_000


class VersionState(StrEnum):
    """ACTIVE decides, at most one a tenant; RETIRED did before; REJECTED never did; ROLLED_BACK was withdrawn."""

    ACTIVE = "active"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One fit. ``number`` counts from 1 for each tenant.

    ``encoder``: the name of the encoder, empty where there was none. ``feedback_seq``: the last entry of the feedback
    log that it has seen. ``definitions``: a digest of the agents' examples that it was fitted on. ``examples``: how
    many examples that were. ``loss``, ``champion_loss``: the out-of-fold log-loss (nats an example) of this version,
    and of the one before on the same examples; none where there was nothing to compare.
    """

    tenant: str
    number: int
    state: VersionState
    encoder: str
    feedback_seq: int
    definitions: str
    examples: int
    loss: float | None
    champion_loss: float | None
    created_ms: int


class FeedbackLog(Protocol):
    """The append-only log of feedback. Each entry is kept together with the event that tells of it, or not at all."""

    async def append(self, given: Feedback) -> Feedback:
        """Keeps an entry, and gives it with its sequence number."""
        ...

    async def read(self, tenant: str, *, after: int = 0, limit: int = 100_000) -> Sequence[Feedback]:
        """The newest entries after a sequence number, at most ``limit``, oldest first."""
        ...

    async def head(self) -> int:
        """The last sequence number of all, 0 where there is no entry."""
        ...


class Versions(Protocol):
    """Keeps what was learned. A change is kept together with the event that tells of it, or not at all."""

    async def active(self) -> Mapping[str, int]:
        """The number of the active version of every tenant that has one."""
        ...

    async def load(self, tenant: str) -> tuple[Version, bytes] | None:
        """The active version with what it learned."""
        ...

    async def history(self, tenant: str, *, limit: int = 20) -> Sequence[Version]:
        """The newest versions, newest first."""
        ...

    async def add(self, version: Version, learned: bytes, *, expected: int | None) -> Version | None:
        """Keeps a version under the next number, whatever its ``number`` says.

        One that is ACTIVE retires the one that is active now, which must have the number ``expected`` (none: there is
        none); else nothing is kept, and none is given: another process was faster. What is REJECTED keeps no bytes.
        """
        ...

    async def roll_back(self, tenant: str) -> Version | None:
        """Withdraws the active version, and makes the newest retired one active again; gives what is active then.

        Raises :class:`NothingToRollBack` where none is active.
        """
        ...


def counting(log: Sequence[Feedback], history: Sequence[Version]) -> list[Feedback]:
    """The entries that are learned from.

    A version that was rolled back takes with it the feedback that came between it and the good version before it: that
    is what made the difference.
    """
    aside = [(_seen_before(bad, history), bad.feedback_seq) for bad in history if bad.state is VersionState.ROLLED_BACK]
    return [entry for entry in log if not any(after < entry.sequence <= to for after, to in aside)]


def _seen_before(bad: Version, history: Sequence[Version]) -> int:
    good = (VersionState.ACTIVE, VersionState.RETIRED)
    return max((v.feedback_seq for v in history if v.number < bad.number and v.state in good), default=0)
