"""What is asked of the queue: what may run, in which order, what waits, how much it is, and for whom."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import Code
from ml_dashd.core.figures import Backlog, Blocked, Left, StateCount, Unsent
from ml_dashd.core.model import EVERYBODY, Job, PinKind, Scope, Selection, SentPart
from ml_dashd.core.schedule import Lane, foremost, lane
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.edge import due, figures
from ml_dashd.edge.journal import MIGRATIONS, SqliteJournal
from tests.edge.journal_rig import (
    EXPERIMENT,
    MIB,
    OWNER,
    PIN,
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


async def test_due_is_what_may_run_now_oldest_first_lane_by_lane(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number)
    await accepted(journal, 20, size_bytes=17 * MIB)
    later = await accepted(journal, 30)
    await journal.note(later, not_before_ms=2001)
    due = [state for state in State if state in UNFINISHED]
    assert [one.state for one in await journal.due(Lane.SMALL, 2000, [], 99)] == due
    assert [one.id for one in await journal.due(Lane.LARGE, 2000, [], 99)] == [20]
    assert [one.state for one in await journal.due(Lane.SMALL, 2000, [1, 3], 2)] == [State.SENDING, State.VERIFIED]
    assert [one.id for one in await journal.due(Lane.SMALL, 2001, [], 99)][-1] == 30
    assert await journal.due_count() == len(due) + 2


async def test_when_to_look_again(journal: SqliteJournal) -> None:
    assert await journal.next_due_ms(0) is None
    for number, at in ((1, 5000), (2, 3000), (3, 9000)):
        await journal.note(await accepted(journal, number), not_before_ms=at)
    assert await journal.next_due_ms(1000) == 3000
    assert await journal.next_due_ms(3000) == 5000
    await journal.advance((await journal.get([1]))[0], State.CANCELLED)
    assert await journal.next_due_ms(3000) == 9000


async def test_every_file_that_needs_its_source_is_pinned(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number)
    assert {one.state for one in await journal.pinned()} == UNFINISHED | {State.FAILED}


async def test_a_list_shows_what_the_catalog_has_not(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number, file=f"models/{state}")
    await accepted(journal, 20, file="other/x")
    await accepted(journal, 21, experiment="else", file="models/x")
    await accepted(journal, 22, file="models/taken_back")
    await journal.cancel([22])
    found = await journal.select(Selection(*EXPERIMENT, prefix="models"))
    assert [one.record.filename for one in found] == sorted(UNFINISHED | {State.FAILED})


async def test_what_an_experiment_waits_for(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number)
    await accepted(journal, 20, experiment="else")
    pending, failed = await journal.unfinished(Selection(*EXPERIMENT))
    assert pending == len(UNFINISHED)
    assert [one.state for one in failed] == [State.FAILED]


async def test_the_queue_in_short(journal: SqliteJournal) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number, size_bytes=number, created_ms=1000 + number)
    await accepted(journal, 20, size_bytes=100, created_ms=5000)
    blocked = await journal.note((await journal.get([20]))[0], blocked=True, trouble=TROUBLE)
    summary = await journal.summary()
    assert set(summary.counts) == {
        StateCount(state, 2 if state is State.QUEUED else 1, 101 if state is State.QUEUED else number)
        for number, state in enumerate(State, start=1)
    }
    assert summary.oldest_ms == 1001
    assert summary.blocked == (blocked,)
    assert [one.state for one in summary.failed] == [State.FAILED]


async def test_the_queue_in_figures(journal: SqliteJournal, path: Path) -> None:
    """What is neither stored nor cancelled, as another program counts it; and what blocks, the last words of each."""
    assert await journal.backlog() == Backlog((), None)
    await in_state(journal, State.FAILED, 30, created_ms=1)
    assert (await journal.backlog()).oldest_ms is None
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number, size_bytes=number, created_ms=1000 + number)
    for number, trouble in (
        (21, TROUBLE),
        (22, replace(TROUBLE, message="the last")),
        (23, replace(TROUBLE, code=Code.CONFIG)),
    ):
        await journal.note(await accepted(journal, number, created_ms=5000), blocked=True, trouble=trouble)
    backlog = await journal.backlog()
    assert {(one.state, one.files, one.size_bytes) for one in backlog.counts} == set(
        rows(
            path,
            "SELECT state, count(*), sum(size_bytes) FROM files"
            " WHERE state NOT IN ('DONE', 'CANCELLED') GROUP BY state",
        )
    )
    assert {one.state for one in backlog.counts} == UNFINISHED | {State.FAILED}
    assert backlog.oldest_ms == 1001
    assert backlog.blocked == (
        Blocked(replace(TROUBLE, code=Code.CONFIG), 1),
        Blocked(replace(TROUBLE, message="the last"), 2),
    )


async def test_questions_keep_to_the_askers_scope(journal: SqliteJournal) -> None:
    """Of what it names the newest sixteen are the asker's, however many newer ones others have."""
    for number in range(1, 41):
        owner = OWNER if number <= 2 else OWNER + 1
        one = await accepted(journal, number, owner_uid=owner, file=f"p{number:02}")
        await journal.note(one, blocked=True)
    for scope, seen in (
        (Scope(OWNER), [1, 2]),
        (Scope(OWNER + 2), []),
        (Scope(OWNER + 2, frozenset({"bob", "alice"})), list(range(1, 41))),
        (EVERYBODY, list(range(1, 41))),
    ):
        selection = Selection(*EXPERIMENT, scope=scope)
        assert [one.id for one in await journal.select(selection)] == seen
        assert await journal.unfinished(selection) == (len(seen), [])
        summary = await journal.summary(scope)
        assert [one.id for one in summary.blocked] == seen[::-1][:16]
        assert [(count.state, count.files) for count in summary.counts] == [(State.QUEUED, 40)]
    for number in (1, 40):
        await journal.advance((await journal.get([number]))[0], State.FAILED, trouble=TROUBLE)
    assert [one.id for one in (await journal.summary(Scope(OWNER))).failed] == [1]
    pending, failed = await journal.unfinished(Selection(*EXPERIMENT, scope=Scope(OWNER)))
    assert (pending, [one.id for one in failed]) == (1, [1])


