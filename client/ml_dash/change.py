"""Requests that change what is stored: what is said of a file, duplicates, and versions that are not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Unpack

from ml_dash import messages as m
from ml_dash import serialize
from ml_dash.arguments import Said, file_id_of, only_known, sought, text, texts
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.handoff import Defaults
from ml_dash.look import Look
from ml_dash.pages import pages
from ml_dash.request import new_key, numbered
from ml_dash.result import FileResult

WORDS = ("description", "tags", "bindrs", "metadata")
"""What may be said of a file."""


class Change(Look):
    """The calls that change what is said of files, duplicate them, and drop old versions."""

    def update(
        self,
        *,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> FileResult:
        """Changes what is said of `files(file_id=…)`, stored or on its way, and returns its record.

        What neither the call nor the builder gives stays as it is. `metadata` is replaced as a whole.
        Raises ValueError without a file_id, FileNotFoundError where no file has it, PermissionError where it is another
        user's.
        """
        if (file_id := self._defaults.file_id) is None:
            raise error(Code.INVALID_ARGUMENT, "update() needs an id", "call files(file_id=…, tags=…).update()")
        words = self._defaults.merged(description, tags, bindrs, metadata)
        return self._result(_update(self._connection, file_id, words))

    def duplicate(
        self,
        source: str | int | Mapping[str, Any] | None = None,
        to: str | None = None,
        **described: Unpack[Said],
    ) -> FileResult:
        """Makes a new file of another's content, within the store; returns its record at once, as `upload` does.

        `source` is an id, a record, or the path of a file below the prefix, of which the newest version is taken;
        digits alone are an id, where a file has it. Without it, it is `files(file_id=…)`. `to` is the name below the
        prefix. Description, tags, bindrs and metadata are the source's, unless the call or the builder gives others.
        Deleting the source afterwards takes nothing from the duplicate.

        Raises ValueError where no file is at that path, FileNotFoundError where none has that id.
        """
        if to is None:
            raise error(Code.INVALID_PATH, "duplicate() needs to=", 'pass a name, such as to="final.pt"')
        record = self._source(source)
        defaults = Defaults(
            description=record.description,
            tags=record.tags,
            bindrs=record.bindrs,
            metadata=None if record.metadata is None else json.loads(record.metadata),
        )
        words = defaults.merged(**_words(self._defaults))
        file = self._describe(to, **only_known({**_words(words), **described}))
        return self._result(_duplicate(self._connection, record.id, file))

    def prune(
        self,
        pattern: str | None = None,
        *,
        keep_last: int,
        keep_tags: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Sequence[FileResult]:
        """Deletes stored versions beyond the `keep_last` newest of each path at and below the prefix.

        Those that have one of `keep_tags` stay. Versions that are on their way or have failed neither count nor go.
        Only the caller's own files count (an admin's: everybody's). Returns what is deleted; with `dry_run`, what would
        be.
        """
        return [*self.each_pruned(pattern, keep_last=keep_last, keep_tags=keep_tags, dry_run=dry_run)]

    def each_pruned(
        self, pattern: str | None = None, *, keep_last: int, keep_tags: Sequence[str] = (), dry_run: bool = False
    ) -> Iterator[FileResult]:
        """`prune`, a page at a time."""
        pruned = _prune(self._connection, self._place, pattern, keep_last, keep_tags, dry_run=dry_run)
        return map(self._result, pruned)

    # ---- the pieces

    def _source(self, source: str | int | Mapping[str, Any] | None) -> m.Record:
        """The file that `duplicate` copies."""
        if isinstance(source, Mapping):
            source = int(file_id_of(source.get("id", "")) or 0)
        if isinstance(source, int):
            return self._by_id(source)
        path = None if source is None else text(source, "source")
        if path is not None and path.isascii() and path.isdigit():
            with suppress(MLDashError):
                return self._by_id(file_id_of(path) or 0)
        return self._newest(path)


def _update(connection: Connection, file_id: int, given: Defaults) -> m.Record:
    """Changes what `given` says, and returns the record. Idempotent but for `updatedAt`."""
    words: dict[str, Any] = {
        "description": given.description,
        "tags": given.tags,
        "bindrs": given.bindrs,
        "metadata": serialize.metadata_text(given.metadata),
    }
    m.check_update(m.Update(request=0, id=file_id, **words))
    return connection.call(m.Accepted, lambda number: m.Update(request=number, id=file_id, **words)).record


def _duplicate(connection: Connection, source: int, file: m.Described) -> m.Record:
    """Hands over what another file holds; returns the record of the new one, which is on its way."""
    key = new_key()
    return connection.call(
        m.Accepted,
        lambda number: m.Duplicate(request=number, key=key, source=source, file=file),
        silent_s=None,
    ).record


def _prune(
    connection: Connection,
    place: m.Place,
    pattern: str | None,
    keep_last: int,
    keep_tags: Sequence[str],
    *,
    dry_run: bool,
) -> Iterator[m.Record]:
    """The versions that are deleted, or would be, as the daemon gets to them."""
    if type(keep_last) is not int or keep_last < 1:
        raise error(Code.INVALID_ARGUMENT, f"keep_last={keep_last!r}", "keep at least 1 version; delete() removes all")
    wanted = None if pattern is None else sought(pattern, "pattern")
    tags = texts(keep_tags, "keep_tags")

    def ask(after: str | None) -> m.Pruned:
        said = m.Prune(
            request=0,
            place=place,
            pattern=wanted,
            keep_last=keep_last,
            keep_tags=tags,
            dry_run=dry_run,
            cursor=after,
        )
        return connection.call(m.Pruned, numbered(said))

    return (record for page in pages(ask) for record in page.records)


def _words(given: Defaults) -> dict[str, Any]:
    return {name: getattr(given, name) for name in WORDS}
