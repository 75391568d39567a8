"""Objects into a file: pickle's own format, and torch's. torch is imported when it is used."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, BinaryIO

from ml_dash.errors import Code, MLDashError, error

PICKLE_PROTOCOL = 5
"""PEP 574: large buffers are written from where they lie."""
ENTRY_BYTES = 512
"""What a tensor takes in a file of torch's apart from its own bytes, generously: header, padding, directory, pickle."""
LOOK_AT = 1_000_000
"""Objects that are looked at for their size; what is beyond them makes the slot grow."""
_OPAQUE = (str, int, float, complex, type, type(None), ModuleType, FunctionType, BuiltinFunctionType)
"""What holds no buffer that would be saved with it."""


def write_pickle(value: Any, out: BinaryIO) -> None:
    """Pickles a value. Raises UNSUPPORTED_TYPE for what pickle can't hold."""
    with _named("save_pkl", value):
        pickle.Pickler(out, protocol=PICKLE_PROTOCOL).dump(value)


def pickle_size(value: Any) -> int:
    """About how many bytes a value takes: those of the buffers in it."""
    return sum(_buffer_bytes(one) for one in _contents(value))


def write_torch(value: Any, out: BinaryIO, *, checksums: bool) -> None:
    """`torch.save`, for which computing the checksums can be left out: half of its time, and put right later.

    Raises MISSING_LIBRARY, or UNSUPPORTED_TYPE for what can't be pickled.
    """
    torch = _torch()
    with _named("save_torch", value):
        _with_checksums(torch, on=checksums, save=lambda: torch.save(value, out))


def torch_size(value: Any) -> int:
    """About how many bytes `torch.save` writes: each storage once, whatever views it. Raises MISSING_LIBRARY."""
    torch = _torch()
    storages = {}
    for one in _contents(value):
        if isinstance(one, torch.Tensor):
            storages.update(_storages(torch, one))
    return sum(storages.values()) + ENTRY_BYTES * len(storages)


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError as failure:
        what = f"save_torch needs torch, which can't be imported: {failure}"
        raise error(Code.MISSING_LIBRARY, what, "pip install torch") from failure


_counting = threading.Lock()
_users = 0
_before = True


def _with_checksums(torch: Any, *, on: bool, save: Callable[[], None]) -> None:
    """Saves with torch's option for checksums set, and leaves it as it was.

    Newer releases keep it a context, so it is set in one that is thrown away. Older ones keep it in a global of the
    process: of saves at once the last one puts it back. What another thread saves meanwhile by itself may lack its
    checksums then; torch reads it all the same. Those before 2.6 have no such option, and compute them.
    """
    options = torch.serialization
    if not hasattr(options, "set_crc32_options"):
        save()
        return

    def in_context() -> None:
        global _users, _before  # noqa: PLW0603 it is the state of a global of torch's
        with _counting:
            if not _users:
                _before = options.get_crc32_options()
            _users += 1
            options.set_crc32_options(on)
        try:
            save()
        finally:
            with _counting:
                _users -= 1
                options.set_crc32_options(_before)

    copy_context().run(in_context)


@contextmanager
def _named(saver: str, value: Any) -> Iterator[None]:
    """What pickle says of an object that it can't hold, with the type of what was to be saved."""
    try:
        yield
    except MLDashError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as failure:
        kind = type(value)
        what = f"{saver} can't pickle this {kind.__module__}.{kind.__qualname__}: {failure}"
        hint = "leave out what holds locks, files, generators, lambdas or local classes, such as by a state_dict()"
        raise error(Code.UNSUPPORTED_TYPE, what, hint) from failure


def _contents(value: Any) -> Iterator[Any]:
    """A value and what it holds, in containers and attributes, each once; no code of theirs is called."""
    left, seen = [value], {id(value)}
    while left and len(seen) < LOOK_AT:
        one = left.pop()
        yield one
        if isinstance(one, dict):
            inner = [*dict.keys(one), *dict.values(one)]
        elif isinstance(one, list | tuple | set | frozenset):
            inner = [*one]
        else:
            inner = [*_attributes(one).values()]
        for other in inner:
            if not isinstance(other, _OPAQUE) and id(other) not in seen:
                seen.add(id(other))
                left.append(other)


def _attributes(value: Any) -> dict[str, Any]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _buffer_bytes(value: Any) -> int:
    try:
        with memoryview(value) as view:
            return view.nbytes
    except (TypeError, ValueError, BufferError):
        return 0


def _storages(torch: Any, tensor: Any) -> dict[int, int]:
    """The bytes of a tensor's storages, by what identifies them; none where it has none that could be saved."""
    if tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]  # noqa: SLF001 the public ones refuse what is not coalesced
    elif tensor.layout is torch.strided:
        parts = [tensor]
    else:
        parts = []
    try:
        kept = [part.untyped_storage() for part in parts if part.device.type != "meta"]
        return {storage._cdata: storage.nbytes() for storage in kept}  # noqa: SLF001 as torch.save tells them apart
    except (NotImplementedError, RuntimeError, AttributeError, TypeError):  # subclasses without a storage of their own
        return {}
