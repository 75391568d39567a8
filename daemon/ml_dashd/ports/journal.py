"""The durable queue of what was handed over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ml_dash.errors import Code
from ml_dashd.core.circuit import Extent
from ml_dashd.core.figures import Backlog, Left, Summary, Unsent
from ml_dashd.core.model import (
    EVERYBODY,
    Amendment,
    Experiment,
    Fingerprint,
    Job,
    Pin,
    Scope,
    Selection,
    SentPart,
    Trouble,
)
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import Delivery
from ml_dashd.core.states import State


@dataclass(frozen=True, slots=True)
class Handed:
    """A new job, its request's idempotency key, and the bytes of an inline pin."""

    job: Job
    key: bytes
    content: bytes | None = None


Ready = Callable[[Sequence[Job]], Callable[[], None]]
"""What is to happen as soon as files are taken in, before the caller hears of it.

It is given the jobs, in the journal's thread and within their transaction, and may be called twice; what it returned
last is called in that thread once they are on stable storage, and may not fail.
"""


class JournalError(Exception):
    """The journal or the catalog can't be used now: a full or failing disk, or another program has it locked."""

    def __init__(self, message: str, code: Code = Code.DISK_FAILED) -> None:
        super().__init__(message)
        self.code = code


class Superseded(Exception):  # noqa: N818 it is no error: somebody else was first
    """The job is no longer in the state in which the caller saw it."""


