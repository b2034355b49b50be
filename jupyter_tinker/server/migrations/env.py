"""Alembic's entry point; `database.py` hands it a connection."""

from __future__ import annotations

from alembic import context

from jupyter_tinker.server.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
