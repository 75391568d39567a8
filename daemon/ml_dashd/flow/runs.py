"""Experiments as such: runs that begin and end, parameters, metrics; and what there is of them, for who may read it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dashd.core import cursors, names
from ml_dashd.core.access import Policy
from ml_dashd.core.runs import (
    BroughtRow,
    MetricLength,
    NewRow,
    Opened,
    Row,
    Run,
    RunKey,
    RunStatus,
    known_status,
    listed_below,
    metric_name,
    new_params,
    params_text,
    row_text,
    run_status,
)
from ml_dashd.flow.arrivals import AHEAD_MS
from ml_dashd.flow.bell import Bell, longest_wait_ms
from ml_dashd.flow.mirror import Mirror
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Clock, JournalError, Runs, Session

log = logging.getLogger("ml_dashd.flow")

LOOK_AGAIN_S = 0.05
"""A waiting request looks at most this often, however many rows come."""
PAGE_BYTES = 2 << 20
"""A page ends early when its texts grow past this."""
SYNC_S = 1.0
"""Rows are on stable storage so much later: a sync for each would hold the trainer up."""
RUN_LOOKS = (2, 64)
"""Looks at once, of one user and of all: who logs waits behind no user's thousand questions."""
Reply = tuple[m.Message, Sequence[int]]


