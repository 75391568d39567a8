"""Downloads: several at once, each into a file that has no name until it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import select
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from ml_dash import messages as m
from ml_dash.channel import Channel
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.persistence import Persistence
from ml_dash.request import expect
from ml_dash.silence import LOOK_S, SilentError

AT_ONCE = 4
"""Downloads of one call; the daemon has 8 of one user at once."""
AHEAD = 64
"""Files of one call that are begun, those included that wait for one before them."""
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""What O_TMPFILE says where the file system, or the kernel, does not have it."""

Tell = Callable[[m.Record, int, int], None]
"""Told of a download: the file, the bytes that are there, of how many."""
Failed = Callable[[m.Record, Exception], None]
"""Told of a file that can't be had, and why; the others go on."""
_OF_ALL_CODES = {
    Code.DAEMON_UNAVAILABLE, Code.DAEMON_NOT_INSTALLED, Code.CONNECTION_LOST, Code.SHUTTING_DOWN, Code.PROTOCOL,
    Code.UNSUPPORTED_VERSION, Code.ROOT_HELD, Code.DISK_FULL, Code.DISK_FAILED,
}  # fmt: skip
_OF_ALL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Sink(Protocol):
    """An open file for a download, which is nobody's before it is published."""

    descriptor: int

    def publish(self) -> None:
        """Every byte was verified."""

    def close(self) -> None:
        """Closes it; unpublished, it is gone. Idempotent."""


Make = Callable[[Path, str], Sink]
"""Opens one, for a target and with a label."""


class Got(NamedTuple):
    """A file that is whole at its destination."""

    record: m.Record
    target: Path
    sha256: str


class Downloads:
    """Fetches files, all in the caller's thread: the daemon does the work, each on a connection of its own.

    With `failed`, what can't be had is told, and the others go on; what would fail them, too, is raised all the same.
    """

    def __init__(
        self, connection: Connection, tell: Tell, failed: Failed | None = None, make: Make | None = None
    ) -> None:
        self._connection = connection
        self._failed = failed
        self._tell = tell
        self._make = make or Destination
        self._begun: deque[_Download] = deque()
        """In the order in which they are asked for; those that are at their end wait for the ones before them."""

    def run(self, wanted: Iterator[tuple[m.Record, Path]]) -> Iterator[Got]:
        """Yields each file once it is there, in the order of `wanted`; raises what the first failed with.

        Those before it are there by then, and some after it may be. Closed early, it breaks off what is on its way.
        """
        try:
            while self._begin(wanted):
                while self._begun and self._begun[0].ended:
                    if (got := self._take_first()) is not None:
                        yield got
                self._step()
        finally:
            for download in self._begun:
                download.close()

    def _take_first(self) -> Got | None:
        """What became of the first, which has ended; None where its failure was told."""
        first = self._begun.popleft()
        if first.failure is not None and self._failed is not None and not _is_of_all(first.failure):
            self._failed(first.record, first.failure)
            return None
        return first.outcome()

    def _goes_on(self) -> bool:
        """Whether more may be begun."""
        failures = [each.failure for each in self._begun if each.failure is not None]
        return not failures or (self._failed is not None and not any(map(_is_of_all, failures)))

    def _begin(self, wanted: Iterator[tuple[m.Record, Path]]) -> bool:
        """Begins as many as may be on their way; whether there is anything left to do."""
        while len(self._begun) < AHEAD and len(self._on_their_way()) < AT_ONCE and self._goes_on():
            if (one := next(wanted, None)) is None:
                break
            self._begun.append(_Download(self._connection, *one, self._tell, self._make))
        return bool(self._begun)

    def _on_their_way(self) -> list[_Download]:
        return [each for each in self._begun if not each.ended]

    def _step(self) -> None:
        """Takes what the daemon says next."""
        moving = self._on_their_way()
        ready = [each for each in moving if each.is_ready]
        if moving and not ready:
            poller = select.poll()
            by_descriptor = {each.fileno(): each for each in moving}
            for descriptor in by_descriptor:
                poller.register(descriptor, select.POLLIN)
            ready = [by_descriptor[descriptor] for descriptor, _ in poller.poll(LOOK_S * 1000)]
            if not ready:
                moving[0].look()
        for each in ready:
            each.step()


