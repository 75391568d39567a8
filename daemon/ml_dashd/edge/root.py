"""The folder that an embedded daemon serves: it may be moved, removed, or turn up on another file system."""

from __future__ import annotations

import os
import shutil
from enum import Enum, auto
from pathlib import Path

from ml_dashd.config import WORKING
from ml_dashd.edge.slots import SLOT_FOLDER
from ml_dashd.edge.system import sync_folder

_ADOPTED = ("catalog.sqlite-wal", "catalog.sqlite", "journal.sqlite-wal", "journal.sqlite")
"""In this order: where there is a journal there is everything."""
_WORTHLESS = ("journal.sqlite-shm", "catalog.sqlite-shm", "journal.reserve", "catalog.reserve")


class Whereabouts(Enum):
    """Where a root is, seen from the daemon that was started for it."""

    HERE = auto()
    MOVED = auto()
    GONE = auto()


class RootFolder:
    """A root, which is this process's working folder; `path` is where it was at the start.

    `mark` is a file in it that goes with it. With `inode` it must stay the very same: on a disk of this machine.
    """

    def __init__(self, path: Path, mark: str, *, inode: bool) -> None:
        self._path = path
        self._mark = WORKING / mark
        self._known = self._inode() if inode else None

    def look(self) -> Whereabouts:
        """Whether the root is where it was. A file system that does not answer says nothing."""
        try:
            if self._known not in (None, self._inode()) or not self._mark.exists():
                return Whereabouts.GONE
            there = os.path.samestat(WORKING.stat(), self._path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return Whereabouts.MOVED if self._mark.exists() else Whereabouts.GONE
        except OSError:
            return Whereabouts.HERE
        return Whereabouts.HERE if there else Whereabouts.MOVED

    def where(self) -> Path:
        """Its path now."""
        return Path(str(WORKING.readlink()).removesuffix(" (deleted)"))

    def _inode(self) -> tuple[int, int]:
        status = self._mark.stat()
        return status.st_dev, status.st_ino


class StateFolder:
    """Where the daemon keeps what it was given. `lock` is the descriptor of its lock."""

    def __init__(self, folder: Path, lock: int) -> None:
        self._lock = lock
        self._needed = (folder / "journal.sqlite", folder / "spool" / SLOT_FOLDER)

    def is_removed(self) -> bool:
        """Whether the lock has no name any more, or another daemon's has it."""
        return os.fstat(self._lock).st_nlink == 0

    def is_whole(self) -> bool:
        """Whether all is there that must be for anything to be kept."""
        return not self.is_removed() and not any(map(_is_missing, self._needed))


def adopt(home: Path, state_dir: Path) -> bool:
    """Takes over the journal that a root brought along from a disk where it lay in the root itself.

    Copies first, the journal last, and only then removes: a crash in between leaves one of the two whole.
    """
    if (state_dir / "journal.sqlite").exists() or not (home / "journal.sqlite").exists():
        return False
    spool = home / "spool"
    if spool.is_dir():
        shutil.copytree(spool, state_dir / "spool", dirs_exist_ok=True)
    for name in _ADOPTED:
        if (home / name).exists():
            temporary = state_dir / f".{name}"
            shutil.copy2(home / name, temporary)
            _sync_file(temporary)
            temporary.replace(state_dir / name)
    for path in (state_dir / "spool").rglob("*"):
        sync_folder(path) if path.is_dir() else _sync_file(path)
    sync_folder(state_dir)
    shutil.rmtree(spool, ignore_errors=True)
    for name in (*reversed(_ADOPTED), *_WORTHLESS):
        (home / name).unlink(missing_ok=True)
    return True


def _is_missing(path: Path) -> bool:
    """A file system that does not answer says nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
