"""Sources that are kept, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ml_dashd.core.model import Fingerprint, Job, Pin, Protection


class SyncRefusedError(OSError):
    """What the disk said when it was asked to sync: what was to be kept may be lost, whatever it says the next time."""


class NotAnArchiveError(Exception):
    """What is in a slot is not laid out as an archive whose checksums could be put right."""


class Feedable(Protocol):
    """What takes bytes in order: a Digester, a hashlib hash."""

    def update(self, data: memoryview, /) -> None:
        """Takes the next bytes."""


class Source(Protocol):
    """A pinned source, open for reading. All calls block."""

    size_bytes: int

    def read(self, offset: int, into: memoryview, digesters: Sequence[Feedable]) -> None:
        """Fills the buffer and feeds the digesters with it. Raises SOURCE_CHANGED when it is not what it was."""

    def check(self) -> bool:
        """Whether the source is untouched since it was pinned; False when only its ctime moved, or none may have to.

        Raises SOURCE_CHANGED when its content may have changed.
        """

    def close(self) -> None:
        """Closes it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An open source, for its taker to close, that a store on its file system may have without a copy.

    `itself`: the very file, which is the spool's own and never written to again; else its blocks alone.
    """

    descriptor: int
    itself: bool


class Pins(Protocol):
    """Keeps sources. All calls block: run them in a thread."""

    def take(self, descriptor: int, file_id: int, source: str, protection: Protection) -> tuple[Pin, bytes | None, int]:
        """Pins an open file in the quickest way that protects it that far.

        Returns the pin, the content of an inline one, and the size. The descriptor stays the caller's. Raises the
        errors of a file that can't be taken.
        """

    def is_quick(self, descriptor: int) -> bool:
        """Whether `take` asks nobody but the spool's own file system, and copies nothing. Does not block.

        Then it takes microseconds, or as long as the journal, which lies there, too.
        """

    def lease(self, job: Job) -> str | None:
        """Has whoever opens a linked or held source to write to it wait, until `unlease` or `release`.

        Why not, where that can't be; never raises.
        """

    def leased(self, file_id: int) -> bool:
        """Whether such a lease is held, and nobody waits for it. Does not block."""

    def wanted(self) -> list[int]:
        """The files that somebody waits to write to. Does not block."""

    def give_way(self) -> bool:
        """Lets those go on who wait to write to sources that nobody asked to have leased; whether there were any.

        Does not block. Who it was shows a moment later: `lease_touched` is to be called then.
        """

    def lease_touched(self, *, last: bool = False) -> None:
        """Leases sources again where it was the command touch that came, for the next one. Does not block.

        `last`: who has not set any times by now was somebody else.
        """

    def done_reading(self, file_id: int) -> None:
        """A source was read to its end, and is kept from nobody any more. Does not block. Idempotent."""

    def touched(self) -> list[int]:
        """Files whose linked or held sources had their times set, as it seems, since the last call. Does not block."""

    def retimed(self, job: Job, now_ms: int) -> Fingerprint | None:
        """What fstat says of such a source now, where its times were set and nothing was written to it; else None.

        It is leased again, where the touch has cost it its lease.

        One that was touched within a moment of `now_ms`, the time since 1970, is left for the next `touched`.
        """

    def unlease(self, file_id: int) -> None:
        """Lets whoever waits go on. Does not block. Idempotent."""

    def copy(self, job: Job, in_time: Callable[[], bool] | None = None) -> Pin:
        """Copies a linked or held source into the spool and returns the copy's pin; the job's own pin stays.

        With `in_time` it is leased: RETRY_LATER once that says no, and SOURCE_CHANGED where the lease did not last.

        Raises SOURCE_CHANGED or SOURCE_LOST when the source is not as it was, DISK_FULL or RETRY_LATER without room.
        """

    def sealing(self, job: Job) -> Iterator[bool]:
        """Steps that put the checksums of an archive in a slot right, of some MiB each; none where that was done.

        What comes out is the same however often it is done, and by how many at once. Yields whether a step wrote
        something. Raises SOURCE_LOST, or NotAnArchiveError.
        """

    def adopt(self, job: Job, file_id: int) -> tuple[Pin, bytes | None, int]:
        """Pins what a job on its way has pinned for another file, too, as `take` does.

        No byte is copied, but of a copy where files can't have two names.

        Raises SOURCE_LOST where it was let go, DISK_FULL or RETRY_LATER without room. It may have been let go for a
        moment, and a slot be used again: whoever calls looks at the job once more.
        """

    def offer(self, job: Job, device: int) -> Offer | None:
        """A source that lies on the file system of that number; None where it has to be copied.

        That is so on another one, and of a slot which the next save is to find warm. One that is offered is not granted
        again. The pin stays until it is released. Raises SOURCE_LOST.
        """

    def open(self, job: Job, content: bytes) -> Source:
        """Opens a job's source; raises SOURCE_LOST or SOURCE_CHANGED when it is not there as it was."""

    def sync(self, pin: Pin, file_id: int) -> None:
        """Brings the source's bytes to stable storage. Idempotent.

        Raises SyncRefusedError where the disk refuses, and any other OSError where it could not be asked.
        """

    def sync_folders(self, pins: Sequence[Pin]) -> None:
        """Brings the spool's entries for these pins to stable storage. Idempotent. Raises as `sync` does."""

    def release(self, pin: Pin, file_id: int) -> None:
        """Lets the source go; the user's own file is never touched. Idempotent."""

    def pass_on(self, file_id: int, to_id: int) -> None:
        """Holds the source that is held open for one file for another one. Idempotent."""

    def note_failed(self, pin: Pin, file_id: int) -> None:
        """Notes that the source is kept for a file that failed, until it is opened for another try or released.

        Who is refused for want of room is told how much is kept so. Idempotent.
        """

    def rebase(self, job: Job) -> Pin | None:
        """The pin with a new baseline, where its file in the spool is the same in another place; else None. Blocks.

        That is where the state folder was copied, or its disk has another number since the boot.
        """

    def sweep(self, jobs: Sequence[Job]) -> int:
        """Removes what no job needs from the spool, at start; returns how many files that were."""

    def hold_again(self, job: Job) -> None:
        """Opens a source that the last daemon held, where it is found as it was, and holds it. Idempotent.

        Blocks for as long as its file system does. What is not found is said by whoever opens it to send it.
        """

    def spool_bytes(self) -> int:
        """What the spool takes on disk, without what is only linked."""
