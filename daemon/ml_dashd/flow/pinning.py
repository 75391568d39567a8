"""Sources are pinned: quickly where they can be kept as they are, else by a copy; several at once all or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Job, Pin, Protection
from ml_dashd.flow.turns import Turns
from ml_dashd.ports import Pins, Threads

PINS = (3, 64)
"""Files being pinned at once, of one user and of all: a file system that hangs leaves others one of four threads."""
COPIES = (2, 3)
"""Files being copied before the answer, of one user and of all: one thread of four is left for syncs and removals."""

_NO_ROOM = (Code.RETRY_LATER, Code.DISK_FULL)

Pinned = tuple[Pin, bytes | None, int]
"""A pin, the content where it was read, and the size in bytes."""


class Opened(NamedTuple):
    """A source that a client has opened. `path` is what it says of it, for messages and recovery."""

    descriptor: int
    file_id: int
    path: str


class Pinning:
    """Pins what is handed over, for each user in turn.

    `threads` does what takes microseconds, `disk` what may take seconds: no hand-off waits behind another's bytes.
    """

    def __init__(self, pins: Pins, threads: Threads, disk: Threads) -> None:
        self._pins = pins
        self._threads = threads
        self._disk = disk
        self._pinning = Turns(*PINS)
        self._copying = Turns(*COPIES)

    async def take_all(self, owner_uid: int, sources: Sequence[Opened], protection: Protection) -> list[Pinned]:
        """Pins sources, all or none.

        Raises TOO_LARGE where several find no room together, but might one by one.
        """
        taken: list[Pinned] = []
        try:
            while len(taken) < len(sources):
                await self._take_more(owner_uid, sources[len(taken) :], protection, taken)
        except BaseException as failure:
            if taken:
                await self._disk.run(self._release_each, sources, taken)
            if len(sources) > 1 and isinstance(failure, MLDashError) and failure.code in _NO_ROOM:
                what = f"{len(sources)} files find no room together: {failure.message}"
                raise error(Code.TOO_LARGE, what, "hand them over one by one") from failure
            raise
        return taken

    def is_quick(self, source: Opened) -> bool:
        """Whether `take` asks the spool's own file system alone, and copies nothing. Does not block."""
        return self._pins.is_quick(source.descriptor)

    def take(self, source: Opened, protection: Protection) -> Pinned:
        """Pins one. Blocks: for a thread. Raises RETRY_LATER where no descriptor is left to hold it with."""
        return self._pins.take(source.descriptor, source.file_id, source.path, protection)

    async def adopt(self, owner_uid: int, job: Job, file_id: int) -> Pinned:
        """Another pin of what a job's own keeps. Raises as `Pins.adopt` does."""
        async with self._pinning.of(owner_uid):
            return await self._threads.run(self._pins.adopt, job, file_id)

    async def pass_on(self, from_id: int, to_id: int) -> None:
        """What a pin holds open for one file is held for the other."""
        await self._threads.run(self._pins.pass_on, from_id, to_id)

    async def let_go(self, pin: Pin, file_id: int) -> None:
        """The pin is not needed any more. Idempotent."""
        await self._disk.run(self._pins.release, pin, file_id)

    async def _take_more(
        self, owner_uid: int, sources: Sequence[Opened], protection: Protection, taken: list[Pinned]
    ) -> None:
        """The next ones: together where no byte is copied; by a copy one for which no descriptor is left."""
        if protection is not Protection.COPY:
            together = sources if protection is Protection.RESTART else sources[:1]
            async with self._pinning.of(owner_uid):
                quick = await self._threads.run(self._take_quick, together, protection)
            taken += quick
            if quick:
                return
        async with self._copying.of(owner_uid):
            taken.append(await self._disk.run(self.take, sources[0], Protection.COPY))

    def _take_quick(self, sources: Sequence[Opened], protection: Protection) -> list[Pinned]:
        """Those before the first for which there is no room. In a thread: a file system may take its time."""
        taken: list[Pinned] = []
        try:
            for source in sources:
                one = self.take(source, protection)
                taken.append(one)
        except MLDashError as full:
            if full.code is not Code.RETRY_LATER:
                self._release_each(sources, taken)
                raise
        except Exception:
            self._release_each(sources, taken)
            raise
        return taken

    def _release_each(self, sources: Sequence[Opened], taken: Sequence[Pinned]) -> None:
        """Those that were pinned before one that could not be."""
        for (pin, *_), source in zip(taken, sources, strict=False):
            self._pins.release(pin, source.file_id)
