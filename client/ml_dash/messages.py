"""Every message, a frozen dataclass each; PROTOCOL.md lists them. Their annotations are the schema.

`decode` is strict: an unknown field, a missing one, a wrong type or a value past its bound raises ProtocolError. A
field with a default may be left out, and `encode` does so. It trusts its caller.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from ml_dash import wire
from ml_dash.errors import Code, ProtocolError, error
from ml_dash.schema import Max, Within, broken, plain, reader

KIB = 1024
INLINE_BYTES = 64 * KIB
"""The largest content that travels inside a message and rests in the journal; the design's number."""


Name = Annotated[str, Max(4096)]
"""A path or a part of one; the real limits are the daemon's (core/names.py), this one bounds the frame."""
Text = Annotated[str, Max(16 * KIB)]
Json = Annotated[str, Max(256 * KIB)]
SHORT = 128
"""No bound is less: what is shorter in all needs no closer look."""
DESCRIBED_BYTES = 512 * KIB
"""All that is said of a file: texts are bounded in characters, frames in bytes."""
MANY = 256
"""Files in a PutMany; their bytes are bounded by its frame."""
Tags = Annotated[tuple[Annotated[str, Max(256)], ...], Max(128)]
Key = Annotated[bytes, Max(16)]
"""An idempotency key: 16 random bytes; a request that comes again with the same key has the same answer."""
Ranges = Annotated[tuple[int, ...], Max(64)]
"""Ranges of a file: offsets that rise, from and up to in turn."""

PRIORITIES = Within(-100, 100)
Priority = Annotated[int, PRIORITIES]
"""Higher goes first. 201 steps are more than anybody tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A request or a reply. `kind` is its number in the frame's header, `limit` its largest payload in bytes."""

    kind: ClassVar[int]
    limit: ClassVar[int] = 64 * KIB
    descriptors: ClassVar[range] = range(1)

    request: int
    """Chosen by the client; every reply carries the number of its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a file belongs, in the caller's words; the daemon checks them (core/names.py)."""

    namespace: Name
    project: Name
    experiment: Name
    prefix: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What the caller says of a file. `metadata` is JSON text of an object, or None."""

    place: Place
    to: Name
    description: Text | None = None
    tags: Tags = ()
    bindrs: Tags = ()
    metadata: Json | None = None
    priority: Priority = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A file as the daemon knows it: the catalog's fields, and how far it has come. Times are ms since 1970, UTC."""

    id: int
    namespace: Name
    project: Name
    experiment: Name
    path: Name
    filename: Name
    size_bytes: int
    content_type: Name
    created_ms: int
    updated_ms: int
    state: Name
    ack: Name
    pin: Name
    description: Text | None = None
    tags: Tags = ()
    bindrs: Tags = ()
    metadata: Json | None = None
    sha256: Name | None = None
    uploaded_ms: int | None = None
    deleted_ms: int | None = None
    sent_bytes: int = 0
    attempt: int = 0
    error_code: Name | None = None
    error_message: Text | None = None
    error_hint: Text | None = None


