"""The durable queue: only the moves of core/states.py, each once, each with its event; what was answered is there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import (
    Algorithm,
    Amendment,
    Fingerprint,
    Job,
    Pin,
    PinKind,
    Selection,
    SentPart,
)
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import UNFINISHED, State, allows
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.ports import Superseded
from tests.edge.journal_rig import (
    EXPERIMENT,
    MIB,
    TROUBLE,
    SetClock,
    accept,
    accepted,
    clock,
    in_state,
    job,
    journal,
    key_of,
    opened,
    path,
    record,
    rows,
)

__all__ = ["clock", "journal", "path"]


# ---- the table of moves


@pytest.mark.parametrize("old", State)
async def test_sql_makes_the_moves_of_the_table_and_refuses_every_other(path: Path, old: State) -> None:
    async with opened(path) as journal:
        others = [state for state in State if state is not old]
        before = {new: await in_state(journal, old, number) for number, new in enumerate(others, start=1)}
        steps = rows(path, "SELECT file_id, from_state, to_state FROM events ORDER BY file_id, number")
        for new, stood in before.items():
            if allows(old, new):
                assert (await journal.advance(stood, new)).state is new
                steps.append((stood.id, old.value, new.value))
            else:
                with pytest.raises(sqlite3.IntegrityError, match="not in the transition table"):
                    await journal.advance(stood, new)
                assert await journal.get([stood.id]) == [stood]
    after = rows(path, "SELECT file_id, from_state, to_state FROM events ORDER BY file_id, number")
    assert after == sorted(steps, key=lambda step: step[0])


async def test_sql_refuses_to_move_a_state_to_itself(journal: SqliteJournal, path: Path) -> None:
    """It would tell, in an event, of something that did not happen."""
    for number, state in enumerate(State, start=1):
        before = await in_state(journal, state, number)
        steps = rows(path, "SELECT count(*) FROM events")
        with pytest.raises(sqlite3.IntegrityError, match="not in the transition table"):
            await journal.advance(before, state)
        assert rows(path, "SELECT count(*) FROM events") == steps


@pytest.mark.parametrize("nonsense", ["", "queued", "LOST"])
async def test_sql_refuses_a_state_that_there_is_not(path: Path, nonsense: str) -> None:
    """Whoever writes: the rule is in the database, not in this process."""
    async with opened(path) as journal:
        await accepted(journal)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="transition table"):
        connection.execute("UPDATE files SET state = ?", (nonsense,))


async def test_a_table_that_has_changed_is_taken_over_at_the_start(path: Path) -> None:
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO transitions VALUES ('DONE', 'QUEUED', 2)")
        connection.execute("DELETE FROM transitions WHERE from_state = 'QUEUED'")
    async with opened(path) as journal:
        done = await in_state(journal, State.DONE)
        with pytest.raises(sqlite3.IntegrityError):
            await journal.advance(done, State.QUEUED)


# ---- compare and set


async def test_an_advance_from_a_state_that_is_left_is_superseded(path: Path) -> None:
    async with opened(path) as journal:
        stale = await accepted(journal)
        now = await journal.advance(stale, State.SENDING, upload_id="first")
        with pytest.raises(Superseded):
            await journal.advance(stale, State.SENDING, upload_id="second")
        with pytest.raises(Superseded):
            await journal.note(stale, attempt=9)
        assert await journal.get([7]) == [now]
    assert len(rows(path, "SELECT * FROM events")) == 2


async def test_of_many_who_advance_the_same_job_one_does(journal: SqliteJournal, path: Path) -> None:
    before = await accepted(journal)
    outcomes = await asyncio.gather(
        *(journal.advance(before, State.SENDING, upload_id=str(number)) for number in range(20)),
        return_exceptions=True,
    )
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    assert sum(isinstance(outcome, Superseded) for outcome in outcomes) == 19
    assert await journal.get([7]) == [winner]
    assert rows(path, "SELECT count(*) FROM events WHERE to_state = 'SENDING'") == [(1,)]


async def test_a_job_that_is_forgotten_is_superseded(journal: SqliteJournal) -> None:
    done = await in_state(journal, State.CANCELLED)
    await journal.forget([7])
    with pytest.raises(Superseded):
        await journal.note(done, attempt=1)


async def test_a_checksum_that_was_told_is_not_replaced(journal: SqliteJournal) -> None:
    sending = await in_state(journal, State.SENDING)
    await journal.set_sha256(7, "aa" * 32)
    await journal.set_sha256(7, "bb" * 32)
    with pytest.raises(Superseded):
        await journal.advance(sending, State.COMPLETING, sha256="bb" * 32)
    same = await journal.advance(sending, State.COMPLETING, sha256="aa" * 32)
    assert same.record.sha256 == "aa" * 32


# ---- many at once


async def inline_files(journal: SqliteJournal, *numbers: int) -> list[Job]:
    made = [Job(record(number), Pin(PinKind.INLINE), on_disk=True) for number in numbers]
    return [(await accept(journal, one, key_of(one.id), b"%d" % one.id))[0] for one in made]


async def test_many_move_in_one_transaction_each_with_its_own_changes(journal: SqliteJournal, path: Path) -> None:
    jobs = await inline_files(journal, 1, 2, 3)
    assert await journal.contents([1, 2, 3, 4]) == {1: b"1", 2: b"2", 3: b"3"}
    commits: list[str] = []
    await journal._database.call(lambda connection: connection.set_trace_callback(commits.append))
    sending = await journal.advance_all(jobs, State.SENDING, [{"key": f"k/{job.id}"} for job in jobs])
    await journal._database.call(lambda connection: connection.set_trace_callback(None))
    assert commits[1:-1].count("COMMIT") == 1  # without those of the two calls about tracing
    changes = [{"crc64nvme": 2**64 - job.id, "etag": f"e{job.id}", "trouble": None} for job in sending]
    verified = await journal.advance_all(sending, State.VERIFIED, changes)
    assert [(job.state, job.record.key, job.record.etag) for job in verified] == [
        (State.VERIFIED, f"k/{number}", f"e{number}") for number in (1, 2, 3)
    ]
    assert await journal.get([1, 2, 3]) == verified
    done = await journal.advance_all(verified, State.DONE)
    assert await journal.get([1, 2, 3]) == done
    assert rows(path, "SELECT * FROM contents") == []
    moves = [(None, "QUEUED"), ("QUEUED", "SENDING"), ("SENDING", "VERIFIED"), ("VERIFIED", "DONE")]
    assert rows(path, "SELECT file_id, from_state, to_state FROM events") == [
        (number, *move) for number in (1, 2, 3) for move in moves
    ]


async def test_of_many_those_that_another_hand_has_moved_are_left_out(journal: SqliteJournal) -> None:
    jobs = await inline_files(journal, 1, 2, 3)
    await journal.advance(jobs[1], State.FAILED, trouble=TROUBLE)
    await journal.cancel([3])
    moved = await journal.advance_all(jobs, State.SENDING, [{"key": "k"}] * 3)
    assert [(job.id, job.cancel_requested) for job in moved] == [(1, False), (3, True)]
    assert [job.state for job in await journal.get([1, 2, 3])] == [State.SENDING, State.FAILED, State.SENDING]
    assert await journal.advance_all(jobs[1:2], State.SENDING, [{"key": "k"}]) == []
    assert await journal.advance_all([], State.SENDING) == []


async def test_one_that_was_copied_meanwhile_comes_back_with_its_copy(journal: SqliteJournal) -> None:
    """Else the link is let go, and the copy stays in the spool."""
    (plain,) = await inline_files(journal, 1)
    linked, _ = await accept(journal, Job(record(2), Pin(PinKind.LINK, "2.link")), key_of(2), None)
    copy = Pin(PinKind.COPY, "2.copy")
    await journal.repin(linked, copy)
    moved = await journal.advance_all([plain, linked], State.SENDING, [{"key": "k/1"}, {"key": "k/2"}])
    assert [(job.pin, job.record.key) for job in moved] == [(plain.pin, "k/1"), (copy, "k/2")]
    assert await journal.get([1, 2]) == moved


async def test_one_that_failed_while_it_was_copied_keeps_its_pin(journal: SqliteJournal) -> None:
    """Its sender found the source changed; the copy is nobody's, and whoever made it lets it go."""
    linked, _ = await accept(journal, Job(record(2), Pin(PinKind.LINK, "2.link")), key_of(2), None)
    failed = await journal.advance(linked, State.FAILED, trouble=TROUBLE)
    with pytest.raises(Superseded):
        await journal.repin(linked, Pin(PinKind.COPY, "2.copy"))
    assert await journal.get([2]) == [failed]


