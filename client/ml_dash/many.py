"""Many files in one message: sending, pinning and committing them costs each a fraction of what it costs one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Self, TypeVar

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError
from ml_dash.request import new_key, numbered
from ml_dash.wire import MAX_DESCRIPTORS

MESSAGE_BYTES = m.PutMany.limit - m.INLINE_BYTES
"""Contents and descriptions of one message, in bytes as they are counted here; the rest is for what is not counted."""
PER_FILE_BYTES = 256
"""Keys, names of fields and the place, of one file."""

OF_ONE_FILE = frozenset({
    Code.INVALID_PATH, Code.INVALID_ARGUMENT, Code.FILE_NOT_FOUND, Code.NOT_A_FILE, Code.NOT_READABLE, Code.TOO_LARGE,
    Code.CHECKSUM_MISMATCH, Code.SOURCE_CHANGED,
})  # fmt: skip
"""Refusals that say nothing of other files."""
R = TypeVar("R")


class Taken(NamedTuple):
    """A file in a basket: what is sent of it, and the descriptor of one that travels open."""

    content: m.Content
    descriptor: int | None


Leave = Callable[[MLDashError, Taken], R]
Refused = Callable[[str, MLDashError], None]
"""Told of a file that was refused, by its name below the prefix, and why; the others go on."""


class Basket(Generic[R]):
    """Collects files and hands them over together. Not safe among threads. Leaving its block closes what is left.

    With `refused`, a file that the daemon does not take is told, and the others are handed over without it. `leave` is
    for a file of which the daemon says nothing, being down: it keeps it elsewhere, or raises the failure.
    """

    def __init__(self, connection: Connection, refused: Refused | None, leave: Leave[R]) -> None:
        self._connection = connection
        self._refused = refused
        self._leave = leave
        self._files: list[Taken] = []
        self._bytes = 0
        self._open = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._take_out())

    def add(self, file: m.Described, content: bytes) -> Iterator[m.Record | R]:
        """Takes a file of at most INLINE_BYTES. Yields the records of those that are handed over to make room."""
        sha256 = hashlib.sha256(content).digest()
        yield from self._add(Taken(m.Content(key=new_key(), file=file, content=content, sha256=sha256), None))

    def add_open(self, file: m.Described, descriptor: int, source: str) -> Iterator[m.Record | R]:
        """`add` for a file of any size, by a descriptor of its own, which the basket closes."""
        yield from self._add(Taken(m.Content(key=new_key(), file=file, source=source), descriptor))

    def _add(self, taken: Taken) -> Iterator[m.Record | R]:
        weight = PER_FILE_BYTES + _weigh(taken.content)
        full = self._bytes + weight > MESSAGE_BYTES or len(self._files) == m.MANY or self._open == MAX_DESCRIPTORS
        before = self._take_out() if full else []
        self._files.append(taken)
        self._bytes += weight
        self._open += taken.descriptor is not None
        yield from self._hand_over(before)

    def empty(self) -> Iterator[m.Record | R]:
        """Hands over what was collected; yields its records, in order."""
        yield from self._hand_over(self._take_out())

    def _take_out(self) -> Sequence[Taken]:
        files, self._files, self._bytes, self._open = self._files, [], 0, 0
        return files

    def _hand_over(self, files: Sequence[Taken]) -> Iterator[m.Record | R]:
        try:
            if files:
                yield from self._taken(files)
        finally:
            _close(files)

    def _taken(self, files: Sequence[Taken]) -> Iterable[m.Record | R]:
        try:
            return self._put(files)
        except MLDashError as failure:
            if failure.code not in OF_ONE_FILE:
                return [self._leave(failure, file) for file in files]
        return self._put_one_by_one(files)

    def _put(self, files: Sequence[Taken]) -> Sequence[m.Record]:
        message = m.PutMany(request=0, files=tuple(taken.content for taken in files))
        descriptors = [taken.descriptor for taken in files if taken.descriptor is not None]
        return self._connection.hand_over(m.AcceptedMany, numbered(message), descriptors).records

    def _put_one_by_one(self, files: Sequence[Taken]) -> Iterator[m.Record]:
        """A message is taken as a whole or not at all: one of them is to blame, and those before it are taken."""
        for taken in files:
            try:
                yield from self._put((taken,))
            except MLDashError as failure:
                if self._refused is None or failure.code not in OF_ONE_FILE:
                    raise
                self._refused(taken.content.file.to, failure)


def _close(files: Sequence[Taken]) -> None:
    for taken in files:
        if taken.descriptor is not None:
            os.close(taken.descriptor)


def read_small(descriptor: int) -> bytes | None:
    """The content of an open file, if it is small enough to travel in a message."""
    if os.fstat(descriptor).st_size > m.INLINE_BYTES:
        return None
    content = b"".join(_pieces(lambda offset: os.pread(descriptor, m.INLINE_BYTES + 1 - offset, offset)))
    return content if len(content) <= m.INLINE_BYTES else None


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    offset = 0
    while piece := read(offset):
        yield piece
        offset += len(piece)


def _weigh(content: m.Content) -> int:
    """How many bytes content and the caller's words take in a frame, headers included; field names are not counted."""
    described = content.file
    place = described.place
    texts = (
        content.source,
        place.namespace, place.project, place.experiment, place.prefix, described.to, described.description or "",
        described.metadata or "", *described.tags, *described.bindrs, *_words(described.share),
    )  # fmt: skip
    return len(content.content) + sum(len(text.encode(errors="surrogatepass")) + 5 for text in texts)


def _words(share: m.Share | None) -> tuple[str, ...]:
    return () if share is None else (share.name, share.attempt, "a key, a rank and the names of five fields, in bytes")
