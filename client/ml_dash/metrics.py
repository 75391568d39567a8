"""`exp.metrics`: rows of numbers as training goes on."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

from ml_dash import messages as m
from ml_dash.arguments import text
from ml_dash.connection import Connection
from ml_dash.errors import Code, error
from ml_dash.params import details_of
from ml_dash.result import iso_time
from ml_dash.values import object_text

PAGE = 1000
"""Rows that are asked for at a time."""


class Writer:
    """Numbers what a process logs: a row that is sent again is not there twice. Safe among threads and forks."""

    def __init__(self) -> None:
        self._begin()

    def next(self) -> tuple[int, int]:
        """The random number of this process, and one that rises."""
        if self._pid != os.getpid():
            self._begin()
        return self._writer, next(self._numbers)

    def _begin(self) -> None:
        self._writer, self._numbers = secrets.randbits(62) + 1, itertools.count(1)
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[Writer], tuple[()]]:
        return type(self), ()


class Metrics:
    """The metrics of an experiment. Call it with a name for one of them."""

    def __init__(self, connection: Connection, place: m.Place, durability: str) -> None:
        self._connection = connection
        self._place = place
        self._durability = durability
        self._writer = Writer()

    def __repr__(self) -> str:
        return f"<Metrics of {self._place.namespace}/{self._place.project}/{self._place.experiment}>"

    def __call__(self, name: str | None = None) -> Metric:
        """The metric of that name, a path such as "eval/small"; without one, the unnamed metric."""
        return Metric(self, text(name or "", "name"))

    def log(self, *, _flush: bool = False, **values: Any) -> Self:
        """Appends rows, and returns itself: `log(epoch=1, train={"loss": 0.5}, eval={"loss": 0.6})`.

        A dict goes to the metric of its name, together with what is no dict; that alone is a row of the unnamed metric.
        Every row gets `_ts`, seconds since 1970. The rows of a call are appended together or not at all. When it
        returns they survive this process and the daemon, and a reboot a second later; after `flush()`, or with
        `durability="disk"`, at once.

        Raises TypeError for what JSON can't hold, ValueError for a name that is no path, for a row over 64 KiB, and
        for more than 1,000 metrics.
        """
        shared = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
        groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
        named = [("", shared)] if shared else []
        named += [(name, {**shared, **group}) for name, group in groups.items()]
        if named:
            self.append(named)
        return self.flush() if _flush else self

    def flush(self) -> Self:
        """Returns once everything that was logged is on stable storage."""
        self._send((), "disk")
        return self

    def names(self) -> list[str]:
        """The metrics that have rows; "" is the unnamed one."""
        return [metric.name for metric in details_of(self._connection, self._place).metrics]

    def append(self, named: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Appends a row to each of these metrics."""
        if len(named) > m.ROWS:
            raise error(Code.INVALID_ARGUMENT, f"{len(named)} metrics in a call, at most {m.ROWS}", "call it again")
        now = time.time()  # noqa: TID251 the trainer's clock, as scripts expect it
        rows = tuple(_row(name, {**values, "_ts": values.get("_ts", now)}) for name, values in named)
        self._send(rows)

    def read(self, name: str, start: int, count: int) -> m.Rows:
        """Rows of a metric: as many as fit into an answer."""
        return self._connection.call(
            m.Rows,
            lambda number: m.ReadRows(request=number, place=self._place, metric=name, start=start, count=count),
        )

    def _send(self, rows: tuple[m.NewRow, ...], durability: str = "") -> None:
        writer, mine = self._writer.next()
        said = m.LogRows(
            request=0,
            place=self._place,
            writer=writer,
            number=mine,
            rows=rows,
            durability=durability or self._durability,
        )
        if sum(len(row.data) for row in rows) > m.ROW_CHARACTERS:  # one row fits always
            m.checked(said)
        self._connection.call(m.Done, lambda number: replace(said, request=number), silent_s=None)


class Metric:
    """One metric. Get one with `exp.metrics("train")`; iterating gives its rows, a dict each."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self.name = name

    def __repr__(self) -> str:
        return f"<Metric {self.name!r}>"

    def log(self, **values: Any) -> Self:
        """Appends a row, and returns itself. As `Metrics.log`, for this metric alone; a dict stays a value."""
        if values:
            self._metrics.append([(self.name, values)])
        return self

    def flush(self) -> Self:
        """Returns once everything that was logged is on stable storage."""
        self._metrics.flush()
        return self

    def read(self, start_index: int = 0, limit: int = 1000) -> dict[str, Any]:
        """Rows from an index on: {data: [{index, data, createdAt}], startIndex, endIndex, total, hasMore}.

        `total` is how many rows the metric has; one that nobody has logged to has none.
        """
        if not all(isinstance(number, Integral) and number >= 0 for number in (start_index, limit)):
            what = f"start_index={start_index!r}, limit={limit!r}"
            raise error(Code.INVALID_ARGUMENT, what, "pass whole numbers from 0 on")
        rows: list[dict[str, Any]] = []
        while True:
            some = self._metrics.read(self.name, start_index + len(rows), min(PAGE, limit - len(rows)))
            rows += [row_dict(some.start + at, row) for at, row in enumerate(some.rows)]
            end = start_index + len(rows)
            if not some.rows or len(rows) >= limit or end >= some.total:
                break
        return {
            "data": rows,
            "startIndex": start_index,
            "endIndex": end - 1,
            "total": some.total,
            "hasMore": end < some.total,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows():
            yield row["data"]

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows from an index on, as many as there are: {index, data, createdAt}, a page at a time."""
        while (some := self._metrics.read(self.name, start, PAGE)).rows:
            yield from (row_dict(some.start + at, row) for at, row in enumerate(some.rows))
            start += len(some.rows)


def row_dict(index: int, row: m.Row) -> dict[str, Any]:
    """A row with its public names."""
    return {"index": index, "data": json.loads(row.data), "createdAt": iso_time(row.created_ms)}


def _row(name: str, values: Mapping[str, Any]) -> m.NewRow:
    """Its bounds are looked at here: the daemon would hang up for them."""
    data = object_text(values, f"metric {name!r}, the value" if name else "the value")
    if len(data) > m.ROW_CHARACTERS:
        what = f"a row of the metric {name[:80]!r} takes {len(data)} characters, at most {m.ROW_CHARACTERS}"
        raise error(Code.INVALID_ARGUMENT, what, "save what is large as a file")
    if len(name) > m.NAME_CHARACTERS:
        what = f"the metric {name[:80]!r}… has a name of over {m.NAME_CHARACTERS} characters"
        raise error(Code.INVALID_PATH, what)
    return m.NewRow(metric=name, data=data)
