"""What routing keeps: decisions, feedback, versions of what was learned, and vectors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

JSON_ = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("conversation_id", sa.String(length=64), nullable=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("route", JSON_, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name=op.f("pk_decisions")),
    )
    op.create_table(
        "feedback",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("decision_id", sa.String(length=36), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=True),
        sa.Column("rejected", sa.String(length=64), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("author", sa.String(length=320), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_feedback")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_feedback_tenant_sequence"), "feedback", ["tenant", "sequence"], unique=False)
    op.create_table(
        "routing_versions",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("encoder", sa.String(length=256), nullable=False),
        sa.Column("feedback_seq", sa.BigInteger(), nullable=False),
        sa.Column("definitions", sa.String(length=64), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Double, nullable=True),
        sa.Column("champion_loss", sa.Double, nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("learned", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "number", name=op.f("pk_routing_versions")),
    )
    op.create_index(
        "ix_routing_versions_active",
        "routing_versions",
        ["tenant"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "vectors",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("encoder", sa.String(length=256), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "encoder", "digest", name=op.f("pk_vectors")),
    )
