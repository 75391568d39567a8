"""Where the daemon of a root keeps its journal, spool, catalog, lock and socket.

In the root itself, so that it can be moved, copied and archived whole. Of a root on a network file system they lie on a
disk of this machine, found by an identity that the root carries along; the files themselves stay in the root.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error
from ml_dash.filesystems import network_name

HOME = ".ml-dashd"
"""The daemon's folder in its root."""
IDENTITY = "identity"
HOLDER = "holder.json"
"""Who holds the root: the daemon's note (ml_dashd/edge/holder.py)."""
WRITTEN_S = 1.0
"""How long an identity may be empty: its maker has opened it and not written it yet."""
LOOK_S = 0.01
_NAME = re.compile(r"[0-9a-f]{32}\n?")

Network = Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class Home:
    """A root, and the folder where its daemon's own things lie."""

    root: Path
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def outside(self) -> bool:
        """Whether the folder is not in the root."""
        return self.folder.parent != self.root


@dataclass(frozen=True, slots=True)
class States:
    """Where the state of roots on network file systems may go, the best first; `always` that of every root."""

    folders: Sequence[Path]
    always: bool = False


def find_home(root: Path, states: States, network: Network = network_name) -> Home | None:
    """The home of a root as it was made; None where there is none yet. Makes nothing."""
    if not states.always and network(root) is None:
        return Home(root, root / HOME)
    name = _read_identity(root)
    base = _base(states, network)
    if name is None or base is None:
        return None
    folder = base / _hashed(name)
    return Home(root, folder) if _registered(folder) == root else None


def make_home(root: Path, states: States, network: Network = network_name) -> Home:
    """The home of a root, made where there is none. Idempotent, and safe among processes.

    A root that was moved keeps its home. One that was copied, while the original is still there, gets its own.
    """
    if not states.always and network(root) is None:
        folder = root / HOME
        _make(folder)
        return Home(root, folder)
    _make(root / HOME)
    base = _base(states, network)
    if base is None:
        tried = " and ".join(map(str, states.folders))
        raise error(
            Code.DAEMON_UNAVAILABLE,
            f"{root} is on a network file system, and so is {tried}: there is no disk for the journal",
            "set ML_DASH_STATE to a folder on a disk of this machine",
        )
    _make(base)
    check_owner(base)
    with locked(base / "lock"):
        folder = base / _hashed(_identity(root))
        original = _registered(folder)
        if original not in (None, root) and _is_copy(root, original):
            _forget(root)
            folder = base / _hashed(_identity(root))
        _make(folder)
        if original != root:
            _write(folder / "root", f"{root}\n")
    return Home(root, folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, on this machine. Raises the error of a folder that can't be written to."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise refused(path.parent, failure) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_owner(folder: Path) -> None:
    """An embedded daemon belongs to one user: what root's own would leave there, the folder's owner can't open."""
    if (owner := folder.stat().st_uid) != os.geteuid():
        raise _foreign(folder, owner)


def refused(folder: Path, failure: OSError) -> MLDashError:
    """Why a daemon's folder can't be used, by its name."""
    with suppress(OSError):
        owner = folder.stat().st_uid
        if isinstance(failure, PermissionError) and owner != os.geteuid():
            return _foreign(folder, owner)
    code = Code.DISK_FULL if failure.errno in (errno.ENOSPC, errno.EDQUOT) else Code.DAEMON_UNAVAILABLE
    hint = None if code is Code.DISK_FULL else "name another root"
    return error(code, f"the folder {folder} can't be used: {failure.strerror}", hint)


# ---- the pieces


def _foreign(folder: Path, owner: int) -> MLDashError:
    what = f"{folder} belongs to uid {owner}, and this is uid {os.geteuid()}"
    return error(Code.ACCESS_DENIED, what, "name a root of your own, or a service's socket")


def _base(states: States, network: Network) -> Path | None:
    """The first of the folders that is on a disk of this machine."""
    if states.always:
        return states.folders[0]
    return next((folder for folder in states.folders if network(folder) is None), None)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as failure:
        there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
        if not there.is_dir():
            raise error(Code.DAEMON_UNAVAILABLE, f"{there} is no folder", "name another root") from None
        raise refused(there, failure) from None


def _hashed(name: str) -> str:
    """A folder's name from an identity: whatever somebody wrote into the root, it stays below the state's folder."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _registered(folder: Path) -> Path | None:
    """The root whose state lies in a folder, by the path under which it was last used."""
    try:
        return Path((folder / "root").read_text(errors="surrogateescape").removesuffix("\n"))
    except FileNotFoundError:
        return None


def _is_copy(root: Path, original: Path | None) -> bool:
    """Whether the original is still there, with the same identity, and is another folder.

    Inodes are compared at one moment on one machine, not with what was written down: on some network file systems a
    file has another one at the next mount.
    """
    if original is None or _read_identity(original) != _read_identity(root):
        return False
    try:
        return not original.samefile(root)
    except OSError:
        return False


def _forget(root: Path) -> None:
    """Makes a copy a root of its own: the identity, and the note of who holds it, are the original's."""
    for name in (HOLDER, IDENTITY):
        (root / HOME / name).unlink(missing_ok=True)


def _identity(root: Path) -> str:
    """The root's identity, made where it has none; whoever comes first makes it."""
    path = root / HOME / IDENTITY
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    except OSError as failure:
        raise refused(path.parent, failure) from None
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(16)}\n")
            file.flush()
            os.fsync(descriptor)
    for _ in range(round(WRITTEN_S / LOOK_S)):
        if (name := _read_identity(root)) is not None:
            return name
        threading.Event().wait(LOOK_S)
    raise error(Code.DAEMON_UNAVAILABLE, f"{path} holds no identity", "remove it; the root gets a new one")


def _read_identity(root: Path) -> str | None:
    try:
        text = (root / HOME / IDENTITY).read_text()
    except (OSError, ValueError):
        return None
    return text.strip() if _NAME.fullmatch(text) else None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text, errors="surrogateescape")
    temporary.replace(path)
