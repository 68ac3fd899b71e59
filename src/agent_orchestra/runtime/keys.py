"""Makes, checks and revokes the keys that callers from elsewhere need."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Protocol

from agent_orchestra.core.access import Key, Principal, Scope
from agent_orchestra.core.agent import ID_RULE, is_id
from agent_orchestra.errors import Fault, InvalidInput, Unauthenticated
from agent_orchestra.runtime.clock import now_ms

__all__ = ["KeyStore", "Keys"]

#: How long a checked key is believed without asking the database: a revoked one may live on for that long.
_BELIEVED_SECONDS = 5.0
_MOST_BELIEVED = 10_000


class KeyStore(Protocol):
    """Keeps keys, never their secrets."""

    async def add(self, key: Key) -> None: ...

    async def get(self, key_id: str) -> Key | None: ...

    async def find(self, tenant: str | None) -> Sequence[Key]:
        """Of one tenant, or of all; newest first."""
        ...

    async def revoke(self, key_id: str, now_ms: int) -> Key:
        """Raises :class:`KeyNotFound`. A second time changes nothing."""
        ...


class Keys:
    """A key reads ``orc_<id>_<secret>``: the id finds the row, and the secret of 256 random bits proves it.

    A plain SHA-256 is enough for such a secret: there is nothing to guess that a slow hash would protect.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._believed: dict[str, tuple[float, Principal]] = {}

    async def create(self, tenant: str, scopes: Sequence[Scope]) -> tuple[Key, str]:
        """A new key, and the only sight of its full text. Raises :class:`InvalidInput` for a tenant that is no name."""
        if not is_id(tenant):
            fault = Fault(path="tenant", message=ID_RULE)
            raise InvalidInput(str(fault), faults=(fault,))
        secret = secrets.token_urlsafe(32)
        key = Key(
            id=secrets.token_hex(6),
            tenant=tenant,
            scopes=tuple(dict.fromkeys(scopes)),
            digest=_digest(secret),
            created_ms=now_ms(),
        )
        await self._store.add(key)
        return key, f"orc_{key.id}_{secret}"

    async def authenticate(self, text: str) -> Principal:
        """Raises :class:`Unauthenticated`, with one sentence for every reason: nothing is to be learnt from it."""
        digest = _digest(text)
        believed = self._believed.get(digest)
        if believed is not None and believed[0] > time.monotonic():
            return believed[1]
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        key = await self._store.get(key_id) if prefix == "orc" and key_id.isalnum() and key_id.isascii() else None
        if key is None or key.revoked_ms is not None or not hmac.compare_digest(key.digest, _digest(secret)):
            raise Unauthenticated("the key is not valid")
        principal = Principal(tenant=key.tenant, scopes=frozenset(key.scopes), key_id=key.id)
        if len(self._believed) >= _MOST_BELIEVED:
            self._believed.clear()
        self._believed[digest] = (time.monotonic() + _BELIEVED_SECONDS, principal)
        return principal

    async def find(self, tenant: str | None = None) -> Sequence[Key]:
        """The keys of one tenant, or of all, without their secrets."""
        return await self._store.find(tenant)

    async def revoke(self, key_id: str) -> Key:
        """Ends a key, within seconds everywhere. Raises :class:`KeyNotFound`."""
        key = await self._store.revoke(key_id, now_ms())
        self._believed.clear()
        return key


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
