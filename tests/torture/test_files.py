"""Full disks, damaged files, a clock that jumps: training goes on, or says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tinker

from tests.servers import start_server

from .client import Client
from .compare import History, differences, part
from .conftest import Reference, StartPlace
from .place import Place
from .schedule import Turn

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*DEPRECATED:FutureWarning"),
]

_TURNS = 16


def _go(place: Place, reference: Reference, at: dict[int, Callable[[Client], None]]) -> Client:
    """The schedule's first turns, with something done before some; they give what they gave."""

    def before(turn: Turn) -> None:
        if turn.number in at:
            at[turn.number](client)

    client = Client(place.server, before=before)
    (seen,) = place.in_time(lambda: client.go(reference.turns[:_TURNS]))
    assert differences(seen, part(reference.recording, _TURNS)) == []
    return client


# Snapshots


def _snapshots(place: Place) -> list[Path]:
    """The files of all snapshots, in the order of their making, once none is being written."""
    rows: list[tuple[str]] = []
    for _ in range(300):
        rows, before = History(place.server).rows("SELECT file FROM snapshots ORDER BY rowid"), rows
        if rows and rows == before:
            break
        time.sleep(0.1)
    assert rows
    return [place.state / "snapshots" / file for (file,) in rows]


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content) // 2, len(content))] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def test_damaged_snapshots_are_not_used(start: StartPlace, reference: Reference) -> None:
    place = start()
    harmed: list[Path] = []

    def damage(harm: Callable[[Path], None]) -> None:
        harmed.append(_snapshots(place)[-1])
        harm(harmed[-1])
        place.kill_idle_engine()

    harms = {6: _flip, 10: _cut, 14: Path.unlink}
    _go(place, reference, {turn: lambda _, h=harm: damage(h) for turn, harm in harms.items()})
    assert place.server.log.count("damaged") >= len(harms)
    for file in harmed:
        query = "SELECT 1 FROM snapshots WHERE file LIKE ?"
        assert not History(place.server).rows(query, f"%{file.name}")


def test_without_any_snapshot_a_run_is_made_from_its_beginning(
    start: StartPlace, reference: Reference
) -> None:
    place = start()

    def remove(_: Client) -> None:
        shutil.rmtree(_snapshots(place)[-1].parent)
        place.kill_idle_engine()

    _go(place, reference, {10: remove})


def test_a_place_for_snapshots_that_cannot_be_written(
    start: StartPlace, reference: Reference
) -> None:
    """A file where the folder should be: unlike permissions it stops even root."""
    place = start(prepare=lambda state: (state / "snapshots").write_text("not a folder"))
    _go(place, reference, {10: lambda _: _kill_both(place)})
    assert "could not be snapshot" in place.server.log


def _kill_both(place: Place) -> None:
    place.kill_idle_engine()
    place.kill_server()
    place.start_again()


# A disk without room


def test_an_engine_without_room_trains_on(start: StartPlace, reference: Reference) -> None:
    """Checkpoints say so; snapshots are missing, and come back."""
    place = start()
    counted: list[int] = []

    def fill(client: Client) -> None:
        place.faults.switch_on("disk-full-engine", "4096")
        with pytest.raises(
            tinker.RequestFailedError, match=r"could not be written.*File too large"
        ):
            client.training.save_state("no-room").result()

    def free(_: Client) -> None:
        assert "could not be snapshot" in place.server.log
        place.kill_idle_engine()
        place.faults.switch_off("disk-full-engine")
        counted.append(len(_snapshots(place)))

    _go(place, reference, {6: fill, 9: free})
    newest = History(place.server).rows("SELECT max(position) FROM snapshots")[0][0]
    last = History(place.server).rows("SELECT max(position) FROM operations")[0][0]
    assert newest > last - 6


def test_a_journal_without_room_makes_clients_wait(start: StartPlace, reference: Reference) -> None:
    place = start()

    def fill(_: Client) -> None:
        place.faults.switch_on("disk-full-server", "4096")
        timer = threading.Timer(3.0, place.faults.switch_off, ["disk-full-server"])
        timer.start()

    client = _go(place, reference, {10: fill})
    assert History(place.server).problems(client.recording.runs) == []


# The journal


def _last_commit(wal: bytes) -> int:
    """Where the last transaction of a SQLite log begins: see "WAL format" of sqlite.org."""
    page_size, salt = struct.unpack(">I", wal[8:12])[0], wal[16:24]
    frame = 24 + page_size
    ends = [0]  # of transactions
    for start in range(32, len(wal) - frame + 1, frame):
        if wal[start + 8 : start + 16] != salt:
            break  # of an earlier round through the file
        if struct.unpack(">I", wal[start + 4 : start + 8])[0]:
            ends.append(start + frame)
    assert len(ends) > 1, "the log is empty"
    return ends[-2] or 32


def _tear(wal: bytes) -> bytes:
    """The last transaction is cut in its middle, as by a machine that lost its power."""
    return wal[: _last_commit(wal) + 1000]


def _garble(wal: bytes) -> bytes:
    start = _last_commit(wal)
    return wal[:start] + random.Random(0).randbytes(len(wal) - start)


def _litter(wal: bytes) -> bytes:
    """Behind the end lies what was never committed."""
    return wal + random.Random(0).randbytes(10_000)


def test_a_torn_journal_costs_its_last_transaction(start: StartPlace, reference: Reference) -> None:
    """What that said was done is done once more."""
    place = start()

    def damage(harm: Callable[[bytes], bytes]) -> None:
        place.kill_server()
        wal = place.state / "tinker.db-wal"
        wal.write_bytes(harm(wal.read_bytes()))
        place.start_again()

    harms = {6: _tear, 10: _garble, 14: _litter}
    client = _go(
        place, reference, {turn: lambda _, h=harm: damage(h) for turn, harm in harms.items()}
    )
    assert History(place.server).problems(client.recording.runs) == []


# Time, and a second server


def test_a_clock_that_jumps_back_a_day(start: StartPlace, reference: Reference) -> None:
    place = start()

    def jump(_: Client) -> None:
        place.faults.switch_on("clock", "-86400")

    seen = _go(place, reference, {4: jump, 10: lambda _: _kill_both(place)}).recording
    history = History(place.server)
    assert history.problems(seen.runs) == []
    steps = [
        history.rows("SELECT id, time FROM steps WHERE run_id = ? ORDER BY id", run)
        for run in seen.runs
    ]
    assert any(rows != sorted(rows, key=lambda row: row[1]) for rows in steps)


def test_a_second_server_on_the_same_state_stands_back(
    start: StartPlace, reference: Reference, tmp_path: Path
) -> None:
    place = start()
    told: list[tuple[int, str]] = []

    def intrude(_: Client) -> None:
        config = {"TinkerExtension": {"state_dir": str(place.state)}}
        second = start_server(tmp_path, models={}, config=config, probe="api/status")
        try:
            for path in ("tinker/runs", "tinker/api/v1/get_server_capabilities"):
                status, answer = second.fetch(path)
                told.append((status, answer["detail"]))
        finally:
            second.stop()

    _go(place, reference, {4: intrude})
    assert [status for status, _ in told] == [503, 503]
    assert all(str(place.server.process.pid) in detail for _, detail in told)
