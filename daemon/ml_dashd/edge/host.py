"""What the machine allows: its disks, the limits of this process, its library of hashes. All calls block."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ml_dash.errors import MLDashError
from ml_dashd.core import checkup
from ml_dashd.core.checkup import Check
from ml_dashd.edge.allowance import memory_bytes
from ml_dashd.edge.cloning import link, reflink

NAMES = ("1", "2", "3")
"""In the spool: ids that no file has, so what a crash leaves is removed at the next start."""
SAMPLE = bytes(16 * 1024 * 1024)
"""Hashed in ten milliseconds: long enough to be told from the noise of starting."""


class Host:
    """The machine, for a daemon with these folders. `kind` is service or embedded."""

    def __init__(self, state_dir: Path, spools: Sequence[Path], kind: str, buffers_bytes: int) -> None:
        self._state_dir = state_dir
        self._spools = list(spools)
        self._kind = kind
        self._buffers_bytes = buffers_bytes
        self._turn = threading.Lock()

    def disks(self) -> list[Check]:
        """Room, and how sources can be pinned on each disk that has a spool folder."""
        checks = [_room("journal's disk", self._state_dir)]
        for folder in self._spools:
            checks.append(_room("spool's disk", folder))
            with self._turn:
                checks.extend(_pins(folder))
        return checks

    def limits(self) -> list[Check]:
        """Descriptors, memory, and how fast it hashes."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return [
            checkup.descriptors_check(2**63 - 1 if most == resource.RLIM_INFINITY else most, self._kind),
            checkup.memory_check(memory_bytes(), self._buffers_bytes),
            _hashing(),
        ]


def _room(name: str, folder: Path) -> Check:
    try:
        state = os.statvfs(folder)
    except OSError as failure:
        return checkup.bad(name, f"{folder}: {failure.strerror}", "mount its disk again")
    return checkup.room_check(name, _shown(folder), state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize)


def _pins(folder: Path) -> list[Check]:
    """A file is made there, and cloned and linked as a source would be."""
    names = [str(folder / name) for name in NAMES]
    try:
        refused, linked = _make_pins(*names)
    except OSError as failure:
        hint = "free space there" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else "mend the disk, or its mode"
        return [checkup.bad("spool", f"{_shown(folder)} can't be written: {failure.strerror}", hint)]
    except MLDashError as full:
        return [checkup.bad("spool", f"{_shown(folder)}: {full.message}", full.hint)]
    finally:
        _remove(names)
    return [
        checkup.ok("reflink", f"sources share their blocks with {_shown(folder)}")
        if refused is None
        else checkup.none("reflink", f"not on this file system ({os.strerror(refused)}): sources are linked or copied"),
        checkup.ok("hard links", f"sources are linked into {_shown(folder)}")
        if linked
        else checkup.none("hard links", f"not into {_shown(folder)}: sources are held open or copied"),
    ]


def _make_pins(source: str, clone: str, other: str) -> tuple[int | None, bool]:
    _remove([source, clone, other])
    descriptor = os.open(source, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, 4096)
        return reflink(descriptor, clone), link(descriptor, other)
    finally:
        os.close(descriptor)


def _remove(names: Sequence[str]) -> None:
    for name in names:
        with suppress(OSError):
            Path(name).unlink()


def _shown(folder: Path) -> str:
    """An embedded daemon reaches its folders through its working folder."""
    return str(folder.resolve())


def _hashing() -> Check:
    began = time.thread_time()
    hashlib.sha256(SAMPLE).digest()
    took = max(time.thread_time() - began, 1e-9)
    return checkup.hashing_check(hashlib.sha256.__name__.startswith("openssl"), len(SAMPLE) / took)
