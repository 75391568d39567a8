"""What is counted, for whoever looks after a daemon: files on their way, what holds them up, and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ml_dashd.core.model import Job, Trouble
from ml_dashd.core.states import UNFINISHED, State


@dataclass(frozen=True, slots=True)
class Unsent:
    """A file that did not make it, and how many of its bytes the journal knows to be sent."""

    job: Job
    sent_bytes: int

    @property
    def left_bytes(self) -> int:
        return self.job.record.size_bytes - self.sent_bytes


@dataclass(frozen=True, slots=True)
class Left:
    """What is on its way: files, the bytes of them that are not sent, and how many are blocked and wait their time."""

    files: int
    left_bytes: int
    held: int


@dataclass(frozen=True, slots=True)
class StateCount:
    """Files of one state in the journal, and their bytes."""

    state: State
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The journal in short, for status."""

    counts: tuple[StateCount, ...]
    oldest_ms: int | None
    blocked: tuple[Job, ...] = field(default=())
    failed: tuple[Job, ...] = field(default=())
    superseded: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """What holds files up until an operator has mended it, and how many."""

    trouble: Trouble
    files: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the journal has that is neither stored nor cancelled: by state, the oldest on its way, and what blocks."""

    counts: tuple[StateCount, ...]
    oldest_ms: int | None = None
    blocked: tuple[Blocked, ...] = ()

    def on_their_way(self) -> tuple[int, int]:
        """Files that are not given up, and their bytes."""
        moving = [count for count in self.counts if count.state in UNFINISHED]
        return sum(count.files for count in moving), sum(count.size_bytes for count in moving)


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system under a folder: the bytes that this user may still write there, and whether it can be written."""

    folder: str
    free_bytes: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Sending:
    """Data requests that are under way, by lane; how many may be; and what they bring, as measured last."""

    requests: Mapping[str, int]
    places: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured when somebody asks. What did not answer in time is None, or is missing."""

    backlog: Backlog | None
    queue_age_s: float | None
    spool_bytes: int | None
    disks: Sequence[Disk]
    connections: int
    checks: Mapping[str, bool]
    sending: Sending
    circuits: Mapping[str, int]
    """Open ones: of the store, and of experiments."""
