"""A payload of any size comes out of the database as it went in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jupyter_tinker.server import payloads
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.schema import PayloadRow

SIZES = [0, 1, payloads._PIECE, payloads._PIECE + 1, 3 * payloads._PIECE, 3 * payloads._PIECE + 7]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_kept_whole(tmp_path: Path, size: int) -> None:
    database = Database(default_url(tmp_path))
    bodies = {name: os.urandom(size) for name in ("one", "other")}

    def add(db: Session) -> None:
        for name, body in bodies.items():
            payloads.add(db, name, "run", body)

    database.run(add)
    rows = database.run(lambda db: db.scalars(select(PayloadRow)).all())
    assert {row.request_id: row.body for row in rows} == bodies
    assert {row.run_id for row in rows} == {"run"}


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    database = Database(default_url(tmp_path))

    def fail(db: Session) -> None:
        payloads.add(db, "one", "run", os.urandom(SIZES[-1]))
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="disk"):
        database.run(fail)
    assert database.run(lambda db: db.scalars(select(PayloadRow)).all()) == []
