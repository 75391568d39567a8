"""What messages are made of: their base class, a file as its caller describes it and as the daemon knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.schema import Max, Within

KIB = 1024
INLINE_BYTES = 64 * KIB
"""The largest content that travels inside a message and rests in the journal; the design's number."""


Name = Annotated[str, Max(4096)]
"""A path or a part of one; the real limits are the daemon's (core/names.py), this one bounds the frame."""
Text = Annotated[str, Max(16 * KIB)]
Json = Annotated[str, Max(256 * KIB)]
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
class Share:
    """What a rank contributes to a set of files; `key` is 16 random bytes. `name` is below the place of the set.

    In a Record it is below the experiment.
    """

    key: Key
    name: Name
    attempt: Name
    rank: int
    world_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What the caller says of a file. `metadata` is JSON text of an object, or None.

    With `supersede` it takes the place of the caller's older versions of that path that are not stored yet. With a
    `share` it lies below the set's name, and is seen once the set is complete.
    """

    place: Place
    to: Name
    description: Text | None = None
    tags: Tags = ()
    bindrs: Tags = ()
    metadata: Json | None = None
    priority: Priority = 0
    supersede: bool = False
    share: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A file that was stored elsewhere before, and keeps what it had there: its id, its times, its SHA-256 (hex)."""

    id: int
    created_ms: int
    updated_ms: int
    sha256: Annotated[str, Max(64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A file of many with which something is wrong, or could not be done."""

    id: int
    path: Name
    code: Name
    message: Text
    hint: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A file as the daemon knows it: the catalog's fields, and how far it has come. Times are ms since 1970, UTC.

    `pending`: the set that it is a share of is not complete.
    """

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
    share: Share | None = None
    pending: bool = False
