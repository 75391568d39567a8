"""One daemon for a state folder: who holds the lock on `lock` serves it, for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ml_dash.errors import Code, error
from ml_dashd.edge import notice


async def take(folder: Path, said: str) -> int:
    """Takes the lock of a state folder, which is made where it is missing; returns the descriptor that holds it.

    Raises CONFIG where another daemon has it. `said` is the folder as its user knows it.
    """
    try:
        return _locked(folder)
    except BlockingIOError:
        other = await notice.read(folder)
        who = f" (pid {other['pid']}, socket {other['socket']})" if {"pid", "socket"} <= other.keys() else ""
        raise error(
            Code.CONFIG,
            f"another ml-dashd serves {said}{who}",
            "use that one, or give this one its own state_dir",
        ) from None


def _locked(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock
