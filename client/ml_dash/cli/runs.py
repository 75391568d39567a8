"""Experiments, parameters and metrics, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from ml_dash import messages as m
from ml_dash.cli import show
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.metrics import Metrics
from ml_dash.pages import pages
from ml_dash.params import Params, details_of
from ml_dash.result import iso_time

WAIT_MS = 10_000
"""How long one look of `--follow` may take, where nothing comes."""
AT_ONCE = 1000
"""Rows that a table is laid out for at a time."""
RUNNING = "RUNNING"
UNNAMED = "None"
"""The unnamed metric, in a tree and on a command line."""


def experiments(connection: Connection, prefix: str) -> Iterator[m.ExperimentRecord]:
    """The experiments at and below a prefix, a page at a time."""
    found = pages(
        lambda after: connection.call(
            m.Experiments, lambda number: m.ListExperiments(request=number, prefix=prefix, cursor=after)
        )
    )
    return (record for page in found for record in page.experiments)


def experiment_lines(records: Iterator[m.ExperimentRecord]) -> Iterator[str]:
    """The experiments for people."""
    first = next(records, None)
    if first is None:
        yield "no experiments"
        return
    yield f"{'STATUS':<9}  {'STARTED':<19}  {'ENDED':<19}  EXPERIMENT"
    for record in chain([first], records):
        started, ended = (show.moment_of(ms) for ms in (record.started_ms, record.ended_ms))
        prefix = f"{record.namespace}/{record.project}/{record.experiment}"
        why = f"  {' '.join(record.error.split())[:120]}" if record.error else ""
        yield f"{record.status:<9}  {started:<19}  {ended:<19}  {prefix}{why}"


def as_object(record: m.ExperimentRecord) -> dict[str, Any]:
    """An experiment for programs."""
    return {
        "experimentId": f"{record.namespace}/{record.project}/{record.experiment}",
        "status": record.status,
        "error": record.error,
        "readme": record.readme,
        "tags": list(record.tags),
        "bindrs": list(record.bindrs),
        "metadata": None if record.metadata is None else json.loads(record.metadata),
        "createdAt": iso_time(record.created_ms),
        "startedAt": iso_time(record.started_ms),
        "endedAt": iso_time(record.ended_ms),
        "updatedAt": iso_time(record.updated_ms),
        "host": record.host,
        "user": record.user,
        "ownerUid": record.owner_uid,
    }


def params(connection: Connection, place: m.Place) -> dict[str, Any]:
    """The parameters, by their dotted names."""
    return Params(connection, place).get()


def param_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """The parameters for people."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        yield f"{name:<{width}}  {json.dumps(value, ensure_ascii=False)}"


def rows(connection: Connection, place: m.Place, name: str | None, *, follow: bool) -> Iterator[dict[str, Any]]:
    """The rows of one metric, or of all; with `follow`, those that come, too, until the run has ended.

    Raises NO_MATCH for a name that no metric has; with `follow`, where none has got it by the run's end.
    """
    metrics = Metrics(connection, place, "")
    seen: dict[str, int] = {}
    seen_rows = 0
    while True:
        about = details_of(connection, place, seen_rows, WAIT_MS if follow else 0)
        seen_rows = sum(metric.rows for metric in about.metrics)
        for metric in about.metrics:
            if name is None or metric.name == _named(name):
                start = seen.get(metric.name, 0)
                for row in islice(metrics(metric.name).rows(start), metric.rows - start):
                    yield {"metric": metric.name or None, **row}
                seen[metric.name] = metric.rows
        if not follow or about.experiments[0].status != RUNNING:
            if name is not None and _named(name) not in seen:
                raise _no_metric(place, name, [metric.name or UNNAMED for metric in about.metrics])
            return


def _no_metric(place: m.Place, name: str, known: Sequence[str]) -> MLDashError:
    where = f"{place.namespace}/{place.project}/{place.experiment}"
    hint = f"it has: {', '.join(known)}" if known else "nothing was logged there"
    return error(Code.NO_MATCH, f"there is no metric {name!r} in {where}", hint)


def row_lines(found: Iterator[dict[str, Any]], *, at_once: int = AT_ONCE) -> Iterator[str]:
    """Rows as tables: a new one for each metric, and where other values come."""
    head: tuple[str | None, tuple[str, ...]] | None = None
    while some := [*islice(found, at_once)]:
        for metric, group in _by_metric(some):
            columns = tuple(dict.fromkeys(key for row in group for key in row["data"] if key != "_ts"))
            if head is not None and head[0] == metric and {*head[1]} == {*columns}:
                columns = head[1]
            cells = [_cells(row, columns) for row in group]
            titles = ["#", "TIME", *columns]
            widths = [max(len(line[at]) for line in (titles, *cells)) for at in range(len(titles))]
            if head != (metric, columns):
                yield ("" if head is None else "\n") + (metric or "(unnamed)")
                yield _line(titles, widths)
            head = metric, columns
            yield from (_line(line, widths) for line in cells)


def _by_metric(some: Sequence[dict[str, Any]]) -> Iterator[tuple[str | None, list[dict[str, Any]]]]:
    group: list[dict[str, Any]] = []
    for row in some:
        if group and row["metric"] != group[0]["metric"]:
            yield group[0]["metric"], group
            group = []
        group.append(row)
    yield group[0]["metric"], group


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    values = (_cell(row["data"].get(key)) for key in columns)
    return [str(row["index"]), show.moment(row["createdAt"]), *values]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _named(name: str) -> str:
    return "" if name == UNNAMED else name
