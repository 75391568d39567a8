"""Files for a service that is down: they are left in its inbox, and it takes them in when it is back.

The inbox is a folder. A file is written there under a name that means nothing yet, brought to the disk, and given its
name; its message comes last, in the same way, and makes it whole. Who is killed before that has handed nothing over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ml_dash import messages as m
from ml_dash.connection import Connection, now_ms
from ml_dash.errors import Code, MLDashError, error
from ml_dash.patience import FIRST_LOOK_S, LONGEST_LOOK_S
from ml_dash.result import FileResult, Written
from ml_dash.slot_writer import LARGEST_BYTES
from ml_dash.wording import say

DOWN = frozenset({Code.DAEMON_UNAVAILABLE, Code.CONNECTION_LOST, Code.SHUTTING_DOWN})
"""Failures after which the inbox is used, where there is one."""
MODE = 0o640
"""The daemon reads it by its group, which the folder passes on."""
FICLONE = 0x40049409
"""linux/fs.h: share the blocks of another file."""
_COPY_STEP = 64 * 1024 * 1024
_READ_STEP = 1024 * 1024
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


class LeftInInbox(FileResult):
    """A file that lies in the inbox. Its `id` is known once the service has taken it in; reading it waits for that.

    `repr` and `==` never wait, and show it as None until then.
    """

    def __init__(self, record: m.Record, connection: Connection, key: bytes) -> None:
        super().__init__(record, connection)
        dict.update(self, id=None, contentType=None)
        self._key: bytes | None = key

    def _identify(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        look_s = FIRST_LOOK_S
        while not self._is_identified():
            if deadline is not None and time.monotonic() >= deadline:
                what = f"{self._record.filename} still lies in the inbox: the service is down, or has not come to it"
                raise error(Code.TIMEOUT, what)
            time.sleep(look_s)  # noqa: TID251 nobody tells when a service comes back
            look_s = min(2 * look_s, LONGEST_LOOK_S)

    def _is_identified(self) -> bool:
        key = self._key
        if key is None:
            return True
        assert self._connection is not None  # noqa: S101 it was made with one
        try:
            found = self._connection.call(m.Accepted, lambda number: m.FindHanded(request=number, key=key), lost_s=0.0)
        except MLDashError as failure:
            if failure.code in DOWN or failure.code in (Code.TIMEOUT, Code.RETRY_LATER):
                return False
            raise
        self._take_over(found.record)
        self._key = None
        return True


class Inbox:
    """The inbox of the service that a connection leads to."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._folder = folder

    def leave_copy(self, file: m.Described, key: bytes, source: str, descriptor: int) -> FileResult:
        """Leaves a copy of an open file: it may be changed and removed afterwards. Idempotent by the key.

        Raises SOURCE_CHANGED where it is written to meanwhile, TOO_LARGE, DISK_FULL. Where its times were set, it is
        read once more: a copy that is what the file is afterwards is of one content.
        """

        def write(out: BinaryIO) -> None:
            before = _mark(descriptor)
            _copy(descriptor, out.fileno(), before[0])
            after = _mark(descriptor)
            if after != before and not (_same_bytes(descriptor, out.fileno()) and _mark(descriptor) == after):
                what = f"{source} was changed while it was copied to the inbox of a service that is down"
                raise error(Code.SOURCE_CHANGED, what, "hand it over when nobody writes to it")

        return self.leave(file, key, write, source)

    def leave_bytes(self, file: m.Described, key: bytes, content: memoryview | bytes) -> FileResult:
        """Leaves content. Idempotent by the key. Raises as `leave_copy` does."""
        return self.leave(file, key, lambda out: _write_all(out, content))

    def leave(self, file: m.Described, key: bytes, write: Callable[[BinaryIO], object], source: str = "") -> FileResult:
        """Leaves what `write` writes."""
        with self.writing(file, key, source) as written:
            write(written.out)
        return written.file

    @contextmanager
    def writing(self, file: m.Described, key: bytes, source: str = "") -> Iterator[Written]:
        """A file to write to; after the block it lies in the inbox, and nothing is left of it where that has failed."""
        message = m.Upload(request=0, key=key, file=file, source=source or file.to)
        name = key.hex()
        with self._new(f"{name}.data") as data:
            with os.fdopen(os.dup(data), "w+b") as out:  # which the caller may close
                written = Written(out, seal=False)
                yield written
            size = os.fstat(data).st_size
            if size > LARGEST_BYTES:
                raise error(Code.TOO_LARGE, f"{source or file.to} has {size} bytes")
        try:
            with self._new(f"{name}.message") as descriptor, os.fdopen(os.dup(descriptor), "wb") as out:
                _write_all(out, m.encode(message, 1))
        except BaseException:
            with suppress(OSError):
                (self._folder / f"{name}.data").unlink()
            raise
        self._connection.is_down = True
        _say_once(self._connection, self._folder)
        written.file = LeftInInbox(_record(file, size), self._connection, key)

    @contextmanager
    def _new(self, name: str) -> Iterator[int]:
        """A new file, which gets its name once it is on the disk; nothing is left of one that fails."""
        temporary = self._folder / f".{name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._our_own():
            descriptor = os.open(temporary, flags, MODE)
        try:
            with self._our_own():
                os.fchmod(descriptor, MODE)  # whatever the umask is
            try:
                yield descriptor
            except OSError as failure:
                if failure.errno in (errno.ENOSPC, errno.EDQUOT) and not isinstance(failure, MLDashError):
                    raise self._named_failure(failure) from None
                raise
            with self._our_own():
                os.fsync(descriptor)
                temporary.rename(self._folder / name)
                os.fsync(descriptor)  # its name, too: who may only write to the folder can't open it
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)

    @contextmanager
    def _our_own(self) -> Iterator[None]:
        """What fails in here is the inbox's fault, not the caller's."""
        try:
            yield
        except OSError as failure:
            raise self._named_failure(failure) from None

    def _named_failure(self, failure: OSError) -> MLDashError:
        what = f"the inbox {self._folder} of the service, which is down: {failure.strerror}"
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            return error(Code.DISK_FULL, what, "free space there, or start the service")
        if isinstance(failure, PermissionError):
            return error(Code.ACCESS_DENIED, what, "start the service, or ask its operator to let you write there")
        return error(Code.DISK_FAILED, what, "start the service")


