"""Sources that are open for reading: bytes at rest in the journal, or a file that may change under the reader."""

from __future__ import annotations

import os
from collections.abc import Sequence

from awscrt import checksums as crt

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job, PinKind
from ml_dashd.core.witness import Verdict
from ml_dashd.edge.file_leases import has_writers
from ml_dashd.edge.fingerprints import look
from ml_dashd.edge.handed import file_system
from ml_dashd.edge.politeness import Reader
from ml_dashd.edge.witness import Ask
from ml_dashd.ports import Feedable

READ_STEP = 4 * 1024 * 1024
"""Read and digest this much at a time: little enough for the cache, and enough that the loop is seldom interrupted."""
IN_MEMORY = {0x01021994, 0x858458F6}
"""tmpfs and ramfs; f_type of linux/magic.h."""


class InlineSource:
    """A source whose bytes rest in the journal."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)

    def read(self, offset: int, into: memoryview, digesters: Sequence[Feedable]) -> None:
        into[:] = self._content[offset : offset + len(into)]
        for digester in digesters:
            digester.update(into)

    def check(self) -> bool:
        return True

    def close(self) -> None:
        return


class FileSource:
    """A source in a file: the spool's own, or one that its owner may still write to.

    Only `preadv` with offsets: the descriptor's own offset is shared with the client. `ask` asks the witness.
    """

    def __init__(self, descriptor: int, job: Job, ask: Ask, *, uncached: bool = False) -> None:
        self._descriptor = descriptor
        self._ask = ask
        self._reader = Reader(descriptor, uncached=uncached)
        self._tells = tells_of_writes(descriptor, job.pin.kind)
        self._baseline = job.pin.fingerprint
        self._name = job.pin.source or job.record.path
        self.size_bytes = job.record.size_bytes

    def read(self, offset: int, into: memoryview, digesters: Sequence[Feedable]) -> None:
        self.check()
        for start in range(0, len(into), READ_STEP):
            piece = into[start : start + READ_STEP]
            self._fill(offset + start, piece)
            for digester in digesters:
                digester.update(piece)
        self.check()

    def check(self) -> bool:
        if self._baseline is None:
            return self._tells
        verdict = look(self._descriptor, self._baseline, self._ask)
        if verdict is Verdict.CHANGED:
            raise error(Code.SOURCE_CHANGED, f"{self._name} was changed while it was on its way")
        return self._tells and verdict is Verdict.SAME

    def close(self) -> None:
        os.close(self._descriptor)

    def _fill(self, offset: int, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            count = self._reader.into(piece[done:], offset + done)
            if count == 0:
                raise error(Code.SOURCE_CHANGED, f"{self._name} became shorter while it was on its way")
            done += count


def lost(job: Job) -> MLDashError:
    """SOURCE_LOST, of what the spool had."""
    return error(Code.SOURCE_LOST, f"the spool no longer has {job.record.path} (file {job.id})")


def tells_of_writes(descriptor: int, kind: PinKind) -> bool:
    """Whether a write to this source shows in its times, or nobody can write to it.

    A write through a mapping moves no time while the page is not synced that it goes to: a slot's client may keep its
    mapping, and the owner of a file may have had one before the hand-off. On file systems in memory none ever does.
    """
    if kind in (PinKind.COPY, PinKind.REFLINK):
        return True
    return kind is not PinKind.SLOT and file_system(descriptor) not in IN_MEMORY and not has_writers(descriptor)


def crc64_of_range(descriptor: int, offset: int, size: int) -> int:
    """The CRC64NVME of a range of a file, as it is there now."""
    crc, end = 0, offset + size
    while offset < end and (piece := os.pread(descriptor, min(READ_STEP, end - offset), offset)):
        crc = crt.crc64nvme(piece, crc)
        offset += len(piece)
    return crc
