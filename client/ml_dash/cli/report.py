"""Tables for people, and the daemon's status as an object."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ml_dash import wording
from ml_dash.cli import show
from ml_dash.errors import Code
from ml_dash.messages import Limits, Record, SetRecord, StatusReport
from ml_dash.request import now_ms
from ml_dash.result import FileResult, iso_time, to_dict


def table(files: Iterable[FileResult], *, experiments: bool = False) -> None:
    """Prints files, a line each, as they come: the columns have their widths beforehand, and paths stand last.

    `experiments`: each with its own before it.
    """
    head = f"{'ID':>19}  {'STATE':<10}  {'SIZE':>10}  {'CREATED':<19}  PATH"
    for file in files:
        if head:
            print(head)
            head = ""
        record = show.plain(file)
        created = show.moment(record["createdAt"])
        size = wording.size(record["sizeBytes"])
        of = f"{record['experimentId']}: " if experiments else ""
        print(f"{record['id']:>19}  {_state(file):<10}  {size:>10}  {created}  {of}{show.path(record)}")
    if head:
        print("no files", file=sys.stderr)


def _state(file: FileResult) -> str:
    """Of a stored file, too, whether its set is not complete, or the store has no object of it any more."""
    record = file._record  # noqa: SLF001
    if record.state != "DONE":
        return record.state
    if record.error_code == Code.OBJECT_MISSING:
        return "MISSING"
    return "PENDING" if record.pending else record.state


def versions(files: Iterable[FileResult]) -> None:
    """Prints versions of one file, a line each."""
    print(f"{'ID':>19}  {'STATE':<10}  {'SIZE':>10}  {'CREATED':<19}  SHA-256")
    for file in files:
        record = show.plain(file)
        print(
            f"{record['id']:>19}  {_state(file):<10}  {wording.size(record['sizeBytes']):>10}  "
            f"{show.moment(record['createdAt'])}  {record['checksum'] or 'not known yet'}"
        )


def as_object(answer: StatusReport, socket: Path) -> dict[str, Any]:
    """The status for programs."""
    return {
        "version": answer.version,
        "pid": answer.pid,
        "embedded": answer.embedded,
        "store": answer.store,
        "stateDir": answer.state_dir,
        "socket": str(socket),
        "startedAt": iso_time(answer.started_ms),
        "uptimeSeconds": _since(answer.started_ms),
        "connections": answer.connections,
        "spoolBytes": answer.spool_bytes,
        "oldestAt": iso_time(answer.oldest_ms),
        "files": {count.state: {"files": count.files, "sizeBytes": count.size_bytes} for count in answer.counts},
        "superseded": answer.superseded_files,
        "limits": _limits(answer.limits),
        "blocked": [troubled(record) for record in answer.blocked],
        "failed": [troubled(record) for record in answer.failed],
        "incompleteSets": [_set_object(one) for one in answer.sets],
        "error": _error(answer) if answer.error_code else None,
    }


def as_lines(answer: StatusReport, socket: Path) -> Iterator[str]:
    """The status for people."""
    kind = "embedded" if answer.embedded else "service"
    yield f"daemon   {answer.version}, {kind}, pid {answer.pid}, up {show.duration(_since(answer.started_ms))}"
    yield f"store    {answer.store}"
    yield f"socket   {socket}"
    yield f"spool    {wording.size(answer.spool_bytes)} in {answer.state_dir}"
    oldest = "nothing" if answer.oldest_ms is None else f"the oldest for {show.duration(_since(answer.oldest_ms))}"
    yield f"waiting  {oldest}"
    if answer.limits is not None:
        yield f"polite   {_politeness(answer.limits)}"
    if answer.error_code:
        yield f"\n{_held_up(answer.error_code)}"
        yield f"  {answer.error_code}: {answer.error_message}\n  hint: {answer.error_hint}"
    if answer.counts:
        yield f"\n{'STATE':<10}  {'FILES':>8}  {'SIZE':>10}"
    for count in answer.counts:
        yield f"{count.state:<10}  {count.files:>8}  {wording.size(count.size_bytes):>10}"
    if answer.superseded_files:
        yield f"{wording.files(answer.superseded_files)} of the cancelled gave way to newer versions"
    for title, records in (("blocked", answer.blocked), ("failed", answer.failed)):
        if records:
            yield f"\n{title}:"
        yield from troubles(records, known=answer.error_message)
    yield from _sets(answer)


def _held_up(code: str) -> str:
    """What comes of the daemon's trouble."""
    if code.startswith("CATALOG_"):
        return "STORED FILES WAIT TO BE LISTED"
    return "FILES WAIT TO BE STORED" if code == Code.STORE_NOT_MOUNTED else "NOTHING IS TAKEN IN NOW"