async def test_many_move_only_as_the_table_allows(journal: SqliteJournal) -> None:
    jobs = await inline_files(journal, 1, 2)
    with pytest.raises(sqlite3.IntegrityError):
        await journal.advance_all(jobs, State.DONE)
    assert [job.state for job in await journal.get([1, 2])] == [State.QUEUED, State.QUEUED]
    assert await journal.contents([1, 2]) == {1: b"1", 2: b"2"}


# ---- the way of a file


async def test_every_column_that_moves_is_kept(path: Path, clock: SetClock) -> None:
    async with opened(path, clock) as journal:
        queued = await accepted(journal)
        clock.now = 2000
        noted = await journal.note(
            queued,
            key="k/7",
            part_size=16 * MIB,
            algorithm=Algorithm.CRC64NVME,
            attempt=3,
            not_before_ms=5000,
            blocked=True,
            trouble=TROUBLE,
        )
        clock.now = 3000
        sending = await journal.advance(noted, State.SENDING, upload_id="u", blocked=False, trouble=None)
        other = Pin(PinKind.COPY, "/spool/copy", "/data/best.pt", Fingerprint(1, 2, 5, 3, 4))
        completing = await journal.advance(
            sending, State.COMPLETING, sha256="ab" * 32, crc64nvme=2**64 - 1, proof="p=", pin=other
        )
    expected = Job(
        replace(record(), key="k/7", sha256="ab" * 32, crc64nvme=2**64 - 1, updated_ms=3000),
        other,
        State.COMPLETING,
        attempt=3,
        not_before_ms=5000,
        upload_id="u",
        part_size=16 * MIB,
        algorithm=Algorithm.CRC64NVME,
        proof="p=",
    )
    assert noted.trouble == TROUBLE
    assert noted.blocked
    assert noted.record.updated_ms == 2000
    assert completing == expected
    async with opened(path, clock) as journal:
        assert await journal.get([7]) == [expected]


