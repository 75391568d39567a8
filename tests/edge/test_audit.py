"""Verifying beside deletions: bytes that were deleted, and reclaimed, are no damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.states import State
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.audit import Audit, Audited
from ml_dashd.ports import Session

MIB = 1 << 20


class Browse:
    """A file that is deleted, or not, after it was looked at."""

    def __init__(self, *deleted_ms: int | None) -> None:
        self._deleted_ms = list(deleted_ms)

    async def get(self, session: Session, ids: Sequence[int]) -> list[Job]:
        record = FileRecord(7, 0, "a", "b", "c", "", "x", 5, "", 0, 0, sha256="0" * 64, key="a/b/c/files/7/x")
        record = replace(record, deleted_ms=self._deleted_ms.pop(0))
        return [Job(record, Pin(PinKind.NONE), state=State.DONE)]


@pytest.mark.parametrize("deleted", [False, True])
async def test_what_was_deleted_meanwhile_is_not_damaged(tmp_path: Path, deleted: bool) -> None:
    threads = Pool(1, "test")
    store = LocalStore(tmp_path, threads, NoFaults())
    browse: Any = Browse(None, 1000 if deleted else None)
    audit = Audit(
        browse=browse, store=store, threads=threads, buffers=BufferPool(16 * MIB, 16 * MIB), clock=SystemClock()
    )

    async def report(seen: Audited) -> None:
        return

    seen = await audit.run(Session(1, 0, 1), [7], report)
    assert [trouble.code for _, trouble in seen.damaged] == ([] if deleted else [Code.OBJECT_MISSING])
    assert seen.files == (0 if deleted else 1)
    threads.close()