async def test_only_what_is_finished_and_old_is_forgotten(journal: SqliteJournal, path: Path, clock: SetClock) -> None:
    for number, state in enumerate(State, start=1):
        await in_state(journal, state, number)
        if state in (State.SENDING, State.DONE):
            await journal.add_part(replace(job(number), upload_id="u"), SentPart(1, 5, "e"))
    clock.now = 2000
    await in_state(journal, State.DONE, 20)
    found = await journal.finished(2000, 99)
    assert {one.state for one in found} == {State.DONE, State.CANCELLED}
    assert 20 not in {one.id for one in found}
    assert len(await journal.finished(2001, 2)) == 2
    await journal.forget(list(range(1, 20)))
    left = {state for (state,) in rows(path, "SELECT state FROM files WHERE id < 20")}
    assert left == UNFINISHED | {State.FAILED}
    assert rows(path, "SELECT count(*) FROM events WHERE file_id NOT IN (SELECT id FROM files)") == [(0,)]
    assert rows(path, "SELECT file_id FROM parts") == [(2,)]


async def test_facts_are_kept(path: Path) -> None:
    async with opened(path) as journal:
        assert await journal.setting("checksum") is None
        await journal.set_setting("checksum", "md5")
        await journal.set_setting("checksum", "crc64nvme")
    async with opened(path) as journal:
        assert await journal.setting("checksum") == "crc64nvme"


async def test_a_higher_priority_goes_first(journal: SqliteJournal) -> None:
    for number, priority in ((1, 0), (2, -100), (3, 100), (4, 0)):
        await accept(journal, replace(job(number), priority=priority), key_of(number))
    due = await journal.due(Lane.SMALL, 1000, [], 9)
    assert [(one.id, one.priority) for one in due] == [(3, 100), (1, 0), (4, 0), (2, -100)]
    assert [one.id for one in await journal.due(Lane.SMALL, 1000, [3], 1)] == [1]


SIZES = st.sampled_from([1, 5, 16 * MIB, 17 * MIB, 64 * MIB, 65 * MIB])


@settings(deadline=None, max_examples=25)
@given(
    files=st.lists(
        st.tuples(SIZES, st.integers(-2, 2), st.sampled_from([*State]), st.integers(0, 4), st.booleans()), max_size=12
    )
)
async def test_a_drains_order_is_that_of_the_core(files: list[tuple[int, int, State, int, bool]]) -> None:
    """Whatever is in the queue: SQL and the pure function agree, with the index of a drain and without it."""
    with TemporaryDirectory() as folder:
        async with opened(Path(folder) / "journal.sqlite") as journal:
            on_their_way = []
            for number, (size, priority, state, parts, waits) in enumerate(files, start=1):
                record_of = record(number, size_bytes=size)
                placed = Job(record_of, PIN, state=state, priority=priority, not_before_ms=2000 if waits else 0)
                one, _ = await accept(journal, placed, key_of(number))
                sent = 0
                if lane(PIN.kind, size, 16 * MIB) is Lane.LARGE:
                    if state in UNFINISHED:
                        one = await journal.note(one, upload_id="now")
                    for part in range(1, parts + 1):
                        await journal.add_part(replace(one, upload_id="gone"), SentPart(part, MIB, "e"))
                        if one.upload_id:
                            await journal.add_part(one, SentPart(part, MIB, "e"))
                            sent += MIB
                if state in UNFINISHED:
                    on_their_way.append((waits, Unsent(one, sent)))
            everything = [one for _, one in on_their_way]
            told = [(one.job.id, one.sent_bytes) for one in await journal.unsent(0, 99)]
            failed = [(number, 0) for number, file in enumerate(files, start=1) if file[2] is State.FAILED]
            assert told[: len(everything)] == [(one.job.id, one.sent_bytes) for one in sorted(everything, key=foremost)]
            assert sorted(told[len(everything) :]) == failed
            left = await journal.left(1000)
            assert (left.files, left.left_bytes) == (len(everything), sum(one.left_bytes for one in everything))
            for waiting in (True, False):
                due = [one for waits, one in on_their_way if not (waits and waiting)]
                for one_lane in Lane:
                    mine = [one for one in due if lane(PIN.kind, one.job.record.size_bytes, 16 * MIB) is one_lane]
                    asked = [one.id for one in await journal.foremost(one_lane, 1000, 5)]
                    assert asked == [one.job.id for one in sorted(mine, key=foremost)][:5]
                await journal.hasten()  # from here on nothing waits
            await journal.relax()


async def test_what_is_left_and_what_failed_since(journal: SqliteJournal, clock: SetClock) -> None:
    early, late, blocked, gone = [await accepted(journal, number) for number in (1, 2, 3, 4)]
    await journal.advance(early, State.FAILED, trouble=TROUBLE)
    clock.now = 2000
    await journal.advance(late, State.FAILED, trouble=TROUBLE)
    await journal.note(blocked, blocked=True, not_before_ms=3000, trouble=TROUBLE)
    await journal.cancel([gone.id])
    assert await journal.left(2000) == Left(files=1, left_bytes=5, held=1)
    assert await journal.left(3000) == Left(files=1, left_bytes=5, held=0)
    assert await journal.failed_count(2000) == 1
    assert [one.job.id for one in await journal.unsent(2000, 9)] == [3, 2]
    assert [one.job.id for one in await journal.unsent(0, 9)] == [3, 2, 1]
    assert not await journal.is_done_with(3)
    assert await journal.is_done_with(2)


async def test_a_drain_lets_run_what_waits(journal: SqliteJournal) -> None:
    one = await accepted(journal)
    await journal.note(one, not_before_ms=9000)
    assert await journal.foremost(Lane.SMALL, 1000, 9) == []
    await journal.hasten()
    await journal.hasten()
    assert [each.id for each in await journal.foremost(Lane.SMALL, 1000, 9)] == [7]


async def test_the_index_of_a_drain_is_gone_with_it(path: Path) -> None:
    """A hand-off writes a page more with it. A drain that was killed leaves it to the next start."""
    index = "SELECT count(*) FROM sqlite_schema WHERE name = 'files_foremost'"
    async with opened(path) as journal:
        await accepted(journal)
        await journal.hasten()
        assert rows(path, index) == [(1,)]
        question = f"SELECT id FROM files WHERE {due.DUE} AND lane = 'small' AND not_before_ms <= 0 ORDER BY "
        order = figures.FOREMOST.format(left="size_bytes")
        plan = [step[3] for step in rows(path, f"EXPLAIN QUERY PLAN {question}{order} LIMIT 9")]
        assert plan == ["SEARCH files USING INDEX files_foremost (lane=?)"]
        await journal.relax()
        assert rows(path, index) == [(0,)]
        await journal.hasten()
    async with opened(path):
        assert rows(path, index) == [(0,)]


async def test_a_journal_of_the_first_release_goes_on(path: Path) -> None:
    """Made by the schema as that release had it, with a file that waits in it."""
    old = (Path(__file__).parents[1] / "vectors" / "journal-1.sql").read_text()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(old)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    async with opened(path) as journal:
        (due,) = await journal.due(Lane.INLINE, 2**62, [], 9)
        assert (due.record.path, due.priority, due.pin.kind) == ("models/waiting.txt", 0, PinKind.INLINE)
        assert await journal.content(due) == b"on its way"
        first, new = await accept(journal, replace(job(43), priority=7), key_of(43))
        assert (first.priority, new) == (7, True)
        again, new = await accept(journal, replace(job(44), record=record(44, owner_uid=0)), bytes(range(16)))
        assert (again.id, new) == (due.id, False)  # what was asked before the upgrade has its answer
        assert [one.id for one in await journal.due(Lane.SMALL, 2**62, [], 9)] == [43]
        await journal.advance(due, State.SENDING)
    assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]


async def test_the_workers_questions_read_an_index(journal: SqliteJournal, path: Path) -> None:
    """With a million finished rows a scan would take seconds. What is asked is taken from SQLite itself."""
    asked: list[str] = []
    await journal._database.call(lambda connection: connection.set_trace_callback(asked.append))
    for number in range(1, 6):
        await accepted(journal, number)
    await journal.note(job(5), not_before_ms=500)
    asked.clear()
    assert [one.id for one in await journal.due(Lane.SMALL, 1000, [1, 2], 9)] == [3, 4, 5]
    due_asked = len(asked)
    await journal.release(None, 9)
    await journal.release(EXPERIMENT, 9)
    await journal.next_due_ms(1000)
    await journal.backlog()
    await journal.summary()
    await journal.unclean(9)
    await journal._database.call(lambda connection: connection.set_trace_callback(None))

    def plans(questions: list[str]) -> list[str]:
        explained = [
            [step[3] for step in rows(path, f"EXPLAIN QUERY PLAN {question}")]
            for question in questions
            if question.startswith(("SELECT", "UPDATE"))
        ]
        return [steps[-1] if "LIST SUBQUERY" in steps[-1] else steps[0] for steps in explained]

    *turns, rows_of_due = plans(asked[:due_asked])
    assert "INTEGER PRIMARY KEY" in rows_of_due
    assert len(turns) > 4
    assert all("SEARCH files USING INDEX files_" in turn for turn in turns), turns
    released = [question for question in asked[due_asked:] if question.startswith("UPDATE")]
    assert len(released) == 2
    for question in released:
        inner = question[question.index("(SELECT") + 1 : -1]
        ((plan,),) = [rows(path, f"EXPLAIN QUERY PLAN {inner}")]
        assert "SEARCH files USING INDEX files_waiting" in plan[3]
    waiting, listed, *rest = plans([question for question in asked[due_asked:] if question.startswith("SELECT")])
    assert "files_waiting" in waiting
    assert "files_listed" in listed
    assert [plan.partition("INDEX ")[2].partition(" ")[0] for plan in rest] == [
        "files_listed", "files_finished", "files_finished", "files_due", "files_superseded", "files_due",
        "files_listed", "files_listed",
    ]  # fmt: skip
    assert [plan for plan in rest if "files_finished" in plan] == ["SCAN files USING COVERING INDEX files_finished"] * 2
