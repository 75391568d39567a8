"""Unix sockets to listen on. What a dead daemon left is replaced; a living one's socket, or another file, never."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path

from ml_dash.address import reachable
from ml_dash.errors import Code, error


def bind(path: Path, mode: int, setting: str) -> socket.socket:
    """A socket bound at a path of any length, with that mode; nobody gets through before it listens.

    Its folder is made where there is none, for those alone whom the mode lets in. Raises CONFIG, and names the setting,
    where something else is there.
    """
    make_folder(path.parent, mode)
    make_room(path, setting)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with reachable(path) as address:
            listener.bind(address)
            Path(address).chmod(mode)
    except BaseException:
        listener.close()
        raise
    return listener


def make_folder(folder: Path, mode: int) -> None:
    """Whom a socket of that mode lets in may pass through it, and see nothing there. One that is there stays."""
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        return
    folder.chmod(0o700 | (0o010 if mode & 0o060 else 0) | (0o001 if mode & 0o006 else 0))


def leave(path: Path) -> None:
    """Takes the socket's file away. Idempotent."""
    path.unlink(missing_ok=True)


def make_room(path: Path, setting: str) -> None:
    """Removes the socket file of a daemon that is gone, and nothing else. Raises as `bind` does."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise error(Code.CONFIG, f"{path} is there already and is no socket", f"give {setting} another path")
        if _listens(path):
            raise error(Code.CONFIG, f"another daemon listens at {path}", f"give {setting} another path")
        path.unlink()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe, reachable(path) as address:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # more wait to be accepted than its backlog holds
        return True
