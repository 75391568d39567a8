"""`verify`: what is stored, read again and compared with its SHA-256."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.cli import reaching, show
from ml_dash.connection import Connection
from ml_dash.errors import Code, error
from ml_dash.result import records_of


def verify(options: Namespace) -> int:
    """Has stored files read again; 1 where any is damaged or missing."""
    with reaching.looking(options) as connection:
        found = [*_records(options, connection)]
        if not found:
            raise error(Code.NO_MATCH, f"no file fits {options.pattern or '**/*'!r}")
        stored = [record for record in found if record.state == "DONE"]
        damaged, files, size_bytes = _read(options, connection, stored)
    waiting = len(found) - len(stored)
    if options.json:
        show.one({"files": files, "sizeBytes": size_bytes, "damaged": damaged, "notStored": waiting})
    else:
        _tell(damaged, files, size_bytes, waiting)
    return 1 if damaged else 0


def _records(options: Namespace, connection: Connection) -> Iterator[m.Record]:
    if options.ids:
        yield from records_of(connection, list(dict.fromkeys(options.ids)))
        return
    for file in reaching.listed(reaching.files(options, connection), options.pattern, latest=options.latest):
        yield file._record  # noqa: SLF001


def _read(options: Namespace, connection: Connection, stored: list[m.Record]) -> tuple[list[dict[str, Any]], int, int]:
    """The damaged ones; how many files were read, and their bytes."""
    total = sum(record.size_bytes for record in stored)
    damaged, files, size_bytes = list[dict[str, Any]](), 0, 0
    with show.Bar() as bar:
        for start in range(0, len(stored), m.MANY):
            some = stored[start : start + m.MANY]
            base = size_bytes

            def update(seen: m.Progress, base: int = base) -> None:
                if not options.json:
                    bar.update(wording.files(len(stored)), base + seen.done_bytes, total)

            ids = tuple(record.id for record in some)
            answer = connection.call_aside(
                m.Verified,
                lambda number, ids=ids: m.Verify(request=number, ids=ids),  # type: ignore[misc]
                progress=update,
            )
            files, size_bytes = files + answer.read_files, size_bytes + answer.read_bytes
            for each in answer.damaged:
                damaged.append(
                    {"id": str(each.id), "path": each.path, "code": each.code}
                    | {"message": each.message, "hint": each.hint}
                )
    return damaged, files, size_bytes


def _tell(damaged: list[dict[str, Any]], files: int, size_bytes: int, waiting: int) -> None:
    for each in damaged:
        print(f"{each['id']}  {each['path']}  {each['code']}: {each['message']}")
        print(f"  hint: {each['hint']}")
    later = f"; {wording.files(waiting)} not stored, and not read" if waiting else ""
    if damaged:
        print(f"{len(damaged)} of {wording.files(files)} damaged or missing{later}")
    else:
        print(f"{wording.files(files)}, {wording.size(size_bytes)}, as they were stored{later}")
