"""Frames without a socket: any split gives the same frames, and every bound is held before it can hurt."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import Code, ProtocolError
from ml_dash.wire import HEADER, MAX_CONTAINERS, MAX_DEPTH, MAX_DESCRIPTORS, MAX_ITEMS, VERSION, Decoder, encode, unpack

MIB = 1024 * 1024
LIMITS = {1: 4096, 2: 64, 3: MIB}
"""Descriptors are numbers here: the decoder never touches what they stand for."""

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
fields = st.dictionaries(st.text(max_size=6), values, max_size=4).filter(lambda value: len(msgpack.packb(value)) < 3000)
counts = st.integers(0, MAX_DESCRIPTORS)


def raw(payload: bytes, *, kind: int = 1, descriptors: int = 0, version: int = VERSION) -> bytes:
    return HEADER.pack(len(payload), version, descriptors, kind) + payload


def refused(data: bytes, descriptors: Iterable[int] = (), decoder: Decoder | None = None) -> str:
    """The message with which it was refused."""
    with pytest.raises(ProtocolError) as caught:
        (decoder or Decoder(LIMITS)).feed(data, descriptors)
    assert caught.value.code is Code.PROTOCOL
    return caught.value.message


def refused_payload(payload: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        unpack(payload)
    assert caught.value.code is Code.PROTOCOL
    return caught.value.message


# ---- frames in, frames out


def test_a_frame_has_the_documented_bytes():
    assert encode(0x0203, {"a": 1}, descriptors=4) == bytes.fromhex("00000004 01 04 0203 81a16101")


def test_a_whole_frame():
    (frame,) = Decoder(LIMITS).feed(encode(1, {"a": [1, "b", b"c", None, True, {"d": 2}]}))
    assert frame == (1, {"a": [1, "b", b"c", None, True, {"d": 2}]}, ())


def test_byte_by_byte():
    decoder = Decoder(LIMITS)
    data = encode(1, {"a": "é"}, descriptors=2) + encode(2, {})
    frames = []
    for index in range(len(data)):
        frames += decoder.feed(data[index : index + 1], (7, 8) if index == 0 else ())
    assert frames == [(1, {"a": "é"}, (7, 8)), (2, {}, ())]
    assert decoder.take_descriptors() == ()


def test_several_frames_in_one_read_take_their_descriptors_in_order():
    data = encode(1, {"a": 1}, 2) + encode(1, {"b": 2}) + encode(2, {}, 1) + encode(1, {"c": 3}, 3)[:5]
    decoder = Decoder(LIMITS)
    frames = decoder.feed(memoryview(data), [10, 11, 12, 13, 14, 15])
    assert [frame.descriptors for frame in frames] == [(10, 11), (), (12,)]
    (last,) = decoder.feed(encode(1, {"c": 3}, 3)[5:])
    assert last == (1, {"c": 3}, (13, 14, 15))


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([1, 3]), fields, counts), max_size=5), st.data())
def test_any_split_gives_the_same_frames(messages: list[tuple[int, dict[str, Any], int]], data: st.DataObject):
    stream, owners, expected, number = b"", {}, [], 100
    for kind, content, count in messages:
        own = tuple(range(number, number + count))
        number += count
        owners[len(stream)] = own
        expected.append((kind, content, own))
        stream += encode(kind, content, count)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=8)) | {0, len(stream)})
    decoder = Decoder(LIMITS)
    frames = []
    for start, end in pairwise(cuts):
        beside = [one for first, own in owners.items() if start <= first < end for one in own]
        frames += decoder.feed(stream[start:end], beside)
    assert frames == expected
    assert decoder.take_descriptors() == ()


# ---- the header's bounds, before any payload


def test_a_length_over_the_kinds_limit_is_refused_by_its_header():
    header = HEADER.pack(65, VERSION, 0, 2)
    assert refused(header) == "a payload of 65 bytes, at most 64 for message kind 2"
    assert Decoder(LIMITS).feed(HEADER.pack(64, VERSION, 0, 2)) == []
    assert Decoder(LIMITS).feed(HEADER.pack(65, VERSION, 0, 1)) == []


def test_the_largest_payload_is_taken():
    payload = msgpack.packb({"a": b"x" * 59})
    assert len(payload) == 64
    (frame,) = Decoder(LIMITS).feed(raw(payload, kind=2))
    assert frame.fields == {"a": b"x" * 59}


def test_no_header_is_judged_before_it_is_whole():
    assert Decoder(LIMITS).feed(HEADER.pack(0, 99, 99, 99)[:-1]) == []


def test_an_unknown_kind():
    assert refused(HEADER.pack(0, VERSION, 0, 9)) == "message kind 9 is not known here"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version(version: int):
    assert refused(HEADER.pack(1, version, 0, 1)) == f"frame version {version}, expected 1 to 1"


def test_the_versions_are_the_callers_choice():
    decoder = Decoder(LIMITS, versions=range(2, 4))
    assert decoder.feed(encode(1, {}, version=2) + encode(1, {}, version=3)) == [(1, {}, ()), (1, {}, ())]
    assert refused(encode(1, {}), decoder=decoder) == "frame version 1, expected 2 to 3"


def test_seventeen_descriptors():
    assert refused(HEADER.pack(1, VERSION, 17, 1), range(17)) == "17 descriptors in a frame, at most 16"
    (frame,) = Decoder(LIMITS).feed(encode(1, {}, 16), range(16))
    assert frame.descriptors == tuple(range(16))


def test_fewer_descriptors_than_stated_is_refused_by_the_header():
    decoder = Decoder(LIMITS)
    assert refused(HEADER.pack(50, VERSION, 2, 1), [5], decoder) == "the frame states 2 descriptors, 1 came"
    assert decoder.take_descriptors() == (5,)


def test_more_descriptors_than_stated_is_refused_by_the_header():
    decoder = Decoder(LIMITS)
    assert refused(HEADER.pack(50, VERSION, 1, 1), [5, 6], decoder) == "2 descriptors that no frame states"
    assert decoder.take_descriptors() == (5, 6)


def test_descriptors_without_a_frame():
    decoder = Decoder(LIMITS)
    assert refused(b"", [5], decoder) == "1 descriptors that no frame states"
    assert decoder.take_descriptors() == (5,)
    after = Decoder(LIMITS)
    assert refused(encode(1, {}, 1), [5, 6], after) == "1 descriptors that no frame states"
    assert after.take_descriptors() == (5, 6)


def test_descriptors_before_a_whole_header_are_bounded():
    assert Decoder(LIMITS).feed(b"\0", range(16)) == []
    assert refused(b"\0", range(17)) == "17 descriptors that no frame states"


def test_descriptors_are_left_to_the_caller_when_the_connection_ends():
    decoder = Decoder(LIMITS)
    decoder.feed(encode(1, {"a": 1}, 2)[:-1], [8, 9])
    assert decoder.take_descriptors() == (8, 9)
    assert decoder.take_descriptors() == ()


def test_after_an_error_every_descriptor_comes_back_in_order():
    decoder = Decoder(LIMITS)
    stream = encode(1, {}, 2) + encode(1, {}, 1) + raw(b"\xc1", descriptors=1) + encode(1, {}, 1)
    refused(stream, [1, 2, 3, 4, 5], decoder)
    assert decoder.take_descriptors() == (1, 2, 3, 4, 5)


# ---- frames one by one


def test_frames_are_unpacked_as_they_are_taken():
    """What is unpacked takes many times the room: a peer that sends ahead must not decide how much that is."""
    decoder = Decoder(LIMITS)
    first, second = encode(1, {"a": 1}, 1), encode(2, {"b": 2})
    decoder.push(first + second + first[:9], [5, 6])
    assert (decoder.size_bytes, decoder.whole_bytes) == (len(first + second) + 9, len(first + second))
    assert (decoder.descriptors, decoder.unfinished) == (2, True)
    assert decoder.pop() == (1, {"a": 1}, (5,))
    assert (decoder.whole_bytes, decoder.descriptors) == (len(second), 1)
    assert decoder.pop() == (2, {"b": 2}, ())
    assert decoder.pop() is None
    assert decoder.unfinished
    decoder.push(first[9:])
    assert not decoder.unfinished
    assert decoder.pop() == (1, {"a": 1}, (6,))
    assert (decoder.size_bytes, decoder.whole_bytes, decoder.descriptors) == (0, 0, 0)


def test_after_a_broken_header_what_came_before_it_can_be_taken():
    decoder = Decoder(LIMITS)
    decoder.push(encode(1, {"a": 1}, 1), [5])
    with pytest.raises(ProtocolError):
        decoder.push(encode(2, {"b": 2}, 1) + encode(99, {}), [6])
    assert decoder.pop() == (1, {"a": 1}, (5,))
    assert decoder.pop() is None
    assert decoder.take_descriptors() == (6,)


def test_a_broken_payload_is_found_when_it_is_taken():
    decoder = Decoder(LIMITS)
    decoder.push(encode(1, {}) + raw(b"\xc1"))
    assert decoder.pop() == (1, {}, ())
    with pytest.raises(ProtocolError):
        decoder.pop()


# ---- the payload's bounds


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"\x90", "the payload is list, not a map"),
        (b"\xc0", "the payload is NoneType, not a map"),
        (b"\x05", "the payload is int, not a map"),
        (b"\xa1a", "the payload is str, not a map"),
        (b"", "incomplete input"),
        (b"\x81\xa1a", "incomplete input"),
        (b"\x81\xa1a\xa5bc", "incomplete input"),
        (b"\x80\x80", "extra data"),
        (b"\x81\xa1a\xc1", "FormatError"),
        (b"\x81\xa1\xff\x01", "'utf-8' codec can't decode"),
        (b"\x81\xa1a\xa2\xc3\x28", "'utf-8' codec can't decode"),
        (b"\x81\xa1a\xa3\xed\xa0\x80", "'utf-8' codec can't decode"),
        (b"\x82\xa1a\x01\xa1a\x02", "a field stands twice in one map"),
        (b"\x81\xa1m\x82\xa1a\x01\xa1a\x02", "a field stands twice in one map"),
        (b"\x81\xc4\x01a\x01", "a field's name is not text"),
        (b"\x81\xa1m\x81\xc4\x01a\x01", "a field's name is not text"),
        (b"\x81\x01\x02", "int is not allowed for map key"),
        (b"\x81\xc0\x02", "NoneType is not allowed for map key"),
        (b"\x81\x90\x02", "list is not allowed for map key"),
        (b"\x81\xa1a\xd4\x05x", "exceeds max_ext_len"),
        (b"\x81\xa1a\xc7\x00\x05", "extension type 5"),
        (b"\x81\xa1a\xc7\x00\xff", "timestamp"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "exceeds max_ext_len"),
        (b"\x81\xd4\x05x\x01", "exceeds max_ext_len"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "incomplete input"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "incomplete input"),
    ],
)
def test_a_broken_payload(payload: bytes, what: str):
    assert what in refused_payload(payload)
    assert what in refused(raw(payload))


def nested(levels: int) -> bytes:
    """A map that holds arrays within arrays: `levels` containers in all."""
    return b"\x81\xa1a" + b"\x91" * (levels - 2) + b"\x90"


def test_depth_is_bounded():
    assert unpack(nested(MAX_DEPTH)) == {"a": [[[[[[[]]]]]]]}
    assert refused_payload(nested(MAX_DEPTH + 1)) == f"containers nest deeper than {MAX_DEPTH}"
    maps = b"\x81\xa1a" * MAX_DEPTH + b"\x80"
    assert refused_payload(maps) == f"containers nest deeper than {MAX_DEPTH}"


def test_two_thousand_levels():
    assert "StackError" in refused_payload(nested(2000))


def test_the_items_of_one_container_are_bounded():
    assert len(unpack(msgpack.packb({"a": [0] * MAX_ITEMS}))["a"]) == MAX_ITEMS
    assert "exceeds max_array_len" in refused_payload(msgpack.packb({"a": [0] * (MAX_ITEMS + 1)}))
    assert len(unpack(msgpack.packb({str(key): 0 for key in range(MAX_ITEMS)}))) == MAX_ITEMS
    assert "exceeds max_map_len" in refused_payload(msgpack.packb({str(key): 0 for key in range(MAX_ITEMS + 1)}))


def test_the_containers_of_one_payload_are_bounded():
    rows = [[[]] * (MAX_ITEMS - 1) for _ in range(3)]
    whole = {"a": [*rows, [[]] * (MAX_CONTAINERS - 3 - 3 * MAX_ITEMS)]}
    assert unpack(msgpack.packb(whole)) == whole
    whole["a"][-1].append([])
    assert refused_payload(msgpack.packb(whole)) == f"more than {MAX_CONTAINERS} containers"


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x81\xa1a\xdd\x00\x10\x00\x00" + b"\x90" * MIB, id="1 MiB of empty arrays"),
        pytest.param(b"\x81\xa1a" + b"\xdc\x40\x00" * 1000, id="a thousand promises of 16,384 items"),
        pytest.param(b"\x81\xa1a" + b"\xdc\x04\x00" * 1000, id="a thousand promises of 1,024 items"),
    ],
)
def test_a_hostile_payload_takes_little_memory(payload: bytes):
    tracemalloc.start()
    try:
        refused_payload(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * MIB


# ---- fuzz


def mutated(frame: bytes, position: int, byte: int) -> bytes:
    position %= len(frame)
    return frame[:position] + bytes([byte]) + frame[position + 1 :]


valid = st.builds(encode, st.sampled_from([1, 3]), fields, st.integers(0, 2))
pieces = st.one_of(
    valid,
    st.binary(max_size=40),
    st.builds(raw, st.binary(max_size=40), descriptors=st.integers(0, 17)),
    st.builds(mutated, valid, st.integers(0, 2000), st.integers(0, 255)),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(pieces, st.integers(0, 3)), max_size=8))
def test_garbage_raises_only_protocol_errors_and_loses_no_descriptor(reads: list[tuple[bytes, int]]):
    decoder = Decoder(LIMITS)
    fed: list[int] = []
    held: list[int] = []
    for data, count in reads:
        own = range(len(fed), len(fed) + count)
        fed += own
        try:
            for frame in decoder.feed(data, own):
                held += frame.descriptors
        except ProtocolError as broken:
            assert broken.code is Code.PROTOCOL  # noqa: PT017 it need not come
            break
    assert held + list(decoder.take_descriptors()) == fed


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80))
def test_a_garbage_payload_is_a_map_or_refused(payload: bytes):
    try:
        assert isinstance(unpack(payload), dict)
    except ProtocolError as broken:
        assert broken.message  # noqa: PT017 it need not come
