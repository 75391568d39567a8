"""What a client asks of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import (
    INLINE_BYTES,
    KIB,
    MANY,
    Described,
    Json,
    Key,
    Message,
    Name,
    Origin,
    Place,
    Ranges,
    Tags,
    Text,
)
from ml_dash.schema import Max
from ml_dash.wire import MAX_DESCRIPTORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The first message of a connection: the versions that the client speaks."""

    kind: ClassVar[int] = 1
    min_version: int
    max_version: int
    client: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Message):
    """Hands over an open file, the one descriptor beside it. `source` is its path, for messages and recovery.

    With an `origin` it keeps its id: one that is there already is answered as it is there, and none takes its place.
    """

    kind: ClassVar[int] = 3
    limit: ClassVar[int] = 640 * KIB
    descriptors: ClassVar[range] = range(1, 2)
    key: Key
    file: Described
    source: Name
    durability: Name = ""
    snapshot: Name = ""
    origin: Origin | None = None
    protect: Name = ""


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
    """A file in a PutMany: its content as in a Put, or a `source` as in an Upload, which owns the next descriptor."""

    key: Key
    file: Described
    content: Annotated[bytes, Max(INLINE_BYTES)] = b""
    sha256: Annotated[bytes, Max(32)] = b""
    source: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSlot(Message):
    """Asks for a spool file of at least `size_bytes` to write into; `held` names slots whose descriptors are kept."""

    kind: ClassVar[int] = 5
    size_bytes: int
    held: Annotated[tuple[int, ...], Max(64)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSlot(Message):
    """Hands over the first `size_bytes` of a slot.

    `seal`: they are a zip archive whose checksums the daemon is to put right before it reads them.
    """

    kind: ClassVar[int] = 6
    limit: ClassVar[int] = 640 * KIB
    key: Key
    slot: int
    file: Described
    size_bytes: int
    durability: Name = ""
    seal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSlot(Message):
    """Gives back a slot that will not be committed."""

    kind: ClassVar[int] = 7
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class List(Message):
    """Asks for a page of files. `pattern` is a glob relative to the place's prefix; `cursor` is the last page's.

    Only files that have all of `tags` count, for `latest`, too.
    With `everywhere` they are the stored files of all experiments, in the order of their ids, whatever else is asked.
    Files of sets that are not complete are left out, unless `pending` asks for them, too.
    """

    kind: ClassVar[int] = 8
    place: Place
    pattern: Name | None = None
    latest: bool = False
    cursor: Name | None = None
    page_size: int = 500
    everywhere: bool = False
    tags: Tags = ()
    pending: bool = False


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
    """Deletes the files of these ids, or, where one may not be, none; one that is on its way is cancelled.

    With `unless_stored` nothing is deleted that is stored, and where one of them is, nothing at all.
    """

    kind: ClassVar[int] = 11
    ids: Annotated[tuple[int, ...], Max(1000)]
    unless_stored: bool = False


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
    """Hands over several small contents and open files, all or none of them."""

    kind: ClassVar[int] = 15
    limit: ClassVar[int] = Put.limit
    descriptors: ClassVar[range] = range(MAX_DESCRIPTORS + 1)
    files: Annotated[tuple[Content, ...], Max(MANY)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch(Message):
    """Asks for another connection to the same daemon, whatever has become of the path that led to it."""

    kind: ClassVar[int] = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Examine(Message):
    """Asks for all that may be wrong with the daemon, its disks and its store to be looked at: it takes seconds."""

    kind: ClassVar[int] = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Message):
    """Changes what is said of a file; what is left out stays as it is. `metadata` is replaced as a whole."""

    kind: ClassVar[int] = 18
    limit: ClassVar[int] = 640 * KIB
    id: int
    description: Text | None = None
    tags: Tags | None = None
    bindrs: Tags | None = None
    metadata: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate(Message):
    """Hands over what another file holds: it is copied within the store, or pinned again where it is on its way."""

    kind: ClassVar[int] = 19
    limit: ClassVar[int] = 640 * KIB
    key: Key
    source: int
    file: Described


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune(Message):
    """Deletes stored versions beyond the `keep_last` newest of each path, but for those that have one of `keep_tags`.

    `pattern` is a glob relative to the place's prefix; `cursor` is that of the last Pruned. A `dry_run` deletes none.
    """

    kind: ClassVar[int] = 20
    place: Place
    keep_last: int
    pattern: Name | None = None
    keep_tags: Tags = ()
    dry_run: bool = False
    cursor: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowSlot(Message):
    """Asks for a slot that is being written to have at least `size_bytes`; what is in it stays."""

    kind: ClassVar[int] = 28
    slot: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Message):
    """Asks for files that failed, or wait for an operator, to be tried now; with `everything`, for all of them."""

    kind: ClassVar[int] = 21
    ids: Annotated[tuple[int, ...], Max(MANY)] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify(Message):
    """Asks for stored files to be read in the store and compared with their SHA-256. Progress comes meanwhile."""

    kind: ClassVar[int] = 22
    ids: Annotated[tuple[int, ...], Max(MANY)]