class Experiments:
    """Answers what is asked of experiments. What somebody writes is theirs, whoever else writes at the same prefix."""

    def __init__(self, *, runs: Runs, mirror: Mirror, policy: Policy, clock: Clock) -> None:
        self._runs = runs
        self._mirror = mirror
        self._policy = policy
        self._clock = clock
        self._bell = Bell()
        self._unsynced = asyncio.Event()
        self._looks = Turns(*RUN_LOOKS)
        self.answers: dict[type[m.Message], Callable[..., Awaitable[Reply]]] = {
            m.OpenExperiment: self._open,
            m.EndRun: self._end,
            m.SetParams: self._set_params,
            m.LogRows: self._log,
            m.BringExperiment: self._bring,
            m.BringRows: self._bring_rows,
            m.ListExperiments: self._list,
            m.ReadRows: self._read,
        }

    # ---- what is written

    async def _open(self, session: Session, message: m.OpenExperiment, *_: Any) -> Reply:
        key = self._writable(session, message.place)
        opened = Opened(
            at_ms=self._clock.now_ms(),
            host=message.host,
            user=message.user,
            readme=message.readme,
            tags=None if message.tags is None else names.tags(message.tags, "the tags"),
            bindrs=None if message.bindrs is None else names.tags(message.bindrs, "the bindrs"),
            metadata=names.metadata(message.metadata),
        )
        await self._runs.open(key, await self._mirror.adopt(key, opened))
        return self._changed(key, message)

    async def _end(self, session: Session, message: m.EndRun, *_: Any) -> Reply:
        key = self._writable(session, message.place)
        await self._runs.end(key, run_status(message.status), self._clock.now_ms(), message.error)
        await self._mirror.settle(key)
        return self._changed(key, message)

    async def _set_params(self, session: Session, message: m.SetParams, *_: Any) -> Reply:
        key = self._writable(session, message.place)
        await self._runs.set_params(key, new_params(message.values), self._clock.now_ms(), m.PARAMS_BYTES)
        return self._changed(key, message)

    async def _log(self, session: Session, message: m.LogRows, *_: Any) -> Reply:
        key = self._writable(session, message.place)
        rows = [NewRow(metric_name(row.metric), row_text(row.data)) for row in message.rows]
        _check_once([row.metric for row in rows])
        on_disk = message.durability == "disk"
        now_ms = self._clock.now_ms()
        await self._runs.append(key, message.writer, message.number, rows, now_ms, on_disk=on_disk)
        self._unsynced.set()
        return self._changed(key, message)

    async def _bring(self, session: Session, message: m.BringExperiment, *_: Any) -> Reply:
        run = message.run
        place = m.Place(namespace=run.namespace, project=run.project, experiment=run.experiment)
        key = self._writable(session, place)
        params = new_params(message.params)
        self._check_past(key, run.created_ms, run.started_ms, run.updated_ms, run.ended_ms or 0)
        opened = Opened(
            at_ms=run.started_ms,
            readme=run.readme,
            tags=names.tags(run.tags, "the tags") or None,
            bindrs=names.tags(run.bindrs, "the bindrs") or None,
            metadata=names.metadata(run.metadata),
        )
        new = await self._runs.bring(_brought(key, run, await self._mirror.adopt(key, opened)), params, m.PARAMS_BYTES)
        self._changed(key, message)
        return m.Brought(request=message.request, new=int(new)), ()

    async def _bring_rows(self, session: Session, message: m.BringRows, *_: Any) -> Reply:
        key = self._writable(session, message.place)
        self._check_past(key, *(row.created_ms for row in message.rows))
        rows = [
            BroughtRow(metric_name(each.metric), Row(each.created_ms, row_text(each.data), each.writer, each.number))
            for each in message.rows
        ]
        new = await self._runs.bring_rows(key, rows)
        self._changed(key, message)
        return m.Brought(request=message.request, new=new), ()

    def _check_past(self, key: RunKey, *times_ms: int) -> None:
        if max(times_ms, default=0) > self._clock.now_ms() + AHEAD_MS:
            what = f"a time that {key.prefix} comes with is of the future"
            raise error(Code.INVALID_ARGUMENT, what, "set the clock of both machines")

    async def keep(self) -> None:
        """Brings rows to stable storage a moment after they came, until it is cancelled."""
        while True:
            await self._unsynced.wait()
            await self._clock.sleep(SYNC_S)
            self._unsynced.clear()
            try:
                await self._runs.sync()
            except JournalError as failure:  # whoever logs is told; a sync that was refused is not tried again
                log.warning("rows_not_synced", extra={"error": failure})

    def _writable(self, session: Session, place: m.Place) -> RunKey:
        key = _key(session, place)
        self._policy.check_write(session.uid, key.namespace)
        return key

    def _changed(self, key: RunKey, message: m.Message) -> Reply:
        self._mirror.touch(key)
        self._bell.ring()
        return m.Done(request=message.request), ()

    # ---- what is read

    async def _list(self, session: Session, message: m.ListExperiments, *_: Any) -> Reply:
        if message.details:
            return await self._details(session, message), ()
        below = listed_below(message.prefix)
        limit = max(1, min(message.page_size, 100))
        async with self._looks.of(session.uid):
            found = await self._runs.select(below, self._policy.scope(session.uid), _after(message.cursor), limit)
        page = found[: _fitting([_size(run) for run in found])]
        more = len(page) < len(found) or len(found) == limit
        return m.Experiments(
            request=message.request,
            experiments=tuple(map(_record, page)),
            cursor=_cursor(page[-1].key) if more and page else None,
        ), ()

    async def _details(self, session: Session, message: m.ListExperiments) -> m.Experiments:
        place = names.clean_experiment(*_parts(message.prefix))
        deadline = self._clock.monotonic() + longest_wait_ms(message.timeout_ms) / 1000
        while True:
            rung = self._bell.listen()
            run, metrics = await self._look(session, place)
            left = deadline - self._clock.monotonic()
            seen = sum(metric.rows for metric in metrics)
            if left <= 0 or seen != message.seen_rows or run.status is not RunStatus.RUNNING:
                break
            await self._bell.wait(rung, left)
            await self._clock.sleep(LOOK_AGAIN_S)
        return m.Experiments(
            request=message.request,
            experiments=(_record(run),),
            params=params_text(await self._runs.params(run.key)),
            metrics=tuple(m.Metric(name=metric.name, rows=metric.rows) for metric in metrics),
        )

    async def _look(self, session: Session, place: tuple[str, str, str]) -> tuple[Run, list[MetricLength]]:
        async with self._looks.of(session.uid):
            run = await self._readable(session, place)
            return run, await self._runs.metrics(run.key)

    async def _read(self, session: Session, message: m.ReadRows, *_: Any) -> Reply:
        metric = metric_name(message.metric)
        place = names.clean_experiment(*_names(message.place))
        async with self._looks.of(session.uid):
            run = await self._readable(session, place)
            lengths = {each.name: each.rows for each in await self._runs.metrics(run.key)}
            rows = await self._runs.rows(run.key, metric, message.start, max(0, min(message.count, 1000)))
        fitting = rows[: _fitting([len(row.data.encode()) for row in rows])]
        return m.Rows(
            request=message.request,
            rows=tuple(_row(row, origins=message.origins) for row in fitting),
            start=message.start,
            total=lengths.get(metric, 0),
        ), ()

    async def _readable(self, session: Session, place: tuple[str, str, str]) -> Run:
        """The caller's own at that prefix, else the oldest that the caller may read."""
        found = await self._runs.get(*place, self._policy.scope(session.uid))
        if not found:
            what = f"no run of {'/'.join(place)} is known here"
            raise error(Code.NO_MATCH, what, "list experiments with `ml-dash experiments`")
        return next((run for run in found if run.key.owner_uid == session.uid), found[0])


