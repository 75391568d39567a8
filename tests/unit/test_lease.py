"""No id is made twice in a fleet, whatever clocks, boots, copies of state folders and an absent catalog do."""

from __future__ import annotations

import os
import random
from array import array
from dataclasses import replace
from itertools import pairwise

import pytest

from ml_dashd.core import lease
from ml_dashd.core.ids import EPOCH_MS, MAX_NODE, last_of, node_of, time_of
from ml_dashd.core.lease import ALIVE_MS, LEASE_MS, MARGIN_MS, Answer, Claim, LapsedError, LeasedIds, Node, Place
from tests.doubles.fleet import Daemon, Folder, Host, Numbers

NOW_MS = 1_760_000_000_000
DAY_MS = 24 * 3_600_000
HERE = Place("m", "b", "1:2")
CLAIM = Claim("t", HERE, NOW_MS)
NODE = Node(7, "t", HERE, 0, NOW_MS + LEASE_MS, NOW_MS + LEASE_MS, NOW_MS)
FULL = bool(os.environ.get("ML_DASH_TEST_LONG"))
IDS = 10_000_000 if FULL else 1_000_000


# ---- a number in the catalog


def test_a_number_that_nobody_had_is_free_and_its_interval_begins_at_nothing():
    assert lease.may_take(None, CLAIM, NOW_MS)
    assert lease.take(None, 7, CLAIM, NOW_MS) == NODE


@pytest.mark.parametrize(
    ("catalogs_ms", "claimants_ms", "free"),
    [
        (LEASE_MS + 1, LEASE_MS + 1, True),
        (LEASE_MS, LEASE_MS + 1, False),
        (LEASE_MS + 1, LEASE_MS, False),
        (LEASE_MS + 1, 0, False),
    ],
)
def test_a_number_is_free_once_its_time_is_over_by_both_clocks(catalogs_ms: int, claimants_ms: int, free: bool):
    claim = Claim("u", HERE, NOW_MS + claimants_ms)
    assert lease.may_take(NODE, claim, NOW_MS + catalogs_ms) is free
    taken = lease.take(NODE, 7, claim, NOW_MS + catalogs_ms)
    assert (taken.floor_ms, taken.token) == (NODE.ceiling_ms, "u")


@pytest.mark.parametrize(
    ("node", "known", "place", "later_ms", "said"),
    [
        (NODE, {"t"}, HERE, 1, Answer.KEPT),
        (NODE, {"s", "t"}, HERE, 1, Answer.KEPT),
        (NODE, {"t"}, HERE, 2 * LEASE_MS, Answer.KEPT),
        (NODE, {"s"}, HERE, 1, Answer.OVERTAKEN),
        (None, {"t"}, HERE, 1, Answer.OVERTAKEN),
        (NODE, {"t"}, Place("other", "b", "1:2"), LEASE_MS, Answer.OVERTAKEN),
        (NODE, {"t"}, Place("m", "b", "1:3"), LEASE_MS, Answer.OVERTAKEN),
        (NODE, {"t"}, Place("m", "c", "1:2"), ALIVE_MS - 1, Answer.UNSURE),
        (NODE, {"t"}, Place("m", "c", "1:2"), ALIVE_MS, Answer.KEPT),
    ],
)
def test_who_keeps_its_number(node: Node | None, known: set[str], place: Place, later_ms: int, said: Answer):
    assert lease.answer(node, known, replace(CLAIM, place=place), NOW_MS + later_ms) is said


def test_more_time_is_never_less():
    later = lease.renew(NODE, Claim("u", HERE, NOW_MS + 50), NOW_MS + 60)
    expected = {"token": "u", "seen_ms": NOW_MS + 60, "until_ms": NOW_MS + 60 + LEASE_MS}
    assert later == replace(NODE, ceiling_ms=NOW_MS + 50 + LEASE_MS, **expected)
    back = lease.renew(later, Claim("v", HERE, NOW_MS - DAY_MS), NOW_MS - DAY_MS)
    assert (back.ceiling_ms, back.until_ms) == (later.ceiling_ms, later.until_ms)


def test_a_number_is_chosen_among_those_that_are_free():
    assert lease.choose((), 0.0) == 1, "0 is for embedded daemons"
    assert lease.choose((), 0.999_999_9) == MAX_NODE
    assert lease.choose([1, 3], 0.0) == 2
    assert lease.choose(range(1, MAX_NODE), 0.5) == MAX_NODE
    assert lease.choose(range(1, MAX_NODE + 1), 0.5) is None


# ---- a number in the hands of its holder


