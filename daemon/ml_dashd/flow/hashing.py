"""A source read for its SHA-256 alone: for a checksum that somebody waits for, or to see whether it is still the same.

The memory is outside the parts' budget: who holds a part and waits for more of the budget may wait for ever.
"""

from __future__ import annotations

import hashlib

from ml_dashd.core.plan import MIB, parts
from ml_dashd.ports import Source, Threads

STEP = 4 * MIB


async def sha256_of(source: Source, threads: Threads) -> str:
    """The hex SHA-256 of a source as it is now. Raises SOURCE_CHANGED as reading does."""
    sha256 = hashlib.sha256()
    buffer = memoryview(bytearray(min(STEP, source.size_bytes)))
    for part in parts(source.size_bytes, STEP):
        await threads.run(source.read, part.offset, buffer[: part.size_bytes], (sha256,))
    return sha256.hexdigest()
