"""Checkpoints of several ranks: each saves its files, and they are seen once all are stored, together.

with exp.files.checkpoint("step_1000", world_size=4) as ck:
    ck.save_torch(shard, to=f"rank{ck.rank}.pt")
exp.files.latest_checkpoint()
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from ml_dash import messages as m
from ml_dash.arguments import PathLike, Said, seconds_of, text, whole_number
from ml_dash.connection import Connection
from ml_dash.download import Downloads, place_below
from ml_dash.errors import Code, MLDashError, error
from ml_dash.handoff import Defaults, HandOff
from ml_dash.inbox import Inbox
from ml_dash.launcher import attempt_of, rank_of
from ml_dash.pages import pages
from ml_dash.request import new_key, now_ms, numbered
from ml_dash.result import FileResult, answers, iso_time
from ml_dash.tensors import Tensors

STEP = re.compile(r"([0-9]{1,18})$")


class Checkpoint(Tensors):
    """One rank's share of a set of files: every saver and `upload` work in its `with` block, and only there.

    When the block ends without an exception, the share is ended: the set is seen once every rank's is, and all files
    are stored. A block that an exception leaves ends no share.
    """

    def __init__(
        self, connection: Connection, place: m.Place, defaults: Defaults, durability: str, share: m.Share
    ) -> None:
        super().__init__(connection, place, defaults, durability)
        self._said = share
        self._open: m.Share | None = None
        self._ended: m.Share | None = None
        self._handed: list[int] = []

    @property
    def name(self) -> str:
        """The set's name, below the prefix."""
        return self._said.name

    @property
    def attempt(self) -> str:
        """Which attempt at it this is."""
        return self._said.attempt

    @property
    def rank(self) -> int:
        """Which rank saves here."""
        return self._said.rank

    @property
    def world_size(self) -> int:
        """How many ranks the set waits for."""
        return self._said.world_size

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name} attempt {self.attempt}, rank {self.rank} of {self.world_size}>"

    def __enter__(self) -> Self:
        """Begins the share. Raises SET_MISMATCH where other ranks count another world_size."""
        if self._open is not None:
            raise error(Code.INVALID_ARGUMENT, f"{self!r} is open already", "leave its block before the next")
        share = m.checked(m.OpenSet(request=0, place=self._place, share=replace(self._said, key=new_key()))).share
        self._connection.call(m.Done, lambda number: m.OpenSet(request=number, place=self._place, share=share))
        self._open, self._handed = share, []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        share, self._open = self._open, None
        if kind is not None or share is None:
            return
        files = len(set(self._handed))
        self._connection.call(
            m.Done,
            lambda number: m.EndShare(request=number, place=self._place, share=share, files=files),
            silent_s=None,
        )
        self._ended = share

    def wait(self, timeout: float | None = None) -> SavedCheckpoint:
        """Returns the whole set once every rank's share is there; `timeout` in seconds.

        Raises TIMEOUT, after which the work goes on, and SET_INCOMPLETE where this share is in no set any more.
        """
        timeout, share = seconds_of(timeout, "timeout"), self._ended
        if share is None:
            raise error(Code.INVALID_ARGUMENT, f"{self!r} is not ended", "wait for it after its with block")
        asked = m.ListSets(request=0, place=self._place, share=share.key)
        missing: Sequence[int] = ()
        for answer in answers(self._connection, m.Sets, asked, timeout):
            if answer.sets and answer.sets[0].state != "OPEN":
                return SavedCheckpoint(answer.sets[0], self._place, self._connection)
            missing = answer.sets[0].missing if answer.sets else (self.rank,)
        ranks = ", ".join(map(str, missing))
        raise error(Code.TIMEOUT, f"{self.name} is not complete after {timeout:g} s: ranks {ranks} are missing")

    # ---- the pieces

    def _describe(self, to: str, **said: Unpack[Said]) -> m.Described:
        if self._open is None:
            what = f"{to!r} is saved outside of the with block of {self!r}"
            raise error(Code.INVALID_ARGUMENT, what, "save inside of it: at its end the share is complete")
        described = replace(super()._describe(to, **said), share=self._open, supersede=False)
        m.check(described)
        return described

    def _result(self, record: m.Record | FileResult) -> FileResult:
        if isinstance(record, m.Record):
            self._handed.append(record.id)
        return super()._result(record)

    def _inbox_after(self, failure: MLDashError) -> Inbox:
        raise failure  # what lies in an inbox is no file yet: a share could be ended without it

    def _may_go_on_behind(self) -> bool:
        return False  # nothing of a share is behind its end: `background` saves at the call

    def _inbox_of_outage(self) -> Inbox | None:
        return None