def test_a_lease_ends_before_the_catalog_takes_it_back():
    held = lease.held(NODE, 5000)
    ids = LeasedIds()
    ids.hold(held)
    assert held.fence_ms == 5000 + LEASE_MS - MARGIN_MS
    assert node_of(ids.next(NOW_MS, held.fence_ms - 1)) == 7
    with pytest.raises(LapsedError, match="7 was not renewed in time"):
        ids.next(NOW_MS, held.fence_ms)


def test_no_id_is_made_without_a_number():
    ids = LeasedIds()
    assert ids.lease is None
    with pytest.raises(LapsedError, match="no node number"):
        ids.next(NOW_MS, 0)
    ids.hold(lease.held(NODE, 0))
    assert ids.lease == lease.held(NODE, 0)
    ids.drop()
    with pytest.raises(LapsedError, match="no node number"):
        ids.next(NOW_MS, 0)


def test_no_id_is_made_beyond_the_interval_and_a_clock_that_comes_back_goes_on():
    ids = LeasedIds()
    ids.hold(lease.held(NODE, 0))
    with pytest.raises(LapsedError, match="the clock is past the time"):
        ids.next(NODE.ceiling_ms + 1, 0)
    assert time_of(ids.next(NOW_MS, 0)) == NOW_MS
    assert time_of(ids.next(NODE.ceiling_ms, 0)) == NODE.ceiling_ms
    with pytest.raises(LapsedError, match="the clock is past the time"):
        ids.next(NOW_MS, 0)


def test_the_next_holder_begins_above_the_interval():
    ids = LeasedIds()
    ids.hold(lease.held(replace(NODE, floor_ms=NOW_MS + 10, ceiling_ms=NOW_MS + LEASE_MS), 0))
    first = ids.next(NOW_MS, 0)
    assert first > last_of(NOW_MS + 10)
    assert time_of(first) == NOW_MS + 11


def test_ids_increase_when_the_number_changes():
    ids = LeasedIds(high_water=last_of(NOW_MS + 500))
    made = []
    for number in (9, 3, 12):
        ids.hold(lease.held(replace(NODE, number=number), 0))
        made += [ids.next(NOW_MS, 0) for _ in range(300)]
    assert all(earlier < later for earlier, later in pairwise([last_of(NOW_MS + 500), *made]))


def test_the_last_id_of_a_time():
    assert last_of(NOW_MS) == (NOW_MS - EPOCH_MS + 1 << 22) - 1
    assert last_of(0) == 0


@pytest.mark.parametrize(
    ("place", "boottime_ms", "holds"),
    [
        (HERE, LEASE_MS - MARGIN_MS - 1, True),
        (HERE, LEASE_MS - MARGIN_MS, False),
        (Place("m", "c", "1:2"), 0, False),
        (Place("m", "b", "1:3"), 0, False),
    ],
)
def test_a_kept_lease_counts_without_the_catalog_only_where_it_was_given(place: Place, boottime_ms: int, holds: bool):
    assert lease.held(NODE, 0).holds(place, boottime_ms) is holds


# ---- a fleet


def test_a_copied_state_folder_takes_a_number_of_its_own():
    numbers, chance = Numbers(NOW_MS), random.Random(1)
    first = Daemon(numbers, Host("a"), "a:1", Folder(), chance)
    number = first.ids.lease.number
    elsewhere = Daemon(numbers, Host("b"), "b:1", first.copied(), chance)
    beside = Daemon(numbers, first.host, "a:2", first.copied(), chance)
    first.beat()
    assert first.ids.lease.number == number
    assert len({each.ids.lease.number for each in (first, elsewhere, beside)}) == 3


def test_of_two_that_wake_from_one_snapshot_one_keeps_the_number():
    """Memory and all: the next beat of the second finds its token overtaken."""
    numbers, chance, host = Numbers(NOW_MS), random.Random(2), Host("a")
    folder = Folder()
    first = Daemon(numbers, host, "a:1", folder, chance)
    number = first.ids.lease.number
    second = Daemon.__new__(Daemon)
    second.__dict__.update(first.__dict__, folder=first.copied(), ids=LeasedIds(folder.high_water))
    second.ids.hold(first.ids.lease)
    first.beat()
    second.beat()
    assert first.ids.lease.number == number
    assert second.ids.lease.number != number


def test_a_lost_answer_costs_no_number():
    numbers, chance = Numbers(NOW_MS), random.Random(3)
    daemon = Daemon(numbers, Host("a"), "a:1", Folder(), chance)
    number, kept = daemon.ids.lease.number, daemon.copied()
    daemon.beat()
    daemon.folder.known = kept.known | daemon.folder.known  # asked, and killed before the answer
    again = Daemon(numbers, daemon.host, "a:1", daemon.folder, chance)
    assert again.ids.lease.number == number


