"""The tables, their migrations, and what is kept in them beside results."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from jupyter_tinker.server import database as database_module
from jupyter_tinker.server.checkpoints import (
    CheckpointPath,
    Checkpoints,
    UnknownCheckpoint,
    check_name,
    parse_path,
)
from jupyter_tinker.server.database import Database, default_url, insert_row
from jupyter_tinker.server.keys import InvalidKey, Keys
from jupyter_tinker.server.run_store import RunStore
from jupyter_tinker.server.schema import HEAD, Base, RequestRow, RunRow, SessionRow
from jupyter_tinker.server.signing import Signer
from jupyter_tinker.wire.ops import OpError


def test_migrations_end_where_the_schema_says(database: Database) -> None:
    migrations = Path(database_module.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(migrations))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    with database.open().connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, Base.metadata) == []


def test_a_row_is_inserted_with_its_defaults_and_again_after_a_rollback(
    database: Database,
) -> None:
    row = RequestRow(
        id="r", run_id="a", seq_id=1, kind="optim_step", server="life", accepted_at=1.0
    )

    def fails(db: Session) -> None:
        insert_row(db, row)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        database.run(fails)
    assert database.run(lambda db: db.get(RequestRow, "r")) is None
    database.run(lambda db: insert_row(db, row))
    stored = database.run(lambda db: db.get_one(RequestRow, "r"))
    assert (stored.seq_id, stored.failed, stored.deaths, stored.result) == (1, False, 0, None)


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    config = Config()
    migrations = Path(database_module.__file__).parent / "migrations"
    config.set_main_option("script_location", str(migrations))
    engine = create_engine(default_url(tmp_path))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO runs VALUES ('s:train:0', 's', 'ada', 'tiny', '/models/tiny', NULL,"
                " 'LlamaForCausalLM', '{\"rank\": 4}', NULL, 1.0, 2.0)"
            )
        )
    engine.dispose()
    row = Database(default_url(tmp_path)).run(lambda db: db.get_one(RunRow, "s:train:0"))
    assert (row.owner, row.lora, row.last_request_at) == ("ada", {"rank": 4}, 2.0)
    assert row.copied_from is None
    assert row.ended is not None
    assert "no history" in row.ended


def _run(session_id: str = "s") -> RunRow:
    return RunRow(
        id=f"{session_id}:train:0",
        session_id=session_id,
        owner="ada",
        base_model="tiny",
        base_path="/models/tiny",
        hub_id=None,
        architecture="LlamaForCausalLM",
        lora={"rank": 4},
        user_metadata=None,
        created_at=1.0,
        last_request_at=1.0,
    )


def test_a_repeated_create_session_is_one_session(database: Database) -> None:
    def row(name: str) -> SessionRow:
        return SessionRow(
            id=name,
            created_at=1.0,
            owner="ada",
            sdk_version="0.38.0",
            tags=["x"],
            user_metadata={"n": 1},
            project_id=None,
            display_name=None,
            idempotency_key="stainless-python-retry-1",
        )

    async def story() -> None:
        store = RunStore(database)
        assert (await store.add_session(row("a"))).id == "a"
        assert (await store.add_session(row("b"))).id == "a"
        await store.finish_session("a", "success", None)
        await store.finish_session("a", "errored", "late")
        session = await store.session("a")
        assert session is not None
        assert (session.finish_reason, session.finish_detail) == ("success", None)
        await database.close()

    asyncio.run(story())


def test_checkpoints_end_with_their_time(database: Database, tmp_path: Path) -> None:
    async def story() -> None:
        checkpoints = Checkpoints(database, tmp_path / "checkpoints")
        paths = [CheckpointPath("s:train:0", "weights", name) for name in ("old", "new")]
        for path, expires in zip(paths, (time.time() - 1, time.time() + 60), strict=True):
            checkpoints.folder(path).mkdir(parents=True)
            row = _run()
            await checkpoints.add(
                path,
                base_model=row.base_model,
                base_path=row.base_path,
                lora=row.lora,
                step=1,
                size_bytes=10,
                user_metadata=None,
                expires_at=expires,
            )
        with pytest.raises(UnknownCheckpoint, match="old"):
            await checkpoints.get(paths[0])
        assert (await checkpoints.list())[1] == 1
        await checkpoints.delete_expired()
        assert [checkpoints.folder(path).exists() for path in paths] == [False, True]
        await database.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["a", "000010", "step_1.5", "final-2", "A" * 128])
def test_good_names(name: str) -> None:
    assert check_name(name) == name
    assert parse_path(f"tinker://s:train:0/weights/{name}").name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a\n", "é", "A" * 129])
def test_bad_names(name: str) -> None:
    with pytest.raises(OpError):
        check_name(name)


@pytest.mark.parametrize("path", ["", "weights/a", "tinker://a/weights", "tinker://a/other/b"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(OpError, match="tinker://RUN"):
        parse_path(path)


def test_keys(database: Database) -> None:
    async def story() -> None:
        keys = Keys(database)
        secret = keys.create("laptop")
        assert await keys.owner(secret) == "laptop"
        assert await keys.owner(secret[:-1]) is None
        keys.revoke("laptop")
        assert await keys.owner(secret) is None
        assert await keys.owner(keys.create("laptop")) == "laptop"
        with pytest.raises(InvalidKey):
            keys.create("")
        with pytest.raises(InvalidKey, match="nobody"):
            keys.revoke("nobody")
        await database.close()

    asyncio.run(story())


def test_signatures() -> None:
    signer = Signer()
    later = int(time.time()) + 60
    good = signer.sign("a", later)
    assert signer.check("a", str(later), good)
    assert not signer.check("b", str(later), good)
    assert not signer.check("a", str(later + 1), good)
    assert not signer.check("a", str(later), "é")
    assert not Signer().check("a", str(later), good)
    past = int(time.time()) - 1
    assert not signer.check("a", str(past), signer.sign("a", past))
    assert not signer.check("a", "soon", good)
