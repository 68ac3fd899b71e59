"""Keeps what routing learns from and by: the log of feedback, the versions, and the vectors of texts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Table, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import tell
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.errors import NothingToRollBack
from agent_orchestra.runtime.versions import Version, VersionState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SqlFeedbackLog", "SqlVectorStore", "SqlVersions"]

T = TypeVar("T")

#: Retired versions that keep what they learned: so often one can roll back without having learned anew.
_MOST_RETIRED: Final = 10
#: Vectors to a statement: as many parameters as any SQLite takes, and a lock that nobody has long to wait for.
_TOGETHER: Final = 1_000

_feedback, _vectors = tables.feedback, tables.vectors
_versions, _v = tables.routing_versions, tables.routing_versions.c
_told_of = (
    _v.tenant,
    _v.number,
    _v.state,
    _v.encoder,
    _v.feedback_seq,
    _v.definitions,
    _v.examples,
    _v.loss,
    _v.champion_loss,
    _v.created_ms,
)


class SqlFeedbackLog:
    """Conforms to :class:`FeedbackLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, given: Feedback) -> Feedback:
        async with self._database.write() as connection:
            # Whoever has read up to a number must never have missed a smaller one that was committed later.
            await _one_at_a_time(connection, _feedback, given.tenant)
            entry = insert(_feedback).values(
                tenant=given.tenant,
                decision_id=given.decision_id,
                content=given.text,
                agent_id=given.agent_id,
                rejected=given.rejected,
                source=given.source.value,
                author=given.author,
                created_ms=given.created_ms,
            )
            sequence: int = (await connection.execute(entry.returning(_feedback.c.sequence))).scalar_one()
            told = {
                "sequence": sequence,
                "source": given.source.value,
                "agent": given.agent_id,
                "rejected": given.rejected,
                "author": given.author,
            }
            await tell(connection, given.tenant, "feedback.given", given.decision_id, told)
        return dataclasses.replace(given, sequence=sequence)

    async def read(self, tenant: str, *, after: int = 0, limit: int = 100_000) -> Sequence[Feedback]:
        c = _feedback.c
        newest = select(_feedback).where(c.tenant == tenant, c.sequence > after).order_by(c.sequence.desc())
        async with self._database.read() as connection:
            rows = (await connection.execute(newest.limit(limit))).all()
        return [_feedback_of(row) for row in reversed(rows)]

    async def head(self) -> int:
        async with self._database.read() as connection:
            last: int | None = (await connection.execute(select(func.max(_feedback.c.sequence)))).scalar_one()
        return last or 0


class SqlVersions:
    """Conforms to :class:`Versions`. What is active, and what a roll-back may bring back, keeps what it learned."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def active(self) -> Mapping[str, int]:
        query = select(_v.tenant, _v.number).where(_v.state == VersionState.ACTIVE.value)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return {row.tenant: row.number for row in rows}

    async def load(self, tenant: str) -> tuple[Version, bytes] | None:
        query = select(*_told_of, _v.learned).where(*_in(tenant, VersionState.ACTIVE))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (_version_of(row), row.learned)

    async def history(self, tenant: str, *, limit: int = 20) -> Sequence[Version]:
        query = select(*_told_of).where(_v.tenant == tenant).order_by(_v.number.desc()).limit(limit)
        async with self._database.read() as connection:
            return [_version_of(row) for row in (await connection.execute(query)).all()]

    async def add(self, version: Version, learned: bytes, *, expected: int | None) -> Version | None:
        promoted = version.state is VersionState.ACTIVE
        async with self._database.write() as connection:
            await _one_at_a_time(connection, _versions, version.tenant)
            if promoted:
                if await _active(connection, version.tenant) != expected:
                    return None
                if expected is not None:
                    await _set_state(connection, version.tenant, expected, VersionState.RETIRED)
            last = select(func.coalesce(func.max(_v.number), 0)).where(_v.tenant == version.tenant)
            number: int = (await connection.execute(last)).scalar_one() + 1
            kept = dataclasses.replace(version, number=number)
            await connection.execute(insert(_versions).values(**_columns(kept), learned=learned if promoted else None))
            await _forget(connection, version.tenant)
            kind = "routing.promoted" if promoted else "routing.rejected"
            told = {"examples": kept.examples, "loss": kept.loss, "champion_loss": kept.champion_loss}
            await tell(connection, kept.tenant, kind, str(number), told)
        return kept

    async def roll_back(self, tenant: str) -> Version | None:
        retired = select(*_told_of).where(*_in(tenant, VersionState.RETIRED), _v.learned.is_not(None))
        async with self._database.write() as connection:
            await _one_at_a_time(connection, _versions, tenant)
            withdrawn = await _active(connection, tenant)
            if withdrawn is None:
                raise NothingToRollBack("nothing that was learned decides now, so there is nothing to roll back")
            await _set_state(connection, tenant, withdrawn, VersionState.ROLLED_BACK)
            row = (await connection.execute(retired.order_by(_v.number.desc()).limit(1))).one_or_none()
            if row is not None:
                await _set_state(connection, tenant, row.number, VersionState.ACTIVE)
            await _forget(connection, tenant)
            told = {"active": None if row is None else row.number}
            await tell(connection, tenant, "routing.rolled_back", str(withdrawn), told)
        return None if row is None else dataclasses.replace(_version_of(row), state=VersionState.ACTIVE)


class SqlVectorStore:
    """Conforms to :class:`VectorStore`. A vector is kept as float32, little-endian, under the SHA-256 of its text."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(
        self, tenants: Collection[str], encoder: str, texts: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        import numpy as np

        c = _vectors.c
        of_texts = {_digest(text): text for text in texts}
        mine = select(c.digest, c.vector).where(c.tenant.in_(tenants), c.encoder == encoder)
        kept: dict[str, NDArray[np.float32]] = {}
        async with self._database.read() as connection:
            for digests in _chunks(list(of_texts)):
                for digest, vector in (await connection.execute(mine.where(c.digest.in_(digests)))).all():
                    kept[of_texts[digest]] = np.frombuffer(vector, dtype="<f4")
        return kept

    async def save(self, tenant: str, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        add = postgresql.insert if self._database.engine.dialect.name == "postgresql" else sqlite.insert
        # In one order for everyone: Postgres would have two that keep the same wait for each other.
        for chunk in _chunks(sorted((_digest(text), text) for text in vectors)):
            rows = [
                {
                    "tenant": tenant,
                    "encoder": encoder,
                    "digest": digest,
                    "vector": vectors[text].astype("<f4").tobytes(),
                }
                for digest, text in chunk
            ]
            async with self._database.write() as connection:
                await connection.execute(add(_vectors).on_conflict_do_nothing(), rows)


async def _one_at_a_time(connection: AsyncConnection, table: Table, tenant: str) -> None:
    """Waits until no other transaction adds to the tenant's rows of a table. SQLite has but one writer at any time."""
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock(func.hashtext(table.name), func.hashtext(tenant))
        await connection.execute(select(lock))


def _in(tenant: str, state: VersionState) -> tuple[Any, Any]:
    return _v.tenant == tenant, _v.state == state.value


async def _active(connection: AsyncConnection, tenant: str) -> int | None:
    query = select(_v.number).where(*_in(tenant, VersionState.ACTIVE))
    return (await connection.execute(query)).scalar_one_or_none()


async def _set_state(connection: AsyncConnection, tenant: str, number: int, state: VersionState) -> None:
    one = (_v.tenant == tenant, _v.number == number)
    await connection.execute(update(_versions).where(*one).values(state=state.value))


async def _forget(connection: AsyncConnection, tenant: str) -> None:
    """Drops what was learned by versions that will not decide again."""
    states = (VersionState.ACTIVE.value, VersionState.RETIRED.value)
    kept = select(_v.number).where(_v.tenant == tenant, _v.state.in_(states)).order_by(_v.number.desc())
    others = (_v.tenant == tenant, _v.learned.is_not(None), _v.number.not_in(kept.limit(1 + _MOST_RETIRED)))
    await connection.execute(update(_versions).where(*others).values(learned=None))


def _columns(version: Version) -> dict[str, Any]:
    return {**dataclasses.asdict(version), "state": version.state.value}


def _version_of(row: Any) -> Version:
    return Version(
        tenant=row.tenant,
        number=row.number,
        state=VersionState(row.state),
        encoder=row.encoder,
        feedback_seq=row.feedback_seq,
        definitions=row.definitions,
        examples=row.examples,
        loss=row.loss,
        champion_loss=row.champion_loss,
        created_ms=row.created_ms,
    )


def _feedback_of(row: Any) -> Feedback:
    return Feedback(
        sequence=row.sequence,
        tenant=row.tenant,
        decision_id=row.decision_id,
        text=row.content,
        agent_id=row.agent_id,
        rejected=row.rejected,
        source=Source(row.source),
        author=row.author,
        created_ms=row.created_ms,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _TOGETHER] for start in range(0, len(items), _TOGETHER)]
