"""What the nodes of a fleet do to MongoDB, hour by hour: the load from which its size follows.

Assumed of a node: it saves 100 files an hour, of which 50 are deleted again, logs a row of a metric a second, looks at
a page of its experiment once a minute, asks for the newest of a path every five minutes, and is cut off for an hour
once a week. Commits hold one file each, the most that it makes of them, and 100 after the hour; rows go four at a time,
every fourth second, as flow/forward.py gathers them. What it does whether anything is saved or not is as the daemon
has it: it renews its number, asks how the catalog is, and looks for sets and chores that wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import rig
from catalog import record

from ml_dashd.core.lease import BEAT_S, Claim, Place
from ml_dashd.core.model import FileRecord, Selection
from ml_dashd.core.names import s3_key
from ml_dashd.core.runs import BroughtRow, Row, RunKey
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.leases_mongo import MongoLeases
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.rounds_mongo import MongoRounds
from ml_dashd.edge.runs_mongo import MongoRuns
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.deliver import PAUSE_S as SETS_S
from ml_dashd.flow.forward import GATHER_S
from ml_dashd.flow.outbox import IDLE_S
from ml_dashd.flow.reclaim import BATCH

FILES_AN_HOUR, DELETED_AN_HOUR, ROWS_A_SECOND, LISTS_A_MINUTE, NEWEST_AN_HOUR = 100, 50, 1.0, 1, 12
OUTAGES_A_WEEK = 1
"""Of an hour: what was saved meanwhile is listed in one commit."""
DELETED_AT_ONCE = 10
PAGE = 500
WALKED = 1000
"""Records of a page, where the catalog is compared with the store."""
BEGIN_AT_ONCE = 32
BEFORE = 1 << 40
"""From here on rows are numbered with which nodes begin."""
LATE = 1 << 20
"""From here on a node's files are counted that were listed late."""
PATHS = 1000
"""An experiment of so many files has each kind of path; of more, versions of them."""


def per_second() -> dict[str, float]:
    """What a node does a second, on average: jitter takes a quarter of half of what a wait may be at most."""
    return {
        "commits": FILES_AN_HOUR / 3600,
        "commits after an outage": OUTAGES_A_WEEK / (7 * 24 * 3600),
        "transactions with rows": 1 / (GATHER_S * 0.75),
        "lists": LISTS_A_MINUTE / 60,
        "newest of a path": NEWEST_AN_HOUR / 3600,
        "deletions": DELETED_AN_HOUR / DELETED_AT_ONCE / 3600,
        "notes of reclaimed bytes": DELETED_AN_HOUR / BATCH / 3600,
        "renewals": 1 / (BEAT_S * 0.875),
        "questions how it is": 1 / (IDLE_S * 0.75),
        "looks for sets and chores": 1 / SETS_S,
    }


def stored(number: int, documents: int) -> FileRecord:
    """With a SHA-256 and a key as real ones are: they are most of what indexes hold."""
    made = record(number, documents, number)
    return replace(made, sha256=hashlib.sha256(str(number).encode()).hexdigest(), key=s3_key(made, "some/where/"))


def stored_of(node: int, index: int, nodes: int) -> FileRecord:
    """A node's file of that index, in an experiment of its own; ids rise with the index, over all nodes."""
    made = stored(index + 1, PATHS)
    number = index * nodes + node + 1
    made = replace(made, id=number, experiment=f"run{node}", sha256=hashlib.sha256(str(number).encode()).hexdigest())
    return replace(made, key=s3_key(made, "some/where/"))


