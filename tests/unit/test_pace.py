"""The number of requests at once, against servers that are only a curve: how long a request takes when n are sent."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from ml_dashd.core.bandwidth import MAX_SLICE, MIN_SLICE, Bucket, slice_bytes
from ml_dashd.core.pace import DEADLINE_S, RATE_HOLDS_S, SLOWEST, START, Limit, deadline_s

MIB = 1 << 20


def simulated(
    limit: Limit, seconds: float, takes: Callable[[int], float], refuses: Callable[[int, int], bool], size: int = MIB
) -> list[int]:
    """Sends as many as the limit allows for so long; returns the places after each answer.

    `takes` says how long one of n at once takes, `refuses` whether the k-th, one of n, is refused.
    """
    now, count = 0.0, 0
    under_way: list[tuple[float, int, float, bool]] = []
    seen = []
    while now < seconds:
        while len(under_way) < limit.places:
            count += 1
            at_once = len(under_way) + 1
            heapq.heappush(under_way, (now + takes(at_once), count, now, refuses(count, at_once)))
        now, _, began, refused = heapq.heappop(under_way)
        if refused:
            limit.slowed(began, now)
        else:
            limit.ended(size, now, scarce=True)
        seen.append(limit.places)
    return seen


def never(count: int, at_once: int) -> bool:
    return False


def test_it_begins_modestly_and_is_at_its_most_within_two_seconds_where_more_is_faster():
    limit = Limit(64, 0.0)
    assert limit.places == START
    seen = simulated(limit, 2.0, lambda _: 0.05, never)
    assert limit.places == max(seen) == 64


def test_it_never_exceeds_what_is_allowed():
    assert Limit(3, 0.0).places == 3
    limit = Limit(11, 0.0)
    assert max(simulated(limit, 5.0, lambda _: 0.02, never)) == 11


def test_a_rate_that_no_longer_grows_is_no_reason_to_step_back():
    """A line of 100 MiB/s: more requests share it."""
    limit = Limit(32, 0.0)
    simulated(limit, 60.0, lambda at_once: 0.01 * at_once, never)
    assert limit.places == 32
    assert limit.rate(60.0) == pytest.approx(100 * MIB, rel=0.1)


def test_it_settles_where_more_would_be_slower():
    """A server that thrashes from 20 on."""
    limit = Limit(64, 0.0)
    seen = simulated(limit, 60.0, lambda at_once: 0.05 if at_once <= 20 else 0.05 * (at_once / 20) ** 4, never)
    late = seen[len(seen) // 2 :]
    assert min(late) >= 8
    assert max(late) <= 28
    assert 16 <= sum(late) / len(late) <= 24


def test_it_finds_the_number_from_which_on_a_server_says_slow_down():
    limit = Limit(64, 0.0)
    seen = simulated(limit, 60.0, lambda _: 0.05, lambda _, at_once: at_once > 24)
    late = seen[len(seen) // 2 :]
    assert max(late) <= 25
    assert min(late) >= 12
    assert sum(late) / len(late) > 16


def test_slow_down_for_every_second_request_leaves_few():
    limit = Limit(64, 0.0)
    seen = simulated(limit, 30.0, lambda _: 0.05, lambda count, _: count % 2 == 0)
    late = seen[len(seen) // 2 :]
    assert sum(late) / len(late) < 4


def test_requests_of_one_round_trip_halve_it_once():
    limit = Limit(64, 0.0)
    limit.slowed(1.0, 2.0)
    for _ in range(7):
        limit.slowed(1.0, 2.1)
    assert limit.places == START // 2
    limit.slowed(2.1, 3.0)
    assert limit.places == START // 4
    for second in range(4, 9):
        limit.slowed(float(second), second + 0.5)
    assert limit.places == 1


def test_without_anybody_who_waits_it_stays():
    limit = Limit(64, 0.0)
    for tenth in range(1, 1000):
        limit.ended(MIB, tenth / 10, scarce=False)
    assert limit.places == START


def test_after_a_step_back_it_rests_and_tries_again():
    limit = Limit(64, 0.0)
    simulated(limit, 1.0, lambda at_once: 0.05 if at_once <= 8 else 1.0, never)
    simulated_after = simulated(limit, 10.0, lambda _: 0.05, never)
    assert limit.places > START
    assert min(simulated_after) >= START


def test_a_rate_of_long_ago_says_nothing():
    limit = Limit(8, 0.0)
    simulated(limit, 1.0, lambda _: 0.05, never)
    assert limit.rate(1.0) > 0
    assert limit.rate(1.1 + RATE_HOLDS_S) == 0


def test_how_long_a_request_may_take():
    assert deadline_s(0, 0, 16) == DEADLINE_S
    assert deadline_s(16 * MIB, 0, 16) == DEADLINE_S + 16 * MIB / SLOWEST
    assert deadline_s(16 * MIB, 10**9, 16) == deadline_s(16 * MIB, 0, 16)
    slow = 10**6
    assert deadline_s(16 * MIB, slow, 16) > 2 * 16 * (16 * MIB / slow)  # sixteen at once share it


# ---- the cap


@pytest.mark.parametrize("bandwidth", [65_536, 1_000_000, 200_000_000])
def test_a_cap_holds_over_every_second_and_is_used(bandwidth: int):
    bucket, size = Bucket(bandwidth, 0.0), slice_bytes(bandwidth)
    now, sent = 0.0, [(0.0, 0)]
    while now < 10:
        now += bucket.take(size, now)
        sent.append((now, size))
    assert sum(size for _, size in sent) == pytest.approx(10 * bandwidth, rel=0.05, abs=2 * size)
    for start in range(9):
        within = sum(size for at, size in sent if start <= at < start + 1)
        assert within <= bandwidth + size


def test_a_pause_saves_up_no_more_than_a_slice():
    bucket = Bucket(1000, 0.0)
    assert bucket.take(500, 0.0) == 0
    assert bucket.take(500, 0.0) == 0.5
    assert bucket.take(500, 100.0) == 0
    assert bucket.take(500, 100.0) == 0.5


def test_slices_are_small_enough_to_take_turns_and_large_enough_to_be_cheap():
    assert slice_bytes(0) == slice_bytes(10**9) == MAX_SLICE
    assert slice_bytes(65_536) == MIN_SLICE
    assert slice_bytes(10_000_000) == 500_000