def inbox_after(failure: MLDashError, connection: Connection) -> Inbox:
    """Where to leave a file that could not be handed over. Raises the failure where there is no such place."""
    folder = connection.inbox()
    if failure.code not in DOWN or folder is None:
        raise failure
    return Inbox(connection, folder)


def inbox_of_outage(connection: Connection) -> Inbox | None:
    """The inbox, where the service has one and does not answer now; asked before much is written."""
    folder = connection.inbox()
    if folder is None:
        return None
    try:
        connection.greet()
    except MLDashError as failure:
        return inbox_after(failure, connection)
    return None


def _say_once(connection: Connection, folder: Path) -> None:
    if not connection.has_said_down:
        connection.has_said_down = True
        say(f"the service at {connection.endpoint.socket} is down: files wait in its inbox, {folder}")


def _record(file: m.Described, size_bytes: int) -> m.Record:
    """What is known of it before the service has seen it; the names are the caller's words."""
    place, now = file.place, now_ms()
    prefix, _, filename = f"{place.prefix}/{file.to}".strip("/").rpartition("/")
    return m.Record(
        id=0,
        namespace=place.namespace,
        project=place.project,
        experiment=place.experiment,
        path=f"/{prefix}",
        filename=filename,
        size_bytes=size_bytes,
        content_type="",
        created_ms=now,
        updated_ms=now,
        state="QUEUED",
        ack="disk",
        pin="inbox",
        description=file.description,
        tags=file.tags,
        bindrs=file.bindrs,
        metadata=file.metadata,
    )


def _mark(descriptor: int) -> tuple[int, int]:
    """Size, and when it was written to."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _same_bytes(source: int, copy: int) -> bool:
    at = 0
    while (piece := os.pread(source, _READ_STEP, at)) == os.pread(copy, _READ_STEP, at):
        if not piece:
            return True
        at += len(piece)
    return False


def _copy(source: int, target: int, size_bytes: int) -> None:
    """By blocks where the file system can share them, else within the kernel. Room is reserved before."""
    with suppress(OSError):
        fcntl.ioctl(target, FICLONE, source)
        return
    if size_bytes:
        os.posix_fallocate(target, 0, size_bytes)
    at = 0
    while at < size_bytes and (count := _copy_some(source, target, min(_COPY_STEP, size_bytes - at), at)):
        at += count
    os.ftruncate(target, at)


def _copy_some(source: int, target: int, count: int, at: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError as failure:
        if failure.errno not in _NO_COPY_RANGE:
            raise
    return os.pwrite(target, os.pread(source, min(count, _READ_STEP), at), at)


def _write_all(out: BinaryIO, content: memoryview | bytes) -> None:
    view = memoryview(content).cast("B")
    while view:
        view = view[out.write(view) :]
