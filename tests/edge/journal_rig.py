"""Journals with a clock that the test sets, and files that are in them."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import (
    FileRecord,
    Fingerprint,
    Job,
    Pin,
    PinKind,
    Trouble,
)
from ml_dashd.core.schedule import lane
from ml_dashd.core.states import TRANSITIONS, State
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.ports import Faults, Handed

MIB = 1 << 20
OWNER = 1000
EXPERIMENT = ("alice", "cv", "resnet")
PIN = Pin(PinKind.LINK, "/spool/7", "/data/best.pt", Fingerprint(2049, 2**63 - 1, 5, 1_700_000_000_123_456_789, 12))
TROUBLE = Trouble(Code.STORE_DENIED, "denied: größe", "ask")


class SetClock:
    """Time as the test sets it."""

    now = 1000

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    def jitter(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the journal does not sleep")


@asynccontextmanager
async def opened(
    path: Path, clock: SetClock | None = None, faults: Faults | None = None
) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(path, clock or SetClock(), faults or NoFaults(), lambda kind, size: lane(kind, size, 16 * MIB))
    await made.open()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def journal(path: Path, clock: SetClock) -> AsyncIterator[SqliteJournal]:
    async with opened(path, clock) as made:
        yield made


def record(number: int = 7, file: str = "models/best.pt", **changes: Any) -> FileRecord:
    prefix, _, filename = file.rpartition("/")
    namespace, project, experiment = EXPERIMENT
    plain = FileRecord(
        id=number,
        owner_uid=OWNER,
        namespace=namespace,
        project=project,
        experiment=experiment,
        prefix=prefix,
        filename=filename,
        size_bytes=5,
        content_type="application/octet-stream",
        created_ms=1000,
        updated_ms=1000,
    )
    return replace(plain, **changes)


def job(number: int = 7, **changes: Any) -> Job:
    return Job(record(number, **changes), PIN)


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def accept(journal: SqliteJournal, made: Job, key: bytes, content: bytes | None = None) -> tuple[Job, bool]:
    (taken,) = await journal.accept_all([Handed(made, key, content)])
    return taken


async def accepted(journal: SqliteJournal, number: int = 7, **changes: Any) -> Job:
    made, new = await accept(journal, job(number, **changes), key_of(number))
    assert new
    return made


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """What another program finds."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def way_to(state: State) -> list[State]:
    """The shortest way there from the queue."""
    ways = deque([[State.QUEUED]])
    while (way := ways.popleft())[-1] is not state:
        ways.extend([*way, after] for after in TRANSITIONS[way[-1]] if after not in way)
    return way[1:]


async def in_state(journal: SqliteJournal, state: State, number: int = 7, **changes: Any) -> Job:
    made = await accepted(journal, number, **changes)
    for step in way_to(state):
        made = await journal.advance(made, step)
    return made
