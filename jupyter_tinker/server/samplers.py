"""Sampling sessions: what clients sample from, as the database remembers it.

Knows nothing of the engine, of samples or of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from .database import Database
from .schema import SamplerRow


class UnknownSampler(LookupError):
    """There is no such sampling session; the message names it."""


@dataclass(frozen=True)
class Target:
    """A sampler as the engine knows it; sampling sessions of the same weights share one."""

    name: str
    base_model: str
    base_path: str
    checkpoint: str | None = None  # folder
    run: str | None = None  # whose weights it is a copy of, which are made again of its history


_PREVIEW = ":preview:"
_INFLIGHT = ":inflight"


def inflight_of(run_id: str) -> str:
    """The name of the copy that a run's `inflight` sampling sessions share."""
    return f"{run_id}{_INFLIGHT}"


def preview_of(run_id: str, mark: str) -> str:
    """The name of a copy that a preview samples from, and nobody else."""
    return f"{run_id}{_PREVIEW}{mark}"


def is_snapshot(name: str) -> bool:
    """Whether a copy of a run's weights is one of those that clients have made anew each time."""
    return _PREVIEW not in name and not name.endswith(_INFLIGHT)


def sampler_id(session_id: str, seq_id: int) -> str:
    """The id of the sampling session that a session counts as its `seq_id`-th."""
    return f"{session_id}:sample:{seq_id}"


class Samplers:
    """The table of sampling sessions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, row: SamplerRow) -> SamplerRow:
        """Store a sampling session; one of the same id is left alone and returned instead."""

        def work(db: Session) -> SamplerRow:
            known = db.get(SamplerRow, row.id)
            if known is None:
                db.add(row)
            return known or row

        return await self._db.call(work)

    async def get(self, sampler_id: str) -> SamplerRow:
        """Raises `UnknownSampler`."""
        row = await self._db.call(lambda db: db.get(SamplerRow, sampler_id))
        if row is None:
            raise UnknownSampler(f"There is no sampling session {sampler_id[:200]!r}.")
        return row

    async def of_session(self, session_id: str) -> list[SamplerRow]:
        """Oldest first."""
        query = select(SamplerRow).where(SamplerRow.session_id == session_id)
        query = query.order_by(SamplerRow.created_at)
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def join(self, sampler_id: str) -> int:
        """A number for one more client; no other gets it. Raises `UnknownSampler`."""

        def work(db: Session) -> int | None:
            row = db.get(SamplerRow, sampler_id)
            if row is None:
                return None
            row.clients += 1
            return row.clients

        number = await self._db.call(work)
        if number is None:
            raise UnknownSampler(f"There is no sampling session {sampler_id[:200]!r}.")
        return number

    async def position(self, target: str) -> int | None:
        """Where in its run's history the newest copy of this name was made; None if unknown."""
        query = select(SamplerRow.position).where(SamplerRow.target == target)
        newest = query.order_by(SamplerRow.created_at.desc()).limit(1)
        return await self._db.call(lambda db: db.scalar(newest))

    async def end(self, sampler_ids: Sequence[str], reason: str) -> None:
        """Say why these sample no more; the first reason stays."""
        await self._db.call(
            lambda db: db.execute(
                update(SamplerRow)
                .where(SamplerRow.id.in_(sampler_ids), SamplerRow.ended.is_(None))
                .values(ended=reason)
            )
        )
