"""What `push` sends beside files: each experiment's record, its parameters, and the rows of its metrics.

A record that is there stays where it was changed later. A row keeps its writer and number, by which it is known: what
is there already is not appended again, and rows that came since are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ml_dash import messages as m
from ml_dash.cli.runs import experiments
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.metrics import PAGE
from ml_dash.params import details_of

if TYPE_CHECKING:
    from ml_dash.cli.pushing import Push

OF_AN_EXPERIMENT = {
    Code.ACCESS_DENIED, Code.INVALID_ARGUMENT, Code.INVALID_METADATA, Code.INVALID_PATH, Code.INVALID_PREFIX,
}  # fmt: skip
"""What is wrong with one experiment; the others go on."""
PIECE_CHARACTERS = 512 * m.KIB
"""Of the rows of a message: a character takes up to four bytes, and the message at most 4 MiB."""


def runs(push: Push) -> None:
    """Sends every experiment that is meant; returns once they are on stable storage there."""
    last = ""
    for record in experiments(push.source, ""):
        prefix = _prefix(record)
        if prefix != last and push.is_meant(prefix):  # several users' come one after the other
            _one(push, prefix, record)
        last = prefix


def _one(push: Push, prefix: str, record: m.ExperimentRecord) -> None:
    here = m.Place(namespace=record.namespace, project=record.project, experiment=record.experiment)
    there = push.target(here)
    outcome = push.outcome
    try:
        about, known = details_of(push.source, here), _known(push.service, there)
        if known is None and (elsewhere := _elsewhere(push, here, there)) is not None:
            what = f"its files are there already, in {elsewhere}: there is nothing to push to {_prefix(there)}"
            push.pass_over(prefix, error(Code.ID_TAKEN, what, "push it to where they are"))
            return
        new = _bring_record(push, about, known, there)
        rows = _bring_rows(push, about, known, here, there)
    except MLDashError as failure:
        if failure.code not in OF_AN_EXPERIMENT:
            raise
        outcome.refuse_experiment(prefix, failure, quiet=push.options.json)
        return
    outcome.rows += rows
    if new or rows:
        outcome.experiments.append(prefix)
        if not push.options.json:
            print(f"{about.experiments[0].status}  {prefix}")


def _elsewhere(push: Push, here: m.Place, there: m.Place) -> str | None:
    """Another experiment in which the service has the files of this one; None where one of them may be pushed.

    An id is one file's, in one place: of a push to another place nothing would come but an empty experiment.
    """
    prefix: str | None = None
    for page in push.pages(here):
        known = push.known([record.id for record in page.records])
        for record in page.records:
            prefix = _prefix(known[record.id]) if record.id in known else None
            if prefix in (None, _prefix(there)):
                return None
    return prefix


def _prefix(place: m.Place | m.Record | m.ExperimentRecord) -> str:
    return f"{place.namespace}/{place.project}/{place.experiment}"


def _bring_record(push: Push, about: m.Experiments, known: m.Experiments | None, there: m.Place) -> bool:
    """Whether something of it is new there; of a dry run, whether it would be."""
    run = replace(about.experiments[0], namespace=there.namespace, project=there.project, experiment=there.experiment)
    if push.options.dry_run:
        return known is None or known.experiments[0].updated_ms < run.updated_ms
    answer = push.service.call(
        m.Brought, lambda number: m.BringExperiment(request=number, run=run, params=about.params or "{}")
    )
    return bool(answer.new)


def _known(service: Connection, place: m.Place) -> m.Experiments | None:
    try:
        return details_of(service, place)
    except MLDashError as failure:
        if failure.code is not Code.NO_MATCH:
            raise
        return None


def _bring_rows(push: Push, about: m.Experiments, known: m.Experiments | None, here: m.Place, there: m.Place) -> int:
    """How many rows are new there; of a dry run, how many would be."""
    lengths = {} if known is None else {metric.name: metric.rows for metric in known.metrics}
    rows = (
        row
        for metric in about.metrics
        for row in _rows(push.source, here, metric, _start(push, here, there, metric, lengths.get(metric.name, 0)))
    )
    if push.options.dry_run:
        return sum(1 for _ in rows)
    return sum(_send(push.service, there, piece) for piece in _pieces(rows))


def _send(service: Connection, there: m.Place, rows: Sequence[m.BroughtRow]) -> int:
    return service.call(
        m.Brought, lambda number: m.BringRows(request=number, place=there, rows=tuple(rows)), silent_s=None
    ).new


def _start(push: Push, here: m.Place, there: m.Place, metric: m.Metric, length: int) -> int:
    """From which row on it is not there: they are sent in their order, so the last one tells of all before it.

    Where others have logged to the same metric, the order is another one, and all are sent once more.
    """
    if not 0 < length <= metric.rows:
        return 0
    mine, theirs = (_read(*where, metric.name, length - 1, 1) for where in ((push.source, here), (push.service, there)))
    return length if mine == theirs else 0


def _rows(source: Connection, place: m.Place, metric: m.Metric, start: int) -> Iterator[m.BroughtRow]:
    while start < metric.rows and (some := _read(source, place, metric.name, start, min(PAGE, metric.rows - start))):
        for row in some:
            if row.writer is None or row.number is None:
                what = "the daemon of the root is of an earlier release"
                raise error(Code.UNSUPPORTED_VERSION, what, "stop it; the next command starts the one of this release")
            yield m.BroughtRow(
                metric=metric.name, writer=row.writer, number=row.number, created_ms=row.created_ms, data=row.data
            )
        start += len(some)


def _read(connection: Connection, place: m.Place, metric: str, start: int, count: int) -> tuple[m.Row, ...]:
    return connection.call(
        m.Rows,
        lambda number: m.ReadRows(request=number, place=place, metric=metric, start=start, count=count, origins=True),
    ).rows


def _pieces(rows: Iterator[m.BroughtRow]) -> Iterator[list[m.BroughtRow]]:
    """As many as fit into a message."""
    piece: list[m.BroughtRow] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row.data) + len(row.metric)
        if size > PIECE_CHARACTERS or len(piece) == PAGE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
