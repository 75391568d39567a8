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

LEAST_AT_ONCE, MOST_AT_ONCE = 4, 16
"""Large files that are read, hashed and sent at once by default: four keep a line busy that is shared with a trainer.
The SHA-256 of a file is one core's work (1.4 GB/s), so that more cores bring more files; with 16 the loop is busy."""
CORES_EACH = 2
"""Of a machine's cores, half are left to others."""
BUFFERS_SHARE = 4
"""Of the memory that a control group allows, a quarter goes into buffers, but for the least number of parts."""
SMALL_BYTES = 8 * MIB
"""Memory that large files leave to small ones: these need not wait until a part of a large one is sent."""


def fitting(memory_bytes: int | None, part_bytes: int) -> int:
    """How many large files there is memory for. `memory_bytes` is what a control group allows, None for no limit."""
    if memory_bytes is None:
        return MOST_AT_ONCE
    most = (memory_bytes // BUFFERS_SHARE - SMALL_BYTES) // part_bytes
    return max(LEAST_AT_ONCE, min(MOST_AT_ONCE, most))


def at_once(cores: int, memory_bytes: int | None, part_bytes: int) -> int:
    """How many large files are under way at once where the settings do not say: as the machine has cores and memory."""
    return max(LEAST_AT_ONCE, min(fitting(memory_bytes, part_bytes), cores // CORES_EACH))


def buffers_bytes(files: int, part_bytes: int) -> int:
    """Memory for so many large files at once: a part of each, and what is left to small ones."""
    return max(LEAST_AT_ONCE, files) * part_bytes + SMALL_BYTES


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
