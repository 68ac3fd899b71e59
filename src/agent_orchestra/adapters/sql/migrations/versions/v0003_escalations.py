"""What waits for a person is found without a look at every request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index(
        "ix_requests_escalated",
        "requests",
        ["tenant", "id"],
        sqlite_where=sa.text("status = 'ESCALATED'"),
        postgresql_where=sa.text("status = 'ESCALATED'"),
    )
