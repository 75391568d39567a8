"""Handing files over: `upload`, and `save_*` for what is not a file yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_dash import messages as m
from ml_dash import serialize
from ml_dash.arguments import (
    PathLike,
    content_of,
    durability_of,
    name_of,
    only_known,
    open_source,
    printable,
    priority_of,
    saver_for,
    text,
    texts,
)
from ml_dash.connection import Connection, new_key
from ml_dash.errors import Code, error
from ml_dash.many import Basket
from ml_dash.result import FileResult

Many = Mapping[str, PathLike] | Iterable[PathLike]
"""Files for `upload_many`: paths, or names below the prefix and the paths they are read from."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a builder was given: where, and what every file of it gets. None is what it was not given."""

    prefix: str = ""
    file_id: int | None = None
    description: str | None = None
    tags: tuple[str, ...] | None = None
    bindrs: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] | None = None


class HandOff:
    """The calls that hand files over, at a place of an experiment."""

    def __init__(self, connection: Connection, place: m.Place, defaults: Defaults, durability: str = "") -> None:
        self._connection = connection
        self._place = place
        self._defaults = defaults
        self._durability = durability

    @property
    def place(self) -> m.Place:
        """Where these files belong."""
        return self._place

    def upload(
        self,
        fpath: PathLike,
        *,
        to: str | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        snapshot: str | None = None,
        priority: int = 0,
    ) -> FileResult:
        """Hands an existing file over and returns its record, in one or two milliseconds whatever its size.

        `to` is its name below the prefix (default: its own). The file itself is never changed; until it is stored it
        may be renamed or deleted, but not overwritten: that fails with SOURCE_CHANGED, unless `snapshot="copy"` took
        a copy first. `durability="disk"` returns only when the bytes are on stable storage. A higher `priority` (-100
        to 100) is sent first.

        Raises ValueError for a file that is missing, no regular file, or over 100 GB.
        """
        source = os.fspath(fpath)
        name = name_of(source) if to is None else to
        file = self._describe(name, description, tags, bindrs, metadata, priority)
        key = new_key()
        descriptor = open_source(source)
        try:
            accepted = self._connection.call(
                m.Accepted,
                lambda number: m.Upload(
                    request=number,
                    key=key,
                    file=file,
                    source=printable(os.path.abspath(source)),  # noqa: PTH100 keeps symlinks
                    durability=durability_of(durability or self._durability),
                    snapshot=snapshot or "",
                ),
                (descriptor,),
                silent_s=None,
            )
        finally:
            os.close(descriptor)
        return self._result(accepted.record)

    def upload_many(self, fpaths: Many, **described: Any) -> list[FileResult]:
        """Hands many files over and returns their records in order; thousands of small ones go ten times as quick.

        `fpaths` are paths, or a mapping of names below the prefix to paths; the other arguments are `upload`'s, for
        each of them. Files of at most 64 KiB travel many in a message. An error names its file: those before it are
        handed over, those after it are not.
        """
        return [*self.each_uploaded(fpaths, **described)]

    def each_uploaded(
        self, fpaths: Many, *, durability: str | None = None, snapshot: str | None = None, **described: Any
    ) -> Iterator[FileResult]:
        """`upload_many`, a message at a time: each file is the daemon's when it is yielded."""
        durability_of(durability or "")
        named = fpaths.items() if isinstance(fpaths, Mapping) else ((name_of(path), path) for path in fpaths)
        basket = Basket(self._connection)
        for name, path in named:
            file = self._describe(name, **only_known(described))
            if (content := content_of(os.fspath(path))) is not None:
                yield from map(self._result, basket.add(file, content))
            else:
                yield from map(self._result, basket.empty())
                yield self.upload(path, to=name, durability=durability, snapshot=snapshot, **described)
        yield from map(self._result, basket.empty())

    def save_json(self, content: Any, *, to: str, **described: Any) -> FileResult:
        """Saves what JSON can hold: dict, list, str, numbers, bool, None. Raises TypeError for the rest."""
        return self._save(memoryview(serialize.json_bytes(content)), to, described)

    def save_text(self, content: str, *, to: str, encoding: str = "utf-8", **described: Any) -> FileResult:
        """Saves text."""
        return self._save(memoryview(serialize.text_bytes(content, encoding)), to, described)

    def save_blob(self, content: Any, *, to: str, **described: Any) -> FileResult:
        """Saves bytes, a bytearray, a memoryview, or anything else that has a buffer."""
        return self._save(serialize.blob_view(content), to, described)

    def save(self, content: Any, *, to: str | None = None, **described: Any) -> FileResult:
        """Saves by type: the path of a file is uploaded, bytes become a blob, a dict or list becomes JSON.

        Raises ValueError for any other type; the message names the saver to call.
        """
        if isinstance(content, str | os.PathLike):
            return self._save_path(content, to, described)
        if to is None:
            raise error(Code.INVALID_PATH, "save() of an object needs to=", 'pass a name, such as to="config.json"')
        if isinstance(content, bytes | bytearray | memoryview):
            return self.save_blob(content, to=to, **described)
        if isinstance(content, dict | list):
            return self.save_json(content, to=to, **described)
        raise error(Code.UNSUPPORTED_TYPE, f"save() does not take {type(content).__name__}", saver_for(content))

    def _save_path(self, content: PathLike, to: str | None, described: dict[str, Any]) -> FileResult:
        if isinstance(content, str) and not os.path.exists(content):  # noqa: PTH110
            raise error(
                Code.FILE_NOT_FOUND,
                f"save() took {content[:120]!r} for a path, and there is no such file",
                "to save the text itself, call save_text()",
            )
        return self.upload(content, to=to, **described)

    def _save(self, data: memoryview, to: str, described: dict[str, Any]) -> FileResult:
        durability = durability_of(described.pop("durability", None) or self._durability)
        file = self._describe(to, **only_known(described))
        key = new_key()
        if len(data) <= m.INLINE_BYTES:
            content, sha256 = bytes(data), hashlib.sha256(data).digest()
            accepted = self._connection.call(
                m.Accepted,
                lambda number: m.Put(request=number, key=key, file=file, content=content, sha256=sha256),
                silent_s=None,
            )
        else:
            accepted = self._connection.save(
                data,
                lambda number, slot: m.CommitSlot(
                    request=number,
                    key=key,
                    slot=slot,
                    file=file,
                    size_bytes=len(data),
                    durability=durability,
                ),
            )
        return self._result(accepted.record)

    # ---- the pieces

    def _describe(
        self,
        to: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> m.Described:
        """What is said of a file: the call's words, else the builder's."""
        given = self._defaults
        described = m.Described(
            place=self._place,
            to=text(to, "to"),
            description=given.description if description is None else text(description, "description"),
            tags=(given.tags or ()) if tags is None else texts(tags, "tags"),
            bindrs=(given.bindrs or ()) if bindrs is None else texts(bindrs, "bindrs"),
            metadata=serialize.metadata_text(given.metadata if metadata is None else metadata),
            priority=priority_of(priority),
        )
        m.check(described)
        return described

    def _result(self, record: m.Record) -> FileResult:
        return FileResult(record, self._connection)
