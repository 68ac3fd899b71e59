"""Who may do what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Key", "Principal", "Scope", "allows"]


class Scope(StrEnum):
    """Each one includes those before it: READ looks, RUN asks agents and converses, ADMIN changes agents.

    Who may change an agent may also answer in its place.
    """

    READ = "read"
    RUN = "run"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whose request it is. ``key_id`` is none for callers on loopback, who need no key."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept: ``digest`` is the SHA-256 of its secret, which itself is kept nowhere."""

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    digest: str
    created_ms: int
    revoked_ms: int | None = None


def allows(granted: Iterable[Scope], needed: Scope) -> bool:
    """Whether scopes that were granted include the one that is needed."""
    order = list(Scope)
    return any(order.index(scope) >= order.index(needed) for scope in granted)
