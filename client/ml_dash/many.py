"""Many small files in one message: reading, sending and committing them costs each a fraction of what it costs one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ml_dash import messages as m
from ml_dash.connection import Connection, new_key, numbered
from ml_dash.errors import Code, MLDashError

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
Leave = Callable[[MLDashError, m.Content], R]
Refused = Callable[[str, MLDashError], None]
"""Told of a file that was refused, by its name below the prefix, and why; the others go on."""


class Basket(Generic[R]):
    """Collects small files and hands them over together. Not safe among threads.

    With `refused`, a file that the daemon does not take is told, and the others are handed over without it. `leave` is
    for a file of which the daemon says nothing, being down: it keeps it elsewhere, or raises the failure.
    """

    def __init__(self, connection: Connection, refused: Refused | None, leave: Leave[R]) -> None:
        self._connection = connection
        self._refused = refused
        self._leave = leave
        self._files: list[m.Content] = []
        self._bytes = 0

    def add(self, file: m.Described, content: bytes) -> Iterator[m.Record | R]:
        """Takes a file of at most INLINE_BYTES. Yields the records of those that are handed over to make room."""
        weight = PER_FILE_BYTES + len(content) + _weigh(file)
        if self._files and (self._bytes + weight > MESSAGE_BYTES or len(self._files) == m.MANY):
            yield from self.empty()
        sha256 = hashlib.sha256(content).digest()
        self._files.append(m.Content(key=new_key(), file=file, content=content, sha256=sha256))
        self._bytes += weight

    def empty(self) -> Iterator[m.Record | R]:
        """Hands over what was collected; yields its records, in order."""
        files, self._files, self._bytes = tuple(self._files), [], 0
        if not files:
            return
        try:
            accepted: Sequence[m.Record | R] = self._put(files)
        except MLDashError as failure:
            if failure.code not in OF_ONE_FILE:
                accepted = [self._leave(failure, file) for file in files]
            elif self._refused is None:
                raise
            else:
                accepted = list(self._put_one_by_one(files, self._refused))
        yield from accepted

    def _put(self, files: tuple[m.Content, ...]) -> Sequence[m.Record]:
        return self._connection.hand_over(m.AcceptedMany, numbered(m.PutMany(request=0, files=files))).records

    def _put_one_by_one(self, files: tuple[m.Content, ...], refused: Refused) -> Iterator[m.Record]:
        """A message is taken as a whole or not at all: one of them is to blame."""
        for file in files:
            try:
                yield from self._put((file,))
            except MLDashError as failure:
                if failure.code not in OF_ONE_FILE:
                    raise
                refused(file.file.to, failure)


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


def _weigh(described: m.Described) -> int:
    """How many bytes the caller's words take in a frame, headers included; names of fields are not counted."""
    place = described.place
    texts = (
        place.namespace, place.project, place.experiment, place.prefix, described.to, described.description or "",
        described.metadata or "", *described.tags, *described.bindrs, *_words(described.share),
    )  # fmt: skip
    return sum(len(text.encode(errors="surrogatepass")) + 5 for text in texts)


def _words(share: m.Share | None) -> tuple[str, ...]:
    return () if share is None else (share.name, share.attempt, "a key, a rank and the names of five fields, in bytes")
