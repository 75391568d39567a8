"""Objects into a file: pickle's own format, and torch's. torch is imported when it is used."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, BinaryIO, NamedTuple

from ml_dash.errors import Code, MLDashError, error

PICKLE_PROTOCOL = 5
"""PEP 574: large buffers are written from where they lie."""
ENTRY_BYTES = 512
"""What a tensor takes in a file of torch's apart from its own bytes, generously: header, padding, directory, pickle."""
LOOK_AT = 1_000_000
"""Objects that are looked at for their size; what is beyond them makes the slot grow."""
_PINNED = "use_pinned_memory_for_d2h"
_OPAQUE = (str, int, float, complex, type, type(None), ModuleType, FunctionType, BuiltinFunctionType)
"""What holds no buffer that would be saved with it."""


def write_pickle(value: Any, out: BinaryIO) -> None:
    """Pickles a value. Raises UNSUPPORTED_TYPE for what pickle can't hold."""
    with _named("save_pkl", value):
        pickle.Pickler(out, protocol=PICKLE_PROTOCOL).dump(value)


def pickle_size(value: Any) -> int:
    """About how many bytes a value takes: those of the buffers in it."""
    return sum(_buffer_bytes(one) for one in _contents(value))


def write_torch(value: Any, out: Any, *, checksums: bool, pickle_module: Any = pickle) -> None:
    """`torch.save`, for which computing the checksums can be left out: half of its time, and put right later.

    Raises MISSING_LIBRARY, or UNSUPPORTED_TYPE for what can't be pickled.
    """
    torch = torch_library()
    with _named("save_torch", value):
        _with_options(torch, checksums=checksums, save=lambda: torch.save(value, out, pickle_module=pickle_module))


def torch_size(value: Any) -> int:
    """About how many bytes `torch.save` writes: each storage once, whatever views it. Raises MISSING_LIBRARY."""
    torch = torch_library()
    storages = {}
    for one in _contents(value):
        if isinstance(one, torch.Tensor):
            storages.update(_storages(torch, one))
    return sum(storages.values()) + ENTRY_BYTES * len(storages)


def torch_library() -> Any:
    """torch; raises MISSING_LIBRARY where there is none."""
    try:
        return import_module("torch")
    except ImportError as failure:
        what = f"this needs torch, which can't be imported: {failure}"
        raise error(Code.MISSING_LIBRARY, what, "pip install torch") from failure


class _Options(NamedTuple):
    """How torch saves. `pinned`: a GPU's tensors come through page-locked memory; None where it has no such option."""

    checksums: bool
    pinned: bool | None


_counting = threading.Lock()
_users = 0
_before = _Options(checksums=True, pinned=None)


def _with_options(torch: Any, *, checksums: bool, save: Callable[[], None]) -> None:
    """Saves with torch's options set, and leaves them as they were.

    Newer releases keep them a context, so they are set in one that is thrown away. Older ones keep them in globals of
    the process: of saves at once the last one puts them back. What another thread saves meanwhile by itself may lack
    its checksums then; torch reads it all the same. Those before 2.6 have no such options, and compute the checksums.

    Page-locked memory is kept by torch for the next save, as much as about twice the largest tensor. Without it each
    save of 1 GiB from a GPU costs 0.9 s of fresh pages.
    """
    if not hasattr(torch.serialization, "set_crc32_options"):
        save()
        return

    def in_context() -> None:
        global _users, _before  # noqa: PLW0603 it is the state of globals of torch's
        with _counting:
            if not _users:
                _before = _options(torch)
            _users += 1
            _set_options(torch, _Options(checksums, pinned=True))
        try:
            save()
        finally:
            with _counting:
                _users -= 1
                _set_options(torch, _before)

    copy_context().run(in_context)


def _options(torch: Any) -> _Options:
    return _Options(torch.serialization.get_crc32_options(), getattr(_config_of_saving(), _PINNED, None))


def _set_options(torch: Any, options: _Options) -> None:
    torch.serialization.set_crc32_options(options.checksums)
    if hasattr(config := _config_of_saving(), _PINNED):
        setattr(config, _PINNED, options.pinned)


def _config_of_saving() -> Any:
    """Where releases since 2.7 keep these options."""
    try:
        return import_module("torch.utils.serialization.config").save
    except ImportError:
        return None


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
