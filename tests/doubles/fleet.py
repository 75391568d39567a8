"""Nodes that lease numbers and make ids, with clocks that a test rules: they step, stop, and start anew at a boot."""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field

from ml_dash.errors import Code
from ml_dashd.core import lease
from ml_dashd.core.ids import node_of
from ml_dashd.core.lease import Answer, Claim, LapsedError, Lease, LeasedIds, Node, Place
from ml_dashd.ports import JournalError


class Numbers:
    """The catalog's table of numbers, and its clock."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.away = False
        self.nodes: dict[int, Node] = {}

    def take(self, number: int, claim: Claim) -> Node | None:
        node = self.nodes.get(number)
        if node is not None and node.token == claim.token:
            return node
        if not lease.may_take(node, claim, self.now_ms):
            return None
        self.nodes[number] = lease.take(node, number, claim, self.now_ms)
        return self.nodes[number]

    def renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        node = self.nodes.get(number)
        said = lease.answer(node, known, claim, self.now_ms)
        if node is None or said is not Answer.KEPT:
            return said, None
        self.nodes[number] = lease.renew(node, claim, self.now_ms)
        return said, self.nodes[number]

    def taken(self, claim: Claim) -> list[int]:
        return [number for number, node in self.nodes.items() if not lease.may_take(node, claim, self.now_ms)]


class FakeLeases:
    """The port `Leases` on that table; it passes the contract suite that MongoDB's passes."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    async def taken(self, claim: Claim) -> list[int]:
        return self._there().taken(claim)

    async def take(self, number: int, claim: Claim) -> Node | None:
        return self._there().take(number, claim)

    async def renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        return self._there().renew(number, known, claim)

    async def nodes(self, after: int, limit: int) -> list[Node]:
        there = self._there()
        return [there.nodes[number] for number in sorted(there.nodes) if number > after][:limit]

    def _there(self) -> Numbers:
        if self.numbers.away:
            raise JournalError("the catalog is away", Code.CATALOG_UNREACHABLE)
        return self.numbers


@dataclass
class Folder:
    """What a state folder keeps."""

    lease: Lease | None = None
    known: set[str] = field(default_factory=set)
    high_water: int = 0


@dataclass
class Host:
    """A machine: its clocks."""

    machine: str
    boot: int = 0
    skew_ms: int = 0
    boottime_ms: int = 0


class Daemon:
    """One life of a daemon of a state folder."""

    def __init__(self, numbers: Numbers, host: Host, place: str, folder: Folder, chance: random.Random) -> None:
        self.numbers, self.host, self.folder, self.chance = numbers, host, folder, chance
        self.place = Place(host.machine, f"{host.machine}-{host.boot}", place)
        self.ids = LeasedIds(folder.high_water)
        self.made = array("q")
        self.beat(start=True)

    def beat(self, *, start: bool = False) -> None:
        """Asks for more time, or for a number of its own."""
        kept = self.folder.lease
        if self.numbers.away:
            if start and kept is not None and kept.holds(self.place, self.host.boottime_ms):
                self.ids.hold(kept)
            return
        asked_ms = self.host.boottime_ms
        claim = Claim(f"{self.chance.getrandbits(64):x}", self.place, self.numbers.now_ms + self.host.skew_ms)
        node = None
        if kept is not None:
            known, self.folder.known = self.folder.known, self.folder.known | {claim.token}
            said, node = self.numbers.renew(kept.number, known, claim)
            if said is Answer.UNSURE:
                return
        if node is None:
            self.ids.drop()
            node = self.take(claim)
        if node is None:
            return
        self.folder.known = {claim.token}
        self.folder.lease = lease.held(node, asked_ms)
        self.ids.hold(self.folder.lease)

    def take(self, claim: Claim) -> Node | None:
        number = lease.choose(self.numbers.taken(claim), self.chance.random())
        return None if number is None else self.numbers.take(number, claim)

    def make(self, count: int) -> int:
        """Makes ids, as far as it may; returns how many."""
        before = len(self.made)
        now_ms, boottime_ms = self.numbers.now_ms + self.host.skew_ms, self.host.boottime_ms
        try:
            for _ in range(count):
                self.made.append(self.ids.next(now_ms, boottime_ms))
        except LapsedError:
            pass
        if len(self.made) > before:
            self.folder.high_water = max(self.folder.high_water, self.made[-1])
            assert self.ids.lease is not None
            assert node_of(self.made[-1]) == self.ids.lease.number
        return len(self.made) - before

    def copied(self) -> Folder:
        """Its state folder, as `cp -a` or a snapshot has it."""
        return copy.deepcopy(self.folder)
