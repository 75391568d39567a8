"""Sets: the files that the ranks of a job save together, and that become visible together or not at all.

A set is known by its owner, its name and its attempt. A rank hands over its files with a share, which it ends when it
has handed over the last one. Once the shares of all ranks are ended, and their files verified, the set is COMPLETE, and
all its files are listed in one step of the catalog. What is saved at a complete set begins its next round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ml_dash.errors import Code, MLDashError, error

if TYPE_CHECKING:
    from ml_dashd.core.model import Scope  # which has records with shares of sets

MAX_WORLD = 65_536
"""Ranks of a set: more than the largest jobs have that are known of."""
MAX_FILES = 100_000
"""Files of a share: those of a set become visible in one transaction."""
NAMED = 16
"""Missing ranks that a report names."""


class SetState(StrEnum):
    """How far a set has come."""

    OPEN = "OPEN"
    """Ranks are missing."""
    COMPLETE = "COMPLETE"
    """Its files are listed."""
    OVERTAKEN = "OVERTAKEN"
    """Complete, and not listed: a newer attempt was saved at the same time, and is."""
    DROPPED = "DROPPED"
    """Given up, or deleted: its files are."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank contributes to a set, of which its files bear the mark. `key` is 32 hexadecimal digits, its own."""

    key: str
    name: str
    attempt: str
    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class SetKey:
    """Whose set it is, where, and which."""

    owner_uid: int
    namespace: str
    project: str
    experiment: str
    name: str
    attempt: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A share that a rank has ended, and the files that belong to it."""

    key: SetKey
    share: Share
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetRecord:
    """A round of a set, as the catalog keeps it. `number` rises with each set that is begun in the catalog.

    `files` and `size_bytes` are those of the shares that are there.
    """

    id: str
    key: SetKey
    round: int
    number: int
    world_size: int
    state: SetState
    opened_ms: int
    updated_ms: int
    completed_ms: int | None = None
    files: int = 0
    size_bytes: int = 0
    ranks: tuple[int, ...] = ()
    """Those whose share is there, in their order; of a set that is complete they are left out."""

    def is_over_for(self, share: Share) -> bool:
        """Whether a share begins the next round: this one is at its end, and of the same world_size, or given up."""
        if self.state is SetState.DROPPED:
            return True
        return self.state is not SetState.OPEN and self.world_size == share.world_size

    @property
    def missing(self) -> tuple[int, ...]:
        """The first ranks that are missing."""
        if self.state is not SetState.OPEN:
            return ()
        there = frozenset(self.ranks)
        found: list[int] = []
        for rank in range(self.world_size):
            if rank not in there:
                found.append(rank)
                if len(found) == NAMED:
                    break
        return tuple(found)

    @property
    def delivered(self) -> int:
        """How many ranks' shares are there."""
        return len(self.ranks) if self.state is SetState.OPEN else self.world_size


@dataclass(frozen=True, slots=True)
class SetSelection:
    """Which sets are asked for: those in these states, the newest first, below the number `before`, at most `limit`.

    Of an experiment, where there is one, and there of the sets at and below `prefix`; those outside `scope` are left
    out.
    """

    states: tuple[SetState, ...]
    scope: Scope
    experiment: tuple[str, str, str] | None = None
    prefix: str = ""
    before: int | None = None
    limit: int = 100


class Verdict(StrEnum):
    """What became of a share that was brought to the catalog."""

    DELIVERED = "delivered"
    MISMATCH = "mismatch"
    """The set has another world_size."""
    LOST = "lost"
    """One of its files is deleted, or not listed."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A share's verdict, and its set as it is afterwards."""

    verdict: Verdict
    record: SetRecord


def set_id(key: SetKey, number: int) -> str:
    """The id of a round of a set: 32 hexadecimal digits, the same on every node."""
    words = (key.owner_uid, key.namespace, key.project, key.experiment, key.name, key.attempt, number)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def check(share: Share) -> None:
    """Raises INVALID_ARGUMENT for a share that there can't be."""
    if not 1 <= share.world_size <= MAX_WORLD:
        raise error(Code.INVALID_ARGUMENT, f"world_size={share.world_size}", f"it is 1 to {MAX_WORLD}")
    if share.rank >= share.world_size:
        what = f"rank={share.rank} of world_size={share.world_size}"
        raise error(Code.INVALID_ARGUMENT, what, f"ranks are 0 to {share.world_size - 1}")


def mismatch(key: SetKey, share: Share, world_size: int) -> MLDashError:
    """The error of a rank that counts other ranks than those before it."""
    what = f"rank {share.rank} has world_size={share.world_size}, and {called(key)} was begun with {world_size}"
    return error(Code.SET_MISMATCH, what)


def called(key: SetKey) -> str:
    """A set for messages."""
    return f"the set {key.name} (attempt {key.attempt})"


def overlap(older: Sequence[int], newer: Sequence[int]) -> bool:
    """Whether files of two attempts, by the first and the last id of each, were saved at the same time.

    Then neither is the newer one at every path, and listing both would mix them.
    """
    return bool(older and newer) and older[-1] > newer[0]


def surplus(records: Iterable[SetRecord], keep_last: int) -> list[SetRecord]:
    """Of complete sets, the newest first, those beyond the `keep_last` newest of each owner and name."""
    kept: dict[tuple[int, str], int] = {}
    found: list[SetRecord] = []
    for record in records:
        name = record.key.owner_uid, record.key.name
        kept[name] = kept.get(name, 0) + 1
        if kept[name] > keep_last:
            found.append(record)
    return found
