"""`push` of sets: their files go with their shares, and are seen in the service once all of a set is stored there.

A set that is not complete stays in the root. So does the bond of one of which a file was deleted: what is left of it
goes as single files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError, error
from ml_dash.request import numbered
from ml_dash.sets import records_of_set, sets_at

WAIT_MS = 60_000
"""For a set whose files are stored: it takes a moment."""
Target = Callable[[m.Place], m.Place]
"""Where a place of the root is in the service."""


@dataclass
class _Set:
    """A whole set of the root. `going`: some of its files are not seen in the service."""

    record: m.SetRecord
    shares: dict[int, m.Share]
    files: dict[int, int]
    """How many each rank has."""
    going: bool = False


@dataclass
class PushedSets:
    """The sets to which files of the root belong, by the ids of these."""

    source: Connection
    service: Connection
    target: Target
    _known: dict[int, _Set] = field(default_factory=dict)
    _read: set[tuple[str, str, str]] = field(default_factory=set)

    def share_of(self, record: m.Record) -> m.Share | None:
        """The share with which a file is handed over; None for a single file."""
        one = self._of(record)
        return None if one is None else record.share

    def note_going(self, record: m.Record) -> None:
        """A file goes, or is there and not seen: its set is to be ended there."""
        one = self._of(record)
        if one is not None:
            one.going = True

    def end(self, refuse: Callable[[m.SetRecord, MLDashError], None]) -> None:
        """Ends all shares of each set, once its files are stored there; the oldest first, one set after the other.

        Shares of a set's next round would otherwise replace those of the one before.
        """
        going = {one.record.id: one for one in self._known.values() if one.going}
        for one in sorted(going.values(), key=lambda each: each.record.number):
            try:
                self._end(one)
            except MLDashError as failure:
                if failure.code not in (Code.SET_INCOMPLETE, Code.SET_MISMATCH):
                    raise
                refuse(one.record, failure)

    def _end(self, one: _Set) -> None:
        record = one.record
        place = self.target(m.Place(namespace=record.namespace, project=record.project, experiment=record.experiment))
        share = None
        for rank in range(record.world_size):
            share = one.shares.get(rank) or _without_files(record, rank)
            message = m.EndShare(request=0, place=place, share=share, files=one.files.get(rank, 0))
            self.service.call(m.Done, numbered(message), silent_s=None)
        if share is None:
            return
        asked = m.ListSets(request=0, place=place, share=share.key, timeout_ms=WAIT_MS)
        answer = self.service.call_aside(m.Sets, numbered(asked), silent_s=None)
        if not answer.sets or answer.sets[0].state != "COMPLETE":
            raise error(Code.SET_INCOMPLETE, "it is not complete there", "push again")

    def _of(self, record: m.Record) -> _Set | None:
        if record.share is None:
            return None
        place = (record.namespace, record.project, record.experiment)
        if place not in self._read:
            self._read.add(place)
            self._load(m.Place(namespace=place[0], project=place[1], experiment=place[2]))
        return self._known.get(record.id)

    def _load(self, place: m.Place) -> None:
        """All whole sets of an experiment."""
        for found in sets_at(self.source, place):
            records = records_of_set(self.source, found.id)
            if len(records) == found.files:
                self._take(found, records)

    def _take(self, found: m.SetRecord, records: list[m.Record]) -> None:
        one = _Set(found, {}, {})
        for record in records:
            self._known[record.id] = one
            if record.share is not None:
                rank = record.share.rank
                one.shares[rank] = record.share
                one.files[rank] = one.files.get(rank, 0) + 1


def _without_files(record: m.SetRecord, rank: int) -> m.Share:
    """The share of a rank that has saved nothing: the same, however often it is pushed."""
    key = hashlib.sha256(f"{record.id} {rank}".encode()).digest()[:16]
    return m.Share(key=key, name=record.name, attempt=record.attempt, rank=rank, world_size=record.world_size)
