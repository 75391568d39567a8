"""`doctor --reconcile`: store and catalog compared, step by step; what was found, and what became of it."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.cli import reaching, show
from ml_dash.connection import Connection

LINE_S = 5.0
"""Between two lines that say how far it is."""
MENDED = ("recorded", "unmarked", "removed", "aborted")
"""Outcomes after which nobody has to do anything."""
WORDS = {
    "unlisted": "object without a record",
    "missing": "record without its object",
    "resized": "object of another size",
    "found": "object that was missing",
    "left": "object of a deleted file",
    "upload": "upload that nobody goes on with",
}


def reconcile(options: Namespace) -> int:
    """Has the daemon compare them; 1 where somebody has to do something."""
    progress, findings, is_open = _Progress(quiet=options.json), list[dict[str, Any]](), False
    try:
        with reaching.running(options) as connection:
            for step in _steps(connection, dry_run=options.dry_run):
                for finding in step.findings:
                    is_open |= finding.outcome not in MENDED
                    if options.json:
                        findings.append(_as_object(finding))
                    else:
                        show.lines(_lines(finding, dry_run=options.dry_run))
                progress.add(step)
    except KeyboardInterrupt:
        what = f"stopped: {progress.seen()}"
        raise show.Interrupted(what, "what was mended stays so; the same command looks at the rest") from None
    counts = {"objects": progress.objects, "records": progress.records, "uploads": progress.uploads}
    if options.json:
        show.one({**counts, "waiting": progress.waiting, "dryRun": options.dry_run, "findings": findings})
    else:
        print(progress.summary())
    return 1 if is_open else 0


def _steps(connection: Connection, *, dry_run: bool) -> Iterator[m.Reconciled]:
    cursor: str | None = None
    while True:
        step = connection.call_aside(
            m.Reconciled,
            lambda number, cursor=cursor: m.Reconcile(request=number, cursor=cursor, dry_run=dry_run),  # type: ignore[misc]
            progress=lambda _: None,
        )
        yield step
        if (cursor := step.cursor) is None:
            return


class _Progress:
    """What was looked at so far; a line on stderr now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self.objects = self.records = self.uploads = self.waiting = self.findings = 0
        self._next = time.monotonic() + LINE_S

    def add(self, step: m.Reconciled) -> None:
        self.objects, self.records = self.objects + step.objects, self.records + step.records
        self.uploads, self.waiting = self.uploads + step.uploads, self.waiting + step.waiting
        self.findings += len(step.findings)
        if not self._quiet and step.cursor is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_S
            print(f"{self.seen()} so far", file=sys.stderr, flush=True)

    def summary(self) -> str:
        waiting = f"; {self.waiting} left alone, for they may be on their way" if self.waiting else ""
        return f"{self.seen()}: {wording.counted(self.findings, 'finding')}{waiting}"

    def seen(self) -> str:
        objects, records = wording.counted(self.objects, "object"), wording.counted(self.records, "record")
        return f"{objects} and {records} compared"


def _lines(finding: m.Finding, *, dry_run: bool) -> Iterator[str]:
    """What, where, what became of it, and what to do."""
    what = WORDS.get(finding.what, finding.what)
    outcome = f"would be {finding.outcome}" if dry_run and finding.outcome != "kept" else finding.outcome
    code = f"{finding.code}: " if finding.code else ""
    where = f"file {finding.id}  {finding.path}" if finding.path else finding.key
    yield f"{what}  {where}  {outcome}"
    yield f"  {code}{finding.message}"
    if finding.path and finding.key not in finding.message:
        yield f"  {finding.key}"
    if finding.hint:
        yield f"  hint: {finding.hint}"


def _as_object(finding: m.Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "outcome": finding.outcome,
        "id": str(finding.id) if finding.id else None,
        "path": finding.path or None,
        "key": finding.key,
        "upload": finding.upload or None,
        "sizeBytes": finding.size_bytes,
        "code": finding.code,
        "message": finding.message,
        "hint": finding.hint or None,
    }
