"""history: what runs did, their snapshots, branches, controls and events"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "payloads",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index(op.f("ix_payloads_run_id"), "payloads", ["run_id"])
    op.create_table(
        "operations",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "branches",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("first_position", sa.Integer(), nullable=False),
        sa.Column("parent_position", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "snapshots",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_events_run_id_id", "events", ["run_id", "id"])
    with op.batch_alter_table("runs") as batch_op:
        batch_op.add_column(sa.Column("started_from", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("ended", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("controls", sa.JSON(), nullable=True))
    # What made the weights of earlier runs is not known, so they cannot be made again.
    op.execute(
        "UPDATE runs SET ended = 'This run was made by an earlier version of jupyter_tinker, which "
        "kept no history; start a new client from its last checkpoint.' WHERE copied_from IS NULL"
    )
    with op.batch_alter_table("samplers") as batch_op:
        batch_op.add_column(sa.Column("position", sa.Integer(), nullable=True))
    with op.batch_alter_table("requests") as batch_op:
        batch_op.drop_column("payload")
    with op.batch_alter_table("checkpoints") as batch_op:
        batch_op.add_column(sa.Column("request_id", sa.String(), nullable=True))
    with op.batch_alter_table("steps") as batch_op:
        batch_op.add_column(sa.Column("branch", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("skipped", sa.String(), nullable=True))
        for name in ("learning_rate", "grad_clip_norm", "weight_decay"):
            if name != "learning_rate":
                batch_op.add_column(sa.Column(name, sa.Double(), nullable=True))
            batch_op.add_column(sa.Column(f"{name}_requested", sa.Double(), nullable=True))
        for name in ("grad_norm", "update_norm"):
            batch_op.alter_column(name, existing_type=sa.Double(), nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM steps WHERE grad_norm IS NULL OR update_norm IS NULL")
    with op.batch_alter_table("steps") as batch_op:
        for name in ("grad_norm", "update_norm"):
            batch_op.alter_column(name, existing_type=sa.Double(), nullable=False)
        for name in ("learning_rate", "grad_clip_norm", "weight_decay"):
            if name != "learning_rate":
                batch_op.drop_column(name)
            batch_op.drop_column(f"{name}_requested")
        batch_op.drop_column("skipped")
        batch_op.drop_column("branch")
    with op.batch_alter_table("checkpoints") as batch_op:
        batch_op.drop_column("request_id")
    with op.batch_alter_table("requests") as batch_op:
        batch_op.add_column(sa.Column("payload", sa.LargeBinary(), nullable=True))
    with op.batch_alter_table("samplers") as batch_op:
        batch_op.drop_column("position")
    with op.batch_alter_table("runs") as batch_op:
        for name in ("controls", "ended", "started_from"):
            batch_op.drop_column(name)
    for table in ("events", "snapshots", "branches", "operations", "payloads"):
        op.drop_table(table)
