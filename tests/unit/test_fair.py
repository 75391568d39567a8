"""Who goes next: priorities, lanes, and experiments by what they had."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from ml_dashd.core.fair import REMEMBERED, Claim, FairQueue, Shares, Waiting
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.schedule import Lane

A, B = ("alice", "cv", "a"), ("bob", "nlp", "b")


def always(lane: Lane, size: int) -> bool:
    return True


def waiting(name: str, experiment=A, lane: Lane = Lane.LARGE, priority: int = 0, cost: int = 1) -> Waiting[str]:
    return Waiting(Claim(lane, experiment, priority), 1, cost, name)


def queue_of(*those: Waiting[str]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for each in those:
        queue.add(each)
    return queue


def order(queue: FairQueue[str], fits=always) -> list[str]:
    return [each.item for each in iter(lambda: queue.next(fits), None)]


def test_a_file_claims_for_its_experiment():
    record = FileRecord(1, 0, "alice", "cv", "a", "", "d", 5, "text/plain", 0, 0)
    assert Claim.of(Lane.SMALL, Job(record, Pin(PinKind.LINK), priority=7)) == Claim(Lane.SMALL, A, 7)


def test_a_higher_priority_goes_first_then_the_small_lane_then_who_came_first():
    queue = queue_of(
        waiting("1st"),
        waiting("2nd"),
        waiting("small", lane=Lane.SMALL),
        waiting("urgent", priority=1),
        waiting("small and late", lane=Lane.SMALL, priority=-1),
    )
    assert len(queue) == 5
    assert order(queue) == ["urgent", "small", "1st", "2nd", "small and late"]
    assert len(queue) == 0


def test_ten_thousand_of_one_experiment_are_one_turn_before_the_only_one_of_another():
    queue = queue_of(*(waiting(f"a{number}") for number in range(10_000)), waiting("b", B))
    assert "b" in [queue.next(always).item for _ in range(2)]


def test_turns_go_by_bytes_not_by_number():
    """One experiment's parts are four times as large: it gets a quarter of the turns."""
    queue = queue_of(*(waiting("a", A, cost=4) for _ in range(1000)), *(waiting("b", B, cost=1) for _ in range(1000)))
    turns = Counter(each.item for each in islice(iter(lambda: queue.next(always), None), 500))
    assert turns["a"] == pytest.approx(100, abs=2)


def test_who_had_nothing_to_ask_for_saves_nothing_up_and_who_was_alone_owes_nothing():
    queue = queue_of()
    for _ in range(1000):
        queue.charge(A, 10)  # nobody else was there
    for number in range(10):
        queue.add(waiting(f"a{number}", cost=10))
        queue.add(waiting(f"b{number}", B, cost=10))
    taken = "".join(name[0] for name in order(queue)[:10])
    assert taken in ("ababababab", "bababababa", "bbabababab")


def test_nobody_overtakes_in_its_lane_one_that_does_not_fit():
    queue = queue_of(waiting("large"), waiting("small", lane=Lane.SMALL))
    assert order(queue, lambda lane, _: lane is Lane.SMALL) == ["small"]
    assert queue.waits(Lane.LARGE)
    assert not queue.waits(Lane.SMALL)


def test_who_does_not_want_any_more_is_gone():
    first, second = waiting("1st"), waiting("2nd")
    queue = queue_of(first, second)
    for _ in range(2):
        queue.remove(first)
    assert order(queue) == ["2nd"]
    queue.remove(second)  # it had its turn


def test_what_is_remembered_of_experiments_is_bounded():
    queue = queue_of()
    for number in range(3 * REMEMBERED):
        queue.charge(("n", "p", str(number)), 1)
        queue.charge(A, 10)
    assert len(queue._had) <= REMEMBERED + 1


# ---- shares


def shares(total: int = 8, small: int = 0, large: int = 0, *, each: bool = True) -> Shares:
    made = Shares(total, 2, 2, each=each)
    made.out |= {Lane.SMALL: small, Lane.LARGE: large}
    return made


@pytest.mark.parametrize(
    ("out", "lane", "large_waits", "fits"),
    [
        (shares(), Lane.LARGE, False, True),
        (shares(large=5), Lane.LARGE, False, True),
        (shares(large=6), Lane.LARGE, True, False),  # two are the small ones'
        (shares(large=6), Lane.SMALL, True, True),
        (shares(small=1, large=6), Lane.SMALL, True, True),
        (shares(small=2, large=6), Lane.SMALL, True, False),
        (shares(small=7), Lane.SMALL, False, True),  # nobody else wants them
        (shares(small=6), Lane.SMALL, True, False),  # two are the large ones'
        (shares(small=6), Lane.LARGE, True, True),
        (shares(small=8), Lane.LARGE, True, True),  # a lane always has one
        (shares(small=8, each=False), Lane.LARGE, True, False),
        (shares(1, each=False), Lane.LARGE, True, True),  # what is larger than all goes alone
    ],
)
def test_what_a_lane_may_have(out: Shares, lane: Lane, large_waits: bool, fits: bool):
    assert out.fits(lane, 1, large_waits=large_waits) is fits


def test_what_is_larger_than_all_there_is_goes_alone():
    assert shares(each=False).fits(Lane.LARGE, 100, large_waits=True)
    assert not shares(small=1, each=False).fits(Lane.LARGE, 100, large_waits=True)
