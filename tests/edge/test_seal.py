"""Sealing: every checksum of an archive is right afterwards, and nothing else was written to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dashd.edge import seal as sealing
from ml_dashd.edge.seal import seal
from ml_dashd.ports import NotAnArchiveError
from tests.doubles.archives import archive, unsealed

MIB = 1 << 20
ENTRIES = {
    "archive/data.pkl": b"a pickle",
    "archive/data/0": hashlib.shake_256(b"0").digest(3 * MIB + 5),
    "archive/data/1": b"",
    "archive/data/größe": b"x" * 70_000,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot"


def sealed(path: Path, content: bytes, size: int | None = None) -> list[bool]:
    path.write_bytes(content)
    return [*steps(path, len(content) if size is None else size)]


def steps(path: Path, size: int) -> Iterator[bool]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield from seal(descriptor, size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_an_archive_is_as_if_it_had_been_written_with_its_checksums(path: Path, behind: bool, wide: bool) -> None:
    whole = archive(ENTRIES, behind=behind, wide=wide)
    bare = unsealed(whole)
    assert bare != whole
    assert any(sealed(path, bare))
    assert path.read_bytes() == whole
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None


def test_what_is_behind_the_archive_in_its_slot_is_left_alone(path: Path) -> None:
    whole, rest = archive(ENTRIES), b"of an earlier save" * 1000
    sealed(path, unsealed(whole) + rest, len(whole))
    assert path.read_bytes() == whole + rest


def test_what_is_right_is_not_written_to(path: Path) -> None:
    whole = archive(ENTRIES)
    path.write_bytes(whole)
    os.utime(path, ns=(5, 5))
    assert not any(steps(path, len(whole)))
    assert path.stat().st_mtime_ns == 5


def test_it_can_be_broken_off_after_any_step_and_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "STEP_BYTES", MIB)
    whole = archive({str(number): bytes([number]) * MIB for number in range(5)})
    bare = unsealed(whole)
    count = len(sealed(path, bare))
    assert count > 5
    for stop in range(count):
        path.write_bytes(bare)
        for number, _ in enumerate(steps(path, len(bare))):
            if number == stop:
                break
        assert (path.read_bytes() == whole) == (stop >= count - 1)
        assert len([*steps(path, len(bare))]) == count
        assert path.read_bytes() == whole


def test_sizes_and_positions_of_64_bits(path: Path) -> None:
    """As they stand in the directory for an entry of 4 GiB or more."""
    whole = archive(ENTRIES)
    with zipfile.ZipFile(_write(path, whole)) as opened:
        entry, start = opened.infolist()[1], opened.start_dir
    at = whole.index(b"PK\x01\x02", start + 4)
    name = len(entry.filename)
    fields = list(struct.unpack_from("<4s6H3L5H2L", whole, at))
    size, header = fields[9], fields[16]
    fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
    fields[11] = 7 + 28
    line = struct.pack("<4s6H3L5H2L", *fields) + entry.filename.encode()
    extra = struct.pack("<2H3s", 0xCAFE, 3, b"...") + struct.pack("<2H3Q", 1, 24, size, size, header)
    rest = bytearray(whole[at + 46 + name :])
    struct.pack_into("<L", rest, len(rest) - 10, struct.unpack_from("<L", rest, len(rest) - 10)[0] + 35)
    wide = whole[:at] + line + extra + bytes(rest)
    bare = unsealed(wide)
    sealed(path, bare)
    assert path.read_bytes() == wide != bare


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x05\x06",
        bytes(5 * MIB),
        archive(ENTRIES)[:-1],
        archive(ENTRIES)[1:],
        archive(ENTRIES) + b"a comment",
        archive(ENTRIES).replace(b"PK\x01\x02", b"PK\x01\x03", 1),
        archive(ENTRIES).replace(b"PK\x03\x04", b"PK\x03\x05", 1),
        archive(ENTRIES).replace(b"PK\x07\x08", b"PK\x07\x09", 1),
    ],
    ids=range(9),
)
def test_what_is_no_such_archive_is_said_to_be_none(path: Path, content: bytes) -> None:
    with pytest.raises(NotAnArchiveError):
        sealed(path, content)


def test_an_entry_that_is_compressed_is_not_ours(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", b"a" * 1000)
    before = path.read_bytes()
    with pytest.raises(NotAnArchiveError, match="stored"):
        sealed(path, before)
    assert path.read_bytes() == before


def test_no_byte_is_read_twice_however_often_the_directory_names_it(path: Path) -> None:
    """Else a small archive of entries over each other would keep a thread for days."""
    whole = archive({"a": b"x" * MIB, "b": b"y"})
    with zipfile.ZipFile(_write(path, whole)) as opened:
        start = opened.start_dir
    first = whole[start : start + 47]
    count = 1000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(first) * count, start, 0)
    with pytest.raises(NotAnArchiveError, match="no entry begins"):
        sealed(path, whole[:start] + first * count + end)


@given(
    position=st.integers(0, 400), value=st.binary(min_size=1, max_size=9), cut=st.integers(0, 60), wide=st.booleans()
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_there_it_ends_and_the_file_keeps_its_size(
    path: Path, position: int, value: bytes, cut: int, wide: bool
) -> None:
    bare = unsealed(archive({"a": b"some bytes", "b": b"", "c": b"more of them" * 9}, wide=wide))
    broken = bare[: position % len(bare)] + value + bare[position % len(bare) + len(value) : len(bare) - cut]
    with contextlib.suppress(NotAnArchiveError):
        sealed(path, broken)
    assert path.stat().st_size == len(broken)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