class _Download:
    """One file on its way. It goes on from what it has when the daemon comes back."""

    def __init__(self, connection: Connection, record: m.Record, target: Path, tell: Tell, make: Make) -> None:
        self._connection = connection
        self._make = make
        self.record = record
        self._target = target
        self._tell = tell
        self._have: tuple[int, ...] = ()
        self._channel: Channel | None = None
        self._persistence = Persistence(connection.endpoint)
        self._sha256: str | None = None
        self.failure: Exception | None = None
        self._destination: Sink | None = None

    @property
    def ended(self) -> bool:
        """Whether it is whole, or has failed."""
        return self._sha256 is not None or self.failure is not None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to do without waiting for the daemon's next word."""
        return self._channel is None or self._channel.has_more

    def fileno(self) -> int:
        """Where its daemon's next word comes; -1, which poll refuses, before it was asked."""
        return -1 if self._channel is None else self._channel.fileno()

    def look(self) -> None:
        """The daemon has been silent for LOOK_S."""
        if self._channel is not None:
            self._channel.silence.look()

    def outcome(self) -> Got | None:
        """What became of it; None while it is on its way. Raises what it failed with."""
        if self.failure is not None:
            raise self.failure
        return None if self._sha256 is None else Got(self.record, self._target, self._sha256)

    def step(self) -> None:
        """Asks, or takes one message."""
        try:
            self._take()
        except Exception as failure:  # noqa: BLE001 it is raised once those before it are there
            self.failure = failure
        if self.ended:
            self.close()

    def close(self) -> None:
        """Breaks it off, unless it is at its end. Idempotent."""
        self._hang_up()
        if self._destination is not None:
            self._destination.close()

    def _open(self) -> Sink:
        if self._destination is None:
            _refuse_escape(self.record)
            self._destination = self._make(self._target, str(self.record.id))
            self._tell(self.record, 0, self.record.size_bytes)
        return self._destination

    def _take(self) -> None:
        destination = self._open()
        try:
            if self._channel is None:
                self._channel = self._connection.begin_aside(self._ask, (destination.descriptor,))
                return
            answer = self._channel.receive()
        except SilentError:
            raise
        except (ConnectionError, EOFError) as lost:
            self._hang_up()
            self._persistence.wait(lost, was_there=self._connection.welcome is not None)
            return
        if isinstance(answer, m.Progress):
            self._note(answer)
            return
        fetched = expect(m.Fetched, answer)
        destination.publish()
        self._sha256 = fetched.sha256
        self._tell(self.record, fetched.size_bytes, fetched.size_bytes)

    def _ask(self, number: int) -> m.Fetch:
        return m.Fetch(request=number, id=self.record.id, have=self._have)

    def _note(self, seen: m.Progress) -> None:
        if seen.have != self._have:  # it gets on, however often its daemon went away
            self._persistence = Persistence(self._connection.endpoint)
        self._have = seen.have
        self._tell(self.record, seen.done_bytes, seen.total_bytes)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


class Destination:
    """A new file in the folder of `target`, which it takes the place of once it is published.

    It is opened here, so the daemon needs no right to the folder. Where the file system can, it has no name until
    then, and nothing is left of it however this process ends; else it has one that begins with ".ml-dash-".
    """

    def __init__(self, target: Path, label: str) -> None:
        self._target = target
        self._name = target.parent / f".ml-dash-{label}-{secrets.token_hex(4)}"
        self._is_named = False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as failure:
            raise _not_a_folder(target.parent) or failure from None
        if target.is_dir() and not target.is_symlink():
            raise _is_a_folder(target)
        self.descriptor = self._open()

    def publish(self) -> None:
        """Gives it its place. What was there is replaced, in one step: of a symlink the link, not what it leads to.

        Raises IS_A_FOLDER where a folder is in the way, any other OSError as it is.
        """
        if not self._is_named:
            with suppress(FileExistsError):
                self._link(self._target)
                return
            self._link(self._name)
            self._is_named = True
        try:
            self._name.replace(self._target)
        except IsADirectoryError:
            raise _is_a_folder(self._target) from None
        self._is_named = False

    def close(self) -> None:
        """Closes it; unpublished, it is gone. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1
        if self._is_named:
            with suppress(FileNotFoundError):
                self._name.unlink()
        self._is_named = False

    def _open(self) -> int:
        try:
            descriptor = os.open(self._target.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
        except OSError as failure:
            if failure.errno not in _NO_UNNAMED:
                raise
        else:
            if os.path.lexists(f"/proc/self/fd/{descriptor}"):  # by which it gets its name
                return descriptor
            os.close(descriptor)
        descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._is_named = True
        return descriptor

    def _link(self, name: Path) -> None:
        """A name for the open file. Without src_dir_fd the call would link the symlink in /proc."""
        folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(self.descriptor), name, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)


def _is_a_folder(target: Path) -> MLDashError:
    return error(Code.IS_A_FOLDER, f"{target} is a folder, and a file should go there")


def _not_a_folder(folder: Path) -> MLDashError | None:
    """Names what is in the way of a folder, the outermost first."""
    for place in (*reversed(folder.parents), folder):
        if os.path.lexists(place) and not place.is_dir():
            return error(Code.NOT_A_FOLDER, f"{place} is no folder, and a file should go below it")
    return None


def way_out(folder: Path, target: Path) -> MLDashError | None:
    """Refuses a file below a folder whose way is a link out of it: nothing is written by way of that."""
    if target.parent.resolve().is_relative_to(folder.resolve()):
        return None
    return error(
        Code.INVALID_PATH, f"{target.parent} leads out of {folder}", "remove that link, or name another folder"
    )


def place_below(folder: Path, record: m.Record, prefix: str) -> Path:
    """Where a file that lies at or below a prefix goes below a folder. Raises what `way_out` refuses."""
    target = folder / record.path.removeprefix(f"/{prefix}").strip("/") / record.filename
    if (refusal := way_out(folder, target)) is not None:
        raise refusal
    return target


def _is_of_all(failure: Exception) -> bool:
    """Whether other files would fail of it, too."""
    if isinstance(failure, MLDashError):
        return failure.code in _OF_ALL_CODES
    return not isinstance(failure, OSError) or failure.errno in _OF_ALL_ERRORS


def _refuse_escape(record: m.Record) -> None:
    """The daemon checks every name; here it is checked again before anything is written by it.

    The catalog may have been written by another program: `..`, an absolute path, a NUL never get this far.
    """
    folders = record.path[1:].split("/") if record.path != "/" else []
    if "/" in record.filename or any(part in ("", ".", "..") or "\0" in part for part in (*folders, record.filename)):
        what = f"the stored name {record.path!r}, {record.filename!r} (file {record.id}) leaves the destination"
        raise error(Code.INVALID_PATH, what)
