"""Experiments, parameters and rows of a node of a fleet: kept here at once, and brought to the fleet's catalog later.

Who writes waits for this machine's disk alone, and a catalog that is away holds nobody up. Who reads is answered by the
fleet, once it has heard what was written here before; while it is away, by what this node knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from ml_dash.errors import MLDashError
from ml_dash.messages import PARAMS_BYTES
from ml_dashd.core.circuit import CATALOG_PROBE_CAP_S, pause_s
from ml_dashd.core.model import Scope, Trouble
from ml_dashd.core.runs import BroughtRow, MetricLength, NewRow, Opened, Row, Run, RunKey, RunStatus
from ml_dashd.ports import Clock, JournalError, Runs, ShownRuns

T = TypeVar("T")

log = logging.getLogger("ml_dashd.flow")

GATHER_S = 5.0
"""What is written gathers for so long, or half of it: 1,000 nodes that log always make 270 transactions a second."""
PIECE = 500
"""Rows of one transaction."""


class Forward:
    """The port `Runs`, made of those of this machine, `here`, and those of the fleet."""

    def __init__(self, *, here: ShownRuns, fleet: Runs, clock: Clock) -> None:
        self._here = here
        self._fleet = fleet
        self._clock = clock
        self._late: set[RunKey] = set()
        self._woken = asyncio.Event()
        self._busy = asyncio.Lock()
        self._failures = 0

    async def run(self) -> None:
        """Brings to the fleet what it lacks, until it is cancelled; what an earlier life has left goes first."""
        left = False
        while True:
            try:
                if not left:
                    self._late.update(await self._here.behind())
                    left = True
                await self._bring_late()
                self._failures = 0
            except JournalError as failure:
                if not self._failures:
                    log.warning("runs_wait", extra={"error": failure})
                self._failures += 1
            except Exception:
                log.exception("runs_wait")
                self._failures += 1
            await self._wait()

    async def _wait(self) -> None:
        if self._failures:
            await self._clock.sleep(pause_s(self._failures, self._clock.jitter(), CATALOG_PROBE_CAP_S))
            return
        self._woken.clear()
        if not self._late:
            await self._woken.wait()
        await self._clock.sleep(GATHER_S * (0.5 + self._clock.jitter() / 2))

    # ---- what is written

    async def open(self, key: RunKey, opened: Opened) -> None:
        await self._here.open(key, opened)
        self._touch(key)

    async def end(self, key: RunKey, status: RunStatus, at_ms: int, error: str | None) -> None:
        await self._here.end(key, status, at_ms, error)
        self._touch(key)

    async def set_params(self, key: RunKey, values: Mapping[str, str], at_ms: int, most_bytes: int) -> None:
        await self._here.set_params(key, values, at_ms, most_bytes)
        self._touch(key)

    async def append(
        self, key: RunKey, writer: int, number: int, rows: Sequence[NewRow], at_ms: int, *, on_disk: bool = False
    ) -> None:
        await self._here.append(key, writer, number, rows, at_ms, on_disk=on_disk)
        self._touch(key)

    async def bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        new = await self._here.bring(run, params, most_bytes)
        self._touch(run.key)
        return new

    async def bring_rows(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        new = await self._here.bring_rows(key, rows)
        self._touch(key)
        return new

    async def sync(self) -> None:
        await self._here.sync()

    def _touch(self, key: RunKey) -> None:
        self._late.add(key)
        self._woken.set()

    # ---- what is read

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        return await self._read(lambda runs: runs.get(namespace, project, experiment, scope))

    async def select(self, below: Sequence[str], scope: Scope, after: RunKey | None, limit: int) -> list[Run]:
        return await self._read(lambda runs: runs.select(below, scope, after, limit))

    async def params(self, key: RunKey, since_ms: int | None = None) -> dict[str, str]:
        return await self._read(lambda runs: runs.params(key, since_ms))

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        return await self._read(lambda runs: runs.metrics(key))

    async def rows(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        return await self._read(lambda runs: runs.rows(key, metric, start, limit))

    async def _read(self, ask: Callable[[Runs], Awaitable[T]]) -> T:
        if self._fleet.trouble() is None:  # what it shares with the catalog is asked by the outbox's probe, too
            with suppress(JournalError):
                await self._bring_late()
                return await ask(self._fleet)
        return await ask(self._here)

    def trouble(self) -> Trouble | None:
        return self._here.trouble() or self._fleet.trouble()

    async def close(self) -> None:
        """Brings what is left, once, where the fleet is not known to be away."""
        if self._fleet.trouble() is None:
            with suppress(JournalError):
                await self._bring_late()
        await self._here.close()
        await self._fleet.close()

    # ---- bringing

    async def _bring_late(self) -> None:
        async with self._busy:
            while self._late:
                key = self._late.pop()
                try:
                    await self._bring(key)
                except MLDashError as refused:  # too many metrics or parameters, together with other nodes'
                    log.warning("runs_refused", extra={"prefix": key.prefix, "error": refused})
                except BaseException:
                    self._late.add(key)
                    raise

    async def _bring(self, key: RunKey) -> None:
        """Record, parameters, rows: each can be repeated, and is noted here once it is there."""
        found = await self._here.get(key.namespace, key.project, key.experiment, Scope(key.owner_uid))
        for run in [run for run in found if run.key == key and run.shown_ms < run.updated_ms]:
            await self._fleet.bring(run, {}, PARAMS_BYTES)
            if params := await self._here.params(key, run.shown_ms):
                await self._fleet.set_params(key, params, run.updated_ms, PARAMS_BYTES)
            await self._here.shown(key, run.updated_ms)
        for metric in await self._here.metrics(key):
            at = metric.shown
            while at < metric.rows:
                rows = await self._here.rows(key, metric.name, at, PIECE)
                await self._fleet.bring_rows(key, [BroughtRow(metric.name, row) for row in rows])
                at += len(rows)
                await self._here.rows_shown(key, metric.name, at)
