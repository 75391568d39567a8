"""Housekeeping where the store refuses something: it keeps nothing else back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.states import State
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.bell import Bell
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.sweep import Sweep
from ml_dashd.ports import Handed, Store
from tests.edge.journal_rig import SetClock, opened


class Guarded:
    """A store that does not let go of one object, by a legal hold, say."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, key: str) -> None:
        if key == "files/1":
            raise StoreError(Fault.DENIED, f"delete {key}")
        self.deleted.append(key)


async def test_an_object_that_may_not_be_removed_keeps_no_row_back(tmp_path: Path) -> None:
    clock, store, unused, disk = SetClock(), Guarded(), cast("Any", None), Pool(1, "disk")
    records = [
        FileRecord(number, 0, "a", "b", "c", "", f"{number}.txt", 1, "", 0, 0, key=f"files/{number}")
        for number in (1, 2, 3)
    ]
    taken = [Handed(Job(one, Pin(PinKind.NONE)), one.id.to_bytes(16, "big")) for one in records]
    async with opened(tmp_path / "journal.sqlite", clock) as journal:
        for job, _ in await journal.accept_all(taken):
            await journal.advance(job, State.CANCELLED)
        finish = Finish(
            journal=journal, store=cast("Store", store), catalog=unused, pins=unused, threads=disk, bell=Bell(),
            clock=clock, faults=NoFaults(), meter=unused, outbox=unused,
        )  # fmt: skip
        await Sweep(journal, finish, clock).once(clock.now_ms() + 1)
        assert store.deleted == ["files/2", "files/3"]
        assert await journal.get([1, 2, 3]) == []
    disk.close()
