"""What fstat says of sources, and whether they are what they were by it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ml_dash.errors import Code, error
from ml_dash.messages import INLINE_BYTES
from ml_dashd.core.model import Fingerprint, Pin, PinKind
from ml_dashd.core.witness import Verdict, judge
from ml_dashd.edge.handed import unreadable
from ml_dashd.edge.witness import Ask

SETTLED_MS = 100
"""Longer than a tick of the clock that times are taken from, 10 ms at most: a later write has another time."""
_TORN_READS = 3
"""Tries at reading a small file that is being written, before that is an error."""


def fingerprint(descriptor: int) -> Fingerprint:
    """What fstat says of an open file now."""
    return _of(os.fstat(descriptor))


def fingerprint_of(path: str) -> Fingerprint:
    """What stat says of a file now."""
    return _of(Path(path).stat())


def look(descriptor: int, was: Fingerprint, ask: Ask) -> Verdict:
    """What became of an open file since it had this fingerprint. The witness is asked where its times moved."""
    now = fingerprint(descriptor)
    return judge(was, now, None if now == was else ask())


def retimed(was: Fingerprint, now: Fingerprint, ask: Ask) -> bool:
    """Whether its mtime alone was set, to what `now` says, and nothing was written to it."""
    return now.mtime_ns != was.mtime_ns and judge(was, now, ask()) is Verdict.MOVED


def rebased(path: str, pin: Pin) -> Pin | None:
    """The pin with the fingerprint that its file in the spool has in another place, where it is the same; else None."""
    was = pin.fingerprint
    try:
        now = fingerprint_of(path)
    except FileNotFoundError:
        return None  # said when it is opened
    if was is None or (now.device, now.inode) == (was.device, was.inode):
        return None
    # Nobody but us writes to copies; what was a link could be written to by its owner.
    same = now.size_bytes == was.size_bytes and (pin.kind is not PinKind.LINK or now.mtime_ns == was.mtime_ns)
    return replace(pin, fingerprint=now) if same else None


def read_small(descriptor: int, source: str) -> bytes:
    """A small file's bytes, from between two equal fingerprints. Raises SOURCE_CHANGED, NOT_READABLE."""
    for _ in range(_TORN_READS):
        before = fingerprint(descriptor)
        try:
            content = os.pread(descriptor, INLINE_BYTES + 1, 0)
        except OSError as failure:
            raise unreadable(source, failure) from None
        if len(content) == before.size_bytes and fingerprint(descriptor).same_content(before):
            return content
    raise error(Code.SOURCE_CHANGED, f"{source} is being written while it is handed over")


def _of(status: os.stat_result) -> Fingerprint:
    return Fingerprint(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
