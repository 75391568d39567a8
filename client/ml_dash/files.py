"""`exp.files`: hand files over, list them, bring them back.

    exp.files("checkpoints").upload("model.pt")         # a prefix, then the call
    exp.files.upload("model.pt", to="checkpoints/a.pt")  # the direct style

A prefix, `to=` and patterns are relative to the experiment. Every save is a new version; nothing is overwritten.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, overload

from ml_dash import messages as m
from ml_dash import wording
from ml_dash.arguments import (
    PathLike,
    file_id_of,
    flag,
    is_glob,
    seconds_of,
    text,
)
from ml_dash.change import Change
from ml_dash.connection import Connection
from ml_dash.download import Downloads, place_below
from ml_dash.errors import Code, MLDashError, error
from ml_dash.handoff import Defaults
from ml_dash.reading import read_text
from ml_dash.result import FileResult, failure_of, iso_time
from ml_dash.sets import Checkpoints

Paths = list[str]
Receipt = dict[str, Any]
Receipts = list[Receipt]


class Fetched(NamedTuple):
    """What `fetch` yields: where the file lies now, and its record."""

    path: str
    file: FileResult


class Discarded(NamedTuple):
    """What `discard` yields: the newest of the versions that are gone, and the receipt for all of them."""

    file: FileResult
    receipt: Receipt


Watch = Callable[[FileResult, int, int], None]
"""Told of a download: the file, the bytes that are there, of how many."""


class FileSet(Change, Checkpoints):
    """Files at a place of an experiment. Get one with `exp.files("prefix")`."""

    # ---- what is in them

    def read_text(self, name: str | None = None, *, encoding: str = "utf-8") -> str:
        """The text of the newest version of a file, its SHA-256 checked; nothing is written here.

        Raises ValueError where there is no such file, it has more than 64 MiB, or it is not text in that encoding.
        """
        try:
            record = self._newest(name)
        except MLDashError as failure:
            if failure.code is not Code.NO_MATCH or name is None or not is_glob(name):
                raise
            hint = "read_text() takes the name of one file; list() and download() take patterns"
            raise error(Code.NO_MATCH, failure.message, hint) from None
        return read_text(self._connection, record, encoding)

    @overload
    def download(self, pattern: None = None, *, to: PathLike | None = None) -> str: ...

    @overload
    def download(self, pattern: str, *, to: PathLike | None = None) -> str | Paths: ...

    def download(self, pattern: str | None = None, *, to: PathLike | None = None) -> str | Paths:
        """Writes files here, their SHA-256 checked; a file has no name here until it is whole.

        Without a pattern (or with a plain name) the newest version of that file goes to `to`, a path or a folder, by
        default the working directory; returns its path. With a glob the newest version of each file that fits goes
        below `to`, folders kept; returns the paths. What is there already is replaced only by a whole file.

        Raises ValueError when nothing fits, and for a link below `to` that leads out of it; StorageError when the bytes
        are not the recorded ones.
        """
        paths = [one.path for one in self.fetch(pattern, to=to)]
        return paths if pattern is not None and is_glob(pattern) else paths[0]

    def fetch(
        self, pattern: str | None = None, *, to: PathLike | None = None, watch: Watch | None = None
    ) -> Iterator[Fetched]:
        """`download`, file by file, each whole when it is yielded; of a glob, the next are on their way meanwhile.

        `watch` is told of the start, the way and the end of each.
        """
        tell = watch or _unwatched
        downloads = Downloads(self._connection, lambda record, done, size: tell(self._result(record), done, size))
        for got in downloads.run(self._targets(pattern, to)):
            yield Fetched(str(got.target), self._result(replace(got.record, sha256=got.sha256)))

    @overload
    def delete(self, pattern: None = None) -> Receipt: ...

    @overload
    def delete(self, pattern: str) -> Receipt | Receipts: ...

    def delete(self, pattern: str | None = None) -> Receipt | Receipts:
        """Deletes all versions of a file, or of each that fits a glob; with `files(file_id=…)` that version alone.

        A file that is still on its way is cancelled. Returns {id: newest, ids, deletedAt}, for a glob a list of them.
        Raises ValueError when nothing fits.
        """
        receipts = [one.receipt for one in self.discard(pattern)]
        return receipts if self._defaults.file_id is None and pattern and is_glob(pattern) else receipts[0]

    def discard(self, pattern: str | None = None) -> Iterator[Discarded]:
        """`delete`, path by path."""
        for versions in self._doomed(pattern):
            yield Discarded(self._result(versions[0]), self._delete(versions))

    # ---- the pieces

    def _doomed(self, pattern: str | None) -> Collection[Sequence[m.Record]]:
        """The versions that `delete` takes, those of one path together, newest first."""
        if self._defaults.file_id is not None:
            return [[self._newest(None)]]
        if pattern is None or not is_glob(pattern):
            return [self._versions(pattern)]
        by_path: dict[tuple[str, str], Any] = {}
        for record in self._records(self._place, pattern):
            by_path.setdefault((record.path, record.filename), []).append(record)
        if not by_path:
            raise self._no_match(pattern)
        return by_path.values()

    def _targets(self, pattern: str | None, to: PathLike | None) -> Iterator[tuple[m.Record, Path]]:
        """What `download` brings, and where each goes."""
        target = Path("." if to is None else text(to, "to") or ".")
        if pattern is None or not is_glob(pattern):
            record = self._newest(pattern)
            is_folder = target.is_dir() or (to is not None and os.fspath(to).endswith("/"))
            yield record, target / record.filename if is_folder else target
            return
        found = False
        for record in self._records(self._place, pattern, latest=True):
            found = True
            yield record, place_below(target, record, self._place.prefix)
        if not found:
            raise self._no_match(pattern)

    def _delete(self, versions: Sequence[m.Record]) -> dict[str, Any]:
        ids = tuple(record.id for record in versions)
        deleted_ms = 0
        for start in range(0, len(ids), 1000):
            some = ids[start : start + 1000]
            answer = self._connection.call(m.Deleted, lambda number, ids=some: m.Delete(request=number, ids=ids))  # type: ignore[misc]
            deleted_ms = answer.deleted_ms
        return {"id": str(ids[0]), "ids": [str(one) for one in ids], "deletedAt": iso_time(deleted_ms)}


class Files(FileSet):
    """`exp.files`: call it with a prefix for a place below the experiment, or use it directly."""

    def __init__(self, connection: Connection, place: m.Place, durability: str, opened_ms: Callable[[], int]) -> None:
        super().__init__(connection, place, Defaults(), durability)
        self._opened_ms = opened_ms

    def __call__(
        self,
        dir: str | None = None,  # noqa: A002 the name that scripts use
        *,
        prefix: str | None = None,
        file_id: str | int | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        supersede: bool = False,
    ) -> FileSet:
        """The files at a prefix, or the one of an id; what is given here holds for every file that is saved there.

        A prefix may be a record's `path` as it is, its leading "/" included.
        """
        if dir is not None and prefix is not None:
            raise error(Code.INVALID_ARGUMENT, "files() was given both a folder and prefix=", "pass one of them")
        named = text(dir if dir is not None else prefix or "", "prefix")
        where = unicodedata.normalize("NFC", named.removeprefix("/").rstrip("/"))
        given = Defaults(where, file_id_of(file_id), supersede=flag(supersede, "supersede"))
        defaults = given.merged(description, tags, bindrs, metadata)
        return FileSet(self._connection, replace(self._place, prefix=where), defaults, self._durability)

    def flush(self, timeout: float | None = None) -> None:
        """Returns once every file of this experiment is stored; `timeout` in seconds.

        Saves in the background are handed over first. Raises TIMEOUT, after which the work goes on, or the error of a
        file that failed since the run was opened.
        """
        timeout = seconds_of(timeout, "timeout")
        begun = time.monotonic()
        if left := self._connection.background.join(timeout):
            raise error(Code.TIMEOUT, f"{left} saves in the background are not handed over yet")
        if (lost := next(self._connection.background.untold(), None)) is not None:
            raise lost
        waited = self.wait_all(None if timeout is None else max(0.0, timeout - (time.monotonic() - begun)))
        if waited.pending:
            raise error(Code.TIMEOUT, f"{wording.files_are(waited.pending)} not stored after {timeout:g} s")
        if failed := self.failed_in_run(waited):
            raise failure_of(failed[0])

    def failed_in_run(self, waited: m.Waited) -> Sequence[m.Record]:
        """Those of the failed files that were handed over since the run was opened."""
        return [record for record in waited.failed if record.created_ms >= self._opened_ms()]

    def wait_all(self, timeout: float | None) -> m.Waited:
        """Waits as flush does, and says how it ended instead of raising."""
        left = float("inf") if timeout is None else timeout
        while True:
            step = max(0.0, min(left, 30.0))
            waited = self._connection.call_aside(
                m.Waited,
                lambda number, ms=int(step * 1000): m.Wait(  # type: ignore[misc]
                    request=number, until="stored", timeout_ms=ms, place=self._place
                ),
                silent_s=None if timeout is None else step,
            )
            left -= step
            if not waited.pending or left <= 0:
                return waited


def file_by_id(connection: Connection, file_id: str | int) -> FileSet:
    """The one file of an id, wherever it belongs."""
    nowhere = m.Place(namespace="", project="", experiment="")
    return FileSet(connection, nowhere, Defaults(file_id=file_id_of(file_id)))


def _unwatched(_: FileResult, done_bytes: int, total_bytes: int) -> None:
    """Nobody asked."""