async def test_each_move_writes_an_event_and_a_note_writes_none(journal: SqliteJournal, path: Path, clock) -> None:
    now = await accepted(journal)
    for number, step in enumerate((State.SENDING, State.QUEUED, State.FAILED, State.CANCELLED), start=2):
        clock.now = number * 1000
        now = await journal.note(now, attempt=number)
        now = await journal.advance(now, step, trouble=TROUBLE if step is State.FAILED else None)
    assert rows(path, "SELECT at_ms, from_state, to_state, detail FROM events ORDER BY number") == [
        (1000, None, "QUEUED", "link"),
        (2000, "QUEUED", "SENDING", None),
        (3000, "SENDING", "QUEUED", None),
        (4000, "QUEUED", "FAILED", "denied: größe"),
        (5000, "FAILED", "CANCELLED", None),
    ]


async def test_a_change_that_fails_writes_nothing(journal: SqliteJournal, path: Path) -> None:
    before = await accepted(journal)
    with pytest.raises(sqlite3.Error):
        await journal.advance(before, State.SENDING, no_such_column=1)
    with pytest.raises(sqlite3.Error):
        await journal.advance(before, State.SENDING, part_size="many")
    assert await journal.get([7]) == [before]
    assert len(rows(path, "SELECT * FROM events")) == 1


def pages_written(path: Path) -> int:
    """Pages in the log so far: mxFrame of the index of SQLite's write-ahead log, in the machine's byte order."""
    return int.from_bytes(Path(f"{path}-shm").read_bytes()[16:20], sys.byteorder)


