"""The inbox: a sticky folder in which clients leave files while nobody answers at the socket.

A hand-off is a message, `{key}.message`, and its file, `{key}.data`; the message comes last, by rename, and makes it
whole. Anybody whom the folder lets in may put anything there, so every name is opened without following links and
without waiting, and whose it is, and when it came, is what the kernel says. An owner can set a file's mtime, not its
ctime.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from ml_dash import messages as m
from ml_dash import wire
from ml_dash.errors import Code, MLDashError, error, parse_code
from ml_dash.messages import Upload
from ml_dashd.core.model import Trouble
from ml_dashd.ports import Clock, Dropped

MESSAGE, DATA, REFUSED = ".message", ".data", ".refused"
_NAME = re.compile(r"([0-9a-f]{32})(\.message|\.data|\.refused)")
NAMES = 32_768
"""Names that are looked at at once, of half as many hand-offs: the others are seen when some of these are gone."""
STALE_MS = 24 * 3_600_000
"""What is no hand-off after so long is removed: half-written files, whose clients were killed, and whatever else."""
KEEP_MS = 7 * STALE_MS
"""What was refused stays so long, so that its owner, or an operator, may look at it."""
TICK_MS = 50
"""A folder's time has steps, of 10 ms at most: what comes in the same one as a look may not change it."""
_MESSAGE_BYTES = wire.HEADER.size + Upload.limit
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class InboxFolder:
    """The port `Inbox`. Makes the folder where it is missing, with a mode that goes with the socket's.

    Raises CONFIG where others could remove or replace what lies in it.
    """

    def __init__(self, path: Path, socket_mode: int, clock: Clock) -> None:
        self._clock = clock
        self._path = path
        _make(path, socket_mode)
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._seen_ns: int | None = None

    def close(self) -> None:
        os.close(self._folder)

    def changed(self) -> bool:
        return os.fstat(self._folder).st_mtime_ns != self._seen_ns

    def look(self) -> list[Dropped]:
        changed_ns, now_ms = os.fstat(self._folder).st_mtime_ns, self._clock.now_ms()
        names = self._names()
        found = [
            (status.st_ctime_ns, named[1], status.st_uid)
            for name, status in names.items()
            if (named := _NAME.fullmatch(name)) and named[2] == MESSAGE
            if _is_file(status) and not _is_refused(names, named[1])
        ]
        found.sort()
        is_settled = len(names) < NAMES and abs(now_ms - changed_ns // 1_000_000) > TICK_MS
        self._seen_ns = changed_ns if is_settled else None
        return [Dropped(bytes.fromhex(stem), uid, min(at_ns // 1_000_000, now_ms)) for at_ns, stem, uid in found]

    def open(self, dropped: Dropped) -> tuple[Upload, int]:
        name = dropped.key.hex()
        with self._opened(f"{name}{MESSAGE}", dropped.uid) as descriptor:
            message = _decode(_read(descriptor), dropped.key)
        with self._opened(f"{name}{DATA}", dropped.uid) as descriptor:
            return message, os.dup(descriptor)

    def remove(self, dropped: Dropped) -> None:
        for ending in (MESSAGE, DATA):
            with suppress(FileNotFoundError):
                os.unlink(f"{dropped.key.hex()}{ending}", dir_fd=self._folder)

    def refuse(self, dropped: Dropped, trouble: Trouble) -> None:
        name = f"{dropped.key.hex()}{REFUSED}"
        said = {"uid": dropped.uid, "code": trouble.code, "message": trouble.message, "hint": trouble.hint}
        self._unlink(name)  # somebody may have put something of that name there
        with suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=self._folder)
            with os.fdopen(descriptor, "w") as file:
                json.dump(said, file)

    def refusal(self, uid: int, key: bytes) -> Trouble | None:
        try:
            with self._opened(f"{key.hex()}{REFUSED}", os.geteuid()) as descriptor:
                said = json.loads(_read(descriptor))
            trouble = Trouble(parse_code(said["code"]), said["message"], said["hint"])
        except (OSError, MLDashError, ValueError, KeyError):
            return None
        return trouble if said["uid"] == uid else None

    def tidy(self, now_ms: int) -> int:
        names, removed = self._names(), 0
        for name, status in names.items():
            named = _NAME.fullmatch(name)
            stem = named[1] if named else name
            age_ms = now_ms - max(status.st_mtime_ns, status.st_ctime_ns) // 1_000_000
            if named and _is_refused(names, stem):
                is_over = age_ms > KEEP_MS
            else:
                message = names.get(f"{stem}{MESSAGE}")
                whole = named is not None and message is not None and _is_file(message)
                is_over = not whole and age_ms > STALE_MS
            removed += is_over and self._unlink(name)
        return removed

    def _names(self) -> dict[str, os.stat_result]:
        """What lies there, links not followed."""
        with os.scandir(self._folder) as entries:
            return {entry.name: status for entry in islice(entries, NAMES) if (status := _status(entry)) is not None}

    @contextmanager
    def _opened(self, name: str, uid: int) -> Iterator[int]:
        """A plain file of that user's. Raises SOURCE_LOST, NOT_A_FILE, NOT_READABLE."""
        try:
            descriptor = os.open(name, _FLAGS, dir_fd=self._folder)
        except FileNotFoundError:
            raise error(Code.SOURCE_LOST, f"{self._path / name} is gone") from None
        except PermissionError:
            hint = "let the daemon's group read it: mode 0640, in a folder with the group's bit"
            raise error(Code.NOT_READABLE, f"the daemon may not read {self._path / name}", hint) from None
        except OSError as failure:  # a symbolic link, a socket
            raise error(Code.NOT_A_FILE, f"{self._path / name}: {failure.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not _is_file(status) or status.st_uid != uid:
                raise error(Code.NOT_A_FILE, f"{self._path / name} is not a plain file of uid {uid}")
            yield descriptor
        finally:
            os.close(descriptor)

    def _unlink(self, name: str) -> bool:
        """Whether it was there, and is gone."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._folder)
            return True
        with suppress(OSError):
            os.rmdir(name, dir_fd=self._folder)
            return True
        return False


def make_for(path: Path, socket_mode: int, uid: int, gid: int) -> None:
    """Makes the folder for another user's daemon, whole or not at all. Idempotent: one that is there stays as it is.

    `socket_mode` is that of the socket: whoever may connect may leave files. Raises OSError.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    os.chown(fresh, uid, gid)
    fresh.chmod(_mode(socket_mode))
    fresh.rename(path)


def _make(path: Path, socket_mode: int) -> None:
    mode = _mode(socket_mode)
    by_hand = f"`install -d -m {mode:o} -o USER -g GROUP {path}` makes it, for the daemon's user and group"
    try:
        path.mkdir(parents=True, mode=0o700)
        path.chmod(mode)
    except FileExistsError:
        pass
    except OSError as failure:
        with suppress(OSError):
            path.rmdir()
        raise error(Code.CONFIG, f"daemon.inbox {path}: {failure.strerror}", by_hand) from None
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
        raise error(Code.CONFIG, f"daemon.inbox {path} is no folder with the sticky bit", f"remove it; {by_hand}")
    if os.geteuid() not in (status.st_uid, 0):  # it could not remove what it has taken in
        raise error(Code.CONFIG, f"daemon.inbox {path} belongs to uid {status.st_uid}", f"remove it; {by_hand}")


def _mode(socket_mode: int) -> int:
    """Whoever may connect may write there, and nobody may see or remove what others have left."""
    mode = stat.S_ISVTX | 0o700
    if socket_mode & 0o060:
        mode |= stat.S_ISGID | 0o030
    if socket_mode & 0o006:
        mode |= stat.S_ISGID | 0o003
    return mode


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False)
    return None


def _is_refused(names: dict[str, os.stat_result], stem: str) -> bool:
    """Only the daemon's own note says so."""
    note = names.get(f"{stem}{REFUSED}")
    return note is not None and _is_file(note) and note.st_uid == os.geteuid()


def _is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def _read(descriptor: int) -> bytes:
    """A small file, whole. Raises INVALID_ARGUMENT for a larger one."""
    content = b""
    while piece := os.read(descriptor, _MESSAGE_BYTES + 1 - len(content)):
        content += piece
    if len(content) > _MESSAGE_BYTES:
        raise error(Code.INVALID_ARGUMENT, f"a message of more than {_MESSAGE_BYTES} bytes in the inbox")
    return content


def _decode(content: bytes, key: bytes) -> Upload:
    """The message of a hand-off, as strictly as one that comes by the socket. Raises ProtocolError."""
    decoder = wire.Decoder({Upload.kind: Upload.limit})
    frames = decoder.feed(content, [-1])
    if len(frames) != 1 or decoder.unfinished:
        raise error(Code.PROTOCOL, "a hand-off in the inbox is not one message")
    message = m.decode(frames[0], {Upload.kind: Upload})
    if not isinstance(message, Upload) or message.key != key:
        raise error(Code.PROTOCOL, "a hand-off in the inbox has another key than its name")
    return message
