"""A daemon's node number, on a real journal: what it asks of the catalog, what it keeps, and when it makes no ids."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.ids import MAX_NODE, node_of, time_of
from ml_dashd.core.lease import ALIVE_MS, LEASE_MS, MARGIN_MS, Claim, Node, Place
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.place import Here
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow import lease as flow
from ml_dashd.flow.lease import NodeNumber
from ml_dashd.ports import JournalError
from tests.doubles.fleet import FakeLeases, Numbers

NOW_MS = 1_760_000_000_000
PLACE = Place("machine", "boot", "1:2")


class Machine(SystemClock):
    """A machine whose clocks a test rules: its own, the catalog's goes with it, and what no boot outlives."""

    host = "gpu-1"

    def __init__(self, numbers: Numbers, place: Place = PLACE) -> None:
        self.numbers, self.place = numbers, place
        self.skew_ms = 0
        self._boottime_ms = 1000
        self._tokens = itertools.count()
        self._chance = random.Random(place.folder)

    def now_ms(self) -> int:
        return self.numbers.now_ms + self.skew_ms

    def boottime_ms(self) -> int:
        return self._boottime_ms

    def token(self) -> str:
        return f"{self.place.folder}/{next(self._tokens)}"

    def jitter(self) -> float:
        return self._chance.random()

    def go_on(self, milliseconds: int) -> None:
        self.numbers.now_ms += milliseconds
        self._boottime_ms += milliseconds

    def boot(self) -> None:
        self.place, self._boottime_ms = replace(self.place, boot=f"{self.place.boot}+"), 0


@pytest.fixture
def numbers() -> Numbers:
    return Numbers(NOW_MS)


@pytest.fixture
def machine(numbers: Numbers) -> Machine:
    return Machine(numbers)


@asynccontextmanager
async def life(folder: Path, machine: Machine, leases: FakeLeases | None = None) -> AsyncIterator[NodeNumber]:
    """A daemon's life with a state folder: it starts, and is gone at the end without a word, as by kill -9."""
    folder.mkdir(exist_ok=True)
    journal = SqliteJournal(folder / "journal.sqlite", machine, NoFaults(), lambda *_: None)  # type: ignore[arg-type,return-value]
    try:
        number = NodeNumber(leases or FakeLeases(machine.numbers), journal, machine, machine)
        await number.start()
        yield number
    finally:
        journal.close()


def held(number: NodeNumber) -> int:
    assert number.lease is not None
    return number.lease.number


def refusal(number: NodeNumber, machine: Machine) -> str:
    """What a hand-off is told; the same is shown by status, and known before a slot is granted."""
    with pytest.raises(MLDashError) as refused:
        number.next(machine.now_ms())
    assert refused.value.code is Code.RETRY_LATER
    trouble = number.trouble()
    assert trouble is not None
    assert trouble.message == refused.value.message
    assert trouble.code is Code.RETRY_LATER
    return f"{trouble.message} ({trouble.hint})"