# ---- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The first message of a connection: the versions that the client speaks."""

    kind: ClassVar[int] = 1
    min_version: int
    max_version: int
    client: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExperiment(Message):
    """Asks whether files can be kept there: checks the prefix."""

    kind: ClassVar[int] = 2
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Message):
    """Hands over an open file, the one descriptor beside it. `source` is its path, for messages and recovery."""

    kind: ClassVar[int] = 3
    limit: ClassVar[int] = 640 * KIB
    descriptors: ClassVar[range] = range(1, 2)
    key: Key
    file: Described
    source: Name
    durability: Name = ""
    snapshot: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put(Message):
    """Hands over content of at most INLINE_BYTES."""

    kind: ClassVar[int] = 4
    limit: ClassVar[int] = 640 * KIB + INLINE_BYTES
    key: Key
    file: Described
    content: Annotated[bytes, Max(INLINE_BYTES)]
    sha256: Annotated[bytes, Max(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A file in a PutMany: as in a Put."""

    key: Key
    file: Described
    content: Annotated[bytes, Max(INLINE_BYTES)]
    sha256: Annotated[bytes, Max(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSlot(Message):
    """Asks for a spool file of at least `size_bytes` to write into; `held` names slots whose descriptors are kept."""

    kind: ClassVar[int] = 5
    size_bytes: int
    held: Annotated[tuple[int, ...], Max(64)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSlot(Message):
    """Hands over the first `size_bytes` of a slot."""

    kind: ClassVar[int] = 6
    limit: ClassVar[int] = 640 * KIB
    key: Key
    slot: int
    file: Described
    size_bytes: int
    durability: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSlot(Message):
    """Gives back a slot that will not be committed."""

    kind: ClassVar[int] = 7
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class List(Message):
    """Asks for a page of files. `pattern` is a glob relative to the place's prefix; `cursor` is the last page's."""

    kind: ClassVar[int] = 8
    place: Place
    pattern: Name | None = None
    latest: bool = False
    cursor: Name | None = None
    page_size: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Get(Message):
    """Asks for files by id; those that are not known, or not the caller's to read, are left out.

    The answer has as many as fit, in the order of the ids; its cursor is the id from which to ask again.
    """

    kind: ClassVar[int] = 9
    ids: Annotated[tuple[int, ...], Max(1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Message):
    """Asks to be answered when every file has reached `until` (hashed, on_disk, stored), one can't, or time is up.

    With a `place`, the files are all of that experiment's that the caller may read (its prefix is not used);
    `timeout_ms` is at most 60,000: ask again.
    """

    kind: ClassVar[int] = 10
    until: Name
    timeout_ms: int
    ids: Annotated[tuple[int, ...], Max(1000)] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Message):
    """Deletes the files of these ids, or, where one may not be, none; one that is on its way is cancelled."""

    kind: ClassVar[int] = 11
    ids: Annotated[tuple[int, ...], Max(1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch(Message):
    """Asks for a file's bytes to be written into the descriptor beside it, from offset 0, and verified.

    `have` is what the last Progress of an earlier Fetch into the same file said: it is verified, and not fetched again.
    """

    kind: ClassVar[int] = 12
    descriptors: ClassVar[range] = range(1, 2)
    id: int
    have: Ranges = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Message):
    """Asks how the daemon is doing."""

    kind: ClassVar[int] = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Message):
    """Asks for the most valuable files to be sent first, until nothing is left or `deadline_ms` have passed.

    Progress comes meanwhile; hanging up ends the drain. `stop` ends the daemon once it has answered.
    """

    kind: ClassVar[int] = 14
    deadline_ms: int
    stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutMany(Message):
    """Hands over several small contents, all or none of them."""

    kind: ClassVar[int] = 15
    limit: ClassVar[int] = Put.limit
    files: Annotated[tuple[Content, ...], Max(MANY)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch(Message):
    """Asks for another connection to the same daemon, whatever has become of the path that led to it."""

    kind: ClassVar[int] = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Examine(Message):
    """Asks for all that may be wrong with the daemon, its disks and its store to be looked at: it takes seconds."""

    kind: ClassVar[int] = 17


# ---- replies


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """The answer to Hello: the version that both use from here on."""

    kind: ClassVar[int] = 64
    version: int
    daemon: Name
    embedded: bool
    store: Name


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
    """The file is the daemon's from here on; `record.ack` says what that covers."""

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
    """How far a Fetch or a Drain has come; any number of them come before its answer. The files are a Drain's.

    `held_files` wait for an operator, or for their next try. `have` is what of a Fetch is written.
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
class StatusReport(Message):
    """How the daemon is doing. `blocked` and `failed` are samples, newest first.

    The error is why nothing can be taken in now.
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


REQUESTS: dict[int, type[Message]] = {
    message.kind: message
    for message in (
        Hello, OpenExperiment, Upload, Put, RequestSlot, CommitSlot, ReleaseSlot, List, Get, Wait, Delete, Fetch,
        Status, Drain, PutMany, Branch, Examine,
    )
}  # fmt: skip
REPLIES: dict[int, type[Message]] = {
    message.kind: message
    for message in (
        Welcome, Done, Failed, Accepted, SlotGranted, Page, Waited, Deleted, Progress, Fetched, StatusReport,
        Drained, AcceptedMany, Branched, Examined,
    )
}  # fmt: skip
REQUEST_LIMITS = {kind: message.limit for kind, message in REQUESTS.items()}
REPLY_LIMITS = {kind: message.limit for kind, message in REPLIES.items()}


def encode(message: Message, descriptors: int = 0) -> bytes:
    """The frame of a message; send its descriptors with the first byte."""
    return wire.encode(message.kind, plain(message), descriptors)


def decode(frame: wire.Frame, kinds: Mapping[int, type[Message]]) -> Message:
    """The message that a frame holds; its descriptors stay the caller's. Raises ProtocolError."""
    schema = kinds[frame.kind]
    if len(frame.descriptors) not in schema.descriptors:
        raise broken(f"{schema.__name__} came with {len(frame.descriptors)} descriptors")
    message: Message = reader(cast("Hashable", schema))(frame.fields, schema.__name__)
    return message


def check(described: Described) -> None:
    """Raises INVALID_ARGUMENT where the caller's words are past a bound: the daemon would hang up for it."""
    place, tags = described.place, (*described.tags, *described.bindrs)
    texts = (described.to, described.description or "", described.metadata or "", *tags)
    names = (place.namespace, place.project, place.experiment, place.prefix)
    if sum(map(len, texts + names)) + len(tags) <= SHORT:
        return
    try:
        reader(cast("Hashable", Described))(plain(described), "")
    except ProtocolError as bad:
        raise error(Code.INVALID_ARGUMENT, bad.message.lstrip("."), "shorten it") from None
    size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    if size > DESCRIBED_BYTES:
        what = f"name, description, tags, bindrs and metadata take {size} bytes, at most {DESCRIBED_BYTES}"
        raise error(Code.INVALID_ARGUMENT, what, "shorten them")
