"""What the flow asks of the world. Each port is a Protocol, with an implementation in `edge`, chosen by `app`.

The stores and the catalogs have contract suites in tests/contract, which every implementation passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ml_dash.errors import Code
from ml_dash.messages import Message, Upload
from ml_dashd.core.capabilities import Capabilities
from ml_dashd.core.checksum import Digest
from ml_dashd.core.checkup import Check, Reach
from ml_dashd.core.circuit import Extent
from ml_dashd.core.lease import Answer, Claim, Node, Place
from ml_dashd.core.model import (
    EVERYBODY,
    Algorithm,
    Amendment,
    Backlog,
    Evidence,
    Experiment,
    FileRecord,
    Job,
    Left,
    OpenUpload,
    Pin,
    Protection,
    Scope,
    Selection,
    SentPart,
    Summary,
    Target,
    Trouble,
    Unsent,
)
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import StoreError
from ml_dashd.core.runs import BroughtRow, MetricLength, NewRow, Opened, Row, Run, RunKey, RunStatus
from ml_dashd.core.schedule import Lane
from ml_dashd.core.sets import Delivered, Delivery, SetKey, SetRecord, SetSelection, Share
from ml_dashd.core.states import State

T = TypeVar("T")


class Clock(Protocol):
    """Time and chance, so that tests can rule them."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC; may step."""

    def monotonic(self) -> float:
        """Seconds that never step."""

    def jitter(self) -> float:
        """A random number in [0, 1)."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""


class Faults(Protocol):
    """Named points at which tests make the daemon die, fail, hang or dawdle. Off, a call does nothing."""

    def at(self, point: str) -> None:
        """Marks a point on the way. The names are literals, so that a test can list them from the code."""


class Meter(Protocol):
    """Counts what happens, for whoever watches. A call takes about a microsecond, from any thread, and never fails."""

    def accepted(self, size_bytes: int) -> None:
        """A new file was acknowledged."""

    def sent(self, size_bytes: int) -> None:
        """The store took the body of a request."""

    def stored(self, size_bytes: int) -> None:
        """A file is verified and listed."""

    def cancelled(self) -> None:
        """A file was deleted on its way."""

    def superseded(self) -> None:
        """A file was dropped for a newer version of its path."""

    def retried(self, fault: str) -> None:
        """A file, or a part of one, is tried again later: a Fault (core/retry.py), "journal" or "defect"."""

    def failed(self, code: Code) -> None:
        """A file was given up."""

    def committing(self) -> AbstractContextManager[None]:
        """Held while the journal commits a change."""

    def lagged(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A new job, its request's idempotency key, and the bytes of an inline pin."""

    job: Job
    key: bytes
    content: bytes | None = None


class Journal(Protocol):
    """The durable queue. Every change is on stable storage when its call returns; a call is one transaction."""

    async def accept_all(self, files: Sequence[Handed]) -> list[tuple[Job, bool]]:
        """Takes in new jobs, all or none, in one transaction; returns them in their order, each with True.

        A job that came before with its owner's key is returned in the place of the new one, with False.
        """

    async def handed(self, owner_uid: int, key: bytes) -> Job | None:
        """The job that its owner handed over with that key, as it is now; None where the journal has none."""

    async def advance(self, job: Job, to: State, **changes: Any) -> Job:
        """Moves a job from its state to another, with other columns; raises Superseded when it is no longer there."""

    async def advance_all(self, jobs: Sequence[Job], to: State, changes: Sequence[Mapping[str, Any]] = ()) -> list[Job]:
        """Moves many jobs in one transaction, each with its changes, which are of the same columns.

        Returns those that were moved; the others are no longer there, or, on the way to DONE, were amended since.
        What `advance` forbids is not looked at here: a file's SHA-256 is not changed by it, and none fails.
        """

    async def note(self, job: Job, **changes: Any) -> Job:
        """Changes columns while the state stays; raises Superseded when the job is no longer in that state."""

    async def repin(self, job: Job, pin: Pin, *, on_disk: bool = True) -> None:
        """Puts another pin, which is on stable storage or not, in the place of the job's own.

        Raises Superseded when the job is finished, or has another pin by now.
        """

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


class JournalError(Exception):
    """The journal or the catalog can't be used now: a full or failing disk, or another program has it locked."""

    def __init__(self, message: str, code: Code = Code.DISK_FAILED) -> None:
        super().__init__(message)
        self.code = code


