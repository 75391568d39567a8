"""What a save in the background takes at its call: a GPU's tensors, copied to the host; the rest is written at once.

`torch.save` runs as ever, and what it writes of the host's tensors goes into the slot: that is their snapshot already.
It is given a copy of each storage of a GPU, in page-locked memory, and only the place of its bytes in the file is kept:
they are written later.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

from ml_dash.slot_writer import GATHER_BYTES, SlotWriter

ON_GPU = frozenset({"cuda"})
"""Devices that copy on streams; torch itself copies from the others, while it saves."""


class Piece(NamedTuple):
    """A tensor of bytes in page-locked memory, and where they belong in the file."""

    at: int
    copied: Any

    def write_to(self, slot: SlotWriter) -> None:
        slot.seek(self.at)
        slot.write(self.copied.numpy())


class Copies:
    """Copies of a GPU's storages on the host, each made once, on a stream of its own for each GPU.

    They run beside what the caller's stream does; their content is there once `wait` has returned. `room` is called
    before the first one.
    """

    def __init__(self, torch: Any, room: Callable[[], None]) -> None:
        self._torch = torch
        self._room = room
        self._streams: dict[Any, Any] = {}
        self._made: dict[int, tuple[Any, Any]] = {}
        """By the storage's identity, with the storage: that of one that is gone may be another's."""
        self._by_address: dict[int, Any] = {}

    def are_for(self, storage: Any) -> bool:
        return storage.device.type in ON_GPU

    def copy(self, storage: Any) -> Any:
        """The storage on the host; its content comes."""
        identity = storage._cdata  # noqa: SLF001 as torch.save tells storages apart
        if identity not in self._made:
            if not self._made:
                self._room()
            self._made[identity] = (storage, copied := self._copied(storage))
            self._by_address[copied.data_ptr()] = copied
        return self._made[identity][1].untyped_storage()

    def wait(self) -> None:
        """Returns once every copy that was begun is there."""
        streams, self._streams = self._streams, {}
        for event in [stream.record_event() for stream in streams.values()]:
            event.synchronize()

    def let_go(self) -> None:
        """Of the GPU's memory, and of the copies: whoever needs some has them."""
        self._made.clear()
        self._by_address.clear()

    def at(self, view: memoryview) -> Any:
        """The copy that these bytes are; None where they are something else."""
        if not self._by_address or view.nbytes < GATHER_BYTES:
            return None
        address = import_module("numpy").frombuffer(view, "u1").__array_interface__["data"][0]
        copied = self._by_address.get(address)
        return copied if copied is not None and copied.numel() == view.nbytes else None

    def _copied(self, storage: Any) -> Any:
        torch, device = self._torch, storage.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        source = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        into = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=True)
        with torch.cuda.stream(self._streams[device]):
            into.copy_(source, non_blocking=True)
        return into


class Later:
    """The file that `torch.save` writes to. Of the copies it keeps the places: `pieces`."""

    def __init__(self, slot: SlotWriter, out: io.BufferedRandom, copies: Copies) -> None:
        self._slot = slot
        self._out = out
        self._copies = copies
        self.pieces: list[Piece] = []

    def write(self, data: Any) -> int:
        self._copies.wait()  # torch has seen all tensors by now, and may read what it writes
        view = memoryview(data)
        if (copied := self._copies.at(view)) is None:
            return self._out.write(view)
        at = self._out.tell()
        self._out.flush()
        self._slot.extend(at + view.nbytes)
        self._out.seek(at + view.nbytes)
        self.pieces.append(Piece(at, copied))
        return view.nbytes

    def flush(self) -> None:
        self._out.flush()


def pickling(torch: Any, copies: Copies) -> Any:
    """A module for `torch.save(pickle_module=)`: of a GPU's storages it shows torch the copies.

    What they are called in the file, and where they lay, stays.
    """

    class Pickler(pickle.Pickler):
        def __init_subclass__(cls, **named: Any) -> None:
            """There is a class of torch's made of this one, whose `persistent_id` knows storages."""
            super().__init_subclass__(**named)
            by_torch = cls.persistent_id

            def persistent_id(self: Any, one: Any) -> Any:
                storage = one._untyped_storage if isinstance(one, torch.storage.TypedStorage) else one  # noqa: SLF001
                if not isinstance(storage, torch.UntypedStorage) or not copies.are_for(storage):
                    return by_torch(self, one)
                copied = copies.copy(storage)
                if storage is not one:
                    copied = torch.storage.TypedStorage(wrap_storage=copied, dtype=one.dtype, _internal=True)
                kind, named, key, _, count = by_torch(self, copied)
                return kind, named, key, torch.serialization.location_tag(storage), count

            cls.persistent_id = persistent_id  # type: ignore[method-assign]

    return SimpleNamespace(__name__=pickle.__name__, Pickler=Pickler)
