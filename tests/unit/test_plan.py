"""A plan covers the file exactly, within S3's limits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dashd.core.model import MAX_FILE_BYTES
from ml_dashd.core.plan import (
    MAX_PART_BYTES,
    MAX_PARTS,
    MIB,
    MIN_PART_BYTES,
    PART_BYTES,
    SMALL_BYTES,
    Part,
    at_once,
    buffers_bytes,
    part_size,
    parts,
)

preferences = st.sampled_from([MIN_PART_BYTES, 8 * MIB, PART_BYTES, 64 * MIB, 5 * MIB + 1])
sizes = st.one_of(
    st.integers(0, 3 * PART_BYTES),
    st.integers(0, MAX_FILE_BYTES),
    st.builds(lambda count, rest: max(0, count * PART_BYTES + rest), st.integers(0, 5000), st.integers(-2, 2)),
)


def check(size: int, each: int) -> None:
    plan = list(parts(size, each))
    assert [part.number for part in plan] == list(range(1, len(plan) + 1))
    assert plan[0].offset == 0
    assert all(one.offset + one.size_bytes == after.offset for one, after in pairwise(plan))
    assert plan[-1].offset + plan[-1].size_bytes == size
    assert all(part.size_bytes == each for part in plan[:-1])
    assert 0 < plan[-1].size_bytes <= each or (size == 0 and len(plan) == 1)
    assert len(plan) <= MAX_PARTS
    assert MIN_PART_BYTES <= each <= MAX_PART_BYTES


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(sizes, preferences)
def test_a_plan_covers_the_file_exactly(size: int, preferred: int):
    check(size, part_size(size, preferred))


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_parts_of_any_size_cover_the_file(size: int, each: int):
    whole = bytes(index % 251 for index in range(size))
    assert b"".join(whole[part.offset : part.offset + part.size_bytes] for part in parts(size, each)) == whole


@pytest.mark.parametrize(
    ("cores", "memory", "files"),
    [
        (1, None, 4),
        (8, None, 4),
        (16, None, 8),
        (192, None, 16),
        (192, 2 * 1024 * MIB, 16),
        (192, 1024 * MIB, 15),
        (192, 512 * MIB, 7),
        (192, 128 * MIB, 4),
    ],
)
def test_more_files_are_sent_at_once_where_there_are_cores_and_memory_for_them(
    cores: int, memory: int | None, files: int
):
    assert at_once(cores, memory, PART_BYTES) == files
    assert buffers_bytes(files, PART_BYTES) == files * PART_BYTES + SMALL_BYTES


def test_one_thread_has_buffers_enough_to_read_ahead():
    assert buffers_bytes(1, PART_BYTES) == buffers_bytes(4, PART_BYTES) == 72 * MIB


def test_the_limits_are_s3s():
    assert (MIN_PART_BYTES, MAX_PART_BYTES, MAX_PARTS) == (5 * 1024**2, 5 * 1024**3, 10_000)


def test_a_hundred_gigabytes_fit():
    assert part_size(MAX_FILE_BYTES) == PART_BYTES == 16 * MIB
    assert len(list(parts(MAX_FILE_BYTES, PART_BYTES))) == 5961
    check(MAX_FILE_BYTES, part_size(MAX_FILE_BYTES))


def test_the_part_size_grows_by_whole_mebibytes_where_parts_would_not_suffice():
    assert part_size(MAX_PARTS * PART_BYTES) == PART_BYTES
    assert part_size(MAX_PARTS * PART_BYTES + 1) == 17 * MIB
    assert part_size(MAX_FILE_BYTES, preferred=5 * MIB) == 10 * MIB
    check(MAX_FILE_BYTES, 10 * MIB)


def test_the_largest_object_of_s3_would_fit():
    size = 5 * 1024**4
    check(size, part_size(size))


@pytest.mark.parametrize(
    ("size", "plan"),
    [
        (0, [Part(1, 0, 0)]),
        (1, [Part(1, 0, 1)]),
        (10, [Part(1, 0, 10)]),
        (11, [Part(1, 0, 10), Part(2, 10, 1)]),
        (30, [Part(1, 0, 10), Part(2, 10, 10), Part(3, 20, 10)]),
    ],
)
def test_small_plans(size: int, plan: list[Part]):
    assert list(parts(size, 10)) == plan
