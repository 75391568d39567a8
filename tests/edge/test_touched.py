"""New times of files that were only touched: what of it is journaled, and what becomes of a look that finds trouble."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ml_dashd.core.model import Fingerprint, Job
from ml_dashd.edge import cloning
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.flow import touched as flow
from ml_dashd.flow.touched import Touched
from ml_dashd.ports import JournalError
from tests.edge.pin_rig import Spool, content, later_spool, leases, leasing, path, spool, written

__all__ = ["path", "spool"]


class Rows:
    """A journal, which has failed or has not."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.failed = False
        self.noted = asyncio.Event()

    async def get(self, ids: Sequence[int]) -> list[Job]:
        if self.failed:
            raise JournalError("the disk is full")
        return [self.jobs[each] for each in ids]

    async def retime(self, job: Job, mark: Fingerprint) -> None:
        self.jobs[job.id] = replace(job, pin=replace(job.pin, fingerprint=mark))
        self.noted.set()


class Later(SystemClock):
    """Every touch is long ago."""

    def now_ms(self) -> int:
        return super().now_ms() + 60_000


async def test_the_next_daemon_knows_what_was_touched(
    spool: Spool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that is lost, or was written to, or a journal that fails, is nothing to the others and to the end."""
    lost, wrong, right = (spool.take(written(path.with_name(name))) for name in ("lost", "wrong", "right"))
    rows, threads = Rows(lost, wrong, right), Pool(1, "disk")
    touched = Touched(
        journal=cast("Any", rows), pins=spool.pins, threads=threads, clock=Later()
    )  # fmt: skip
    for job in (lost, wrong, right):
        os.utime(job.pin.source)
    Path(wrong.pin.source).write_bytes(b"x")
    os.utime(wrong.pin.source)
    (spool.folder / lost.pin.name).unlink()
    await touched.look()
    assert [rows.jobs[job.id] for job in (lost, wrong)] == [lost, wrong]
    after = Spool(spool.folder)  # without a witness of what was
    assert after.read(rows.jobs[right.id]) == content()
    rows.failed = True
    os.utime(right.pin.source)
    await touched.look()
    assert "touch_not_noted" in caplog.text
    after.pins.close()
    after.slots.close()
    threads.close()


async def test_what_is_touched_right_before_a_stop_is_known_to_the_next_daemon(spool: Spool, path: Path) -> None:
    """Its time is so new that a write could still come with the same one: that is waited for."""
    job = spool.take(written(path))
    rows, threads = Rows(job), Pool(1, "disk")
    touched = Touched(journal=cast("Any", rows), pins=spool.pins, threads=threads, clock=SystemClock())
    os.utime(path)
    await touched.last_look()
    after = Spool(spool.folder)
    assert after.read(rows.jobs[job.id]) == content()
    after.pins.close()
    after.slots.close()
    threads.close()


async def test_after_a_touch_the_next_one_is_awaited_soon(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only with the next look, which is a second away and more."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    monkeypatch.setattr(flow, "LOOK_S", 3600.0)
    threads = Pool(1, "disk")
    with later_spool(tmp_path / "spool", leasing()) as spool:
        job = spool.take(written(path))
        rows = Rows(job)
        touched = Touched(journal=cast("Any", rows), pins=spool.pins, threads=threads, clock=Later())
        looking = asyncio.create_task(touched.run())
        async with asyncio.timeout(30):
            for _ in range(2):
                subprocess.run(["touch", path], check=True)
                touched.give_way()
                assert leases(path) == ["ACTIVE"]
                await rows.noted.wait()
                rows.noted.clear()
        assert spool.read(rows.jobs[job.id]) == content()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    threads.close()