async def test_a_daemon_takes_a_number_and_makes_ids_with_it(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        first, second = number.next(machine.now_ms()), number.next(machine.now_ms())
        assert number.trouble() is None
        assert first < second
        assert {node_of(first), node_of(second)} == {held(number)}
        assert time_of(first) == NOW_MS
        assert number.left_s() * 1000 == LEASE_MS - MARGIN_MS
    (node,) = machine.numbers.nodes.values()
    assert (node.host, node.place) == ("gpu-1", PLACE)


async def test_a_restart_keeps_the_number_and_asks_nobody_first(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        before, last = held(number), number.next(NOW_MS)
    machine.numbers.away = True
    async with life(tmp_path / "a", machine) as number:
        assert held(number) == before
        assert number.next(NOW_MS + 1) > last
        await number.beat()
        assert number.trouble() is None, "a catalog that is away is no trouble while the lease lasts"
        machine.go_on(LEASE_MS - MARGIN_MS)
        assert "was not renewed in time: CATALOG_UNREACHABLE: the catalog is away" in refusal(number, machine)
        assert number.left_s() == 0
    async with life(tmp_path / "a", machine) as number:
        assert refusal(number, machine).startswith("no node number is held: CATALOG_UNREACHABLE: the catalog is away")
        machine.numbers.away = False
        await number.beat()
        assert held(number) == before, "nobody else has taken it"


async def test_a_copied_state_folder_takes_a_number_of_its_own(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        before = held(number)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    machine.numbers.away = True
    beside = Machine(machine.numbers, replace(PLACE, folder="1:3"))
    async with life(tmp_path / "b", beside) as copy:
        assert "no node number is held" in refusal(copy, beside)
        machine.numbers.away = False
        await copy.beat()
        assert held(copy) != before
    async with life(tmp_path / "a", machine) as number:
        await number.beat()
        assert held(number) == before


async def test_of_two_machines_that_wake_from_one_snapshot_one_gets_another_number(
    tmp_path: Path, machine: Machine
) -> None:
    async with life(tmp_path / "a", machine) as number:
        before = held(number)
        shutil.copytree(tmp_path / "a", tmp_path / "b")  # the same inode there, and another boot
        twin = Machine(machine.numbers, replace(PLACE, boot="later"))
        async with life(tmp_path / "b", twin) as other:
            assert "a twin of this machine" in refusal(other, twin)
            await number.beat()
            machine.go_on(ALIVE_MS)
            await other.beat()
            assert held(other) != before
            await number.beat()
            assert held(number) == before


async def test_a_boot_keeps_the_number_once_no_twin_has_shown_itself(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        before = held(number)
    machine.boot()
    async with life(tmp_path / "a", machine) as number:
        assert "within three minutes" in refusal(number, machine)
        machine.go_on(ALIVE_MS)
        await number.beat()
        assert held(number) == before


class LosingLeases(FakeLeases):
    """Does what it is asked, or not, and its answer is lost."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__(numbers)
        self.losing = True
        self.doing = True

    async def take(self, number: int, claim: Claim) -> Node | None:
        return await self._lose(super().take(number, claim))

    async def renew(self, number: int, known, claim: Claim):
        return await self._lose(super().renew(number, known, claim))

    async def _lose(self, asked: Awaitable):
        if not self.losing:
            return await asked
        if self.doing:
            await asked
        else:
            asked.close()  # type: ignore[attr-defined]
        self.numbers.away = True
        try:
            return self._there()
        finally:
            self.numbers.away = False


@pytest.mark.parametrize("doing", [True, False])
@pytest.mark.parametrize("killed", [True, False])
async def test_an_answer_that_is_lost_costs_no_number(
    tmp_path: Path, machine: Machine, doing: bool, killed: bool
) -> None:
    """Neither of the one who takes it, nor, however often, of the one who has it; killed at once, or not."""
    leases = LosingLeases(machine.numbers)
    leases.doing = doing
    async with life(tmp_path / "a", machine, leases) as number:
        assert "the catalog is away" in refusal(number, machine)
        leases.losing = False
        if not killed:
            await number.beat()
            assert number.trouble() is None
    leases.losing = False
    async with life(tmp_path / "a", machine, leases) as number:
        before = held(number)
        leases.losing = True
        for _ in range(2 * flow.ASKED):
            await number.beat()
        if not killed:
            leases.losing = False
            await number.beat()
            assert held(number) == before
    leases.losing = False
    async with life(tmp_path / "a", machine, leases) as number:
        await number.beat()
        assert held(number) == before
    assert len(machine.numbers.nodes) == 1


async def test_a_clock_that_steps_makes_no_id_twice(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        made = [number.next(machine.now_ms())]
        machine.skew_ms = -3_600_000
        made.append(number.next(machine.now_ms()))
        machine.skew_ms = 30 * 24 * 3_600_000
        assert "the clock is past the time" in refusal(number, machine)
        await number.beat()
        made.append(number.next(machine.now_ms()))
        machine.skew_ms = 0
        made.append(number.next(machine.now_ms()))
        assert made == sorted(set(made))


async def test_who_wants_an_id_does_not_wait_for_the_next_beat(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "LEAST_S", 0.0)
    monkeypatch.setattr(flow, "SOON_S", 3600.0)
    machine.numbers.away = True
    leases = TellingLeases(machine.numbers)
    async with life(tmp_path / "a", machine, leases) as number, asyncio.timeout(20):
        renewing = asyncio.create_task(number.run())
        await asyncio.sleep(0)
        refusal(number, machine)
        machine.numbers.away = False
        await leases.has_taken.wait()
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


class TellingLeases(FakeLeases):
    """Says when a number was taken."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__(numbers)
        self.has_taken = asyncio.Event()

    async def take(self, number: int, claim: Claim) -> Node | None:
        self.has_taken.set()
        return await super().take(number, claim)


async def test_where_all_numbers_are_taken_that_is_said(tmp_path: Path, machine: Machine) -> None:
    for at in range(1, MAX_NODE + 1):
        machine.numbers.take(at, Claim(f"t{at}", PLACE, NOW_MS))
    async with life(tmp_path / "a", machine) as number:
        assert "the catalog has no number that is free" in refusal(number, machine)
        assert "ml-dash nodes" in refusal(number, machine)
        machine.go_on(LEASE_MS + 1)
        await number.beat()
        assert time_of(number.next(machine.now_ms())) > NOW_MS + LEASE_MS


async def test_a_journal_that_can_not_be_written_to_takes_no_numbers(tmp_path: Path, machine: Machine) -> None:
    """What could not be noted is not asked for: else each try would cost a number for seven days."""
    async with life(tmp_path / "a", machine) as number:
        number._kept = None
        number._ids.drop()
        machine.numbers.nodes.clear()
        number._journal = Refusing()  # type: ignore[assignment]
        await number.beat()
        assert "DISK_FULL" in refusal(number, machine)
    assert machine.numbers.nodes == {}


class Refusing:
    async def set_setting(self, name: str, value: str) -> None:
        raise JournalError("the journal's disk is full", Code.DISK_FULL)


async def test_a_defect_in_a_claim_is_told_and_tried_again(tmp_path: Path, machine: Machine) -> None:
    class Broken(FakeLeases):
        async def taken(self, claim: Claim) -> list[int]:
            raise ZeroDivisionError

    async with life(tmp_path / "a", machine, Broken(machine.numbers)) as number:
        assert refusal(number, machine).startswith("no node number is held: INTERNAL: ")
        number._leases = FakeLeases(machine.numbers)
        await number.beat()
        assert number.trouble() is None


async def test_ids_of_another_node_are_not_brought_along(tmp_path: Path, machine: Machine) -> None:
    async with life(tmp_path / "a", machine) as number:
        mine = number.next(NOW_MS)
        number.pass_over(5 << 22)  # an embedded daemon's
        with pytest.raises(MLDashError) as refused:
            number.pass_over(mine)
        assert refused.value.code is Code.ID_TAKEN


def test_a_place_is_the_machine_its_boot_and_the_folder_itself(tmp_path: Path) -> None:
    folder, copy = tmp_path / "state", tmp_path / "copy"
    folder.mkdir()
    before = Here(folder)
    assert before.place == Here(folder).place
    assert before.host
    assert before.token() != before.token()
    shutil.copytree(folder, copy)
    assert Here(copy).place.folder != before.place.folder
    folder.rename(tmp_path / "moved")
    assert Here(tmp_path / "moved").place == before.place
    assert Here(copy).boottime_ms() >= before.boottime_ms() > 0


def test_without_a_name_of_the_boot_each_start_counts_as_one(tmp_path: Path) -> None:
    first, second = (Here(tmp_path, tmp_path / "none", tmp_path / "none").place for _ in range(2))
    assert first != second
    assert first.may_have_been(second)
