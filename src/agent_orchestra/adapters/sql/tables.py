"""The tables. Every row carries its tenant; times are milliseconds since 1970, UTC; ids are UUIDv7 as text."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

__all__ = ["HEAD", "VERSION_TABLE", "agents", "conversations", "events", "keys", "messages", "metadata", "requests"]

#: The newest migration. A constant, so that a start on a current database need not import Alembic.
HEAD: Final = "0001"
VERSION_TABLE: Final = "orchestra_schema_version"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_JSON = JSON().with_variant(JSONB(), "postgresql")
#: SQLite counts up only a column that is exactly an INTEGER.
_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

agents = Table(
    "agents",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("id", String(64), nullable=False),
    Column("definition", _JSON, nullable=False),
    Column("source", String(16), nullable=False),
    Column("origin", String(64)),
    #: Grows with every change of the row.
    Column("updated_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

conversations = Table(
    "conversations",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("id", String(64), nullable=False),
    Column("user_id", String(256)),
    Column("input_policy", String(16), nullable=False),
    Column("context", _JSON, nullable=False),
    Column("active_agent", String(64)),
    Column("last_seq", Integer, nullable=False),
    #: The request that holds the conversation: it does as long as that request is RUNNING and its lease lasts.
    Column("turn", String(36)),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
    Index(None, "tenant", "created_ms", "id"),
)

messages = Table(
    "messages",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("conversation_id", String(64), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("id", String(36), nullable=False),
    Column("author", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("agent_id", String(64)),
    Column("request_id", String(36)),
    Column("created_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "conversation_id", "seq"),
    ForeignKeyConstraint(["tenant", "conversation_id"], ["conversations.tenant", "conversations.id"]),
)

requests = Table(
    "requests",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("id", String(36), nullable=False),
    Column("conversation_id", String(64), nullable=False),
    Column("user_id", String(256)),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("context", _JSON, nullable=False),
    Column("route", _JSON, nullable=False),
    Column("instance_id", String(256), nullable=False),
    #: The answer without its text, which is the message numbered ``answer_seq``; or the failure.
    Column("outcome", _JSON),
    Column("answer_seq", Integer),
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    PrimaryKeyConstraint("tenant", "id"),
    UniqueConstraint("tenant", "idempotency_key"),
    ForeignKeyConstraint(["tenant", "conversation_id"], ["conversations.tenant", "conversations.id"]),
    Index(
        "ix_requests_running",
        "lease_until_ms",
        sqlite_where=text("status = 'RUNNING'"),
        postgresql_where=text("status = 'RUNNING'"),
    ),
)

events = Table(
    "events",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("data", _JSON, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "tenant", "subject", "sequence"),
    sqlite_autoincrement=True,
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("scopes", _JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)
