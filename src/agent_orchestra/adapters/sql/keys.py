"""Keeps keys, never their secrets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select, update

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import tell
from agent_orchestra.core.access import Key, Scope
from agent_orchestra.errors import KeyNotFound

__all__ = ["SqlKeyStore"]

_keys = tables.keys


class SqlKeyStore:
    """Conforms to :class:`KeyStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: Key) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                insert(_keys).values(
                    id=key.id,
                    tenant=key.tenant,
                    scopes=[scope.value for scope in key.scopes],
                    digest=key.digest,
                    created_ms=key.created_ms,
                )
            )
            await tell(connection, key.tenant, "key.created", key.id)

    async def get(self, key_id: str) -> Key | None:
        async with self._database.read() as connection:
            row = (await connection.execute(select(_keys).where(_keys.c.id == key_id))).one_or_none()
        return _key_of(row) if row is not None else None

    async def find(self, tenant: str | None) -> Sequence[Key]:
        query = select(_keys).order_by(_keys.c.created_ms.desc(), _keys.c.id)
        if tenant is not None:
            query = query.where(_keys.c.tenant == tenant)
        async with self._database.read() as connection:
            return [_key_of(row) for row in (await connection.execute(query)).all()]

    async def revoke(self, key_id: str, now_ms: int) -> Key:
        async with self._database.write() as connection:
            ended = update(_keys).where(_keys.c.id == key_id, _keys.c.revoked_ms.is_(None)).values(revoked_ms=now_ms)
            changed = (await connection.execute(ended)).rowcount
            row = (await connection.execute(select(_keys).where(_keys.c.id == key_id))).one_or_none()
            if row is None:
                raise KeyNotFound(f"there is no key '{key_id}'")
            key = _key_of(row)
            if changed:
                await tell(connection, key.tenant, "key.revoked", key.id)
        return key


def _key_of(row: Any) -> Key:
    return Key(
        id=row.id,
        tenant=row.tenant,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        digest=row.digest,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )
