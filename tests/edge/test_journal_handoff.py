"""What is handed over comes into the journal once, whole, and with an id that never goes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.ids import IdSource
from ml_dashd.core.model import (
    Job,
    Pin,
    PinKind,
)
from ml_dashd.core.states import State
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.ports import Handed
from tests.edge.journal_rig import (
    OWNER,
    PIN,
    SetClock,
    accept,
    accepted,
    clock,
    job,
    journal,
    key_of,
    opened,
    path,
    record,
    rows,
    way_to,
)

__all__ = ["clock", "journal", "path"]


class Steps:
    """Fault points, in the order in which they are passed; one of them may be refused."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.refused = ""

    def at(self, point: str) -> None:
        self.taken.append(point)
        if point == self.refused:
            raise OSError(f"refused: {point}")


async def test_what_was_accepted_comes_back_field_by_field(journal: SqliteJournal, path: Path) -> None:
    whole = Job(
        record(
            2**62,
            description="größe",
            tags=("best", "a,b"),
            bindrs=("b",),
            metadata='{"epoch": 3}',
            sha256="ab" * 32,
        ),
        PIN,
        on_disk=True,
    )
    assert await accept(journal, whole, key_of(1)) == (whole, True)
    assert await journal.get([2**62]) == [whole]
    assert rows(path, "SELECT file_id, at_ms, from_state, to_state, detail FROM events") == [
        (2**62, 1000, None, "QUEUED", "link")
    ]


async def test_a_request_that_comes_again_finds_its_first_answer(journal: SqliteJournal, path: Path) -> None:
    first, new = await accept(journal, job(7), b"k" * 16)
    assert new
    moved = await journal.advance(first, State.SENDING)
    again = Job(record(8, "elsewhere.pt"), Pin(PinKind.COPY, "/spool/8"))
    assert await accept(journal, again, b"k" * 16, b"other bytes") == (moved, False)
    assert await journal.get([8]) == []
    assert rows(path, "SELECT id FROM files") == [(7,)]


async def test_the_same_key_of_another_owner_is_another_file(journal: SqliteJournal) -> None:
    mine, _ = await accept(journal, job(7), b"k" * 16)
    theirs, new = await accept(journal, job(8, owner_uid=OWNER + 1), b"k" * 16)
    assert new
    assert await journal.get([7, 8]) == [mine, theirs]


async def test_many_come_in_one_transaction_and_of_each_request_one_file(journal: SqliteJournal, path: Path) -> None:
    """Of a message that comes again, and of one in which a key stands twice, the files that are new are taken in."""
    files = [Handed(Job(record(number), Pin(PinKind.INLINE)), key_of(number), b"%d" % number) for number in (1, 2, 3)]
    first = await journal.accept_all(files)
    assert first == [(one.job, True) for one in files]
    again = [Handed(replace(one.job, record=record(one.job.id + 10)), one.key, b"again") for one in files[1:]]
    new = Handed(Job(record(20), Pin(PinKind.INLINE)), key_of(20), b"20")
    twin = replace(new, job=Job(record(21), Pin(PinKind.INLINE)))
    taken = await journal.accept_all([again[0], new, again[1], twin])
    assert [(one.id, fresh) for one, fresh in taken] == [(2, False), (20, True), (3, False), (20, False)]
    assert await journal.contents([1, 2, 3, 12, 13, 20, 21]) == {1: b"1", 2: b"2", 3: b"3", 20: b"20"}
    assert rows(path, "SELECT file_id, number, to_state, detail FROM events") == [
        (number, 1, "QUEUED", "inline") for number in (1, 2, 3, 20)
    ]


async def test_one_that_is_made_in_the_journals_thread(journal: SqliteJournal, path: Path) -> None:
    """Once more with its key it is the first one; one that can't be made leaves no row, and others their commit."""

    def refused() -> Handed:
        raise error(Code.NOT_A_FILE, "no file")

    made = Handed(job(7), key_of(1))
    assert await journal.accept_made(lambda: made) == (made.job, True)
    again, beside, taken = await asyncio.gather(
        journal.accept_made(lambda: Handed(job(8), key_of(1))),
        journal.accept_made(refused),
        journal.accept_made(lambda: Handed(job(9), key_of(2))),
        return_exceptions=True,
    )
    assert again == (made.job, False)
    assert isinstance(beside, MLDashError)
    assert beside.code is Code.NOT_A_FILE
    assert taken == (job(9), True)
    assert rows(path, "SELECT id FROM files ORDER BY id") == [(7,), (9,)]


async def test_what_is_to_follow_a_hand_off_comes_once_it_is_on_the_disk(path: Path, clock: SetClock) -> None:
    """In the journal's thread, before the caller hears of it; and not at all where nothing was taken in."""
    steps = Steps()

    def ready(jobs: Sequence[Job]) -> Callable[[], None]:
        steps.at(f"ready {[one.id for one in jobs]}")
        return lambda: steps.at(f"follow in {threading.current_thread().name}")

    async with opened(path, clock, steps) as journal:
        before = len(steps.taken)
        await journal.accept_all([Handed(job(7), key_of(1))], ready)
        steps.at("heard of")
        assert steps.taken[before:] == [
            "ready [7]", "journal.before_commit", "journal.after_commit", "follow in journal", "heard of",
        ]  # fmt: skip
        await journal.accept_made(lambda: Handed(job(8), key_of(1)), ready)  # again: it is told of the first
        assert steps.taken[-2:] == ["ready [7]", "follow in journal"]
        steps.refused = "journal.before_commit"
        before = len(steps.taken)
        with pytest.raises(OSError, match="refused"):
            await journal.accept_made(lambda: Handed(job(9), key_of(9)), ready)
        assert "follow in journal" not in steps.taken[before:]
        steps.refused = ""
        assert await journal.get([9]) == []


async def test_a_defect_in_what_follows_a_hand_off_is_no_ones_failure(
    journal: SqliteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    def follow() -> None:
        raise ValueError("a defect")

    assert await journal.accept_made(lambda: Handed(job(7), key_of(1)), lambda _: follow) == (job(7), True)
    assert [one.message for one in caplog.records] == ["not_followed"]
    assert await journal.accept_all([Handed(job(8), key_of(2))]) == [(job(8), True)]


async def test_who_makes_a_file_is_not_left_alone_with_it(journal: SqliteJournal, path: Path) -> None:
    """Whoever waits for a file that is being made, and is cancelled, waits: its descriptor is in use till then."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def make() -> Handed:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        return Handed(job(7), key_of(1))

    waiting = asyncio.create_task(journal.accept_made(make))
    await begun.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rows(path, "SELECT id FROM files") == [(7,)]


async def test_requests_that_come_at_once_with_one_key_are_one_file(journal: SqliteJournal, path: Path) -> None:
    outcomes = await asyncio.gather(*(accept(journal, job(number), b"k" * 16) for number in range(1, 30)))
    assert [new for _, new in outcomes].count(True) == 1
    assert len({answer.id for answer, _ in outcomes}) == 1
    assert rows(path, "SELECT count(*) FROM files") == [(1,)]


async def test_the_bytes_of_a_small_file_stay_until_it_is_stored(journal: SqliteJournal, path: Path) -> None:
    inline = Job(record(), Pin(PinKind.INLINE), on_disk=True)
    await accept(journal, inline, key_of(1), bytes(range(256)))
    assert await journal.content(inline) == bytes(range(256))
    now = inline
    for step in way_to(State.VERIFIED):
        now = await journal.advance(now, step)
        assert await journal.content(now) == bytes(range(256))
    await journal.advance(now, State.DONE)
    assert rows(path, "SELECT * FROM contents") == []


async def test_ids_never_go_back(path: Path, clock: SetClock) -> None:
    """Files are journaled in the order of their pins, rows are forgotten, and the clock may step back."""
    clock.now = 1_800_000_000_000
    async with opened(path, clock) as journal:
        assert await journal.high_water() == 0
        ids = IdSource(0)
        given = [ids.next(clock.now) for _ in range(1000)]
        for number in (given[998], given[999], given[0], given[500]):
            await accepted(journal, number)
        assert await journal.high_water() == given[999]
    clock.now -= 3_600_000
    async with opened(path, clock) as journal:
        assert await journal.high_water() == given[999]
        for number in (given[998], given[999]):
            (one,) = await journal.get([number])
            await journal.advance(one, State.CANCELLED)
        await journal.forget(given)
        assert await journal.high_water() == given[999]
        assert IdSource(0, await journal.high_water()).next(clock.now) > given[999]


async def test_the_high_water_mark_compares_numbers_not_text(journal: SqliteJournal) -> None:
    await accepted(journal, 99)
    await accepted(journal, 100)
    assert await journal.high_water() == 100


async def test_a_request_that_came_again_raises_no_high_water(journal: SqliteJournal) -> None:
    await accept(journal, job(7), b"k" * 16)
    await accept(journal, job(900), b"k" * 16)
    assert await journal.high_water() == 7
