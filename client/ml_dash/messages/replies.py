"""What the daemon answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import KIB, MANY, Message, Name, Ranges, Record, Refusal, Text
from ml_dash.messages.sets import SetRecord
from ml_dash.schema import Max


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """The answer to Hello: the version that both use from here on.

    `inbox` is the folder for files while the daemon is down; "" where there is none.
    """

    kind: ClassVar[int] = 64
    version: int
    daemon: Name
    embedded: bool
    store: Name
    inbox: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """It was done; nothing more to say."""

    kind: ClassVar[int] = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """It was not done. `code` is a name of errors.Code."""

    kind: ClassVar[int] = 66
    code: Name
    message: Text
    hint: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Message):
    """The file is the daemon's from here on; `record.ack` says what that covers. After an Update: it is changed."""

    kind: ClassVar[int] = 67
    limit: ClassVar[int] = 1024 * KIB
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedMany(Message):
    """The files of a PutMany are the daemon's, in their order."""

    kind: ClassVar[int] = 76
    limit: ClassVar[int] = 1024 * KIB
    records: Annotated[tuple[Record, ...], Max(MANY)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotGranted(Message):
    """A slot to write into, its descriptor beside it unless the client holds it already."""

    kind: ClassVar[int] = 68
    descriptors: ClassVar[range] = range(2)
    slot: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Message):
    """Files in the order of their paths, newest first within a path. `cursor` is None on the last page."""

    kind: ClassVar[int] = 69
    limit: ClassVar[int] = 4096 * KIB
    records: Annotated[tuple[Record, ...], Max(1000)]
    cursor: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(Message):
    """How a Wait ended: how many files have got there, how many not yet, and the first that never will."""

    kind: ClassVar[int] = 70
    limit: ClassVar[int] = 1024 * KIB
    reached: int
    pending: int
    failed: Annotated[tuple[Record, ...], Max(16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted(Message):
    """What was deleted, and when."""

    kind: ClassVar[int] = 71
    ids: Annotated[tuple[int, ...], Max(1000)]
    deleted_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Message):
    """How far a Fetch, a Drain or a Verify has come; any number of them come before its answer.

    The files are a Drain's or a Verify's. `held_files` wait for an operator, or for their next try. `have` is what of
    a Fetch is written.
    """

    kind: ClassVar[int] = 72
    done_bytes: int
    total_bytes: int
    have: Ranges = ()
    done_files: int = 0
    total_files: int = 0
    held_files: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched(Message):
    """Every byte is written and its SHA-256 (hex) is the recorded one."""

    kind: ClassVar[int] = 73
    size_bytes: int
    sha256: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Files of one state, in a StatusReport."""

    state: Name
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far the daemon steps back for others, in a StatusReport: the settings of its table [limits]."""

    threads: int
    nice: int
    io_class: Name
    uncached_from: int
    bandwidth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport(Message):
    """How the daemon is doing. `blocked` and `failed` are samples, newest first; `moving` are the largest under way.

    `bytes_per_second` is what the store takes, as measured last; 0 where that is long ago. The error is why nothing
    can be taken in now. `superseded_files` gave way to newer versions; those of them that are gone count as CANCELLED.
    `sets` are the newest of those that are not complete.
    """

    kind: ClassVar[int] = 74
    limit: ClassVar[int] = 4096 * KIB
    version: Name
    pid: int
    embedded: bool
    store: Name
    state_dir: Name
    started_ms: int
    connections: int
    spool_bytes: int
    counts: Annotated[tuple[Count, ...], Max(16)]
    oldest_ms: int | None = None
    blocked: Annotated[tuple[Record, ...], Max(16)] = ()
    failed: Annotated[tuple[Record, ...], Max(16)] = ()
    error_code: Name | None = None
    error_message: Text | None = None
    error_hint: Text | None = None
    moving: Annotated[tuple[Record, ...], Max(32)] = ()
    bytes_per_second: int = 0
    superseded_files: int = 0
    limits: Limits | None = None
    sets: Annotated[tuple[SetRecord, ...], Max(16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained(Message):
    """How a Drain ended: what is left goes on by itself, now or at the next start.

    `left_bytes` are those that are not sent yet. `failed_files` have failed during the drain. `manifest` is the file
    that lists both, "" where there is nothing to list; `files` are the first of them.
    """

    kind: ClassVar[int] = 75
    limit: ClassVar[int] = 4096 * KIB
    left_files: int
    left_bytes: int
    failed_files: int
    manifest: Name = ""
    files: Annotated[tuple[Record, ...], Max(50)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Branched(Message):
    """Another connection, its socket beside this: the same user's, and as new as one that has just connected."""

    kind: ClassVar[int] = 77
    descriptors: ClassVar[range] = range(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that was looked at, in an Examined. `verdict` is ok, bad, or none: not to be had, or not tried."""

    name: Name
    verdict: Name
    found: Text
    hint: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined(Message):
    """What was found, in an order for people."""

    kind: ClassVar[int] = 78
    limit: ClassVar[int] = 4096 * KIB
    checks: Annotated[tuple[Check, ...], Max(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned(Message):
    """Versions that are deleted now, or would be; with a cursor there may be more: ask again with it."""

    kind: ClassVar[int] = 79
    limit: ClassVar[int] = 4096 * KIB
    records: Annotated[tuple[Record, ...], Max(500)]
    cursor: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(Message):
    """How many files go on; those that can't, at most so many of them, and why."""

    kind: ClassVar[int] = 81
    limit: ClassVar[int] = 4096 * KIB
    tried_files: int
    refused: Annotated[tuple[Refusal, ...], Max(MANY)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Message):
    """How many files were read, and those whose bytes are missing, or not the recorded ones.

    What is not stored, or was deleted meanwhile, is not read.
    """

    kind: ClassVar[int] = 82
    limit: ClassVar[int] = 4096 * KIB
    read_files: int
    read_bytes: int
    damaged: Annotated[tuple[Refusal, ...], Max(MANY)] = ()