SAME = ("host", "user", "created_ms", "started_ms", "updated_ms", "ended_ms", "error")
SAID = ("readme", "tags", "bindrs", "metadata")
"""Fields of a run that its messages call the same; SAID is what a tree has of it, too."""


def _key(session: Session, place: m.Place) -> RunKey:
    key = RunKey(*names.clean_experiment(*_names(place)), session.uid)
    if len(key.prefix.encode()) > names.MAX_KEY_BYTES:
        what = f"the prefix {key.prefix[:80]!r}… takes over {names.MAX_KEY_BYTES} bytes"
        raise error(Code.INVALID_PREFIX, what, "use a shorter one")
    return key


def _check_once(metrics: Sequence[str]) -> None:
    """A row is known by its metric, its writer and its number: of two in a call the second would be there already."""
    if len(set(metrics)) == len(metrics):
        return
    twice = next(name for name in metrics if metrics.count(name) > 1)
    what = f"two rows of {f'the metric {twice!r}' if twice else 'the unnamed metric'} in a call"
    raise error(Code.INVALID_ARGUMENT, what, "log them one after the other")


def _names(place: m.Place) -> tuple[str, str, str]:
    return place.namespace, place.project, place.experiment


def _parts(prefix: str) -> tuple[str, str, str]:
    namespace, _, rest = prefix.partition("/")
    project, _, experiment = rest.partition("/")
    return namespace, project, experiment


def _fitting(sizes: Sequence[int]) -> int:
    """How many go into a page: one at least."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > PAGE_BYTES:
            return count
    return len(sizes)


def _size(run: Run) -> int:
    texts = (run.readme or "", run.metadata or "", run.error or "", *run.tags, *run.bindrs)
    return sum(len(text.encode()) for text in texts)


def _cursor(key: RunKey) -> str:
    return cursors.write(key.namespace, key.project, key.experiment, key.owner_uid)


def _after(cursor: str | None) -> RunKey | None:
    return None if cursor is None else RunKey(*cursors.read(cursor, str, str, str, cursors.number))


def _record(run: Run) -> m.ExperimentRecord:
    key = _same(run.key, ("namespace", "project", "experiment", "owner_uid"))
    return m.ExperimentRecord(**key, status=run.status, **_same(run, SAME + SAID))


def _brought(key: RunKey, run: m.ExperimentRecord, said: Opened) -> Run:
    """A record that comes from elsewhere, with what a tree says of it here."""
    here = _same(said, SAID)
    none: dict[str, Any] = {name: () for name in ("tags", "bindrs") if here[name] is None}
    return Run(key=key, status=known_status(run.status), **_same(run, SAME), **here | none)


def _same(of: object, fields: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in fields}


def _row(row: Row, *, origins: bool) -> m.Row:
    whose = {"writer": row.writer, "number": row.number} if origins else {}
    return m.Row(created_ms=row.created_ms, data=row.data, **whose)
