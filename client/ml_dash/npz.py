"""Arrays into an archive as `numpy.savez` lays it out, from where they lie.

numpy writes each array through a copy, and computes a CRC-32 on the way, which takes longer than the copying. Here
arrays go out as they are, and the checksums may be left to the daemon. The layout of the archive is that of PKWARE's
APPNOTE 6.3, with 64-bit sizes throughout; the headers of the arrays in it are numpy's own.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from ml_dash.arguments import array_name
from ml_dash.errors import Code, error
from ml_dash.media.libraries import library

HEADER_BYTES = 512
"""What an array takes apart from its own bytes, generously: an entry's header, numpy's, a line of the directory."""
BUFFER_ITEMS = 1 << 20
"""Of an array that lies scattered so many items at a time are brought together."""

_ENTRY = struct.Struct("<4s5H3L2H")
_LINE = struct.Struct("<4s6H3L5H2L")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_SIZES, _SIZES_AND_PLACE = struct.Struct("<2H2Q"), struct.Struct("<2H3Q")
_VERSION, _UNIX = 45, 3 << 8
_UTF8 = 0x0800
_DAY = 1 << 5 | 1
"""The first of January 1980, as of numpy's: the same arrays are the same file."""
_MODE = 0o600 << 16
_ELSEWHERE, _MANY = 0xFFFFFFFF, 0xFFFF
"""In place of a size, a place or a count: it is in the 64-bit fields."""
_LONGEST_NAME = 0xFFFF


class _Entry(NamedTuple):
    name: bytes
    header: bytes
    array: Any

    @property
    def size_bytes(self) -> int:
        return len(self.header) + int(self.array.nbytes)


class Npz:
    """Arrays by their names, checked. Raises UNSUPPORTED_TYPE for what `numpy.load` would not give back by itself."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._entries = [_entry(name, value) for name, value in arrays.items()]

    @property
    def size_bytes(self) -> int:
        """About how large the archive will be."""
        return sum(entry.size_bytes + HEADER_BYTES + 2 * len(entry.name) for entry in self._entries) + HEADER_BYTES

    def write(self, out: BinaryIO, *, checksums: bool) -> None:
        lines, at = [], 0
        for entry in self._entries:
            crc = _crc(entry) if checksums else 0
            lines.append(_line(entry, crc, at))
            at += out.write(_start(entry, crc))
            at += sum(out.write(piece) for piece in _content(entry))
        out.write(b"".join([*lines, _end(len(lines), sum(map(len, lines)), at)]))


def _entry(name: str, value: Any) -> _Entry:
    numpy = library("numpy", "numpy")
    try:
        encoded = f"{array_name(name)}.npy".encode()
    except UnicodeEncodeError:
        raise error(Code.INVALID_ARGUMENT, f"the name {name[:80]!r} has half of a surrogate pair", "") from None
    if len(encoded) > _LONGEST_NAME or "\0" in name:
        raise error(Code.INVALID_ARGUMENT, f"the name {name[:80]!r}… is too long, or has a NUL", "use a shorter one")
    array = _array(numpy, name, value)
    return _Entry(encoded, _header(numpy, name, array), array)


def _array(numpy: Any, name: str, value: Any) -> Any:
    if hasattr(value, "detach"):  # a tensor: out of its graph, off its device
        value = value.detach().cpu()
    try:
        array = numpy.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as refused:
        raise error(Code.UNSUPPORTED_TYPE, f"{name} is no array: {refused}", "call save_safetensors()") from None
    dtype = array.dtype
    if dtype.hasobject:
        raise error(Code.UNSUPPORTED_TYPE, f"{name} is an array of Python objects ({dtype})", "call save_pkl()")
    if dtype.kind == "V" and dtype.names is None and dtype.type is not numpy.void:
        raise error(Code.UNSUPPORTED_TYPE, f"{name} is of {dtype}, which npz can't name", "call save_safetensors()")
    if numpy.ma.isMaskedArray(array):
        raise error(Code.UNSUPPORTED_TYPE, f"{name} is masked, and npz has no masks", "pass its .data and its .mask")
    return array


def _header(numpy: Any, name: str, array: Any) -> bytes:
    file_format = numpy.lib.format
    said = file_format.header_data_from_array_1_0(array)
    for write in (file_format.write_array_header_1_0, file_format.write_array_header_2_0):
        out = io.BytesIO()
        try:
            write(out, said)
        except ValueError:  # longer than the first has room for, or names that are not Latin-1
            continue
        return out.getvalue()
    raise error(Code.UNSUPPORTED_TYPE, f"{name} has fields whose names don't fit numpy's header", "rename them")


def _content(entry: _Entry) -> Iterator[Any]:
    yield entry.header
    array, numpy = entry.array, library("numpy", "numpy")
    if array.flags.c_contiguous or array.flags.f_contiguous:
        lying = array if array.flags.c_contiguous else array.T
        yield lying.reshape(-1).view(numpy.uint8) if lying.nbytes else b""
        return
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for piece in numpy.nditer(array, flags=flags, buffersize=BUFFER_ITEMS, order="C"):
        yield piece.tobytes("C")


def _crc(entry: _Entry) -> int:
    crc = 0
    for piece in _content(entry):
        crc = zlib.crc32(piece, crc)
    return crc


def _flags(entry: _Entry) -> int:
    return 0 if entry.name.isascii() else _UTF8


def _start(entry: _Entry, crc: int) -> bytes:
    sizes = _SIZES.pack(1, _SIZES.size - 4, entry.size_bytes, entry.size_bytes)
    fields = (_VERSION, _flags(entry), 0, 0, _DAY, crc, _ELSEWHERE, _ELSEWHERE, len(entry.name), len(sizes))
    return _ENTRY.pack(b"PK\x03\x04", *fields) + entry.name + sizes


def _line(entry: _Entry, crc: int, at: int) -> bytes:
    more = _SIZES_AND_PLACE.pack(1, _SIZES_AND_PLACE.size - 4, entry.size_bytes, entry.size_bytes, at)
    fields = (_UNIX | _VERSION, _VERSION, _flags(entry), 0, 0, _DAY, crc, _ELSEWHERE, _ELSEWHERE, len(entry.name))
    return _LINE.pack(b"PK\x01\x02", *fields, len(more), 0, 0, 0, _MODE, _ELSEWHERE) + entry.name + more


def _end(count: int, size_bytes: int, at: int) -> bytes:
    """What closes an archive whose directory of that size begins at that place."""
    if not count:
        return _END.pack(b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)  # numpy looks for this where nothing comes before
    return (
        _END_64.pack(b"PK\x06\x06", _END_64.size - 12, _UNIX | _VERSION, _VERSION, 0, 0, count, count, size_bytes, at)
        + _LOCATOR.pack(b"PK\x06\x07", 0, at + size_bytes, 1)
        + _END.pack(b"PK\x05\x06", 0, 0, _MANY, _MANY, _ELSEWHERE, _ELSEWHERE, 0)
    )
