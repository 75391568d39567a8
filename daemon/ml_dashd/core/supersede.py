"""Which versions on their way give way to a newer one of the same path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ml_dash.errors import TABLE, Code
from ml_dashd.core import names
from ml_dashd.core.model import FileRecord, Job, PinKind, Trouble
from ml_dashd.core.states import State

DROPPED = (State.QUEUED, State.SENDING, State.COMPLETING)
"""The states in which a version can give way: once it is VERIFIED, it is stored, and stays."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the operator has said: paths of which only the newest matters, and tags that keep a version."""

    patterns: tuple[str, ...] = ()
    keep_tags: frozenset[str] = frozenset()

    def asks(self, record: FileRecord) -> bool:
        """Whether this file takes the place of older versions without its caller's word."""
        return any(names.matches(record.path, "", pattern) for pattern in self.patterns)

    def gives_way(self, older: Job, newer: Job) -> bool:
        """Whether the newer version is to be had wherever the older one is, which nobody has tagged to stay.

        At every moment one of the two survives what both were promised to survive. A set protects its files: the newer
        version may never be seen with the others of that set.
        """
        return (
            older.state in DROPPED
            and older.record.share is None
            and not older.cancel_requested
            and self.keep_tags.isdisjoint(older.record.tags)
            and _outlives(newer) >= _outlives(older)
        )


def _outlives(job: Job) -> int:
    """What a job's bytes survive: nothing but its trainer (a descriptor that is held), the daemon, or a reboot."""
    if job.on_disk:
        return 2
    return 0 if job.pin.kind is PinKind.FD else 1


def newest_of_each_path(jobs: Iterable[Job]) -> list[Job]:
    """Of the jobs that supersede older ones, the last of each owner and path: its older ones are the others' too."""
    asking = sorted((job for job in jobs if job.supersedes), key=lambda job: job.id)
    return list({(job.record.owner_uid, job.record.group, job.record.path): job for job in asking}.values())


def trouble_of(job: Job) -> Trouble | None:
    """What is said of a job: that of one which gave way is the newer version, whatever troubled it before."""
    if job.superseded_by is None:
        return job.trouble
    what = f"a newer version took its place before it was stored: file {job.superseded_by}"
    return Trouble(Code.SUPERSEDED, what, TABLE[Code.SUPERSEDED].hint)
