"""Where objects go, and what is found out of the server that keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from ml_dashd.core.capabilities import Capabilities
from ml_dashd.core.checksum import Digest
from ml_dashd.core.checkup import Reach
from ml_dashd.core.model import Algorithm, Evidence, FileRecord, OpenUpload, SentPart, Stored, Target
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import StoreError
from ml_dashd.ports.pins import Offer


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

    async def device(self) -> int | None:
        """The number of the file system whose files `adopt` may take; None where it takes none."""

    async def adopt(self, target: Target, upload_id: str, offer: Offer) -> bool:
        """Makes an upload of an open file without a copy: of itself, or of its blocks. Idempotent.

        False, and the upload as it was, where that can't be. Parts that are sent to it later, or just now, are left out
        where it is the file itself. Its outcome is not evidence: ask `list_parts`. Raises Fault.GONE where there is no
        such upload.
        """

    async def list_parts(self, target: Target, upload_id: str, part_size: int) -> list[SentPart]:
        """The parts that the store has, by number. Raises Fault.GONE when it has no such upload."""

    async def complete(self, target: Target, upload_id: str, parts: Sequence[SentPart], whole: Digest) -> None:
        """Makes the object of its parts. Its outcome is not evidence: ask `head`."""

    async def abort(self, target: Target, upload_id: str) -> None:
        """Forgets an upload and its parts. Idempotent."""

    async def head(self, key: str, *, glance: bool = False) -> Evidence | None:
        """What the store states of an object; None when there is none.

        At a `glance` nothing of it is read for that: a folder then states no checksum, so it is no proof there.
        """

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

    def objects(self, after: str = "") -> AsyncIterator[Sequence[Stored]]:
        """The objects of files whose keys come after that one, in the order of their keys as UTF-8.

        They come in pages of at most 1,000, none of which is empty. Nothing but a page is held.
        """

    def open_uploads(self) -> AsyncIterator[Sequence[OpenUpload]]:
        """The multipart uploads of files that are open, whoever has begun them, in such pages."""

    def place(self, key: str, depth: int) -> tuple[str, str, str, str, str] | None:
        """Where a file's key says that it belongs, if its experiment has so many segments (core/names.py)."""

    async def close(self) -> None:
        """Lets go of connections."""


class NotMountedError(OSError):
    """The folder of a store is not the one that it was: its disk may not be mounted."""


class Folder(Protocol):
    """The folder of a store, which a mark in it makes known. All calls block, and raise OSError."""

    def read(self) -> str | None:
        """What its mark says; None where it has none, "" of one that an operator has made."""

    def has_files(self) -> bool:
        """Whether objects are in it."""

    def mark(self) -> str:
        """Makes it, where it is missing, and its mark; returns what that says. The first of several daemons' stays."""

    def expect(self, known: str) -> None:
        """What its mark says from now on."""

    def refuse(self, failure: OSError) -> None:
        """What `check` raises from now on."""

    def check(self) -> None:
        """Raises NotMountedError unless the folder has that mark. An empty one is filled in. Takes microseconds."""


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
