"""The catalog's experiments, shown in the folder of a local store: made of the catalog, never the other way round.

But a folder may have come from elsewhere, with rows that this catalog has not seen: another host's, of a root on a
network file system, or an earlier release's. They are taken in when its experiment is opened, before anything is added.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ml_dash.errors import MLDashError
from ml_dash.messages import PARAMS_BYTES, ROW_CHARACTERS
from ml_dashd.core.model import EVERYBODY
from ml_dashd.core.runs import (
    BroughtRow,
    MetricLength,
    Opened,
    Row,
    Run,
    RunKey,
    groups_of,
    has_folder,
    is_of_a_file,
    is_utf_8,
    json_text,
    metric_name,
    new_params,
    params_text,
    row_text,
)
from ml_dashd.flow.whole import whole
from ml_dashd.ports import Clock, JournalError, ShownRuns, Threads, Tree

log = logging.getLogger("ml_dashd.flow")

GATHER_S = 0.1
"""Rows gather for so long: whoever reads along is that much behind."""
AGAIN_S = 5.0
"""Before the next try at a folder that could not be written."""
PATIENCE_S = 5.0
"""How long the end of a run waits for its folder, which may be on a network file system; then it goes on without."""
PIECE = 1000
"""Rows that are read and written at a time."""
NOTED_ROWS = 10_000
"""A mark is set after so many rows: what lies behind it is compared after a crash."""
KNOWN = 10_000
"""Experiments that are known to have been looked at."""
FOREIGN = 0
"""The writer of rows that were found in a folder."""
EXPECTED = (OSError, MLDashError, JournalError)
"""What keeps a folder from being read or written; anything else is a defect."""
EXPERIMENT, PARAMETERS = "experiment.json", "parameters.json"
Seen = tuple[int, str]
"""A row: its time and its text."""


class Mirror:
    """Brings to a tree what has changed. Without a tree, as for S3, it does nothing."""

    def __init__(self, *, runs: ShownRuns, tree: Tree | None, threads: Threads, clock: Clock) -> None:
        self._runs = runs
        self._tree = tree
        self._threads = threads
        self._clock = clock
        self._late: set[RunKey] = set()
        self._known: set[RunKey] = set()
        self._at: dict[tuple[RunKey, str], int] = {}
        """How many rows of a metric the tree has, where that was found out."""
        self._complained: set[RunKey] = set()
        self._woken = asyncio.Event()
        self._busy = asyncio.Lock()

    def touch(self, key: RunKey) -> None:
        """Something of it has changed. Takes a microsecond."""
        if self._tree is not None:
            self._late.add(key)
            self._woken.set()

    async def run(self) -> None:
        """Until it is cancelled; what an earlier life has left goes first."""
        if self._tree is None:
            return
        self._late.update(await self._left())
        again_at = 0.0
        postponed: set[RunKey] = set()
        while True:
            await self._wait(AGAIN_S if postponed else None)
            await self._clock.sleep(GATHER_S)
            if self._clock.monotonic() >= again_at:
                self._late |= postponed
                postponed = set()
            failed = await self._bring_all(self._take())
            if failed:
                postponed |= failed
                again_at = self._clock.monotonic() + AGAIN_S

    async def _bring_all(self, late: list[RunKey]) -> set[RunKey]:
        """Those that could not be brought. Who is cancelled has brought one whole, and leaves the rest to `close`."""
        failed = set[RunKey]()
        try:
            while late:
                if not await whole(self.bring(late[0])):
                    failed.add(late[0])
                del late[0]
        finally:
            self._late.update(late)
        return failed

    async def _left(self) -> list[RunKey]:
        while True:
            try:
                return await self._runs.behind()
            except JournalError as failure:
                log.warning("tree_waits", extra={"error": failure})
                await self._clock.sleep(AGAIN_S)

    async def close(self) -> None:
        """Brings what is left, once."""
        for key in self._take():
            await self.bring(key, settled=True)

    async def settle(self, key: RunKey) -> None:
        """Returns once the tree shows all of an experiment, on stable storage; or, where it can't, without it."""
        if self._tree is None:
            return
        bringing = asyncio.create_task(self.bring(key, settled=True))
        await asyncio.wait([bringing], timeout=PATIENCE_S)
        if not bringing.done() or not bringing.result():
            self.touch(key)

    async def bring(self, key: RunKey, *, settled: bool = False) -> bool:
        """Brings what the tree lacks of an experiment; whether it could. Never raises: others wait for their turn."""
        tree = self._tree
        if tree is None or is_of_a_file(key.prefix):
            return True
        async with self._busy:
            try:
                run = await self._first(key)
                if run is None or run.key != key:
                    return True
                if run.shown_ms < run.updated_ms:
                    await self._show(tree, run)
                for metric in await self._runs.metrics(key):
                    if has_folder(key.prefix, metric.name):
                        await self._show_rows(tree, key, metric, settled=settled)
            except Exception as failure:  # noqa: BLE001 told, and tried again
                self._complain(key, failure)
                return False
            self._complained.discard(key)
            if settled:
                self._at = {each: at for each, at in self._at.items() if each[0] != key}
            return True

    async def adopt(self, key: RunKey, opened: Opened) -> Opened:
        """Takes in what a tree has brought along, once; returns what is said of the experiment, the tree's included.

        What can't be read is left for later: it is compared before anything is written over it.
        """
        tree = self._tree
        if tree is None or key in self._known or is_of_a_file(key.prefix):
            return opened
        async with self._busy:
            try:
                run = await self._first(key)
                if run is not None and run.key != key:
                    return opened
                if run is None:
                    opened = await self._adopt_words(tree, key, opened)
                await self._adopt_params(tree, key, run)
                mine = {metric.name: metric for metric in await self._runs.metrics(key)}
                for name in await self._threads.run(tree.metrics, key.prefix):
                    if _is_ours(name) and has_folder(key.prefix, name):
                        metric = mine.get(name, MetricLength(name, 0))
                        self._at[key, name] = await self._compare(tree, key, metric)
            except EXPECTED as failure:
                self._complain(key, failure)
                return opened
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known.add(key)
            return opened

    # ---- the record and the parameters

    async def _first(self, key: RunKey) -> Run | None:
        """Whoever was first at a prefix is shown there."""
        found = await self._runs.get(key.namespace, key.project, key.experiment, EVERYBODY)
        return found[0] if found else None

    async def _show(self, tree: Tree, run: Run) -> None:
        params = await self._runs.params(run.key)
        await self._threads.run(tree.note, run.key.prefix, EXPERIMENT, _written(run))
        if params:
            text = f'{{"data": {params_text(params)}, "updatedAt": "{_iso(run.updated_ms)}"}}\n'
            await self._threads.run(tree.note, run.key.prefix, PARAMETERS, text)
        await self._runs.shown(run.key, run.updated_ms)

    async def _adopt_words(self, tree: Tree, key: RunKey, opened: Opened) -> Opened:
        found = _parsed(await self._threads.run(tree.read_note, key.prefix, EXPERIMENT))
        readme, metadata = found.get("readme", found.get("description")), found.get("metadata")
        return replace(
            opened,
            readme=opened.readme if opened.readme is not None or not _is_text(readme, 1 << 18) else readme,
            tags=opened.tags if opened.tags is not None else _words(found.get("tags")),
            bindrs=opened.bindrs if opened.bindrs is not None else _words(found.get("bindrs")),
            metadata=opened.metadata
            if opened.metadata is not None or not isinstance(metadata, dict)
            else json_text(metadata),
        )

    async def _adopt_params(self, tree: Tree, key: RunKey, run: Run | None) -> None:
        """Those of a catalog that is younger than this one."""
        found = _parsed(await self._threads.run(tree.read_note, key.prefix, PARAMETERS))
        data, changed_ms = found.get("data"), _ms(found.get("updatedAt"))
        if not isinstance(data, dict) or (run is not None and changed_ms <= run.updated_ms):
            return
        values = {name: value for name, value in data.items() if name not in _groups(data)}
        await self._runs.set_params(key, new_params(json.dumps(values)), changed_ms, PARAMS_BYTES)

    # ---- rows

    async def _show_rows(self, tree: Tree, key: RunKey, metric: MetricLength, *, settled: bool) -> None:
        at = self._at.get((key, metric.name))
        if at is None and metric.shown == metric.rows:
            return
        if at is None:
            at = await self._compare(tree, key, metric)
        while rows := await self._runs.rows(key, metric.name, at, PIECE):
            self._at.pop((key, metric.name), None)  # what is only half written is compared
            await self._threads.run(tree.append, key.prefix, metric.name, _lines(rows, at))
            at += len(rows)
            self._at[key, metric.name] = at
        if at != metric.shown and (settled or at - metric.shown >= NOTED_ROWS):
            await self._threads.run(tree.sync, key.prefix, metric.name)
            await self._runs.rows_shown(key, metric.name, at)

    async def _compare(self, tree: Tree, key: RunKey, metric: MetricLength) -> int:
        """Finds out what the tree has of a metric, takes in what is not ours, and returns how many rows it shows."""
        length = await self._threads.run(tree.length, key.prefix, metric.name)
        if length == metric.shown:
            return length
        if length < metric.shown:
            return await self._write_anew(tree, key, metric.name)
        theirs = [_seen(line) for line in await self._threads.run(tree.lines, key.prefix, metric.name, metric.shown)]
        mine = await self._seen_from(key, metric)
        common = sum(1 for _ in _common(mine, theirs))
        if common == len(theirs):
            return metric.shown + common
        known = set(mine)
        foreign = [
            (metric.shown + at, seen)
            for at, seen in enumerate(theirs[common:], start=common)
            if seen is not None and seen not in known
        ]
        await self._take_in(key, metric.name, foreign)
        log.info("rows_adopted", extra={"prefix": key.prefix, "metric": metric.name, "rows": len(foreign)})
        if common == len(mine) and len(foreign) == len(theirs) - common:
            return metric.shown + len(theirs)
        return await self._write_anew(tree, key, metric.name)

    async def _take_in(self, key: RunKey, metric: str, foreign: Sequence[tuple[int, Seen]]) -> None:
        for start in range(0, len(foreign), PIECE):
            piece = foreign[start : start + PIECE]
            rows = [BroughtRow(metric, Row(seen[0], seen[1], FOREIGN, _number(at, seen))) for at, seen in piece]
            await self._runs.bring_rows(key, rows)

    async def _write_anew(self, tree: Tree, key: RunKey, metric: str) -> int:
        """What the tree has is not the beginning of what the catalog has."""
        await self._threads.run(tree.clear, key.prefix, metric)
        at = 0
        while rows := await self._runs.rows(key, metric, at, PIECE):
            lines = _lines(rows, at)
            await self._threads.run(lambda lines=lines: tree.append(key.prefix, metric, lines, anew=True))
            at += len(rows)
        await self._threads.run(tree.publish, key.prefix, metric)
        return at

    async def _seen_from(self, key: RunKey, metric: MetricLength) -> list[Seen]:
        seen: list[Seen] = []
        while rows := await self._runs.rows(key, metric.name, metric.shown + len(seen), PIECE):
            seen += [(row.created_ms, row.data) for row in rows]
        return seen

    # ---- the pieces

    async def _wait(self, timeout_s: float | None) -> None:
        if self._late:
            return
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()

    def _take(self) -> list[RunKey]:
        late, self._late = sorted(self._late), set()
        return late

    def _complain(self, key: RunKey, failure: Exception) -> None:
        if key not in self._complained:
            self._complained.add(key)
            trace = None if isinstance(failure, EXPECTED) else failure
            log.warning("tree_not_written", extra={"prefix": key.prefix, "error": failure}, exc_info=trace)


