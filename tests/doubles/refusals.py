"""A disk that refuses one call, or all from one on, of a daemon's own process.

Run as `python -m tests.doubles.refusals CONTROL run --config …` it is ml-dashd, whose calls that take room or sync are
counted: Python's in `os` and `fcntl`, and SQLite's by its own table of system calls and its VFS. The file CONTROL is
mapped by both sides: it says which call is refused, and with what.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

SYNCS = ("fsync", "fdatasync", "sync_file_range", "xSync")
TAKES_ROOM = (
    "write", "pwrite", "pwritev", "writev", "posix_fallocate", "copy_file_range", "sendfile",
    "link", "rename", "replace", "mkdir",
)  # fmt: skip
"""Of `os`; beside them, open with O_CREAT, and the ioctl that shares blocks."""
SQLITE_WRITES = ("write", "pwrite", "pwrite64")
_IOERR_FSYNC = 1034
"""SQLITE_IOERR_FSYNC of sqlite3.h."""
_ASKED = struct.Struct("<qqqq128s")
"""Which asking it is, the number of the call (0: none), its errno, whether all after it are refused, of which site."""
_MET = struct.Struct("<q128s")
"""To which asking it came, and at which call."""


class Refusals:
    """The file that says what is refused. Each side writes its own half of it, and reads the other's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = _ASKED.size + _MET.size
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), size)
        self._lock = threading.Lock()
        self._asking = self._count = 0

    # ---- the test's side

    def ask(self, number: int, error: int, site: str = "", *, lasting: bool = False) -> None:
        """Refuses the call of that number, counted from now, the first is 1; of one site, or of all that fit.

        EIO is for syncs, which are then counted alone; any other error for what takes room.
        """
        asking = _ASKED.unpack_from(self._shared)[0]
        _ASKED.pack_into(self._shared, 0, asking + 1, 0, 0, 0, b"")
        _ASKED.pack_into(self._shared, 0, asking + 1, number, error, lasting, site.encode())

    def mend(self) -> None:
        """The disk works again."""
        self.ask(0, 0)

    @property
    def met(self) -> str:
        """Which call was refused since it was last asked for, the first of them; empty where none was."""
        asking, where = _MET.unpack_from(self._shared, _ASKED.size)
        return where.rstrip(b"\0").decode() if asking == _ASKED.unpack_from(self._shared)[0] else ""

    # ---- the daemon's side

    def refused(self, call: str, place: str) -> int:
        """The errno with which this call is refused; 0 where it is not."""
        asking, number, error, lasting, site = _ASKED.unpack_from(self._shared)
        here = f"{place} {call}"
        with self._lock:
            if asking != self._asking:
                self._asking, self._count = asking, 0
            if not number or (call in SYNCS) != (error == errno.EIO) or site.rstrip(b"\0").decode() not in ("", here):
                return 0
            self._count += 1
            if self._count == number:
                _MET.pack_into(self._shared, _ASKED.size, asking, here.encode())
            return error if self._count == number or (lasting and self._count > number) else 0


class Recorded(Refusals):
    """Writes down every call, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._seen = path.with_suffix(".calls").open("a")

    def refused(self, call: str, place: str) -> int:
        with self._lock:
            self._seen.write(f"{place} {call}\n")
            self._seen.flush()
        return super().refused(call, place)


def recorded(control: Path) -> Counter[str]:
    """How often the daemon came to each call, since it was first started."""
    return Counter(control.with_suffix(".calls").read_text().splitlines())


def reaches_sqlite() -> bool:
    """Whether SQLite's own calls can be refused: an interpreter that hides its library has no way to them."""
    return _find_vfs() is not None


# ---- the daemon's side