class Journal(Protocol):
    """The durable queue. Every change is on stable storage when its call returns; a call is one transaction."""

    async def accept_all(self, files: Sequence[Handed], ready: Ready | None = None) -> list[tuple[Job, bool]]:
        """Takes in new jobs, all or none, in one transaction; returns them in their order, each with True.

        A job that came before with its owner's key is returned in the place of the new one, with False.
        """

    async def accept_made(self, make: Callable[[], Handed], ready: Ready | None = None) -> tuple[Job, bool]:
        """`accept_all` of one that is made in the journal's own thread; what `make` raises is raised.

        It may be called twice, and has to give the same. A caller that is cancelled still waits for it.
        """

    async def handed(self, owner_uid: int, key: bytes) -> Job | None:
        """The job that its owner handed over with that key, as it is now; None where the journal has none."""

    async def advance(self, job: Job, to: State, **changes: Any) -> Job:
        """Moves a job from its state to another, with other columns; raises Superseded when it is no longer there."""

    async def advance_all(self, jobs: Sequence[Job], to: State, changes: Sequence[Mapping[str, Any]] = ()) -> list[Job]:
        """Moves many jobs in one transaction, each with its changes, which are of the same columns.

        Returns those that were moved; the others are no longer there, or, on the way to DONE, were amended or deleted
        since. What `advance` forbids is not looked at here: a file's SHA-256 is not changed by it, and none fails.
        """

    async def note(self, job: Job, **changes: Any) -> Job:
        """Changes columns while the state stays; raises Superseded when the job is no longer in that state."""

    async def repin(self, job: Job, pin: Pin, *, on_disk: bool = True) -> None:
        """Puts another pin, which is on stable storage or not, in the place of the job's own.

        Raises Superseded when the job is finished, has failed, or has another pin by now.
        """

    async def retime(self, job: Job, mark: Fingerprint) -> None:
        """Notes the times of a source that were set, unless it has another pin by now. Idempotent."""

    async def mark_on_disk(self, job: Job) -> None:
        """Notes that the source is on stable storage, in whatever state the job is, unless it has another pin by now.

        Idempotent.
        """

    async def set_sha256(self, file_id: int, sha256: str) -> None:
        """Notes what a hash-only pass found, where nothing is known yet. Idempotent."""

    async def amend(self, file_id: int, words: Amendment) -> Job | None:
        """Changes what is said of a file; None where the catalog is to be asked: it is finished, or being deleted."""

    async def cancel(self, ids: Sequence[int]) -> list[Job]:
        """Asks for those that are on their way or failed to be cancelled; returns them as they are now."""

    async def older(self, job: Job) -> list[Job]:
        """Older versions of a job's path, of the same owner, that may give way to it (core/supersede.py)."""

    async def supersede(self, jobs: Sequence[Job], by: int) -> list[Job]:
        """Asks for jobs to be cancelled for the newer one `by`; returns those, as they are now.

        Left out are such as are stored by now, or of which something else is said since, and all of them where the
        newer one has failed or is deleted. What gave way is never VERIFIED afterwards. Idempotent.
        """

    async def of_share(self, share_key: str) -> list[Job]:
        """The files of a rank's share of a set that the journal still has, whatever has become of them."""

    async def end_share(self, delivery: Delivery) -> None:
        """Notes a share that is ended, until `forget_share`. Idempotent by its key."""

    async def shares(self) -> list[Delivery]:
        """Those that are noted, in the order in which they were ended."""

    async def note_stuck(self, share_key: str, *, stuck: bool) -> None:
        """Notes whether a share waits for a file that has failed: then nobody waits for it. Idempotent."""

    async def forget_share(self, share_key: str) -> None:
        """The catalog has it, or refuses it for good. Idempotent."""

    async def withdrawn(self, ids: Sequence[int]) -> set[int]:
        """Those of these files that were asked to be cancelled, whatever has become of them since."""

    async def add_part(self, job: Job, part: SentPart) -> None:
        """Remembers a part that was sent. Idempotent."""

    async def parts(self, job: Job) -> list[SentPart]:
        """The parts of the job's present upload, by number."""

    async def get(self, ids: Sequence[int]) -> list[Job]:
        """The jobs of these ids that the journal still has."""

    async def holdup(self, ids: Sequence[int]) -> Job | None:
        """Of the jobs of these ids one that is not stored: first what is taken back, then what has failed."""

    async def numbers(self, keys: Sequence[tuple[int, bytes]]) -> dict[tuple[int, bytes], int]:
        """The ids of files that were left in the inbox, by their owners' uids and keys; of those that have one."""

    async def number(self, ids: Mapping[tuple[int, bytes], int]) -> None:
        """Keeps the ids of such files. One that has an id keeps it."""

    async def forget_numbers(self, before_ms: int) -> None:
        """Drops such ids that were kept before then. Idempotent."""

    async def content(self, job: Job) -> bytes:
        """The bytes of an inline pin."""

    async def contents(self, ids: Sequence[int]) -> dict[int, bytes]:
        """The bytes of inline pins, by id; those that were let go are left out."""

    async def select(self, selection: Selection) -> list[Job]:
        """Jobs that the catalog does not list: on their way or failed, in the order of (path, newest first).

        All that are asked for, up to the limit; and perhaps some that do not fit the pattern.
        """

    async def unfinished(self, selection: Selection) -> tuple[int, list[Job]]:
        """How many files of an experiment, as far as the scope goes, are on their way, and up to 16 that failed.

        A share of a set that the catalog is still to be told of counts as one, unless it is stuck.
        """

    async def due(
        self,
        lane: Lane,
        now_ms: int,
        skip: Collection[int],
        limit: int,
        *,
        without: Collection[Experiment] = (),
        above: int | None = None,
    ) -> list[Job]:
        """Jobs of a lane that are on their way and may run now, without those in `skip`.

        The highest priority comes first; of one priority experiments take turns, each with what was handed over first.
        It remembers whose turn it was. Left out are experiments in `without`, and priorities that are not `above` it.
        """

    async def foremost(self, lane: Lane, now_ms: int, limit: int) -> list[Job]:
        """Jobs of a lane that are on their way and may run now, in the order of a drain (core/schedule.py)."""

    async def hasten(self) -> None:
        """Prepares for a drain: whatever waits for its time may run now. Idempotent."""

    async def relax(self) -> None:
        """Ends what `hasten` has prepared. Idempotent."""

    async def left(self, now_ms: int) -> Left:
        """What is on its way, in short, without what was deleted."""

    async def unsent(self, failed_since_ms: int, limit: int) -> list[Unsent]:
        """Files that are on their way, in the order of a drain, and after them those that failed since then."""

    async def failed_count(self, since_ms: int) -> int:
        """How many files have failed since then."""

    async def is_done_with(self, last: int) -> bool:
        """Whether no file of this id or an earlier one is on its way."""

    async def stuck(self, scope: Scope, after: int, limit: int) -> list[Job]:
        """Jobs of the scope that failed or are blocked, without what was deleted, with ids above, in their order."""

    async def retry_blocked(self) -> None:
        """Lets every blocked job run now, as if nothing had been tried."""

    async def hold(self, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
        """Puts off jobs that nobody works on, blocked by that trouble: they wait behind a circuit. Idempotent."""

    async def release(self, extent: Extent, most: int) -> int:
        """Lets up to `most` of the jobs that wait behind a circuit run now; returns how many those were."""

    async def held(self, extent: Extent, skip: Collection[int]) -> Job | None:
        """The job that waits longest behind a circuit, without those in `skip`."""

    async def defer(self, ids: Sequence[int], until_ms: int, trouble: Trouble) -> None:
        """Verified files that the catalog does not take now: no lane has them from now on, but `deferred`. Idempotent.

        They are blocked by that trouble, and put off until then.
        """

    async def deferred(self, after: int, limit: int) -> list[Job]:
        """Files that were deferred, with ids above, in their order; those, too, that were deleted since."""

    async def hold_deferred(self, until_ms: int, trouble: Trouble) -> None:
        """Puts off, and blocks, all that were deferred, should they have been hastened since. Idempotent."""

    async def next_due_ms(self, now_ms: int) -> int | None:
        """When the next job that waits beyond now may run."""

    async def due_count(self) -> int:
        """How many files are on their way."""

    async def pinned(self) -> list[Job]:
        """Every job that still needs its source: on their way, and failed."""

    async def referred(self) -> set[str]:
        """Keys of objects of which duplicates are still to be made."""

    async def finished(self, before_ms: int, limit: int) -> list[Job]:
        """Jobs that are stored or cancelled and last changed before then, oldest first."""

    async def unclean(self, limit: int) -> list[Job]:
        """Failed jobs of which the store may still have something."""

    async def forget(self, ids: Sequence[int]) -> None:
        """Drops the rows of finished jobs. Idempotent."""

    async def summary(self, scope: Scope = EVERYBODY) -> Summary:
        """The queue in short. It counts everybody's files; those that it names are in the scope."""

    def trouble(self) -> Trouble | None:
        """Why the journal takes nothing more in: its disk is full, or has failed."""

    def unsure(self) -> bool:
        """Whether changes that were refused may be there at the next start: a sync failed after they were written."""

    async def probe(self) -> None:
        """Commits something, as a hand-off does; raises JournalError where that would be refused."""

    async def backlog(self) -> Backlog:
        """The queue in figures, in one pass over what is on its way or failed: a microsecond a file."""

    async def high_water(self) -> int:
        """The largest id ever accepted here, 0 for none."""

    async def setting(self, name: str) -> str | None:
        """A fact kept across restarts, such as what a store can do."""

    async def set_setting(self, name: str, value: str) -> None:
        """Keeps a fact. Idempotent."""
