"""Frames, without I/O: bytes and descriptors in, frames out. PROTOCOL.md describes them.

    length u32 | version u8 | descriptors u8 | kind u16 | payload (one msgpack map, `length` bytes)

Descriptors travel beside the bytes, in the order of the frames that own them. A read may hold any part of any number
of frames, so they wait in a queue and each frame takes the number that its header states.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgpack

from ml_dash.errors import Code, ProtocolError

VERSION = 1
HEADER = struct.Struct("!IBBH")
MAX_DESCRIPTORS = 16
"""Descriptors in one frame; the kernel's own limit is 253."""
MAX_DEPTH = 8
"""Containers within containers; msgpack itself gives up with a StackError at about 1,000."""
MAX_ITEMS = 1_024
"""Elements of one container; msgpack makes room for as many as its header states, before they came."""
MAX_CONTAINERS = 4_096
"""Containers in one payload: one that is empty takes a byte there and 64 here. A full Page has 3,002."""


class Frame(NamedTuple):
    """One message as it travelled: its kind, its fields, and the descriptors that came with it."""

    kind: int
    fields: dict[str, Any]
    descriptors: tuple[int, ...]


def encode(kind: int, fields: Mapping[str, Any], descriptors: int = 0, version: int = VERSION) -> bytes:
    """The bytes of one frame; send its descriptors with the first of them."""
    payload: bytes = msgpack.packb(fields, use_bin_type=True)
    return HEADER.pack(len(payload), version, descriptors, kind) + payload


class Decoder:
    """Turns what was read into frames. `limits` maps each kind that is welcome here to its largest payload in bytes.

    A kind that is not in it, a payload over its limit, a wrong version or a wrong number of descriptors raises
    ProtocolError, before the payload is buffered. After an error the decoder is done with; close what
    `take_descriptors` returns.
    """

    def __init__(self, limits: Mapping[int, int], versions: range = range(VERSION, VERSION + 1)) -> None:
        self.versions = versions
        self._limits = limits
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._whole = 0
        """How many bytes of the buffer are frames that are whole, their headers checked."""
        self._claimed = 0
        """How many descriptors those frames own."""

    @property
    def size_bytes(self) -> int:
        """The bytes that wait here, whole frames and a begun one."""
        return len(self._buffer)

    @property
    def descriptors(self) -> int:
        """The descriptors that wait here."""
        return len(self._descriptors)

    @property
    def whole_bytes(self) -> int:
        """The bytes of whole frames, which `pop` gives."""
        return self._whole

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun that is not whole yet."""
        return len(self._buffer) > self._whole

    def feed(self, data: bytes | memoryview, descriptors: Iterable[int] = ()) -> list[Frame]:
        """The frames that `data` completes. Takes over the descriptors, whatever comes of it."""
        self.push(data, descriptors)
        frames: list[Frame] = []
        try:
            while (frame := self.pop()) is not None:
                frames.append(frame)
        except ProtocolError:
            for frame in reversed(frames):
                self._descriptors.extendleft(reversed(frame.descriptors))
            raise
        return frames

    def push(self, data: bytes | memoryview, descriptors: Iterable[int] = ()) -> None:
        """Takes in what was read, for `pop`: what is unpacked takes many times the room, so it is done one by one.

        Takes over the descriptors, whatever comes of it. After an error, what was whole before can still be popped.
        """
        self._descriptors.extend(descriptors)
        self._buffer += data
        before = self._whole, self._claimed
        try:
            self._refuse_strays(self._find_whole())
        except ProtocolError:
            self._whole, self._claimed = before
            raise

    def _find_whole(self) -> int:
        """Checks the headers of new frames; returns how many descriptors the unfinished last one may have brought."""
        while (left := len(self._buffer) - self._whole) >= HEADER.size:
            length, version, count, kind = HEADER.unpack_from(self._buffer, self._whole)
            self._check_header(length, version, count, kind)
            if (came := len(self._descriptors) - self._claimed) < count:
                raise _broken(f"the frame states {count} descriptors, {came} came")
            if left < HEADER.size + length:
                return int(count)
            self._whole += HEADER.size + length
            self._claimed += count
        return MAX_DESCRIPTORS if left else 0

    def pop(self) -> Frame | None:
        """The next whole frame, if there is one."""
        if not self._whole:
            return None
        length, _, count, kind = HEADER.unpack_from(self._buffer)
        end = HEADER.size + length
        fields = unpack(bytes(memoryview(self._buffer)[HEADER.size : end]))
        del self._buffer[:end]
        self._whole -= end
        self._claimed -= count
        return Frame(kind, fields, tuple(self._descriptors.popleft() for _ in range(count)))

    def take_descriptors(self) -> tuple[int, ...]:
        """Gives up the descriptors that no frame has claimed, for the caller to close."""
        taken = tuple(self._descriptors)
        self._descriptors.clear()
        return taken

    def _check_header(self, length: int, version: int, count: int, kind: int) -> None:
        if version not in self.versions:
            raise _broken(f"frame version {version}, expected {self.versions.start} to {self.versions.stop - 1}")
        if count > MAX_DESCRIPTORS:
            raise _broken(f"{count} descriptors in a frame, at most {MAX_DESCRIPTORS}")
        limit = self._limits.get(kind)
        if limit is None:
            raise _broken(f"message kind {kind} is not known here")
        if length > limit:
            raise _broken(f"a payload of {length} bytes, at most {limit} for message kind {kind}")

    def _refuse_strays(self, allowed: int) -> None:
        """Descriptors come with the first byte of their frame, so only those of an unfinished frame may wait."""
        if (strays := len(self._descriptors) - self._claimed) > allowed:
            raise _broken(f"{strays} descriptors that no frame states")


def unpack(payload: bytes) -> dict[str, Any]:
    """One msgpack map with text keys, every count, length and depth bounded, no key twice."""
    try:
        fields = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            max_str_len=len(payload),
            max_bin_len=len(payload),
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            ext_hook=_no_extension,
        )
    except ProtocolError:
        raise
    except (ValueError, msgpack.UnpackException) as bad:
        raise _broken(f"the payload is not one msgpack value: {str(bad) or type(bad).__name__}") from None
    if not isinstance(fields, dict):
        raise _broken(f"the payload is {type(fields).__name__}, not a map")
    _check_shape(fields)
    return fields


_TEXT = frozenset({str})


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _broken("a field stands twice in one map")
    if not set(map(type, fields)) <= _TEXT:
        raise _broken("a field's name is not text")
    return fields


def _no_extension(code: int, _: bytes) -> None:
    """For empty ones; max_ext_len refuses the rest."""
    raise _broken(f"extension type {code}")


def _check_shape(value: object) -> None:
    level: list[Any] = [value]
    containers = 1
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
        containers += len(level)
        if containers > MAX_CONTAINERS:
            raise _broken(f"more than {MAX_CONTAINERS} containers")
    raise _broken(f"containers nest deeper than {MAX_DEPTH}")


def _broken(what: str) -> ProtocolError:
    return ProtocolError(Code.PROTOCOL, what)
