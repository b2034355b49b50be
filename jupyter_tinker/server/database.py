"""Opens the database, brings its tables up to date, and works on it from one thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import Engine, Insert, create_engine, event, insert, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from .schema import HEAD, Base

T = TypeVar("T")

_THEN = "after_commit"


def default_url(state_dir: Path) -> str:
    """SQLite in the state directory."""
    return f"sqlite:///{state_dir / 'tinker.db'}"


class Database:
    """A SQLAlchemy database used from one thread, so that the event loop never waits for a disk.

    One thread also makes the order of commits the order of calls.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tinker-db")
        self._engine: Engine | None = None
        self._opening = Lock()

    def open(self) -> Engine:
        """Create or migrate the tables. Blocking; idempotent."""
        with self._opening:
            if self._engine is None:
                engine = create_engine(self._url)
                if self._url.get_backend_name() == "sqlite":
                    _prepare_sqlite(engine, self._url.database)
                if _revision(engine) != HEAD:
                    _migrate(engine)
                self._engine = engine
            return self._engine

    def run(self, work: Callable[[Session], T]) -> T:
        """Do `work` in one transaction, on the calling thread."""
        with Session(self.open(), expire_on_commit=False) as session:
            with session.begin():
                result = work(session)
            for then in session.info.get(_THEN, ()):
                then()
            return result

    async def call(self, work: Callable[[Session], T]) -> T:
        """Do `work` in one transaction, on the database's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.run, work)

    async def close(self) -> None:
        """Finish what was begun and close."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._engine is not None:
            self._engine.dispose()


def insert_row(db: Session, row: Base) -> None:
    """Insert a new row at once, by a plain statement.

    For what every step of training writes: to have the session do it costs ten times as much. The
    row does not become the session's, so the same one may be inserted again after a rollback.
    """
    columns = type(row).__table__.columns
    given = row.__dict__
    values = {c.key: given[c.key] for c in columns if c.key in given}
    db.connection().execute(_insertion(type(row)), values)


@cache
def _insertion(table: type[Base]) -> Insert:
    return insert(table)


def after_commit(db: Session, then: Callable[[], None]) -> None:
    """Do `then`, which must not fail, once the transaction of `db` is in the database: on the
    thread it was made on, before the next one. If it is rolled back, `then` is not done."""
    db.info.setdefault(_THEN, []).append(then)


def _prepare_sqlite(engine: Engine, path: str | None) -> None:
    if path and path != ":memory:":
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(path).touch(mode=0o600)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # WAL: readers do not wait for the writer; NORMAL: a commit survives the death of any
        # process, and of the machine up to the last checkpoint of the log.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
            connection.execute(f"PRAGMA {pragma}")


def _revision(engine: Engine) -> str | None:
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
    # Imported only when there is something to do: a start of the server need not pay for it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