def test_a_boot_keeps_the_number_once_no_twin_has_shown_itself():
    numbers, chance, host = Numbers(NOW_MS), random.Random(4), Host("a")
    number = Daemon(numbers, host, "a:1", folder := Folder(), chance).ids.lease.number
    host.boot, host.boottime_ms = 1, 0
    daemon = Daemon(numbers, host, "a:1", folder, chance)
    assert daemon.make(1) == 0
    numbers.now_ms += ALIVE_MS
    daemon.beat()
    assert daemon.ids.lease.number == number


@pytest.mark.parametrize("away_ms", [6 * DAY_MS, 8 * DAY_MS])
def test_a_restart_without_the_catalog_goes_on_for_as_long_as_the_lease_lasts(away_ms: int):
    numbers, chance, host = Numbers(NOW_MS), random.Random(5), Host("a")
    Daemon(numbers, host, "a:1", folder := Folder(), chance)
    numbers.away = True
    numbers.now_ms += away_ms
    host.boottime_ms += away_ms
    made = Daemon(numbers, host, "a:1", folder, chance).make(10)
    assert made == (10 if away_ms < LEASE_MS else 0)


class Trial:
    """Fifty nodes to which everything happens."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.numbers = Numbers(NOW_MS)
        self.lives: list[array] = []
        self.nodes = [self.start(Host(f"m{at}"), f"m{at}:0", Folder()) for at in range(50)]

    def start(self, host: Host, place: str, folder: Folder) -> Daemon:
        daemon = Daemon(self.numbers, host, place, folder, self.chance)
        self.lives.append(daemon.made)
        return daemon

    def pass_time(self, milliseconds: int) -> None:
        self.numbers.now_ms += milliseconds
        for each in self.nodes:
            each.host.boottime_ms += milliseconds

    def step(self) -> int:
        at = self.chance.randrange(50)
        node, event = self.nodes[at], self.chance.random()
        if event < 0.05:
            node.host.skew_ms = self.chance.choice([0, -DAY_MS, 3_600_000, self.chance.randint(-5000, 5000)])
        elif event < 0.15:
            self.nodes[at] = self.start(node.host, node.place.folder, node.folder)
        elif event < 0.17:
            node.host.boot, node.host.boottime_ms = node.host.boot + 1, 0
            self.nodes[at] = self.start(node.host, node.place.folder, node.folder)
        elif event < 0.19:
            other = self.chance.randrange(50)  # its folder is replaced by a copy of this one's
            host = self.nodes[other].host
            self.nodes[other] = self.start(host, f"{host.machine}:{self.chance.getrandbits(40)}", node.copied())
        elif event < 0.20:
            self.numbers.away = not self.numbers.away
        elif event < 0.21:
            self.pass_time(self.chance.choice([DAY_MS, LEASE_MS + DAY_MS]))
        elif event < 0.60 or node.ids.lease is None:
            node.beat()
        self.pass_time(self.chance.choice([0, 1, 1000, 60_000]))
        return self.nodes[at].make(self.chance.choice([1, 10, 300, 3000]))


@pytest.mark.slow
def test_no_id_is_made_twice_and_they_increase_within_a_node():
    trial, made = Trial(seed=20_260_101), 0
    while made < IDS:
        made += trial.step()
    ids = array("q")
    for life in trial.lives:
        assert all(earlier < later for earlier, later in pairwise(life))
        ids.extend(life)
    assert len(ids) == made
    assert len(set(ids)) == made
    assert len({node_of(life[0]) for life in trial.lives if life}) > 50


@pytest.mark.slow
def test_ten_thousand_nodes_that_come_and_go_do_not_run_out_of_numbers():
    """Nine hundred a day are replaced by others, which know nothing of them; a number is free after seven days."""
    chance, numbers = random.Random(6), {}
    alive = [None] * 10_000
    now_ms, most = NOW_MS, 0
    for day in range(40 if FULL else 12):
        now_ms += DAY_MS
        for at in range(10_000) if day == 0 else chance.sample(range(10_000), 900):
            alive[at] = None
        claim = Claim("t", HERE, now_ms)
        taken = {number for number, node in numbers.items() if not lease.may_take(node, claim, now_ms)}
        free = [number for number in range(1, MAX_NODE + 1) if number not in taken]
        for at, number in enumerate(alive):
            if number is None:
                number = free.pop()  # noqa: PLW2901
                numbers[number] = lease.take(numbers.get(number), number, claim, now_ms)
                alive[at] = number
            else:
                numbers[number] = lease.renew(numbers[number], claim, now_ms)
        most = max(most, MAX_NODE - len(free))
    assert 10_000 < most < MAX_NODE
    assert len(set(alive)) == 10_000