class TakenError(Exception):
    """Other files have ids of those that were to be listed, for good. What else was in the call is listed.

    `others` are their records, `gone` what the call would have returned.
    """

    def __init__(self, others: Sequence[FileRecord], gone: Sequence[int]) -> None:
        super().__init__(f"other files have the ids {', '.join(str(record.id) for record in others)}")
        self.others = others
        self.gone = gone


def gone_of(records: Sequence[FileRecord], there: Sequence[FileRecord]) -> list[int]:
    """Those of the records to be listed that are deleted, by what the catalog has of their ids.

    Raises TakenError where an id is another file's.
    """
    mine = {record.id: record.identity for record in records}
    others = [found for found in there if found.identity != mine[found.id]]
    gone = [found.id for found in there if found.deleted_ms is not None and found.identity == mine[found.id]]
    if others:
        raise TakenError(others, gone)
    return gone


class Superseded(Exception):  # noqa: N818 it is no error: somebody else was first
    """The job is no longer in the state in which the caller saw it."""


class SyncRefusedError(OSError):
    """What the disk said when it was asked to sync: what was to be kept may be lost, whatever it says the next time."""


class NotAnArchiveError(Exception):
    """What is in a slot is not laid out as an archive whose checksums could be put right."""


class Store(Protocol):
    """Where objects go. Raises StoreError (core/retry.py) and nothing else for what a store can answer."""

    url: str
    single_bytes: int
    """The largest file that goes in one request."""
    copy_bytes: int
    """The largest object that is copied in one request."""

    async def prepare(self, known: Algorithm | None = None) -> Algorithm:
        """Which checksum to use: what the settings name, else `known`, else what the store is found to verify."""

    def key(self, record: FileRecord) -> str:
        """The object's name in the store."""

    def scratch(self, number: int) -> str:
        """The name of an object that is made only to see what the store does; no file's is like it."""

    async def put(self, target: Target, body: memoryview, digest: Digest) -> Evidence:
        """Stores a whole object in one request. Idempotent: a key only ever gets the same bytes."""

    async def copy(self, source: str, target: Target) -> None:
        """Makes an object of the bytes that the key `source` has, within the store. Idempotent.

        Its outcome is not evidence: ask `head`. Raises Fault.MISSING where there is no such object.
        """

    async def copy_part(self, source: str, target: Target, upload_id: str, part: Part) -> None:
        """Sends a part that is a range of another object, as `copy` does. Idempotent. Ask `list_parts`.

        Raises Fault.UNSUPPORTED where the store has no such call.
        """

    async def begin(self, target: Target) -> str:
        """Begins a multipart upload and returns its id. Each call begins another; nothing is visible yet."""

    async def send_part(self, target: Target, upload_id: str, part: Part, body: memoryview, digest: Digest) -> SentPart:
        """Sends one part. Idempotent: a part that comes again replaces itself."""

    async def list_parts(self, target: Target, upload_id: str, part_size: int) -> list[SentPart]:
        """The parts that the store has, by number. Raises Fault.GONE when it has no such upload."""

    async def complete(self, target: Target, upload_id: str, parts: Sequence[SentPart], whole: Digest) -> None:
        """Makes the object of its parts. Its outcome is not evidence: ask `head`."""

    async def abort(self, target: Target, upload_id: str) -> None:
        """Forgets an upload and its parts. Idempotent."""

    async def head(self, key: str) -> Evidence | None:
        """What the store states of an object; None when there is none."""

    async def read(self, key: str, offset: int, into: memoryview, arrived: Callable[[int], None]) -> None:
        """Fills the buffer with the bytes from an offset on, and tells how many came, as they come.

        Raises Fault.MISSING when there is no such object, and Fault.CORRUPT when it ends before that. An answer that
        breaks off is Fault.TRANSIENT, and what came of it counts for nothing.
        """

    async def share(self, key: str, descriptor: int) -> bool:
        """Gives an open file the object's very blocks, without a copy; False, and nothing done, where it can't."""

    async def delete(self, key: str) -> None:
        """Removes an object. Idempotent."""

    def uploads(self, key: str) -> AsyncIterator[OpenUpload]:
        """The multipart uploads of this key that are open: a key holds a file's id, so they are all ours."""

    async def close(self) -> None:
        """Lets go of connections."""


