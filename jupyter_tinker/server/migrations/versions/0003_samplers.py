"""samplers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "samplers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("base_path", sa.String(), nullable=False),
        sa.Column("model_path", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("clients", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("samplers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_samplers_session_id"), ["session_id"], unique=False)
    if op.get_bind().dialect.name != "sqlite":  # whose INTEGER has 64 bits already
        op.alter_column(
            "requests", "seq_id", existing_type=sa.Integer(), type_=sa.BigInteger(), nullable=False
        )


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column(
            "requests", "seq_id", existing_type=sa.BigInteger(), type_=sa.Integer(), nullable=False
        )
    with op.batch_alter_table("samplers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_samplers_session_id"))

    op.drop_table("samplers")
