"""Savers of tensors and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Unpack

from ml_dash import checkpoint, serialize
from ml_dash import messages as m
from ml_dash.arguments import Words, flag, only_known, split_words
from ml_dash.background import Background
from ml_dash.errors import Code, MLDashError, error
from ml_dash.handoff import Saved, path_of
from ml_dash.npz import Npz
from ml_dash.request import new_key
from ml_dash.result import FileResult
from ml_dash.safe import SafeTensors
from ml_dash.savers import Savers
from ml_dash.slot_writer import SlotWriter, slot_writer
from ml_dash.snapshot import Copies, Later, Piece, pickling
from ml_dash.unacknowledged import BackgroundResult


class Tensors(Savers):
    """The calls that save tensors and arrays, at a place of an experiment."""

    def save_torch(self, content: Any, *, to: str, background: bool = False, **described: Unpack[Words]) -> FileResult:
        """Saves tensors, state dicts, optimizers' states, modules: `torch.save` straight into the daemon's file.

        It takes about as long as a copy of the bytes in memory; once it returns, tensors may change. `torch.load` reads
        it back, bit for bit; storages that tensors share stay shared. With `background` it returns once the tensors of
        a GPU are copied to the host, and the rest is done meanwhile: the result is a BackgroundResult, whose file is
        not acknowledged before that says so. What is on the host already is saved at the call, as without it.

        Raises ValueError for what can't be pickled, ImportError without torch.
        """
        size, key = checkpoint.torch_size(content), new_key()
        if flag(background, "background") and size > m.INLINE_BYTES and self._may_go_on_behind():
            saved = self._saved(to, described.copy(), seal=True, key=key, in_order=True)
            if (result := self._save_behind(content, saved, size)) is not None:
                return result

        def write(out: BinaryIO, checksums: bool) -> None:
            checkpoint.write_torch(content, out, checksums=checksums)

        return self._save_archive(write, to, described, size, key)

    def save_safetensors(self, tensors: Mapping[str, Any], *, to: str, **described: Unpack[Words]) -> FileResult:
        """Saves tensors by their names in the format of safetensors, straight into the daemon's file.

        Tensors of torch, arrays of numpy and of jax; `safetensors.torch.load_file`, or another framework's, reads them
        back. `metadata` is the file's, and stands in the header, too, where what is not text is JSON.

        Raises ValueError for what the format can't hold: tensors that share memory, sparse or quantized ones, other
        objects. Nothing is saved without them.
        """
        metadata = described.get("metadata")
        said = self._defaults.metadata if metadata is None else metadata
        serialize.metadata_text(said)
        content = SafeTensors(tensors, said)
        return self._stream(to, described, content.write, size_hint=content.size_bytes)

    def save_npz(self, arrays: Mapping[str, Any] | None = None, *, to: str, **named: Any) -> FileResult:
        """Saves arrays as `numpy.savez` does, straight into the daemon's file; `numpy.load` reads them back.

        They are given by a dict, or by keywords that are none of upload()'s words; what is no array yet becomes one. A
        tensor of torch's is taken from its device. Raises ValueError for arrays of Python objects, masked ones, and
        types that numpy's format has no name for.
        """
        described, more = split_words(named, taken=())
        content = Npz(_arrays(arrays, more))

        def write(out: BinaryIO, checksums: bool) -> None:
            content.write(out, checksums=checksums)

        return self._save_archive(write, to, described, content.size_bytes, new_key())

    def _save_archive(
        self, write: Callable[[BinaryIO, bool], None], to: str, described: Words, size: int, key: bytes
    ) -> FileResult:
        """Saves what `write` writes: a zip archive, for the second argument with its checksums or without.

        `write` is called again, with them, where the daemon goes away in the middle and the file is left in an inbox,
        where nobody adds them.
        """
        seal = size > m.INLINE_BYTES
        while True:
            try:
                with self.writing(to, size_hint=size, seal=seal, key=key, **described) as written:
                    write(written.out, not written.seal)
            except MLDashError as failure:
                if not seal:
                    raise
                self._inbox_after(failure)
                seal = False
            else:
                return written.file

    def _may_go_on_behind(self) -> bool:
        """Not in a signal handler that has interrupted it, and not into an inbox, where nobody adds checksums."""
        return not self._connection.background.interrupted() and self._inbox_of_outage() is None

    def _save_behind(self, content: Any, saved: Saved, size: int) -> FileResult | None:
        """save_torch up to the snapshot. What is left to do then, if anything is, is done behind the earlier saves.

        None where nothing was, and the daemon, which has an inbox, went away.
        """
        background = self._connection.background
        rest = _Rest(saved, background)
        try:
            with slot_writer(background.connection, size) as (slot, out):
                copies = Copies(torch := checkpoint.torch_library(), rest.take_room)
                later = Later(slot, out, copies)
                try:
                    checkpoint.write_torch(content, later, checksums=False, pickle_module=pickling(torch, copies))
                finally:
                    copies.let_go()  # classes that are made for a save are collected later than their objects
                out.flush()
                rest.keep(slot, later.pieces)
            if later.pieces:
                return BackgroundResult(background.begin(path_of(saved.file), rest.do), self._connection)
            background.wait_for(path_of(saved.file))
            return self._result(rest.do())
        except MLDashError as failure:
            rest.let_go()
            self._inbox_after(failure)
            return None
        except BaseException:
            rest.let_go()
            raise


def _arrays(arrays: Mapping[str, Any] | None, named: dict[str, Any]) -> dict[str, Any]:
    if arrays is not None and not isinstance(arrays, Mapping):
        what = f"save_npz takes a dict of arrays, not {type(arrays).__name__}"
        raise error(Code.UNSUPPORTED_TYPE, what, 'pass {"name": array}, or name=array')
    for name, value in named.items():
        if isinstance(value, str | bytes | Mapping) or value is None:
            only_known({name: value})  # a word of upload()'s that is mistyped: nobody means such an array
        if arrays is not None and name in arrays:
            raise error(Code.INVALID_ARGUMENT, f"{name} is in the dict and a keyword, too", "pass it once")
    return {**(arrays or {}), **named}


class _Rest:
    """What is left to do of a save once its snapshot is taken, and the memory that this takes."""

    def __init__(self, saved: Saved, background: Background) -> None:
        self._saved = saved
        self._background = background
        self._has_room = False
        self._slot: SlotWriter | None = None
        self._pieces: list[Piece] = []

    def take_room(self) -> None:
        """Waits until there may be one more snapshot."""
        self._background.take_room()
        self._has_room = True

    def keep(self, slot: SlotWriter, pieces: list[Piece]) -> None:
        self._slot, self._pieces = slot, [*pieces]
        slot.kept = True

    def do(self) -> m.Record:
        assert self._slot is not None  # noqa: S101 it is kept
        try:
            for piece in self._pieces:
                piece.write_to(self._slot)
            return self._slot.hand_over(None, self._saved.commit).record
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Of the slot, unless it was handed over, and of the memory. Idempotent."""
        self._pieces = []
        if self._slot is not None:
            self._slot.discard()
        if self._has_room:
            self._has_room = False
            self._background.give_room()
