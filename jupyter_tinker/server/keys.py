"""API keys: they open `/tinker` and nothing else, and only their digest is kept."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from .audit import note
from .database import Database
from .schema import KeyRow

# The SDK wants every key to start with "tml-"; the rest tells ours from a Jupyter token's.
PREFIX = "tml-key-"
COMMAND_LINE = "jupyter tinker"  # the actor of what its command did


@dataclass(frozen=True)
class Key:
    """A key as it may be shown: without its secret."""

    name: str
    created_at: float
    revoked_at: float | None


class InvalidKey(ValueError):
    """A key that cannot be made or revoked; the message says why."""


class Keys:
    """The keys of one database. Its methods block; `owner` is for the event loop."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def create(self, name: str, *, by: str = COMMAND_LINE) -> str:
        """Make a key and return its secret, which cannot be had again. Raises `InvalidKey`."""
        if not name.strip() or not name.isprintable() or len(name) > 100:
            raise InvalidKey("A key's name must have 1 to 100 printable characters.")
        secret = PREFIX + secrets.token_urlsafe(32)

        def work(db: Session) -> None:
            live = select(KeyRow).where(KeyRow.name == name, KeyRow.revoked_at.is_(None))
            if db.scalars(live).first() is not None:
                raise InvalidKey(f"There is a key named {name!r} already; revoke it first.")
            row = KeyRow(digest=_digest(secret), name=name, created_at=time.time(), revoked_at=None)
            db.add(row)
            note(db, "api_key_created", by, name=name)

        self._db.run(work)
        return secret

    def list(self) -> list[Key]:
        query = select(KeyRow).order_by(KeyRow.created_at)
        return self._db.run(
            lambda db: [Key(k.name, k.created_at, k.revoked_at) for k in db.scalars(query)]
        )

    def revoke(self, name: str, *, by: str = COMMAND_LINE) -> None:
        """Close a key for good, at once. Raises `InvalidKey` if there is none of that name."""

        def work(db: Session) -> None:
            live = select(KeyRow).where(KeyRow.name == name, KeyRow.revoked_at.is_(None))
            row = db.scalars(live).first()
            if row is None:
                raise InvalidKey(f"There is no key named {name!r}.")
            row.revoked_at = time.time()
            note(db, "api_key_revoked", by, name=name)

        self._db.run(work)

    async def owner(self, secret: str) -> str | None:
        """The name of the live key with this secret. Asked at every request, so that a revoked key
        is closed at once, whichever process revoked it."""
        query = select(KeyRow.name).where(
            KeyRow.digest == _digest(secret), KeyRow.revoked_at.is_(None)
        )
        return await self._db.call(lambda db: db.scalars(query).first())


def number(secret: str) -> int:
    """A number that stands for a key where the SDK wants one; it tells nothing of the secret."""
    return int(_digest(secret)[:12], 16)


def _digest(secret: str) -> str:
    # A plain hash suffices: the secret is 256 random bits, not a password.
    return hashlib.sha256(secret.encode()).hexdigest()
