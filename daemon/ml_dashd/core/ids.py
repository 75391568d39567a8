"""File ids: 63-bit snowflakes, strictly increasing within a node.

    41 bits of milliseconds since EPOCH_MS | 14 bits of node | 8 bits of sequence

The sign bit stays clear, because a BSON int64 and a SQLite INTEGER are signed.
"""

from __future__ import annotations

EPOCH_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z; 41 bits of milliseconds last until 2093."""
NODE_BITS = 14
SEQUENCE_BITS = 8
MAX_NODE = (1 << NODE_BITS) - 1
_NODE_SHIFT = SEQUENCE_BITS
_TIME_SHIFT = NODE_BITS + SEQUENCE_BITS
_SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1


class IdSource:
    """Hands out ids for one node. `high_water` is the largest id that the node has ever given out, 0 for none."""

    def __init__(self, node: int, high_water: int = 0) -> None:
        if not 0 <= node <= MAX_NODE:
            raise ValueError(f"node {node} is not in 0 to {MAX_NODE}")
        self.node = node
        self._tick = _tick_of(high_water)

    def next(self, now_ms: int) -> int:
        """An id above all earlier ones, whatever the clock does; a full millisecond borrows from the next."""
        self._tick = max(self._tick + 1, (now_ms - EPOCH_MS) << SEQUENCE_BITS)
        return self.latest

    @property
    def latest(self) -> int:
        """The last id that was given out, or passed over; before the first one, as much of `high_water` as counts."""
        millisecond, sequence = self._tick >> SEQUENCE_BITS, self._tick & _SEQUENCE_MASK
        return millisecond << _TIME_SHIFT | self.node << _NODE_SHIFT | sequence

    def pass_over(self, file_id: int) -> None:
        """An id that was given out elsewhere, and came here, is not given out again."""
        if node_of(file_id) == self.node:
            self._tick = max(self._tick, _tick_of(file_id))


def time_of(file_id: int) -> int:
    """The milliseconds since 1970 at which the id was given out (a little later if it was borrowed)."""
    return (file_id >> _TIME_SHIFT) + EPOCH_MS


def node_of(file_id: int) -> int:
    """The node that gave the id out."""
    return file_id >> _NODE_SHIFT & MAX_NODE


def last_of(time_ms: int) -> int:
    """The largest id that any node gives out at that time or earlier; 0 where there is none."""
    return max(0, (time_ms - EPOCH_MS + 1 << _TIME_SHIFT) - 1)


def _tick_of(file_id: int) -> int:
    """Milliseconds and sequence as one number, without the node: the order in which a node counts."""
    return (file_id >> _TIME_SHIFT) << SEQUENCE_BITS | file_id & _SEQUENCE_MASK