def _place() -> str:
    """The daemon's method that makes the call, by functions of the module or not."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if "ml_dashd" in code.co_filename and "." in code.co_qualname:
            return f"{Path(code.co_filename).stem}.{code.co_qualname}".replace(".<locals>", "")
        frame = frame.f_back
    return "elsewhere"


def _wrap(refusals: Refusals, owner: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
    real = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if counts(*arguments) and (number := refusals.refused(name, _place())):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    setattr(owner, name, call)


def _refuse_python(refusals: Refusals) -> None:
    import fcntl  # noqa: PLC0415 as the daemon's modules see it

    from ml_dashd.edge import system  # noqa: PLC0415
    from ml_dashd.edge.cloning import FICLONE  # noqa: PLC0415

    for name in (*TAKES_ROOM, "fsync", "fdatasync"):
        _wrap(refusals, os, name)
    _wrap(refusals, os, "open", lambda _path, flags, *_: bool(flags & os.O_CREAT))
    _wrap(refusals, fcntl, "ioctl", lambda _descriptor, request, *_: request == FICLONE)
    real = system._sync_file_range

    def sync_file_range(*arguments: int) -> int:
        if number := refusals.refused("sync_file_range", _place()):
            ctypes.set_errno(number)
            return -1
        return int(real(*arguments))

    if real is not None:
        system._sync_file_range = sync_file_range


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs of sqlite3.h, as far as it is needed; what lies between is opaque."""

    _fields_ = (
        ("version", ctypes.c_int), ("file_bytes", ctypes.c_int), ("path_bytes", ctypes.c_int),
        ("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p), ("between", ctypes.c_void_p * 12),
        ("set_system_call", ctypes.c_void_p), ("get_system_call", ctypes.c_void_p),
    )  # fmt: skip


_Write = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, use_errno=True
)
"""write, too: what it is given beyond its arguments is not looked at."""
_Open = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_Set = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_Get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_METHODS = ctypes.c_void_p * 19
"""struct sqlite3_io_methods, version 3: its version, and 18 functions, of which xSync is the fifth."""
_X_SYNC = 5
_KEPT: list[Any] = []
"""What SQLite calls is kept for as long as the process lives."""


def _find_vfs() -> _Vfs | None:
    import _sqlite3  # noqa: PLC0415

    try:
        find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    except (AttributeError, OSError):
        return None
    find.restype = ctypes.POINTER(_Vfs)
    found: _Vfs = find(None).contents
    return found if found.version >= 3 else None


def _refuse_sqlite(refusals: Refusals) -> None:
    vfs = _find_vfs()
    assert vfs is not None
    for name in SQLITE_WRITES:
        _wrap_write(refusals, vfs, name)
    _wrap_open(refusals, vfs)


def _wrap_write(refusals: Refusals, vfs: _Vfs, name: str) -> None:
    address = _Get(vfs.get_system_call)(ctypes.addressof(vfs), name.encode())
    if not address:
        return
    real = _Write(address)

    def write(descriptor: int, data: int, size: int, offset: int) -> int:
        if number := refusals.refused(name, Path(f"/proc/self/fd/{descriptor}").readlink().name):
            ctypes.set_errno(number)
            return -1
        return int(real(descriptor, data, size, offset))

    _KEPT.append(_Write(write))
    _Set(vfs.set_system_call)(ctypes.addressof(vfs), name.encode(), ctypes.cast(_KEPT[-1], ctypes.c_void_p))


def _wrap_open(refusals: Refusals, vfs: _Vfs) -> None:
    """The syncs of files that are opened from now on; SQLite calls fsync by no table of its own."""
    real = _Open(vfs.open)
    tables: dict[tuple[int, str], ctypes.Array[Any]] = {}

    def table(methods: int, name: str) -> ctypes.Array[Any]:
        copied = _METHODS.from_buffer_copy((ctypes.c_char * ctypes.sizeof(_METHODS)).from_address(methods))
        sync = _Sync(copied[_X_SYNC])

        def x_sync(file: int, flags: int) -> int:
            return _IOERR_FSYNC if refusals.refused("xSync", name) else int(sync(file, flags))

        _KEPT.append(_Sync(x_sync))
        copied[_X_SYNC] = ctypes.cast(_KEPT[-1], ctypes.c_void_p)
        return copied

    def x_open(vfs: int, name: int, file: int, flags: int, out: int) -> int:
        result = int(real(vfs, name, file, flags, out))
        methods = ctypes.c_void_p.from_address(file)
        if methods.value and name:
            key = (methods.value, Path(os.fsdecode(ctypes.string_at(name))).name)
            if key not in tables:
                tables[key] = table(*key)
            methods.value = ctypes.addressof(tables[key])
        return result

    _KEPT.append(_Open(x_open))
    vfs.open = ctypes.cast(_KEPT[-1], ctypes.c_void_p)


def main() -> None:
    control = Path(sys.argv.pop(1))
    refusals = Recorded(control) if control.with_suffix(".calls").exists() else Refusals(control)
    _refuse_python(refusals)
    _refuse_sqlite(refusals)
    from ml_dashd.__main__ import main as daemon  # noqa: PLC0415 what it imports sees the calls above

    sys.exit(daemon())


if __name__ == "__main__":
    main()
