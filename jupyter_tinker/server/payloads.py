"""Puts what a request asked into the database.

Knows nothing of what a payload says.
"""

from __future__ import annotations

from sqlalchemy import func, insert
from sqlalchemy.orm import Session

from .database import insert_row
from .schema import PayloadRow

_PIECE = 1 << 20


def add(db: Session, request_id: str, run_id: str, body: bytes) -> None:
    """Into SQLite in pieces: a parameter is copied as a whole, and Python does nothing else for as
    long, which is 40 ms for 64 MB."""
    if len(body) <= _PIECE or db.get_bind().dialect.name != "sqlite":
        insert_row(db, PayloadRow(request_id=request_id, run_id=run_id, body=body))
        return
    connection = db.connection()
    room = insert(PayloadRow).values(
        request_id=request_id, run_id=run_id, body=func.zeroblob(len(body))
    )
    row = connection.execute(room).lastrowid
    sqlite = connection.connection.driver_connection
    assert sqlite is not None
    view = memoryview(body)
    with sqlite.blobopen(PayloadRow.__tablename__, PayloadRow.body.key, row) as blob:
        for start in range(0, len(view), _PIECE):
            blob.write(view[start : start + _PIECE])
