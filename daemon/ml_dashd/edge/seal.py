"""The checksums of a zip archive put right in place: for archives that were written without them, to save their time.

An archive keeps the CRC-32 of an entry twice: in the directory at its end, and in the entry's header or behind its
bytes. Nothing else is written to. The layout is PKWARE's APPNOTE 6.3, as far as `torch.save` uses it: one disk, entries
that are stored as they are, one behind the other, no comment at the end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from awscrt import checksums as crt

from ml_dashd.ports import NotAnArchiveError

STEP_BYTES = 32 * 1024 * 1024
"""How much is read between two chances to stop."""
READ_BYTES = 1024 * 1024
ENTRY_COST_BYTES = 16 * 1024
"""What an entry costs apart from its bytes, as so many more of them."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_CRC = struct.Struct("<L")
_SENTINEL = 0xFFFFFFFF
"""A size or an offset that is in the 64-bit extra field."""
_CRC_IN_ENTRY, _CRC_IN_HEADER = 16, 14
_CRC_BEHIND = 0x0008
"""The flag of an entry whose checksum stands behind its bytes, after a signature."""


class _Entry(NamedTuple):
    position: int
    """Of its line in the directory."""
    crc: int
    behind: bool
    size_bytes: int
    header: int


Writing = Callable[[], AbstractContextManager[None]]


def seal(descriptor: int, size_bytes: int, writing: Writing = nullcontext) -> Iterator[bool]:
    """Puts the checksums of the archive in the first `size_bytes` right, a step of STEP_BYTES at a time.

    `writing` is held around every write, and may refuse it.

    Yields whether something was written since the last step. Idempotent: what is right already is not written to.
    Raises NotAnArchiveError, by which time some may have been put right.
    """
    archive = _Archive(descriptor, size_bytes)
    buffer = memoryview(bytearray(READ_BYTES))
    end_of_last, work, wrote = 0, 0, False
    for entry in archive.entries():
        start = archive.data(entry, end_of_last)
        end_of_last = start + entry.size_bytes
        crc = 0
        for offset in range(start, end_of_last, READ_BYTES):
            piece = buffer[: end_of_last - offset]
            archive.fill(piece, offset)
            crc = crt.crc32(piece, crc)
            if (work := work + len(piece)) >= STEP_BYTES:
                yield wrote
                work, wrote = 0, False
        wrote |= archive.put_right(entry, end_of_last, crc, writing)
        work += ENTRY_COST_BYTES
    yield wrote


class _Archive:
    """Positions in an archive, each checked against its end: its writer is not trusted."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._size = size_bytes
        self._count, self._directory = self._find_directory()

    def read(self, offset: int, size: int) -> bytes:
        found = bytearray(size)
        self.fill(memoryview(found), offset)
        return bytes(found)

    def fill(self, into: memoryview, offset: int) -> None:
        if offset < 0 or offset + len(into) > self._size or os.preadv(self._descriptor, [into], offset) < len(into):
            raise NotAnArchiveError(f"{len(into)} bytes at {offset} are not all there")

    def entries(self) -> Iterator[_Entry]:
        """The lines of the directory, in their order."""
        count, position = self._count, self._directory
        for _ in range(count):
            (signature, _, _, flags, method, _, _, crc, packed, size, name, extra, comment, _, _, _, header) = (
                self._unpack(_ENTRY, position)
            )
            if signature != b"PK\x01\x02" or method != 0:
                raise NotAnArchiveError(f"no stored entry is at {position} of the directory")
            if _SENTINEL in (packed, size, header):
                fields = self._wide(position + _ENTRY.size + name, extra)
                size, packed, header = (next(fields) if one == _SENTINEL else one for one in (size, packed, header))
            if packed != size:
                raise NotAnArchiveError(f"the entry at {position} of the directory has two sizes")
            yield _Entry(position, crc, bool(flags & _CRC_BEHIND), size, header)
            position += _ENTRY.size + name + extra + comment

    def data(self, entry: _Entry, end_of_last: int) -> int:
        """Where the bytes of an entry begin: behind those of the last one, so that none is read twice."""
        signature, *_, name, extra = self._unpack(_HEADER, entry.header)
        if signature != b"PK\x03\x04" or entry.header < end_of_last:
            raise NotAnArchiveError(f"no entry begins at {entry.header}")
        start = entry.header + _HEADER.size + int(name) + int(extra)
        if start + entry.size_bytes > self._directory:
            raise NotAnArchiveError(f"the entry at {entry.header} reaches into the directory")
        return start

    def put_right(self, entry: _Entry, end: int, crc: int, writing: Writing) -> bool:
        """Writes an entry's checksum to its two places, where it is another; returns whether it was."""
        second = entry.header + _CRC_IN_HEADER
        if entry.behind:
            if self.read(end, 4) != b"PK\x07\x08" or end + 8 > self._directory:
                raise NotAnArchiveError(f"no checksum is behind the entry at {entry.header}")
            second = end + 4
        right = _CRC.pack(crc)
        wrong = [at for at in (second, entry.position + _CRC_IN_ENTRY) if self.read(at, _CRC.size) != right]
        if wrong:
            with writing():
                for at in wrong:
                    os.pwrite(self._descriptor, right, at)
        return bool(wrong)

    def _find_directory(self) -> tuple[int, int]:
        """How many entries there are, and where the first line of the directory is."""
        end = self._size - _END.size
        signature, _, _, _, count, _, position, comment = self._unpack(_END, end)
        if signature != b"PK\x05\x06" or comment:
            raise NotAnArchiveError("it does not end as an archive does")
        locator = end - _LOCATOR.size
        if locator >= 0 and (found := self._unpack(_LOCATOR, locator))[0] == b"PK\x06\x07":
            signature, _, _, _, _, _, _, count, _, position = self._unpack(_END_64, found[2])
            if signature != b"PK\x06\x06":
                raise NotAnArchiveError("its end is not where it says")
        return count, position

    def _wide(self, position: int, length: int) -> Iterator[int]:
        """The 64-bit fields of an entry: those that had no room in its line."""
        extra = self.read(position, length)
        while len(extra) >= 4:  # noqa: PLR2004 a field's kind and length
            kind, size = struct.unpack_from("<2H", extra)
            if kind == 1:
                for offset in range(4, min(4 + size, len(extra)) - 7, 8):
                    yield struct.unpack_from("<Q", extra, offset)[0]
            extra = extra[4 + size :]
        raise NotAnArchiveError(f"a size is missing at {position}")

    def _unpack(self, layout: struct.Struct, position: int) -> tuple[Any, ...]:
        return layout.unpack(self.read(position, layout.size))
