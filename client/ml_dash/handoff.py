"""Handing files over: those that there are, and what is written in the daemon's own."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, Unpack

from ml_dash import messages as m
from ml_dash import serialize
from ml_dash.arguments import (
    ManyWords,
    PathLike,
    Said,
    Words,
    absolute,
    distinct,
    durability_of,
    flag,
    name_of,
    only_known,
    open_source,
    opened,
    priority_of,
    text,
    texts,
    words,
)
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.inbox import Inbox, inbox_after, inbox_of_outage
from ml_dash.many import OF_ONE_FILE, Basket, Refused, Taken
from ml_dash.request import new_key
from ml_dash.result import FileResult, Written
from ml_dash.slot_writer import slot_writer

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
    supersede: bool = False

    def merged(
        self,
        description: str | None,
        tags: Sequence[str] | None,
        bindrs: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
    ) -> Defaults:
        """The call's words, checked, else these."""
        return replace(
            self,
            description=self.description if description is None else words(description, "description"),
            tags=self.tags if tags is None else texts(tags, "tags"),
            bindrs=self.bindrs if bindrs is None else texts(bindrs, "bindrs"),
            metadata=self.metadata if metadata is None else metadata,
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What is said of content that is handed over, in a message of its own or in a slot."""

    file: m.Described
    key: bytes
    durability: str
    seal: bool

    def put(self, content: bytes) -> Callable[[int], m.Put]:
        sha256 = hashlib.sha256(content).digest()
        return lambda number: m.Put(request=number, key=self.key, file=self.file, content=content, sha256=sha256)

    def commit(self, size_bytes: int) -> Callable[..., m.CommitSlot]:
        return lambda number, slot: m.CommitSlot(
            request=number,
            key=self.key,
            slot=slot,
            file=self.file,
            size_bytes=size_bytes,
            durability=self.durability,
            seal=self.seal,
        )


class HandOff:
    """The calls that hand files over, at a place of an experiment."""

    def __init__(self, connection: Connection, place: m.Place, defaults: Defaults, durability: str = "") -> None:
        self._connection = connection
        self._place = place
        self._defaults = defaults
        self._durability = durability

    def __repr__(self) -> str:
        place, file_id = self._place, self._defaults.file_id
        where = "/".join(part for part in (place.namespace, place.project, place.experiment, place.prefix) if part)
        which = "" if file_id is None else f" file {file_id}"
        return f"<{type(self).__name__} {where}{which}>" if where else f"<{type(self).__name__}{which}>"

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
        protect: str | None = None,
        priority: int = 0,
        supersede: bool | None = None,
    ) -> FileResult:
        """Hands an existing file over and returns its record, in one or two milliseconds whatever its size.

        `to` is its name below the prefix (default: its own). The file itself is never changed; until it is stored it
        may be renamed or deleted, but not overwritten: that fails with SOURCE_CHANGED, unless `snapshot="copy"` took
        a copy first, or `protect="lease"` got a lease (the result's `pin` says so): whoever opens it to write waits
        while it is copied. `durability="disk"` returns only when the bytes are on stable storage. A higher `priority`
        (-100 to 100) is sent first. With `supersede` older versions of this path that are not stored yet are dropped.

        Raises ValueError for a file that is missing, no regular file, or over 100 GB.
        """
        source = text(fpath, "fpath")
        name = name_of(source) if to is None else to
        file = self._describe(
            name,
            description=description,
            tags=tags,
            bindrs=bindrs,
            metadata=metadata,
            priority=priority,
            supersede=supersede,
        )
        key, where = new_key(), absolute(source)
        descriptor = open_source(source)
        try:
            accepted = self._connection.hand_over(
                m.Accepted,
                lambda number: m.Upload(
                    request=number,
                    key=key,
                    file=file,
                    source=where,
                    durability=durability_of(durability or self._durability),
                    snapshot=snapshot or "",
                    protect=protect or "",
                ),
                (descriptor,),
            )
        except MLDashError as failure:
            return self._inbox_after(failure).leave_copy(file, key, where, descriptor)
        finally:
            os.close(descriptor)
        return self._result(accepted.record)

    def upload_many(self, fpaths: Many, **described: Unpack[ManyWords]) -> list[FileResult]:
        """Hands many files over and returns their records in order; thousands go several times as quick.

        `fpaths` are paths, or a mapping of names below the prefix to paths; the other arguments are `upload`'s, for
        each of them. They travel many in a message, larger ones than 64 KiB sixteen, and one where `durability`,
        `snapshot` or `protect` may take long. An error names its file: those before it are handed over,
        those after it are not. Two that would get one name are an error that names both, and none is
        handed over.
        """
        return [*self.each_uploaded(fpaths, **described)]

    def each_uploaded(self, fpaths: Many, **described: Unpack[ManyWords]) -> Iterator[FileResult]:
        """`upload_many`, a message at a time: each file is the daemon's when it is yielded."""
        if isinstance(fpaths, str | bytes | os.PathLike) or not isinstance(fpaths, Iterable):
            what = f"upload_many() was given {type(fpaths).__name__}, not several paths"
            raise error(Code.INVALID_ARGUMENT, what, "pass a list of paths; upload() takes one")
        named = fpaths.items() if isinstance(fpaths, Mapping) else ((name_of(path), path) for path in fpaths)
        yield from self.each_of(distinct(named), None, **described)

    def each_of(
        self,
        named: Iterable[tuple[str, PathLike]],
        refused: Refused | None,
        *,
        durability: str | None = None,
        snapshot: str | None = None,
        protect: str | None = None,
        **described: Unpack[Said],
    ) -> Iterator[FileResult]:
        """`each_uploaded` of names and paths; with `refused`, what can't be taken is told, and the rest goes on."""
        durability_of(durability or "")
        kept: dict[str, Any] = {"durability": durability, "snapshot": snapshot, "protect": protect}
        if (tags := described.get("tags")) is not None:
            described["tags"] = texts(tags, "tags")  # once for all: a generator has them no second time
        if (bindrs := described.get("bindrs")) is not None:
            described["bindrs"] = texts(bindrs, "bindrs")
        alone = any(kept.values()) or self._durability == "disk"
        with Basket(self._connection, refused, self._leave) as basket:
            for name, path in named:
                try:
                    file, source = self._describe(name, **only_known(described)), text(path, "a path")
                    content, descriptor = opened(source)
                except MLDashError as failure:
                    if failure.code in OF_ONE_FILE and refused is not None:
                        refused(name, failure)
                        continue
                    if failure.code in OF_ONE_FILE:  # those before it are handed over
                        yield from map(self._result, basket.empty())
                    raise
                if descriptor is None:
                    yield from map(self._result, basket.add(file, content))
                elif not alone:
                    yield from map(self._result, basket.add_open(file, descriptor, absolute(source)))
                else:
                    os.close(descriptor)
                    yield from map(self._result, basket.empty())
                    yield from self._unless_refused(
                        partial(self.upload, path, to=name, **kept, **described), name, refused
                    )
            yield from map(self._result, basket.empty())

    def _unless_refused(
        self, upload: Callable[[], FileResult], name: str, refused: Refused | None
    ) -> Iterator[FileResult]:
        try:
            yield upload()
        except MLDashError as failure:
            if refused is None or failure.code not in OF_ONE_FILE:
                raise
            refused(name, failure)

    def _save(self, data: memoryview, to: str, described: Words) -> FileResult:
        saved, connection = self._saved(to, described), self._connection
        try:
            if len(data) <= m.INLINE_BYTES:
                accepted = connection.hand_over(m.Accepted, saved.put(bytes(data)))
            else:
                accepted = connection.save(data, saved.commit(len(data)))
        except MLDashError as failure:
            return self._inbox_after(failure).leave_bytes(saved.file, saved.key, data)
        return self._result(accepted.record)

    def _stream(
        self,
        to: str,
        described: Words,
        write: Callable[[BinaryIO], None],
        *,
        size_hint: int = 0,
    ) -> FileResult:
        """Saves what `write` writes into the file that it is given, straight into a slot of the daemon's.

        `size_hint` is how many bytes it will be, as far as that is known: a slot that is too small has to grow, one
        that is too large takes room until it is used again. `write` is called once; what it raises passes, and nothing
        is left behind.
        """
        with self.writing(to, size_hint=size_hint, **described) as written:
            write(written.out)
        return written.file

    @contextmanager
    def writing(
        self, to: str, *, size_hint: int = 0, seal: bool = False, key: bytes | None = None, **described: Unpack[Words]
    ) -> Iterator[Written]:
        """Saves what the block writes to `.out`; once it has ended without an error, `.file` is the record.

        With `seal` it is a zip archive, whose checksums the daemon puts right, where `.seal` says so.
        """
        saved = self._saved(to, described, seal=seal, key=key)
        if (inbox := self._inbox_of_outage()) is not None:
            with inbox.writing(saved.file, saved.key) as written:
                yield written
            return
        with slot_writer(self._connection, size_hint) as (slot, buffered):
            written = Written(buffered, seal=seal)
            yield written
            if not buffered.closed:
                buffered.flush()
            try:
                written.file = self._result(slot.hand_over(None if seal else saved.put, saved.commit).record)
            except MLDashError as failure:
                if seal:
                    raise
                written.file = self._inbox_after(failure).leave_bytes(saved.file, saved.key, slot.left)

    def _saved(
        self,
        to: str,
        described: Words,
        *,
        seal: bool = False,
        key: bytes | None = None,
        in_order: bool = False,
    ) -> Saved:
        """`in_order`: it is handed over behind those that go on in the background, so it need not wait for them."""
        durability = durability_of(described.pop("durability", None) or self._durability)
        say = self._say if in_order else self._describe
        return Saved(say(to, **only_known(described)), key or new_key(), durability, seal)

    def _leave(self, failure: MLDashError, taken: Taken) -> FileResult:
        """Leaves a file in the inbox of a service that is down. Raises the failure where there is none."""
        inbox, one = self._inbox_after(failure), taken.content
        if taken.descriptor is None:
            return inbox.leave_bytes(one.file, one.key, one.content)
        return inbox.leave_copy(one.file, one.key, one.source, taken.descriptor)

    def _inbox_after(self, failure: MLDashError) -> Inbox:
        """Where to leave what the service does not take now. Raises the failure where there is no such place."""
        return inbox_after(failure, self._connection)

    def _inbox_of_outage(self) -> Inbox | None:
        """The same, asked before much is written; None where the service answers, or has none."""
        return inbox_of_outage(self._connection)

    # ---- the pieces

    def _describe(self, to: str, **said: Unpack[Said]) -> m.Described:
        """What is said of a file: the call's words, else the builder's.

        A save of that path that goes on in the background is waited for: this one is to be the newer version.
        """
        described = self._say(to, **said)
        self._connection.background.wait_for(path_of(described))
        return described

    def _say(
        self,
        to: str,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        supersede: bool | None = None,
    ) -> m.Described:
        given = self._defaults
        described = m.Described(
            place=self._place,
            to=text(to, "to"),
            description=given.description if description is None else words(description, "description"),
            tags=(given.tags or ()) if tags is None else texts(tags, "tags"),
            bindrs=(given.bindrs or ()) if bindrs is None else texts(bindrs, "bindrs"),
            metadata=serialize.metadata_text(given.metadata if metadata is None else metadata),
            priority=priority_of(priority),
            supersede=given.supersede if supersede is None else flag(supersede, "supersede"),
        )
        m.check(described)
        return described

    def _result(self, record: m.Record | FileResult) -> FileResult:
        return record if isinstance(record, FileResult) else FileResult(record, self._connection)


def path_of(file: m.Described) -> str:
    """Where a file goes, below its experiment."""
    return unicodedata.normalize("NFC", f"{file.place.prefix}/{file.to}".strip("/"))