def _limits(limits: Limits | None) -> dict[str, Any] | None:
    """None of a daemon of an earlier release, which does not say."""
    if limits is None:
        return None
    return {
        "threads": limits.threads,
        "nice": limits.nice,
        "ioClass": limits.io_class,
        "uncachedFrom": limits.uncached_from,
        "bandwidth": limits.bandwidth,
    }


def _politeness(limits: Limits) -> str:
    cached = (
        f"files from {wording.size(limits.uncached_from)} on past the page cache" if limits.uncached_from else "cached"
    )
    cap = f"at most {wording.size(limits.bandwidth)}/s" if limits.bandwidth else "no cap on bandwidth"
    return f"{limits.threads} threads, nice {limits.nice}, I/O {limits.io_class}, {cached}, {cap}"


def troubles(records: Iterable[Record], known: str | None = None) -> Iterator[str]:
    """Files, and under those that one thing troubles what that is, once; `known` is a message that was shown before."""
    for (code, message, hint), alike in groupby(records, _reason):
        yield from map(_file, alike)
        if code and message == known:
            yield f"    {code}, as above"
        elif code:
            yield f"    {code}: {message}"
        if hint and message != known:
            yield f"    hint: {hint}"


def _reason(record: Record) -> tuple[str | None, str | None, str | None]:
    return record.error_code, record.error_message, record.error_hint


def _file(record: Record) -> str:
    where = f"{record.namespace}/{record.project}/{record.experiment}"
    sent = f"{wording.size(record.sent_bytes)} of {wording.size(record.size_bytes)} sent"
    return f"  {record.id}  {where}: {show.path(to_dict(record))}  {record.state}, {sent}"


def troubled(record: Record) -> dict[str, Any]:
    """A file for programs, and what troubles it."""
    return to_dict(record) | {"attempt": record.attempt, "error": _error(record)}


def _sets(answer: StatusReport) -> Iterator[str]:
    """Sets that are not complete, and what is missing."""
    if answer.sets:
        yield "\nsets that are not complete:"
    for one in answer.sets:
        missing = ", ".join(map(str, one.missing)) + (", …" if one.world_size - one.ranks > len(one.missing) else "")
        where = f"{one.namespace}/{one.project}/{one.experiment}"
        since = show.duration(_since(one.updated_ms))
        yield (
            f"  {where}: {one.name} attempt {one.attempt}  {one.ranks} of {one.world_size} ranks, missing: {missing}; "
            f"nothing came for {since}"
        )


def _set_object(one: SetRecord) -> dict[str, Any]:
    return {
        "experimentId": f"{one.namespace}/{one.project}/{one.experiment}",
        "name": one.name,
        "attempt": one.attempt,
        "worldSize": one.world_size,
        "ranks": one.ranks,
        "missing": [*one.missing],
        "files": one.files,
        "openedAt": iso_time(one.opened_ms),
        "updatedAt": iso_time(one.updated_ms),
    }


def _error(said: Record | StatusReport) -> dict[str, str | None]:
    return {"code": said.error_code, "message": said.error_message, "hint": said.error_hint}


def _since(ms: int) -> float:
    return max(0, now_ms() - ms) / 1000


def pruned(files: Iterable[FileResult], *, dry_run: bool) -> None:
    """A line a version as it goes, or would go, and how much that is together."""
    count = size = 0
    for file in files:
        print(f"{'would delete' if dry_run else 'deleted'} {file['id']}  {show.path(file)}")
        count, size = count + 1, size + file["sizeBytes"]
    what = f"{wording.counted(count, 'version')} ({wording.size(size)})"
    print(f"{what} would be deleted" if dry_run else f"{what} deleted")
