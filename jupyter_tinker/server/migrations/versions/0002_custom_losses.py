"""custom losses"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "custom_losses",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("definition", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("custom_losses", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_custom_losses_session_id"), ["session_id"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("custom_losses", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_custom_losses_session_id"))

    op.drop_table("custom_losses")