class SavedCheckpoint:
    """A set of files as the catalog has it. Of one that is complete, every file is there, stored and verified."""

    def __init__(self, found: m.SetRecord, place: m.Place, connection: Connection) -> None:
        self._found = found
        self._place = place
        self._connection = connection

    @property
    def id(self) -> str:
        """Its id; a set that is saved again has another."""
        return self._found.id

    @property
    def name(self) -> str:
        """Its name, below the prefix at which it was looked for."""
        below = f"{self._place.prefix}/"
        return self._found.name.removeprefix(below) if self._place.prefix else self._found.name

    @property
    def attempt(self) -> str:
        """Which attempt at it this is."""
        return self._found.attempt

    @property
    def step(self) -> int | None:
        """The number at the end of its name, as in step_1000; None without one."""
        found = STEP.search(self._found.name)
        return None if found is None else int(found.group(1))

    @property
    def world_size(self) -> int:
        """How many ranks it is of."""
        return self._found.world_size

    @property
    def state(self) -> str:
        """COMPLETE, or OPEN while ranks are missing; OVERTAKEN where a newer attempt was saved at the same time."""
        return self._found.state

    @property
    def missing(self) -> list[int]:
        """The first ranks that are missing."""
        return [*self._found.missing]

    @property
    def completed_at(self) -> str | None:
        """When it was complete: ISO 8601, UTC."""
        return iso_time(self._found.completed_ms)

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return self._found.size_bytes

    @cached_property
    def files(self) -> list[FileResult]:
        """Its files' records, by path."""
        records = sorted(self._records, key=lambda record: f"{record.path}/{record.filename}")
        return [FileResult(record, self._connection) for record in records]

    def __repr__(self) -> str:
        return f"<SavedCheckpoint {self.name} attempt {self.attempt} {self.state}>"

    def download(self, to: PathLike = ".", *, rank: int | None = None) -> list[str]:
        """Writes all its files, or one rank's, below `to`, SHA-256 checked, folders below its name kept.

        Returns the paths. Raises ValueError for a rank that has none.
        """
        targets = sorted(self._targets(Path(text(to, "to")), rank), key=lambda one: one[1])
        if not targets:
            what = f"{self.name}" if rank is None else f"rank {rank} of {self.name}"
            raise error(Code.NO_MATCH, f"{what} has no files", f"its ranks are 0 to {self.world_size - 1}")
        downloads = Downloads(self._connection, lambda *_: None)
        return [str(got.target) for got in downloads.run(iter(targets))]

    def delete(self) -> None:
        """Deletes it, all files together. Idempotent."""
        self._connection.call(m.Done, lambda number: m.DropSet(request=number, id=self._found.id))

    def is_whole(self) -> bool:
        """Whether it is complete and nobody has deleted a file of it."""
        return self.state == "COMPLETE" and len(self._records) == self._found.files

    # ---- the pieces

    @cached_property
    def _records(self) -> list[m.Record]:
        return records_of_set(self._connection, self._found.id)

    def _targets(self, folder: Path, rank: int | None) -> Iterator[tuple[m.Record, Path]]:
        for record in self._records:
            if rank is not None and (record.share is None or record.share.rank != rank):
                continue
            yield record, place_below(folder, record, self._found.name)


class Checkpoints(HandOff):
    """The calls that save and find sets of files, at a place of an experiment."""

    def checkpoint(
        self,
        name: str,
        *,
        world_size: int = 1,
        rank: int | None = None,
        attempt: str | int | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        bindrs: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """One rank's share of the set `name`, whose files lie below it: `with files.checkpoint("step_1000") as ck:`.

        Nothing of the set is listed until all `world_size` ranks have left their blocks and every file is stored; then
        all of it is, at once. `rank` is the launcher's (RANK, SLURM_PROCID, OMPI_COMM_WORLD_RANK), `attempt` its run
        id and restart count; a `world_size` of 1 needs neither, and each call is an attempt of its own. A rank that
        saves again replaces its share within the attempt. The other words hold for every file.
        """
        count, own = whole_number(world_size, "world_size", 1), rank_of(name, world_size) if rank is None else rank
        defaults = self._defaults.merged(description, tags, bindrs, metadata)
        share = m.Share(
            key=b"",
            name=text(name, "name"),
            attempt=_attempt(attempt, count),
            rank=whole_number(own, "rank", 0),
            world_size=count,
        )
        return Checkpoint(self._connection, self._place, defaults, self._durability, share)

    def latest_checkpoint(self) -> SavedCheckpoint | None:
        """The newest complete set at or below the prefix, by when it was begun, with its files; None without one.

        A set of which a file was deleted is passed over.
        """
        return next((found for found in self._each_set(incomplete=False) if found.is_whole()), None)

    def checkpoints(self, *, incomplete: bool = False) -> list[SavedCheckpoint]:
        """The complete sets at and below the prefix, the newest first; or those that are `incomplete`."""
        return [*self._each_set(incomplete=incomplete)]

    def _each_set(self, *, incomplete: bool) -> Iterator[SavedCheckpoint]:
        found = sets_at(self._connection, self._place, incomplete=incomplete)
        return (SavedCheckpoint(one, self._place, self._connection) for one in found)


def sets_at(connection: Connection, place: m.Place, *, incomplete: bool = False) -> Iterator[m.SetRecord]:
    """The complete sets at and below a place, the newest first, or those that are incomplete; a page at a time."""
    asked = m.ListSets(request=0, place=place, incomplete=incomplete)
    found = pages(lambda after: connection.call(m.Sets, numbered(replace(asked, cursor=after))))
    return (one for page in found for one in page.sets)


def records_of_set(connection: Connection, set_id: str) -> list[m.Record]:
    """The files of a set that are there."""
    found = pages(lambda after: connection.call(m.Page, numbered(m.SetFiles(request=0, id=set_id, after=after))))
    return [record for page in found for record in page.records]


def _attempt(given: str | int | None, world_size: int) -> str:
    """The caller's, else the launcher's; a single rank's is its own."""
    if given is None:
        return f"{now_ms()}-{secrets.token_hex(4)}" if world_size == 1 else attempt_of()
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise error(Code.INVALID_ARGUMENT, f"attempt={given!r}", "pass text or a number that all ranks have in common")
    return str(given)
