"""What the daemon knows of a file. Values only; every change makes a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from ml_dash.errors import TABLE, Code
from ml_dashd.core import about
from ml_dashd.core.about import About
from ml_dashd.core.sets import Share
from ml_dashd.core.states import State

MAX_FILE_BYTES = 100_000_000_000
"""The spec's 100 GB."""


class PinKind(StrEnum):
    """How the daemon keeps a source from vanishing. DURABILITY.md has the table of what each protects against."""

    INLINE = "inline"
    REFLINK = "reflink"
    LINK = "link"
    FD = "fd"
    COPY = "copy"
    SLOT = "slot"
    OBJECT = "object"
    """Another file's object in the store, of which this one becomes a duplicate; `source` is its key."""
    NONE = "none"
    """Let go: the file is stored."""


class Protection(StrEnum):
    """The least that a pin must outlive."""

    RESTART = "restart"
    """Whatever is quick; a descriptor, held in memory, where there is nothing better."""
    REBOOT = "reboot"
    """Something on a disk: no mere descriptor."""
    COPY = "copy"
    """The caller's own writes: bytes of our own."""


class Algorithm(StrEnum):
    """The checksum by which a store proves what it received."""

    CRC64NVME = "crc64nvme"
    CRC32C = "crc32c"
    MD5 = "md5"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What fstat says of a source. `ctime_ns` may change without the content; the others may not."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    def same_content(self, other: Fingerprint) -> bool:
        """Whether nothing that a write changes has changed. A write through mmap may go unseen: CRCs see it."""
        return (self.device, self.inode, self.size_bytes, self.mtime_ns) == (
            other.device,
            other.inode,
            other.size_bytes,
            other.mtime_ns,
        )


@dataclass(frozen=True, slots=True)
class Pin:
    """A source that is kept. `name` is a file in the spool ("" for inline and fd), `source` the caller's path."""

    kind: PinKind
    name: str = ""
    source: str = ""
    fingerprint: Fingerprint | None = None


Experiment = tuple[str, str, str]
"""Namespace, project, experiment."""


@dataclass(frozen=True)  # without slots: edge/rows.py makes thousands of them of their dicts
class FileRecord:
    """A version of a file, as the catalog keeps it. `metadata` is JSON text; times are ms since 1970, UTC."""

    id: int
    owner_uid: int
    namespace: str
    project: str
    experiment: str
    prefix: str
    filename: str
    size_bytes: int
    content_type: str
    created_ms: int
    updated_ms: int
    description: str | None = None
    tags: tuple[str, ...] = ()
    bindrs: tuple[str, ...] = ()
    metadata: str | None = None
    sha256: str | None = None
    crc64nvme: int | None = None
    key: str | None = None
    etag: str | None = None
    uploaded_ms: int | None = None
    deleted_ms: int | None = None
    revision: int = 0
    """How often what is said of it was changed: a commit never takes a later word back."""
    share: Share | None = None
    """The rank's share of a set that it belongs to (core/sets.py)."""
    pending: bool = False
    """Its set is not complete: only who asks for what is pending sees it."""
    missing_ms: int | None = None
    """When the store was found to have no object of it, though nobody deleted it (core/reconcile.py)."""

    @property
    def path(self) -> str:
        """The prefix and the filename, "/" between them: what patterns are matched against."""
        return f"{self.prefix}/{self.filename}" if self.prefix else self.filename

    @property
    def identity(self) -> tuple[object, ...]:
        """What no later word changes: of one id, two that differ in it are two files."""
        return self.owner_uid, self.key, self.sha256

    @property
    def group(self) -> Experiment:
        """The experiment that it belongs to; those take turns."""
        return self.namespace, self.project, self.experiment


