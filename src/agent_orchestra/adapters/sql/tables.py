"""The tables. Every row carries its tenant; times are milliseconds since 1970, UTC; ids are UUIDv7 as text."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

__all__ = [
    "HEAD",
    "VERSION_TABLE",
    "agents",
    "conversations",
    "decisions",
    "events",
    "feedback",
    "keys",
    "messages",
    "metadata",
    "requests",
    "routing_versions",
    "vectors",
]

#: The newest migration. A constant, so that a start on a current database need not import Alembic.
HEAD: Final = "0003"
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
    Index(
        "ix_requests_escalated",
        "tenant",
        "id",
        sqlite_where=text("status = 'ESCALATED'"),
        postgresql_where=text("status = 'ESCALATED'"),
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

#: Decisions that no request carries: the others are in the rows of their requests.
decisions = Table(
    "decisions",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("id", String(36), nullable=False),
    Column("conversation_id", String(64)),
    Column("content", Text, nullable=False),
    Column("route", _JSON, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False),
    Column("decision_id", String(36), nullable=False),
    Column("content", Text, nullable=False),
    Column("agent_id", String(64)),
    Column("rejected", String(64)),
    Column("source", String(16), nullable=False),
    Column("author", String(320), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "tenant", "sequence"),
    sqlite_autoincrement=True,
)

routing_versions = Table(
    "routing_versions",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("encoder", String(256), nullable=False),
    Column("feedback_seq", BigInteger, nullable=False),
    Column("definitions", String(64), nullable=False),
    Column("examples", Integer, nullable=False),
    Column("loss", Double),
    Column("champion_loss", Double),
    Column("created_ms", BigInteger, nullable=False),
    #: Last, because SQLite reads through a large value to come to what stands behind it.
    Column("learned", LargeBinary),
    PrimaryKeyConstraint("tenant", "number"),
    Index(
        "ix_routing_versions_active",
        "tenant",
        unique=True,
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
)

vectors = Table(
    "vectors",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("encoder", String(256), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("vector", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tenant", "encoder", "digest"),
)
