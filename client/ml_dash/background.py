"""Saves that go on after their call: one thread for a connection, in the order of the calls."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ml_dash.errors import Code, error
from ml_dash.messages import Record
from ml_dash.wording import say

if TYPE_CHECKING:
    from ml_dash.connection import Connection

AT_ONCE = 2
"""Saves that hold a snapshot in memory: one that is being written, and the next. A further one waits for the first."""

_UNTOLD: list[Saving] = []
"""Saves that failed, and nobody was told: whoever waits for one is, or the end of the run, or that of the process."""


@atexit.register
def _tell() -> None:
    for saving in [*_UNTOLD]:
        say(f"{saving.path} was not handed over: {saving.told()}")


def forget_failures() -> None:
    """In a forked child: the parent tells of them."""
    _UNTOLD.clear()


class Saving:
    """One save that goes on in the background. `path` is where it goes, below the experiment."""

    def __init__(self, path: str, owner: Background) -> None:
        self.path = path
        self.owner = owner
        self._process = os.getpid()
        self._ended = threading.Event()
        self._record: Record | None = None
        self._failure: BaseException | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the daemon has it."""
        return self._record is not None

    def result(self, timeout: float | None = None) -> Record:
        """Waits for the daemon's answer; raises what went wrong, or TIMEOUT after so many seconds."""
        if not self._ended.is_set() and os.getpid() != self._process:
            what = f"{self.path} is being saved by process {self._process}, from which this one was forked"
            raise error(Code.CONNECTION_LOST, what, "ask there what became of it")
        if not self._ended.wait(timeout):
            raise error(Code.TIMEOUT, f"{self.path} is not handed over after {timeout:g} s")
        if self._record is None:
            raise self.told()
        return self._record

    def told(self) -> BaseException:
        """What went wrong; from here on somebody knows."""
        if self in _UNTOLD:
            _UNTOLD.remove(self)
        assert self._failure is not None  # noqa: S101 it ended without a record
        return self._failure

    def carry_out(self, work: Callable[[], Record]) -> None:
        try:
            self._record = work()
        except BaseException as failure:  # noqa: BLE001 it is raised where somebody waits
            self._failure = failure
            _UNTOLD.append(self)
        self._ended.set()


class Background:
    """A connection's saves in the background.

    Their thread is none of those that end with the script: Python waits for it at its end, so a script that returns
    hands over all. It has a connection of its own, so that its commits hold nobody up.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._changed = threading.Condition()
        self._queue: deque[tuple[Saving, Callable[[], Record]]] = deque()
        self._unfinished: list[Saving] = []
        self._thread: threading.Thread | None = None
        self._snapshots = 0

    @property
    def connection(self) -> Connection:
        """The one that its saves go by."""
        with self._changed:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection

    def interrupted(self) -> bool:
        """Whether this is a signal handler in the middle of its own thread's request: nothing can be waited for."""
        return self._connection is not None and self._connection.interrupted()

    def take_room(self) -> None:
        """Returns once there is memory for one more snapshot, which is the caller's until `give_room`."""
        with self._changed:
            self._changed.wait_for(lambda: self._snapshots < AT_ONCE)
            self._snapshots += 1

    def give_room(self) -> None:
        with self._changed:
            self._snapshots -= 1
            self._changed.notify_all()

    def begin(self, path: str, work: Callable[[], Record]) -> Saving:
        """Does it behind what was begun before."""
        saving = Saving(path, self)
        with self._changed:
            self._queue.append((saving, work))
            self._unfinished.append(saving)
            begins = self._thread is None
            if begins:
                self._thread = threading.Thread(target=self._work, name="ml-dash-saves", daemon=False)
        if begins:
            self._start()
        return saving

    def wait_for(self, path: str) -> None:
        """Returns once no save of that path is on its way, so that the next one is the newer version."""
        if self._unfinished and not self.interrupted():
            with self._changed:
                self._changed.wait_for(lambda: all(saving.path != path for saving in self._unfinished))

    def join(self, timeout: float | None = None) -> int:
        """Waits until all have ended, at most so many seconds; returns how many have not."""
        if not self._unfinished:
            return 0
        if self.interrupted():
            timeout = 0
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished, timeout)
            return len(self._unfinished)

    def untold(self) -> Iterator[BaseException]:
        """What went wrong with saves that nobody has waited for, in their order; what is taken has been told."""
        return (saving.told() for saving in [*_UNTOLD] if saving.owner is self)

    def _start(self) -> None:
        assert self._thread is not None  # noqa: S101 it was made just now
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, and starts no threads any more
            self._work()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._thread = None
                    return
                saving, work = self._queue.popleft()
            saving.carry_out(work)
            del work  # and the snapshot with it
            with self._changed:
                self._unfinished.remove(saving)
                self._changed.notify_all()