@dataclass(frozen=True, slots=True)
class Amendment:
    """What is to be said of a file from now on; None leaves a word as it is."""

    description: str | None = None
    tags: tuple[str, ...] | None = None
    bindrs: tuple[str, ...] | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a file does not move on: a code, the message that names the thing, and what to do."""

    code: Code
    message: str
    hint: str


@dataclass(frozen=True)  # as a record
class Job:
    """A file on its way: its record, its pin, and where the upload stands. One row of the journal."""

    record: FileRecord
    pin: Pin
    state: State = State.QUEUED
    on_disk: bool = False
    attempt: int = 0
    not_before_ms: int = 0
    cancel_requested: bool = False
    blocked: bool = False
    trouble: Trouble | None = None
    upload_id: str | None = None
    part_size: int = 0
    algorithm: Algorithm = Algorithm.NONE
    priority: int = 0
    """Higher goes first."""
    supersedes: bool = False
    """Older versions of its path that are on their way give way to it."""
    superseded_by: int | None = None
    """The newer version to which it gave way; it is cancelled for that."""
    seal: bool = False
    """The source is an archive in a slot, whose checksums are put right before it is read."""
    said_ms: int | None = None
    """Of a file that was stored elsewhere before: when it was changed last there, for as long as it is not here."""
    proof: str | None = None
    """The whole object's checksum in the algorithm's own form, once every byte was read (core/checksum.py)."""

    @classmethod
    def stored(cls, record: FileRecord, *, gone: bool = False) -> Job:
        """A file of which the catalog alone tells: nothing of it is kept here. `gone`: it is being deleted."""
        trouble = None if record.missing_ms is None else missing(record)
        return cls(record, Pin(PinKind.NONE), state=State.DONE, on_disk=True, cancel_requested=gone, trouble=trouble)

    @property
    def id(self) -> int:
        return self.record.id

    @property
    def listed(self) -> FileRecord:
        """As the catalog has it: `updated_ms` is the journal's own until then."""
        if self.said_ms is None or self.record.revision:
            return self.record
        return replace(self.record, updated_ms=self.said_ms)

    @property
    def target(self) -> Target:
        """Where its object goes, and what is said of it there."""
        record = self.record
        depth = record.experiment.count("/") + 1
        said = about.write(About(record.owner_uid, depth, record.share is not None, record.sha256))
        return Target(record.key or "", self.id, record.size_bytes, record.content_type, self.algorithm, said)


def missing(record: FileRecord) -> Trouble:
    """What is said of a stored file whose object the store does not have, whoever finds that out."""
    code = Code.OBJECT_MISSING
    return Trouble(code, f"the store has no object {record.key}", TABLE[code].hint)


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that the store has: as it answered when it was sent, or as it lists it."""

    number: int
    size_bytes: int
    etag: str
    checksum: str | None = None
    crc64nvme: int | None = None
    """What we computed of the bytes that we sent; the journal keeps it, the store does not state it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object goes, and what is said of it when it is begun."""

    key: str
    file_id: int
    size_bytes: int
    content_type: str
    algorithm: Algorithm | None = None
    """The checksum with which it was begun; None leaves it to the store."""
    about: str = ""
    """What the object is to say of itself (core/about.py)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a store states of an object that it has."""

    size_bytes: int
    etag: str
    checksum: str | None = None
    file_id: int | None = None
    about: About | None = None
    content_type: str = ""
    """"" where the store keeps none."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a store lists it. `modified_ms` is when it was made, by the store's clock."""

    key: str
    size_bytes: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that the store has begun and not completed.

    `begun_ms` is when that was, or when something came last, by the store's clock, where it says so; `file_id` whose it
    is, where that can be told.
    """

    key: str
    upload_id: str
    begun_ms: int | None = None
    file_id: int | None = None


class Owned(Protocol):
    """What belongs to somebody, and to an experiment: a file, a set."""

    @property
    def owner_uid(self) -> int: ...

    @property
    def namespace(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """The files that somebody may read: those of `owner_uid`, and all of these namespaces; without a uid, all."""

    owner_uid: int | None
    namespaces: frozenset[str] = frozenset()

    def holds(self, record: Owned) -> bool:
        """Whether this file, or set, is one of them."""
        return self.owner_uid in (None, record.owner_uid) or record.namespace in self.namespaces


EVERYBODY = Scope(None)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files are asked for: all of an experiment, or those at or below `prefix`, after `cursor`, at most `limit`.

    Those outside `scope` are left out.

    They come in the order of (path, newest first); `cursor` is the (path, id) of the last one seen. `pattern` is a
    glob relative to `prefix`, as core/narrow.py leaves it: who answers may leave out what does not fit it, and need
    not. `latest`: only the newest version of each path, and none of the cursor's. Each has
    all of `tags`. Files of sets that are not complete are left out, unless `pending` asks for them, too.
    """

    namespace: str
    project: str
    experiment: str
    prefix: str = ""
    pattern: str | None = None
    latest: bool = False
    cursor: tuple[str, int] | None = None
    limit: int = 500
    scope: Scope = EVERYBODY
    tags: tuple[str, ...] = ()
    pending: bool = False
