"""Waiting until files are stored: those of some ids, an experiment's, or everything that a daemon has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.cli.show import Bar, Update
from ml_dash.connection import Connection
from ml_dash.errors import Code, error
from ml_dash.result import failure_of, records_of

STEP_MS = 500
"""How long one look may take: the bar moves at least this often."""
AT_ONCE = 100
"""Ids that one look waits for."""
ENDED = ("DONE", "FAILED", "CANCELLED")


class Seen(NamedTuple):
    """What a look has found: files on their way, those that failed, and how much of all is done."""

    pending: int
    failed: Sequence[m.Record]
    done: int
    total: int


Look = Callable[[int], Seen]
"""Looks for at most so many milliseconds, less where everything has come to its end."""


def until_stored(look: Look, timeout_s: float | None, update: Update) -> Seen:
    """`until_ended`; raises the error of a file that failed."""
    seen = until_ended(look, update, timeout_s)
    if seen.failed:
        first = failure_of(seen.failed[0])
        others = len(seen.failed) - 1
        message = f"{first.message} (and {others} more failed)" if others else first.message
        raise error(first.code, message, first.hint)
    return seen


def until_ended(look: Look, update: Update, timeout_s: float | None = None) -> Seen:
    """Looks until nothing is on its way; returns the last look. Raises TIMEOUT, after which the work goes on."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    step_ms, most_done = 0, 0
    while True:
        seen = look(step_ms)
        most_done = max(most_done, seen.done)
        update(most_done, seen.total)
        if not seen.pending:
            return seen
        left_ms = STEP_MS if deadline is None else int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0:
            raise error(Code.TIMEOUT, f"{wording.files_are(seen.pending)} not stored after {timeout_s:g} s")
        step_ms = min(STEP_MS, left_ms)


def show_until_stored(look: Look, timeout_s: float | None, unit: str, title: str) -> Seen:
    """`until_stored`, with a bar."""
    with Bar(unit) as bar:
        return until_stored(look, timeout_s, lambda done, total: bar.update(title, done, total))


def at_ids(connection: Connection, ids: Sequence[int]) -> Look:
    """Files of these ids; counts bytes."""
    records: dict[int, m.Record] = {}

    def refresh() -> list[int]:
        moving = [one for one in ids if one not in records or records[one].state not in ENDED]
        records.update((record.id, record) for record in records_of(connection, moving))
        return [one for one in moving if records[one].state not in ENDED]

    def look(step_ms: int) -> Seen:
        moving = refresh()
        if moving and step_ms:
            some = tuple(moving[:AT_ONCE])
            connection.call(
                m.Waited, lambda number: m.Wait(request=number, until="stored", timeout_ms=step_ms, ids=some)
            )
            moving = refresh()
        failed = [record for record in records.values() if record.state in ("FAILED", "CANCELLED")]
        done = sum(record.sent_bytes for record in records.values())
        return Seen(len(moving), failed, done, sum(record.size_bytes for record in records.values()))

    return look


def at_experiment(connection: Connection, place: m.Place) -> Look:
    """All files of an experiment; counts files."""
    most = 0

    def look(step_ms: int) -> Seen:
        nonlocal most
        waited = connection.call(
            m.Waited, lambda number: m.Wait(request=number, until="stored", timeout_ms=step_ms, place=place)
        )
        most = max(most, waited.pending)
        return Seen(waited.pending, waited.failed, most - waited.pending, most)

    return look


def at_everything(connection: Connection) -> Look:
    """Everything that the daemon has on its way; counts files. Those that had failed before are not waited for."""
    failed_before: set[int] | None = None
    most = 0
    clock = threading.Event()

    def look(step_ms: int) -> Seen:
        nonlocal failed_before, most
        clock.wait(step_ms / 1000)
        report = connection.call(m.StatusReport, lambda number: m.Status(request=number))
        if failed_before is None:
            failed_before = {record.id for record in report.failed}
        failed = [record for record in report.failed if record.id not in failed_before]
        pending = sum(count.files for count in report.counts if count.state not in ENDED)
        most = max(most, pending)
        return Seen(pending, failed, most - pending, most)

    return look