async def test_a_move_writes_the_pages_of_its_row_once(journal: SqliteJournal, path: Path) -> None:
    """Long words are many pages. Those that the row leaves are free, and nothing is written to them."""
    long = await accepted(journal, metadata=json.dumps({"k": "x" * 64 * 1024}))
    before = pages_written(path)
    await journal.advance(long, State.SENDING, upload_id="u1")
    assert 16 < pages_written(path) - before < 16 + 8


async def test_on_disk_is_noted_in_any_state(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        before = await in_state(journal, state, number)
        assert not before.on_disk
        await journal.mark_on_disk(before)
        assert await journal.get([number]) == [replace(before, on_disk=True)]
    await journal.mark_on_disk(Job(record(999), Pin(PinKind.FD)))


async def test_on_disk_is_not_noted_of_another_pin(journal: SqliteJournal) -> None:
    """The link's bytes were synced; the copy that a writer waited for was not."""
    linked, _ = await accept(journal, Job(record(2), Pin(PinKind.LINK, "2"), on_disk=True), key_of(2), None)
    copy = Pin(PinKind.COPY, "2.lease")
    await journal.repin(linked, copy, on_disk=False)
    await journal.mark_on_disk(linked)
    (now,) = await journal.get([2])
    assert (now.pin, now.on_disk) == (copy, False)
    await journal.mark_on_disk(now)
    assert (await journal.get([2]))[0].on_disk


async def test_new_times_are_noted_of_the_very_file_that_has_them(journal: SqliteJournal) -> None:
    """Not of a copy that took its place meanwhile, which has times of its own."""
    mark = Fingerprint(1, 2, record(2).size_bytes, 3, 4)
    linked, _ = await accept(journal, Job(record(2), Pin(PinKind.LINK, "2", "/a", mark)), key_of(2), None)
    later = replace(mark, mtime_ns=5, ctime_ns=6)
    await journal.retime(linked, replace(later, inode=9))
    assert await journal.get([2]) == [linked]
    await journal.retime(linked, later)
    assert await journal.get([2]) == [replace(linked, pin=replace(linked.pin, fingerprint=later))]
    copy = Pin(PinKind.COPY, "2.copy", "/a", mark)
    await journal.repin(linked, copy)
    await journal.retime(linked, later)
    assert [job.pin for job in await journal.get([2])] == [copy]


async def test_parts_of_an_upload_that_is_gone_count_for_nothing(journal: SqliteJournal) -> None:
    queued = await accepted(journal)
    first = await journal.advance(queued, State.SENDING, upload_id="first")
    whole = SentPart(2, 16 * MIB, "e2", "c2", 2**64 - 1)
    for part in (whole, SentPart(1, 16 * MIB, "old"), SentPart(1, 16 * MIB, "e1", None, 0)):
        await journal.add_part(first, part)
    assert await journal.parts(first) == [SentPart(1, 16 * MIB, "e1", None, 0), whole]
    again = await journal.advance(first, State.QUEUED, upload_id=None)
    second = await journal.advance(again, State.SENDING, upload_id="second")
    assert await journal.parts(second) == []


async def test_cancelling_asks_every_file_that_can_still_be_stopped(journal: SqliteJournal) -> None:
    jobs = {state: await in_state(journal, state, number) for number, state in enumerate(State, start=1)}
    asked = await journal.cancel([one.id for one in jobs.values()] + [999])
    assert {one.state for one in asked} == UNFINISHED | {State.FAILED}
    assert all(one.cancel_requested for one in asked)
    for state in (State.DONE, State.CANCELLED):
        assert await journal.get([jobs[state].id]) == [jobs[state]]


async def test_a_cancelled_file_does_not_wait_for_its_retry(journal: SqliteJournal) -> None:
    await journal.note(await accepted(journal), not_before_ms=99_000)
    await journal.cancel([7])
    assert [one.id for one in await journal.due(Lane.SMALL, 1000, [], 9)] == [7]


# ---- what was answered is there


async def test_a_journal_of_a_newer_release_is_refused(path: Path) -> None:
    async with opened(path) as journal:
        await accepted(journal)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(MLDashError) as raised:
        SqliteJournal(path, SetClock(), NoFaults(), lambda _: Lane.SMALL)
    assert raised.value.code is Code.CONFIG
    assert f"{path} was made by a newer release" in raised.value.message
    assert rows(path, "SELECT id FROM files") == [(7,)]


TAKE_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from ml_dashd.core.states import State
from tests.edge.journal_rig import accepted, opened

async def take(journal, start):
    for number in range(start, 1 << 40, 8):
        job = await accepted(journal, number)
        if number % 3 == 0:
            await journal.advance(job, State.SENDING)
        print(number, flush=True)

async def main():
    async with opened(Path(sys.argv[1])) as journal:
        await asyncio.gather(*(take(journal, start) for start in range(1, 9)))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 300])
