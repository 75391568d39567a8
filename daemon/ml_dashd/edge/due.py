"""What may run now, and what waits behind a circuit.

By turns: of one priority, every experiment gives its oldest file before any gives a second one.

Each step is a seek in the index files_due, so that the cost goes with what is asked for, not with what is queued.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ml_dashd.core.circuit import Extent, codes_of
from ml_dashd.core.model import Experiment, Trouble
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import UNFINISHED, State
from ml_dashd.edge.rows import marks

OPEN = {state: 2 if state in UNFINISHED else int(state is State.FAILED) for state in State}
"""The column `open`, which a move writes only where it changes: an index with a condition on it is left alone then."""
DUE = "open = 2"
LISTED = "open > 0"
"""What the catalog does not list: on its way, or failed. A partial index serves only a WHERE with its very words."""
NOBODY: Experiment = ("", "", "")
"""Before all others: no namespace is empty."""
LOWEST, HIGHEST = -(2**63), 2**63 - 1
"""SQLite's integers."""

RUN_NOW = "blocked = 0, not_before_ms = 0, error_code = NULL, error_message = NULL, error_hint = NULL"
RIPE = f"SELECT 1 FROM files WHERE {DUE} AND not_before_ms > 0 AND not_before_ms <= ? LIMIT 1"
RIPEN = f"UPDATE files SET not_before_ms = 0 WHERE {DUE} AND not_before_ms > 0 AND not_before_ms <= ?"
PRIORITY = f"SELECT priority FROM files WHERE {DUE} AND lane = ? AND priority <= ? ORDER BY priority DESC LIMIT 1"
EXPERIMENT = (
    f"SELECT namespace, project, experiment FROM files WHERE {DUE} AND lane = ? AND priority = ? "
    "AND (namespace, project, experiment, not_before_ms) > (?, ?, ?, ?) "
    "ORDER BY namespace, project, experiment, not_before_ms LIMIT 1"
)
"""The next one; the largest time leads behind all files of the last, which SQLite would look at one by one."""
FILES = (
    f"SELECT id FROM files WHERE {DUE} AND lane = ? AND priority = ? AND namespace = ? AND project = ? "
    "AND experiment = ? AND not_before_ms = 0 AND id > ? AND id NOT IN ({skip}) ORDER BY id LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: files of a lane that may run now, at most `limit`.

    Left out are those in `skip`, those of the experiments in `without`, and priorities that are not `above` that one.
    """

    lane: Lane
    skip: tuple[int, ...]
    limit: int
    without: frozenset[Experiment]
    above: int


class Turns:
    """Remembers whose turn it was in each lane."""

    def __init__(self) -> None:
        self._last: dict[Lane, Experiment] = dict.fromkeys(Lane, NOBODY)

    def due(self, connection: sqlite3.Connection, now_ms: int, wanted: Wanted) -> list[int]:
        """Ids of files that may run now: the highest priority first, then by turns."""
        if connection.execute(RIPE, (now_ms,)).fetchone() is not None:  # a journal that can't be written can be asked
            connection.execute(RIPEN, (now_ms,))
        found: list[int] = []
        for priority in _priorities(connection, wanted.lane):
            if priority <= wanted.above or len(found) >= wanted.limit:
                break
            found += self._of_priority(connection, priority, wanted, wanted.limit - len(found))
        return found

    def _of_priority(self, connection: sqlite3.Connection, priority: int, wanted: Wanted, limit: int) -> list[int]:
        """Rounds, which begin behind the experiment that was the last to give a file, until there are enough."""

        def files_of(experiment: Experiment, last: int, most: int) -> list[int]:
            values = (wanted.lane, priority, *experiment, last, *wanted.skip, most)
            return [file_id for (file_id,) in connection.execute(statement, values)]

        statement = FILES.format(skip=marks(wanted.skip))
        found: list[int] = []
        given: dict[Experiment, int] = {}
        """Up to which id each has given."""
        for experiment in _experiments(connection, wanted.lane, priority, self._last[wanted.lane]):
            if len(found) == limit:
                return found
            for file_id in files_of(experiment, 0, 1) if experiment not in wanted.without else ():
                given[experiment] = file_id
                self._take(wanted.lane, experiment, file_id, found)
        while given and len(found) < limit:
            each = -(-(limit - len(found)) // len(given))
            lines = {experiment: files_of(experiment, last, each) for experiment, last in given.items()}
            by_turns = (
                (experiment, line[at]) for at in range(each) for experiment, line in lines.items() if at < len(line)
            )
            for experiment, file_id in islice(by_turns, limit - len(found)):
                self._take(wanted.lane, experiment, file_id, found)
            given = {experiment: line[-1] for experiment, line in lines.items() if len(line) == each}
        return found

    def _take(self, lane: Lane, experiment: Experiment, file_id: int, found: list[int]) -> None:
        found.append(file_id)
        self._last[lane] = experiment


def hold(connection: sqlite3.Connection, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
    """Puts off files that nobody works on: they wait behind a circuit."""
    connection.execute(
        f"UPDATE files SET blocked = 1, not_before_ms = ?, error_code = ?, error_message = ?, error_hint = ? "
        f"WHERE id IN ({marks(ids)}) AND {DUE} AND NOT cancel_requested",
        (until_ms, trouble.code, trouble.message, trouble.hint, *ids),
    )


def release(connection: sqlite3.Connection, extent: Extent, most: int) -> int:
    """Lets so many of the files that wait behind a circuit run now; returns how many those were."""
    where, values = _behind(extent)
    waiting = f"SELECT id FROM files WHERE {DUE} AND not_before_ms > 0 AND {where} LIMIT ?"
    return connection.execute(
        f"UPDATE files SET {RUN_NOW} WHERE id IN ({waiting})",
        (*values, most),
    ).rowcount


def held(extent: Extent, skip: Collection[int]) -> tuple[str, list[Any]]:
    """The condition and the order by which the file that waits longest behind a circuit comes first."""
    where, values = _behind(extent)
    return f"{DUE} AND {where} AND id NOT IN ({marks(list(skip))}) ORDER BY not_before_ms, id LIMIT 1", [*values, *skip]


def _behind(extent: Extent) -> tuple[str, list[Any]]:
    codes = codes_of(extent)
    where, values = f"blocked AND state <> 'VERIFIED' AND error_code IN ({marks(codes)})", list[Any](codes)
    if extent is not None:
        where += " AND namespace = ? AND project = ? AND experiment = ?"
        values += extent
    return where, values


def _priorities(connection: sqlite3.Connection, lane: Lane) -> Iterator[int]:
    """The priorities that files of a lane have, the highest first."""
    most = HIGHEST
    while (row := connection.execute(PRIORITY, (lane, most)).fetchone()) is not None:
        priority: int = row[0]
        yield priority
        most = priority - 1


def _experiments(connection: sqlite3.Connection, lane: Lane, priority: int, last: Experiment) -> Iterator[Experiment]:
    """Every experiment once, in a circle that begins behind `last`."""
    for start, end in ((last, None), (NOBODY, last)):
        at = start
        while (row := connection.execute(EXPERIMENT, (lane, priority, *at, HIGHEST)).fetchone()) is not None:
            at = tuple(row)
            if end is not None and at > end:
                return
            yield at