class Nodes:
    """Some of them, on one client: those of `numbers`, of so many in all.

    Each has an experiment, of which `files` are there, and a metric of its own.
    """

    def __init__(self, mongo: Mongo, numbers: range, count: int, files: int) -> None:
        self._catalog, self._runs, self._leases = MongoCatalog(mongo), MongoRuns(mongo), MongoLeases(mongo)
        self._chore = MongoRounds(mongo, "reclaim")
        self._clock = SystemClock()
        self._numbers = numbers
        self._count = count
        self._files = files
        self._tokens: dict[int, str] = {}
        self._logging = {node: asyncio.Lock() for node in numbers}
        self._rows_a_time = round(ROWS_A_SECOND / per_second()["transactions with rows"])

    async def begin(self) -> None:
        """Each has a number, an experiment and a first row."""
        left = iter(range(len(self._numbers)))

        async def begin() -> None:
            for at in left:
                node = self._numbers[at]
                await self._leases.take(node + 1, self._claim(node))
                await self.log(BEFORE + at)

        await asyncio.gather(*(begin() for _ in range(BEGIN_AT_ONCE)))

    def deeds(self) -> dict[str, Callable[[int], Awaitable[object]]]:
        """By the names of `per_second`; each is given how often it was done before."""
        return {
            "commits": self.commit,
            "commits after an outage": self.catch_up,
            "transactions with rows": self.log,
            "lists": self.list,
            "newest of a path": self.newest,
            "deletions": self.delete,
            "notes of reclaimed bytes": self.reclaim,
            "renewals": self.renew,
            "questions how it is": lambda _: self._catalog.get([0]),
            "looks for sets and chores": self.look,
        }

    async def commit(self, number: int) -> None:
        await self._catalog.commit([self._file(number, self._files + self._turn(number))])

    async def catch_up(self, number: int) -> None:
        first = self._files + LATE + self._turn(number) * FILES_AN_HOUR
        await self._catalog.commit([self._file(number, first + each) for each in range(FILES_AN_HOUR)])

    async def log(self, number: int) -> None:
        now_ms = self._clock.now_ms()
        data = json.dumps({"epoch": number, "loss": 1 / (number + 1), "_ts": now_ms})
        numbers = range(number * self._rows_a_time, (number + 1) * self._rows_a_time)
        node = self._node(number)
        rows = [BroughtRow("train", Row(now_ms, data, node, each)) for each in numbers]
        async with self._logging[node]:  # a node brings its rows one transaction after the other
            await self._runs.bring_rows(self._key(number), rows)

    async def list(self, number: int) -> None:
        await self._catalog.select(replace(self._place(number), limit=PAGE))

    async def newest(self, number: int) -> None:
        asked = replace(self._place(number), prefix="models/7.pt", pattern="", latest=True, limit=1)
        await self._catalog.select(asked)

    async def delete(self, number: int) -> None:
        """The oldest that are there."""
        first = self._turn(number) * DELETED_AT_ONCE
        ids = [self._file(number, first + each).id for each in range(DELETED_AT_ONCE)]
        await self._catalog.delete(ids, self._clock.now_ms())

    async def reclaim(self, number: int) -> None:
        gone = await self._catalog.deleted(self._clock.now_ms(), (0, 0), BATCH)
        await self._catalog.reclaimed(gone, self._clock.now_ms())

    async def renew(self, number: int) -> None:
        node = self._node(number)
        known = {self._tokens[node]}
        await self._leases.renew(node + 1, known, self._claim(node))

    async def look(self, number: int) -> None:
        now_ms = self._clock.now_ms()
        await self._catalog.sets.report(0, now_ms, BATCH)
        await self._catalog.sets.abandon(0, now_ms, BATCH)
        await self._catalog.sets.strays(0, BATCH)
        await self._chore.round()

    def _node(self, number: int) -> int:
        return self._numbers[number % len(self._numbers)]

    def _turn(self, number: int) -> int:
        """How often the node whose turn it is has done it before."""
        return number // len(self._numbers)

    def _file(self, number: int, index: int) -> FileRecord:
        return stored_of(self._node(number), index, self._count)

    def _key(self, number: int) -> RunKey:
        namespace, project, _ = rig.PREFIX.split("/")
        return RunKey(namespace, project, f"run{self._node(number)}", 1000)

    def _place(self, number: int) -> Selection:
        key = self._key(number)
        return Selection(key.namespace, key.project, key.experiment)

    def _claim(self, node: int) -> Claim:
        token = f"{node}-{self._clock.monotonic()}"
        self._tokens[node] = token
        return Claim(token, Place(f"machine{node}", "boot", "1:2"), self._clock.now_ms(), f"node{node}")