class Prober(Protocol):
    """Finds out what a store's server really does. Raises StoreError."""

    place: str
    """The endpoint and the bucket: what is found out holds for both together."""

    async def probe(self, key: str, now_ms: int) -> Capabilities:
        """Asks the server, with what it makes at the key: the caller removes it."""


class Examiner(Protocol):
    """Looks at a store's server beyond what the flow needs of it."""

    async def reach(self) -> Reach:
        """Whether it answers, and how. Never fails."""

    async def optional(self, key: str, upload_id: str) -> Mapping[str, StoreError | None]:
        """Calls that the flow does without, tried on an object and an upload of the same key, by their names."""


class Machine(Protocol):
    """What the daemon runs on. All calls block: run them in a thread."""

    def disks(self) -> list[Check]:
        """The disks of journal and spool."""

    def limits(self) -> list[Check]:
        """The process's limits, and what it computes with."""


class Sets(Protocol):
    """What the catalog keeps of sets of files (core/sets.py). A call is one transaction."""

    async def open(self, key: SetKey, share: Share, at_ms: int) -> SetRecord:
        """The round that a share goes to now, begun where there is none. Idempotent.

        Where it is one of another world_size, the share can't go there.
        """

    async def deliver(self, delivery: Delivery, at_ms: int) -> Delivered:
        """Takes a share into its set, in the place of that rank's earlier one, whose files are deleted.

        With the last one all files of the set become visible, unless a newer attempt that was saved at the same time
        is. Idempotent by the share's key.
        """

    async def holding(self, share_key: str) -> SetRecord | None:
        """The set that has a share; None where none has, or has it no more."""

    async def members(self, key: SetKey, share_key: str) -> list[int]:
        """The ids of its owner's files, there, that bear a share's mark and are not deleted, in their order."""

    async def get(self, set_id: str) -> SetRecord | None:
        """The set of an id."""

    async def select(self, selection: SetSelection) -> list[SetRecord]:
        """Sets, the newest first."""

    async def files(self, set_id: str, after: int, limit: int) -> list[FileRecord]:
        """The files of a set's shares with ids above `after`, in their order, deleted ones too."""

    async def drop(self, set_id: str, at_ms: int, keep_tags: Collection[str] = ()) -> bool:
        """Deletes a set and its files together, unless one of these has one of the tags; whether it did."""

    async def report(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        """Open sets to which nothing came since then; each is returned once, and again when something has come."""

    async def abandon(self, before_ms: int, at_ms: int, limit: int) -> list[SetRecord]:
        """Drops open sets to which nothing came since then, and returns them as they were. Their files are strays."""

    async def strays(self, before_ms: int, limit: int) -> list[FileRecord]:
        """Files stored before then that are pending, and in no open set's shares."""


class Catalog(Protocol):
    """What is stored. A record is in it only when its object is verified."""

    @property
    def sets(self) -> Sets:
        """The sets that its files belong to."""

    async def commit(self, records: Sequence[FileRecord]) -> list[int]:
        """Lists stored files; returns the ids of those that were deleted before, and stay so.

        Idempotent: upserts by id. Where it raises, some may be listed, and it is to be repeated. Of what
        is said of a file, the higher revision stays. One that is there and pending no more stays so. A record whose
        owner, key or SHA-256 is another is another file's, and stays as it is: raises TakenError.
        """

    async def get(self, ids: Sequence[int]) -> list[FileRecord]:
        """The records of these ids, deleted ones too."""

    async def select(self, selection: Selection) -> list[FileRecord]:
        """Records that are not deleted, in the order of (path, newest first).

        All that are asked for, up to the limit; and perhaps some that do not fit the pattern.
        """

    async def newer(self, after: int, scope: Scope, limit: int) -> list[FileRecord]:
        """Records of the scope that are not deleted, of all experiments, with ids above `after`, in their order."""

    async def amend(self, file_id: int, words: Amendment, at_ms: int) -> FileRecord | None:
        """Changes what is said of a listed file; None where there is none, or it is deleted."""

    async def delete(self, ids: Sequence[int], at_ms: int) -> list[int]:
        """Marks records as deleted; returns the ids that are now. Idempotent: the first time stays."""

    async def prune(self, records: Sequence[FileRecord], at_ms: int) -> list[int]:
        """Marks as deleted those of these records that are as they were read; returns their ids."""

    async def experiments(self) -> list[Experiment]:
        """Those that have files which are not deleted."""

    async def deleted(self, before_ms: int, after: tuple[int, int], limit: int) -> list[FileRecord]:
        """Records deleted before then whose bytes may still be in the store, in the order of (time, id).

        `after` is the (time, id) of the last one seen.
        """

    async def reclaimed(self, records: Sequence[FileRecord], at_ms: int) -> None:
        """Notes that the store has no bytes of these any more, where they were deleted when they say. Idempotent."""

    def trouble(self) -> Trouble | None:
        """Why nothing can be listed now, and not by itself in a moment: its disk is full, or has failed."""

    async def close(self) -> None:
        """Lets go of files and connections."""


class Leases(Protocol):
    """Which node number is whose, in the catalog that the nodes share.

    The rules are core/lease.py's, by the catalog's clock; what is changed is changed in one step. A call that raises
    may have been done: the next claim is answered by the tokens that its holder knows. Raises JournalError.
    """

    async def taken(self, claim: Claim) -> list[int]:
        """The numbers that this claim may not take."""

    async def take(self, number: int, claim: Claim) -> Node | None:
        """The number, taken; None where it is not free for this claim, or another was quicker."""

    async def renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        """More time for who knows one of these tokens; the number as it is then, where the answer is KEPT."""

    async def nodes(self, after: int, limit: int) -> list[Node]:
        """Numbers that were ever taken, above `after`, in their order."""


class Whereabouts(Protocol):
    """Where the daemon runs. Nothing here blocks."""

    host: str
    """What people call the machine."""
    place: Place

    def boottime_ms(self) -> int:
        """CLOCK_BOOTTIME: it never steps, and does not stop while the machine sleeps."""

    def token(self) -> str:
        """A random word, another one each time."""


class Ids(Protocol):
    """Hands out file ids, each above all earlier ones."""

    def next(self, now_ms: int) -> int:
        """An id of that time, or later. Raises RETRY_LATER where none may be made now."""

    def pass_over(self, file_id: int) -> None:
        """An id that was given out elsewhere, and came here, is not given out again.

        Raises ID_TAKEN where it is another's to give out.
        """


class Runs(Protocol):
    """What the catalog keeps of experiments: their runs, parameters and metrics. A call is one transaction.

    What writes needs no record: where there is none, one is begun. Only `append` without `on_disk` may be lost with the
    machine, until the next other change, or `sync`.
    """

    async def open(self, key: RunKey, opened: Opened) -> None:
        """Begins a run, or opens it again. Idempotent."""

    async def end(self, key: RunKey, status: RunStatus, at_ms: int, error: str | None) -> None:
        """Notes how a run that is open has ended; one that is not stays as it is."""

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        """The records of a prefix, one a user, the oldest first."""

    async def select(self, below: Sequence[str], scope: Scope, after: RunKey | None, limit: int) -> list[Run]:
        """Records at and below a namespace, a project, an experiment, as many as are named; in the order of keys."""

    async def set_params(self, key: RunKey, values: Mapping[str, str], at_ms: int, most_bytes: int) -> None:
        """Sets parameters, JSON texts by their names, in the place of those that can't stand beside them.

        Raises INVALID_ARGUMENT where all together would be too many. Idempotent.
        """

    async def params(self, key: RunKey, since_ms: int | None = None) -> dict[str, str]:
        """All parameters, by name; with a time, those that were set in changes of the record after it."""

    async def append(
        self, key: RunKey, writer: int, number: int, rows: Sequence[NewRow], at_ms: int, *, on_disk: bool = False
    ) -> None:
        """Appends rows, all or none; those of the same writer and number that a metric has are left out.

        It survives the daemon when it returns; `on_disk` the machine, too. Raises INVALID_ARGUMENT for one metric too
        many.
        """

    async def bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        """Keeps a record and parameters that were kept elsewhere before (`core.runs.brought_together`).

        Whether anything has changed. Raises INVALID_ARGUMENT where the parameters would be too many. Idempotent.
        """

    async def bring_rows(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        """Appends rows that were kept elsewhere before, all or none, as `append` does with `on_disk`.

        How many are new. Idempotent.
        """

    async def sync(self) -> None:
        """Returns once everything that was appended is on stable storage."""

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        """The metrics of an experiment, by name."""

    async def rows(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        """Rows of a metric, from a position on."""

    async def behind(self) -> list[RunKey]:
        """The experiments of which a tree is not known to show everything."""

    async def shown(self, key: RunKey, as_of_ms: int) -> None:
        """Notes that a tree shows the record and the parameters as they were last changed then. Idempotent.

        What is noted of a tree may be lost with the machine.
        """

    async def rows_shown(self, key: RunKey, metric: str, count: int) -> None:
        """Notes how many rows of a metric a tree shows. Idempotent."""

    def trouble(self) -> Trouble | None:
        """Why nothing can be noted now, and not by itself in a moment: its disk is full, or has failed."""

    async def close(self) -> None:
        """Lets go of files and connections."""


class Tree(Protocol):
    """The folder of a local store, where people read what the catalog has. All calls block, and raise OSError."""

    def note(self, prefix: str, name: str, content: str) -> None:
        """Puts a small file into an experiment's folder, whole or not at all."""

    def read_note(self, prefix: str, name: str) -> str | None:
        """Such a file's text; None where there is none."""

    def metrics(self, prefix: str) -> list[str]:
        """The metrics that have rows there."""

    def length(self, prefix: str, metric: str) -> int:
        """How many whole rows a metric has there; a begun one at the end is cut off."""

    def lines(self, prefix: str, metric: str, start: int) -> list[str]:
        """The rows from a position on, a line each."""

    def append(self, prefix: str, metric: str, lines: Sequence[str], *, anew: bool = False) -> None:
        """Appends rows; who reads meanwhile sees whole lines, but the last may be begun. `anew`: beside those there."""

    def clear(self, prefix: str, metric: str) -> None:
        """Drops what was written anew before. Idempotent."""

    def publish(self, prefix: str, metric: str) -> None:
        """Puts what was written anew in the place of the rows that are there, in one step."""

    def sync(self, prefix: str, metric: str) -> None:
        """Brings a metric's rows to stable storage. Idempotent."""


class Supervisor(Protocol):
    """Who started the daemon and looks after it, such as systemd."""

    pause_s: float
    """It wants to hear from the daemon this often."""

    def report(self, text: str) -> None:
        """Says that the daemon lives and, in a line, how it does. Never waits, never fails."""


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


class Feedable(Protocol):
    """What takes bytes in order: a Digester, a hashlib hash."""

    def update(self, data: memoryview, /) -> None:
        """Takes the next bytes."""


class Pins(Protocol):
    """Keeps sources. All calls block: run them in a thread."""

    def take(self, descriptor: int, file_id: int, source: str, protection: Protection) -> tuple[Pin, bytes | None, int]:
        """Pins an open file in the quickest way that protects it that far.

        Returns the pin, the content of an inline one, and the size. The descriptor stays the caller's. Raises the
        errors of a file that can't be taken.
        """

    def lease(self, job: Job) -> str | None:
        """Has whoever opens a linked or held source to write to it wait, until `unlease` or `release`.

        Why not, where that can't be; never raises.
        """

    def leased(self, file_id: int) -> bool:
        """Whether such a lease is held, and nobody waits for it. Does not block."""

    def wanted(self) -> list[int]:
        """The files that somebody waits to write to. Does not block."""

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
        """Pins what a job on its way has pinned for another file, too, as `take` does; no byte is copied.

        Raises SOURCE_LOST where it was let go. It may have been for a moment, and a slot be used again: whoever calls
        looks at the job once more.
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

    def note_failed(self, pin: Pin) -> None:
        """Notes that the source is kept for a file that failed, until it is opened for another try or released.

        Who is refused for want of room is told how much is kept so. Idempotent.
        """

    def rebase(self, job: Job) -> Pin | None:
        """The pin with a new baseline, where its file in the spool is the same in another place; else None. Blocks.

        That is where the state folder was copied, or its disk has another number since the boot.
        """

    def sweep(self, jobs: Sequence[Job]) -> int:
        """Removes what no job needs from the spool, at start; returns how many files that were."""

    def spool_bytes(self) -> int:
        """What the spool takes on disk, without what is only linked."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A spool file that a client writes into. The descriptor is the daemon's own."""

    number: int
    capacity_bytes: int
    descriptor: int


class Slots(Protocol):
    """Spool files for clients to write into, each belonging to one connection. All calls block."""

    def grant(self, connection: int, size_bytes: int) -> Slot:
        """A slot of at least that size, allocated; raises DISK_FULL. One that the connection had is used again."""

    def grow(self, connection: int, number: int, size_bytes: int) -> Slot:
        """A granted slot with at least that size, allocated, and what was in it; raises DISK_FULL. Idempotent."""

    def commit(self, connection: int, number: int, size_bytes: int, file_id: int) -> Pin:
        """The pin of a granted slot, that file's until `Pins.release`; it is not granted again before. Idempotent."""

    def give_back(self, connection: int, number: int) -> None:
        """Takes a granted slot back, to be granted again. Idempotent."""

    def prepare(self, connection: int, size_bytes: int) -> None:
        """Has a slot of that size ready for the connection's next save, where there is room for one. Idempotent."""

    def trim(self) -> None:
        """Lets go of slots that wait for a save, where the machine's memory is short. Idempotent."""

    def disconnect(self, connection: int) -> None:
        """Wipes the connection's slots: at once, or when they are released."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file that lies in the inbox, as the kernel states it: whose it is, and when it was handed over."""

    key: bytes
    uid: int
    handed_ms: int


class Inbox(Protocol):
    """A folder in which clients leave files while nobody answers. All calls but `changed` block: use a thread.

    Whoever the folder lets in may write anything there: nothing is believed but what the kernel says.
    """

    def changed(self) -> bool:
        """Whether something may have come since the last look. Takes microseconds."""

    def look(self) -> list[Dropped]:
        """What lies there whole, in the order in which it was handed over, at most so many; without what was refused.

        Raises OSError where the folder can't be read.
        """

    def open(self, dropped: Dropped) -> tuple[Upload, int]:
        """The message, and a descriptor of its file, which the caller closes. Raises the error of what is no hand-off.

        Raises OSError for what may be readable the next time.
        """

    def remove(self, dropped: Dropped) -> None:
        """It is taken in. Idempotent."""

    def refuse(self, dropped: Dropped, trouble: Trouble) -> None:
        """Notes why it is not taken in; it is not found by `look` any more, and stays for a week. Idempotent."""

    def refusal(self, uid: int, key: bytes) -> Trouble | None:
        """Why that user's file was refused."""

    def tidy(self, now_ms: int) -> int:
        """Removes what has been no hand-off for a day, and what was refused a week ago; returns how many files."""


class Manifest(Protocol):
    """The file of the state folder that lists what a drain has left. All calls block: run them in a thread."""

    def write(self, facts: Mapping[str, Any]) -> str:
        """Puts it in the place of the last one, whole or not at all; returns its name there. Raises OSError."""

    def exists(self) -> bool:
        """Whether there is one."""

    def remove(self) -> None:
        """Takes it away. Idempotent."""


class Threads(Protocol):
    """Where blocking work runs."""

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Runs it in a thread of the pool and returns what it returns."""

    def strand(self) -> Strand:
        """Work that is to be done in order, one after the other, beside whatever else there is."""


class Strand(Protocol):
    """Work in order. No thread is kept while there is none."""

    def submit(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Does it after all that was submitted before. To cancel the future does not keep it from being done."""


class Buffers(Protocol):
    """Memory for parts, under one budget that all files share."""

    async def take(self, size_bytes: int) -> memoryview:
        """A buffer of that size, as soon as the budget allows; give it back, or discard it."""

    def give_back(self, buffer: memoryview) -> None:
        """The buffer may be used again."""

    def discard(self, buffer: memoryview) -> None:
        """As give_back, but the memory is not used again: a dead connection may still hold it (rule C1)."""


@dataclass(frozen=True, slots=True)
class Session:
    """A client's connection, as the kernel states it."""

    number: int
    uid: int
    pid: int


Send = Callable[[Message], Awaitable[None]]


class Service(Protocol):
    """What answers the messages of a connection."""

    async def handle(
        self, session: Session, message: Message, descriptors: Sequence[int], send: Send
    ) -> tuple[Message, Sequence[int]]:
        """The reply to a request, and the descriptors that go with it. `send` is for what comes before the reply.

        The request's descriptors are closed by the caller afterwards. Raises MLDashError for a refusal.
        """

    def disconnected(self, session: Session) -> None:
        """The connection has ended."""
