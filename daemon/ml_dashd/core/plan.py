"""How a file is cut into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1024 * 1024
PART_BYTES = 16 * MIB
"""The design's part size: 100 GB are 5,961 parts of it."""
MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 * 1024 * MIB
MAX_PARTS = 10_000
"""S3's limits; the last part may be smaller than the least."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of the source: parts count from 1."""

    number: int
    offset: int
    size_bytes: int


def part_size(size_bytes: int, preferred: int = PART_BYTES) -> int:
    """The size of every part but the last: `preferred`, or the next whole MiB by which S3's 10,000 parts suffice."""
    needed = -(-size_bytes // MAX_PARTS)
    return max(preferred, -(-needed // MIB) * MIB)


def parts(size_bytes: int, each: int) -> Iterator[Part]:
    """The parts of a file, in order, without gap or overlap. An empty file has one empty part."""
    for number, offset in enumerate(range(0, max(size_bytes, 1), each), start=1):
        yield Part(number, offset, min(each, size_bytes - offset))