async def test_every_row_that_was_answered_survives_kill_9(path: Path, count: int) -> None:
    command = [sys.executable, "-c", TAKE_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        answered = [process.stdout.readline() for _ in range(count)]
        os.kill(process.pid, signal.SIGKILL)
        answered += process.stdout.readlines()
        assert process.wait() == -signal.SIGKILL
    numbers = {int(line) for line in answered if line.endswith("\n")}
    assert len(numbers) >= count
    async with opened(path) as journal:
        found = {one.id: one for one in await journal.get(sorted(numbers))}
        assert found.keys() == numbers
        assert {number for number, one in found.items() if one.state is State.SENDING} == {
            number for number in numbers if number % 3 == 0
        }
        assert await journal.high_water() >= max(numbers)
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


# ---- what is said of a file


async def test_an_amendment_is_kept_and_counted(path: Path, clock: SetClock) -> None:
    async with opened(path, clock) as journal:
        made = await accepted(journal)
        clock.now = 2000
        amended = await journal.amend(7, Amendment(tags=("a", "b"), metadata='{"a":1}'))
        expected = replace(made.record, tags=("a", "b"), metadata='{"a":1}', updated_ms=2000, revision=1)
        assert amended == replace(made, record=expected)
        assert await journal.amend(8, Amendment(description="x")) is None
    async with opened(path, clock) as journal:
        assert await journal.get([7]) == [amended]


async def test_what_was_amended_since_it_was_listed_is_not_done(journal: SqliteJournal) -> None:
    """The catalog has the old words: it comes back to be listed once more, and a plain move brings the new ones."""
    old = await accepted(journal)
    await journal.amend(7, Amendment(description="first"))
    (sending,) = await journal.advance_all([old], State.SENDING, [{"key": "k"}])
    assert (sending.record.description, sending.record.key, sending.record.revision) == ("first", "k", 1)
    verified = await journal.advance(sending, State.VERIFIED)
    await journal.amend(7, Amendment(description="second"))
    assert await journal.advance_all([verified], State.DONE) == []
    (now,) = await journal.get([7])
    assert (now.state, now.record.description) == (State.VERIFIED, "second")
    (done,) = await journal.advance_all([now], State.DONE)
    assert done.record.description == "second"
    assert await journal.amend(7, Amendment(description="third")) is None


async def test_what_is_to_be_deleted_is_not_amended(journal: SqliteJournal) -> None:
    await accepted(journal)
    await journal.cancel([7])
    assert await journal.amend(7, Amendment(description="late")) is None


async def test_objects_of_which_duplicates_are_to_be_made(journal: SqliteJournal) -> None:
    duplicate = Job(record(7), Pin(PinKind.OBJECT, source="files/1/best.pt"))
    (taken, _) = await accept(journal, duplicate, key_of(7))
    await accept(journal, job(8), key_of(8))
    assert await journal.referred() == {"files/1/best.pt"}
    await journal.advance(await journal.advance(taken, State.FAILED, trouble=TROUBLE), State.CANCELLED)
    assert await journal.referred() == set()


async def test_files_on_their_way_by_tag(journal: SqliteJournal) -> None:
    for number, tags in enumerate([("a",), ("b", "a"), ()], start=1):
        await accept(journal, job(number, tags=tags), key_of(number))

    async def ids(*tags: str) -> list[int]:
        return [found.id for found in await journal.select(Selection(*EXPERIMENT, tags=tags))]

    assert (await ids("a"), await ids("a", "b"), await ids("c"), await ids()) == ([2, 1], [2], [], [3, 2, 1])