def _lines(rows: Sequence[Row], start: int) -> list[str]:
    return [
        f'{{"index": {at}, "data": {row.data}, "createdAt": "{_iso(row.created_ms)}"}}\n'
        for at, row in enumerate(rows, start=start)
    ]


def _written(run: Run) -> str:
    key = run.key
    fields = {
        "prefix": key.prefix,
        "name": key.experiment.rpartition("/")[2],
        "project": key.project,
        "readme": run.readme,
        "tags": run.tags,
        "bindrs": run.bindrs,
        "metadata": None if run.metadata is None else json.loads(run.metadata),
        "status": run.status,
        "error": run.error,
        "host": run.host,
        "user": run.user,
        "createdAt": _iso(run.created_ms),
        "startedAt": _iso(run.started_ms),
        "endedAt": None if run.ended_ms is None else _iso(run.ended_ms),
        "updatedAt": _iso(run.updated_ms),
    }
    return json_text(fields, indent=2) + "\n"


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(iso: Any) -> int:
    try:
        return round(datetime.fromisoformat(iso).timestamp() * 1000)
    except (TypeError, ValueError):
        return 0


def _parsed(text: str | None) -> dict[str, Any]:
    """A note of a tree; what is no JSON object says nothing."""
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(found: Any) -> tuple[str, ...] | None:
    return tuple(each for each in found if _is_text(each, 256))[:128] if isinstance(found, list) else None


