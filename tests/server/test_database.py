"""The tables, their migrations, and what is kept for how long."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from jupyter_tinker.server import backlog as backlog_module
from jupyter_tinker.server import database as database_module
from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.checkpoints import (
    CheckpointPath,
    Checkpoints,
    UnknownCheckpoint,
    check_name,
    parse_path,
)
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.futures import (
    ExpiredFuture,
    Futures,
    Request,
    UnknownFuture,
    failure,
    success,
)
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.keys import InvalidKey, Keys
from jupyter_tinker.server.schema import (
    HEAD,
    Base,
    OperationRow,
    PayloadRow,
    RequestRow,
    RunRow,
    SessionRow,
)
from jupyter_tinker.server.signing import Signer
from jupyter_tinker.wire.ops import OpError


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(default_url(tmp_path))


def test_migrations_end_where_the_schema_says(database: Database) -> None:
    migrations = Path(database_module.__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(migrations))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    with database.open().connect() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, Base.metadata) == []


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


def _request(number: int = 1) -> Request:
    return Request(f"r{number}", "s:train:0", number, "optim_step", b"payload")


def _futures(database: Database, life: str = "now") -> Futures:
    return Futures(Journal(database, life), Backlog(database))


async def _accepted(futures: Futures) -> Request:
    """A request that is pending."""
    request = _request()
    await futures.accept(request)
    futures.open(request)
    return request


def _payload(database: Database, request_id: str = "r1") -> bytes | None:
    row = database.run(lambda db: db.get(PayloadRow, request_id))
    return None if row is None else row.body


def test_a_result_is_kept_until_a_while_after_it_was_fetched(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = _request()
        assert await futures.accept(request) == "r1"
        futures.open(request)
        assert await futures.poll("r1", hold=0.01) is None
        futures.complete(request, success({"metrics": {}}))
        await futures.stored()
        forgetful = _futures(database)  # has nothing in memory
        forgetful.resumed.set()
        await forgetful.tidy(keep_seconds=0.0)
        assert await forgetful.poll("r1", hold=0) == success({"metrics": {}})
        await forgetful.tidy(keep_seconds=60.0)
        assert await forgetful.poll("r1", hold=0) is not None
        await asyncio.sleep(0.01)
        await forgetful.tidy(keep_seconds=0.0)
        with pytest.raises(ExpiredFuture):
            await forgetful.poll("r1", hold=0)
        with pytest.raises(UnknownFuture):
            await forgetful.poll("r2", hold=0)
        await database.close()

    asyncio.run(story())


def test_a_result_that_nobody_fetches_is_not_kept_for_good(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({"metrics": {}}))
        await futures.stored()
        later = _futures(database, "later")
        later.resumed.set()
        await later.tidy(keep_seconds=0.0, unfetched_seconds=60.0)
        assert (await later._journal.future("r1")).result is not None  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
        await later.tidy(keep_seconds=60.0, unfetched_seconds=0.0)
        with pytest.raises(ExpiredFuture):
            await later.poll("r1", hold=0)
        await database.close()

    asyncio.run(story())


def test_what_was_fetched_is_known_although_it_could_not_be_written_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({"metrics": {}}))
        assert await futures.poll("r1", hold=1.0) is not None
        await futures.stored()
        with monkeypatch.context() as full:

            async def fail(_: Any) -> None:
                raise OperationalError("", None, Exception("database or disk is full"))

            full.setattr(futures._journal, "mark_retrieved", fail)
            with pytest.raises(OperationalError):
                await futures.tidy(keep_seconds=0.0)
        await futures.tidy(keep_seconds=60.0)
        row = database.run(lambda db: db.get(RequestRow, "r1"))
        assert row is not None
        assert row.retrieved_at is not None
        await database.close()

    asyncio.run(story())


def _operation(request_id: str | None) -> OperationRow:
    return OperationRow(
        run_id="s:train:0",
        position=1,
        kind="forward_backward",
        step=0,
        request_id=request_id,
        data={},
        time=1.0,
    )


@pytest.mark.parametrize(
    ("operation", "kept"), [(None, False), (_operation(None), False), (_operation("r1"), True)]
)
def test_a_payload_goes_with_its_request_unless_its_run_was_made_of_it(
    database: Database, operation: OperationRow | None, kept: bool
) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = _request()
        await futures.accept(request)
        assert _payload(database) == b"payload"
        futures.complete(request, success({}), operation=operation)
        await futures.stored()
        assert _payload(database) == (b"payload" if kept else None)
        await database.close()

    asyncio.run(story())


def test_a_result_is_handed_out_once_it_is_stored(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({}))
        assert not request.done.done()
        assert await futures.poll("r1", hold=5) == success({})
        stored = await Journal(database, "other").future("r1")
        assert stored is not None
        assert stored.result == success({})
        await database.close()

    asyncio.run(story())


def test_what_an_earlier_life_left_pending_is_waited_for(database: Database) -> None:
    async def story() -> None:
        await _futures(database, "before").accept(_request())
        futures = _futures(database)
        polls = asyncio.create_task(futures.poll("r1", hold=5))
        await asyncio.sleep(0.01)
        assert not polls.done()
        again = _request()
        futures.open(again)
        futures.resumed.set()
        await asyncio.sleep(0.01)
        assert await futures.poll("r1", hold=0.01) is None
        futures.complete(again, success({"it": "went on"}))
        assert await polls == success({"it": "went on"})
        await database.close()

    asyncio.run(story())


def test_a_sample_that_an_earlier_life_left_is_gone(database: Database) -> None:
    async def story() -> None:
        before = Request("r1", "s:sample:0", 1, "sample", b"payload")
        await _futures(database, "before").accept(before)
        futures = _futures(database)
        futures.resumed.set()
        with pytest.raises(ExpiredFuture):
            await futures.poll("r1", hold=0)
        await database.close()

    asyncio.run(story())


def test_the_same_number_is_the_same_future_also_at_once(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        requests = [Request(f"r{n}", "s:train:0", 1, "optim_step", b"p") for n in range(20)]
        ids = await asyncio.gather(*map(futures.accept, requests))
        assert set(ids) == {"r0"}
        assert [_payload(database, f"r{n}") for n in range(3)] == [b"p", None, None]
        await database.close()

    asyncio.run(story())


def test_a_result_that_cannot_be_stored_yet_is_handed_out_and_stored_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        works = database.call

        async def full(_: Any) -> None:
            raise OperationalError("", None, Exception("database or disk is full"))

        monkeypatch.setattr(database, "call", full)
        futures.complete(request, failure("x", "user"))
        assert await futures.poll("r1", hold=5) == failure("x", "user")
        monkeypatch.setattr(database, "call", works)
        await futures.stored()
        stored = await Journal(database, "other").future("r1")
        assert stored is not None
        assert stored.result == failure("x", "user")
        await database.close()

    asyncio.run(story())


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
        journal = Journal(database, "now")
        assert (await journal.add_session(row("a"))).id == "a"
        assert (await journal.add_session(row("b"))).id == "a"
        await journal.finish_session("a", "success", None)
        await journal.finish_session("a", "errored", "late")
        session = await journal.session("a")
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
