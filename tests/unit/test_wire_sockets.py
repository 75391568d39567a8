"""The codec over a real Unix socket: whatever the kernel makes of the reads, each frame gets its own descriptors."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import ProtocolError
from ml_dash.wire import MAX_DESCRIPTORS, Decoder, Frame, encode

KIND = 7
LIMITS = {KIND: 1024 * 1024}
ANCILLARY = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)


class Planned(NamedTuple):
    """A frame to be sent: `names` are the contents of its descriptors."""

    fields: dict[str, Any]
    names: list[bytes]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def file_of(content: bytes) -> int:
    descriptor = os.memfd_create("named", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


class Link:
    """Both ends of a socket in one thread: the sender never blocks, because a full socket is read from."""

    def __init__(self, sizes: list[int]) -> None:
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sender.setblocking(False)
        self.receiver.setblocking(False)
        self.decoder = Decoder(LIMITS)
        self.frames: list[Frame] = []
        self._sizes = sizes
        self._reads = 0

    def send(self, data: bytes, descriptors: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while data:
            try:
                data = data[self.sender.sendmsg([data], rights) :]
                rights = []
            except BlockingIOError:
                assert self.receive(), "the socket is full and nothing can be read"

    def receive(self) -> bool:
        """One read; False where there is nothing to read."""
        size = self._sizes[self._reads % len(self._sizes)]
        self._reads += 1
        try:
            data, ancillary, flags, _ = self.receiver.recvmsg(size, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        assert not flags & socket.MSG_CTRUNC
        received = array.array("i")
        for _, _, content in ancillary:
            received.frombytes(content)
        self.frames += self.decoder.feed(data, received)
        return bool(data)

    def drain(self) -> None:
        while self.receive():
            pass


@contextmanager
def link(sizes: list[int]) -> Iterator[Link]:
    """A link; every descriptor that came over it is closed at the end, whatever happened."""
    both = Link(sizes)
    try:
        yield both
    finally:
        for descriptor in (*both.decoder.take_descriptors(), *(d for frame in both.frames for d in frame.descriptors)):
            os.close(descriptor)
        both.sender.close()
        both.receiver.close()


def content_of(descriptor: int) -> bytes:
    assert not os.get_inheritable(descriptor)
    return os.pread(descriptor, 100, 0)


def chunks(planned: list[Planned], cuts: set[int]) -> Iterator[tuple[bytes, list[bytes]]]:
    """The stream, cut anywhere and before each frame that has descriptors, with the names that go beside each piece."""
    stream, owners = b"", {}
    for fields, names in planned:
        if names:
            owners[len(stream)] = names
        stream += encode(KIND, fields, len(names))
    places = sorted({0, len(stream), *owners, *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        yield stream[start:end], owners.get(start, [])


@st.composite
def plans(draw: st.DrawFn) -> list[Planned]:
    made = draw(
        st.lists(
            st.tuples(
                st.dictionaries(st.text(max_size=5), st.integers(0, 100) | st.binary(max_size=60), max_size=3),
                st.integers(0, MAX_DESCRIPTORS) | st.integers(0, 2),
            ),
            min_size=1,
            max_size=6,
        )
    )
    return [
        Planned(fields, [f"descriptor {index} of frame {number}".encode() for index in range(count)])
        for number, (fields, count) in enumerate(made)
    ]


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(
    plans(),
    st.sets(st.integers(0, 2000), max_size=12),
    st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 20, 64, 1000, 65536]), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_every_frame_gets_its_own_descriptors(
    planned: list[Planned], cuts: set[int], sizes: list[int], reads: list[int]
):
    before = open_descriptors()
    with link(sizes) as both:
        for number, (data, names) in enumerate(chunks(planned, cuts)):
            own = [file_of(name) for name in names]
            both.send(data, own)
            for descriptor in own:
                os.close(descriptor)
            for _ in range(reads[number % len(reads)]):
                both.receive()
        both.drain()
        found = [(frame.fields, [content_of(one) for one in frame.descriptors]) for frame in both.frames]
        assert found == planned
        assert both.decoder.take_descriptors() == ()
    assert open_descriptors() == before


def test_a_frame_larger_than_the_socket_keeps_its_descriptors():
    before = open_descriptors()
    with link([65536]) as both:
        own = [file_of(b"the first"), file_of(b"the second")]
        both.send(encode(KIND, {"a": bytes(900_000)}, 2), own)
        for descriptor in own:
            os.close(descriptor)
        both.drain()
        ((_, fields, descriptors),) = both.frames
        assert fields == {"a": bytes(900_000)}
        assert [content_of(one) for one in descriptors] == [b"the first", b"the second"]
    assert open_descriptors() == before


@settings(deadline=None, max_examples=30)
@given(plans(), st.lists(st.sampled_from([1, 8, 9, 64, 65536]), min_size=1, max_size=4))
def test_a_broken_frame_loses_no_descriptor(planned: list[Planned], sizes: list[int]):
    before = open_descriptors()
    with link(sizes) as both:
        sent = 0
        own = file_of(b"of the broken frame")
        for data, names in chunks(planned, set()):
            both.send(data, [own] * len(names))
            sent += len(names)
        both.send(encode(KIND + 1, {}, 1), [own])
        os.close(own)
        with pytest.raises(ProtocolError, match="message kind 8 is not known here"):
            both.drain()
        left = both.decoder.take_descriptors()
        assert sum(len(frame.descriptors) for frame in both.frames) + len(left) == sent + 1
        for descriptor in left:
            os.close(descriptor)
    assert open_descriptors() == before