def _is_text(found: Any, most: int) -> bool:
    """Whether it is what a client might have said: the bounds are those of its message."""
    return isinstance(found, str) and len(found) <= most and is_utf_8(found)


def _groups(data: dict[str, Any]) -> set[str]:
    """What an earlier release kept beside its own parts: the value of a name that is a group as well."""
    return {group for name in data for group in groups_of(name)}


def _seen(line: str) -> Seen | None:
    """None of what is no row, or one that is too long to be read back."""
    found = _parsed(line)
    data = found.get("data")
    text = row_text(json.dumps(data)) if isinstance(data, dict) else ""
    return (_ms(found.get("createdAt")), text) if 0 < len(text) <= ROW_CHARACTERS else None


def _common(mine: Sequence[Seen], theirs: Sequence[Seen | None]) -> Iterator[Seen]:
    for own, found in zip(mine, theirs, strict=False):
        if own != found:
            return
        yield own


def _number(at: int, seen: Seen) -> int:
    """The same for the same row at the same place: taking it in again adds nothing."""
    return int.from_bytes(hashlib.sha256(f"{at} {seen}".encode(errors="replace")).digest()[:8], "big") >> 1


def _is_ours(name: str) -> bool:
    try:
        return metric_name(name) == name
    except MLDashError:
        return False
