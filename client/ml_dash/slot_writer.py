"""A file that serializers write into, straight into a slot of the daemon's: what is saved is copied once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError
from ml_dash.lease import Lease
from ml_dash.messages import INLINE_BYTES, Accepted, Message
from ml_dash.patience import Patience

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

FIRST_SLOT_BYTES = 1024 * 1024
"""Of what turns out to be more than fits into a message, when nobody knows how much it will be."""
GROW_BYTES = 1024**3
"""A slot grows by half, and by so much at most: each time costs a question, and what is not used stays reserved."""
GATHER_BYTES = 256 * 1024
"""What is written in smaller pieces is gathered first: a system call a piece would cost more than its bytes."""
LARGEST_BYTES = 100_000_000_000
"""The spec's 100 GB: no file may be larger, nor a slot, so none asks for more than it needs there."""


class SlotWriter(io.RawIOBase):
    """What `write`, `read`, `seek`, `tell` and `truncate` need of a file. It has no descriptor.

    It begins in memory, for content that travels in a message, goes on in a slot, and makes it larger as it needs to.
    Where the slot can't grow, for want of room or of the daemon, the rest is written in memory: no write waits or
    fails for that, since serializers in C++ may not survive it, and an object that is written once may not be written
    again (a generator's). What is in memory is then saved as bytes are.
    """

    def __init__(self, connection: Connection, size_hint: int, patience: Patience) -> None:
        super().__init__()
        self._connection = connection
        self._patience = patience
        self._lease: Lease | None = None
        self._memory = bytearray()
        self._stays_in_memory = False
        self._hint = size_hint
        self._at = 0
        self.size_bytes = 0
        self._ended = False
        """What is written from here on goes nowhere: it was not to be handed over."""
        self.kept = False
        """It outlives the block that it was made for: somebody goes on writing."""
        self.failure: BaseException | None = None
        """What a write has raised: Ctrl-C, mostly. A serializer in C++ may raise something else for it."""
        if size_hint > INLINE_BYTES:
            self._lease = connection.lease(size_hint, patience)  # nothing is written yet, so it can wait for room

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"a negative position, {start + offset}")
        self._at = start + offset
        return self._at

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        if size < self.size_bytes:
            self.size_bytes = size
            del self._memory[size:]
        elif size > self.size_bytes:
            self._fill_to(size)
        return size

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            view = memoryview(data)
            if view.nbytes and not self._ended:
                if self._at > self.size_bytes:
                    self._fill_to(self._at)
                self._put(view.cast("B"))
        except BaseException as failure:
            self.failure = failure
            raise
        return view.nbytes

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """What was written, for formats whose start is known at the end, such as that of a video."""
        into = memoryview(buffer).cast("B")
        count = max(0, min(len(into), self.size_bytes - self._at))
        if self._lease is None:
            into[:count] = self._memory[self._at : self._at + count]
        else:
            self._lease.read_into(into[:count], self._at)
        self._at += count
        return count

    def extend(self, size_bytes: int) -> None:
        """Makes it that long; what is not written yet will be."""
        self._make_room(size_bytes)
        if self._lease is None:
            self._memory.extend(bytes(max(0, size_bytes - len(self._memory))))
        self.size_bytes = max(self.size_bytes, size_bytes)

    def hand_over(
        self, put: Callable[[bytes], Callable[[int], Message]] | None, commit: Callable[[int], Callable[..., Message]]
    ) -> Accepted:
        """Saves what was written: `put` makes the message of small content, `commit` that of a slot by its size.

        Nothing is written afterwards: the slot is the daemon's. Without `put` small content goes in a slot, too.
        """
        self._ended = True
        if put is not None and self.size_bytes <= INLINE_BYTES:
            if self._lease is not None:
                self._memory = self._lease.read(self.size_bytes)
            self.discard()
            return self._connection.hand_over(Accepted, put(bytes(self._memory)))
        lease, self._lease = self._lease, None
        build = commit(self.size_bytes)
        if lease is not None:
            if (accepted := self._connection.commit(lease, build, self._patience)) is not None:
                return accepted
            self._memory = lease.read(self.size_bytes)  # the daemon is gone, and the slot; the content is here
        return self._connection.save(memoryview(self._memory), build)

    @property
    def left(self) -> memoryview:
        """What was to be handed over, where that has failed."""
        return memoryview(self._memory)

    def discard(self) -> None:
        """Lets go of the slot, if it was not handed over. Idempotent."""
        self._ended = True
        lease, self._lease = self._lease, None
        if lease is not None:
            self._connection.release(lease)

    def _put(self, view: memoryview) -> None:
        end = self._at + len(view)
        self._make_room(end)
        if self._lease is not None:
            self._lease.write(view, self._at)
        else:
            self._memory[self._at : end] = view
        self._at = end
        self.size_bytes = max(self.size_bytes, end)

    def _fill_to(self, size: int) -> None:
        """Zeros behind the end: a slot that is used again has what was in it before."""
        at, self._at = self._at, self.size_bytes
        while self._at < size:
            self._put(memoryview(bytes(min(size - self._at, FIRST_SLOT_BYTES))))
        self._at = at

    def _make_room(self, end: int) -> None:
        if self._lease is None:
            if end > INLINE_BYTES and not self._stays_in_memory:
                self._begin_slot(max(end, self._hint, FIRST_SLOT_BYTES))
        elif end > (capacity := self._lease.capacity_bytes):
            wanted = min(capacity * 3 // 2, capacity + GROW_BYTES, LARGEST_BYTES)
            if not self._connection.grow(self._lease, max(end, wanted)):
                self._leave_slot(self._lease)

    def _leave_slot(self, lease: Lease) -> None:
        self._memory = lease.read(self.size_bytes)
        self._lease, self._stays_in_memory = None, True
        self._connection.release(lease)

    def _begin_slot(self, size: int) -> None:
        try:
            lease = self._connection.lease(size)
        except MLDashError as refused:
            if refused.code is Code.TOO_LARGE:
                raise
            self._stays_in_memory = True
            return
        lease.write(memoryview(self._memory), 0)
        self._lease, self._memory = lease, bytearray()


@contextmanager
def slot_writer(connection: Connection, size_hint: int) -> Iterator[tuple[SlotWriter, io.BufferedRandom]]:
    """A writer, and the file before it that gathers small pieces; large ones go through it as they are.

    The slot is let go where the block ends without handing it over, or keeping it.
    """
    with connection.uninterrupted() as free:
        slot = SlotWriter(free, size_hint, Patience(free.on_full))
        out = io.BufferedRandom(slot, GATHER_BYTES)
        try:
            yield slot, out
        except Exception:
            if slot.failure is not None:
                raise slot.failure from None
            raise
        finally:
            if slot.kept:
                out.detach()
            else:
                slot.discard()
                out.close()
