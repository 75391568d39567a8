"""The decision table, whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.errors import TABLE, Code
from ml_dashd.core.model import Trouble
from ml_dashd.core.retry import (
    BASE_MS,
    BLOCKED_FLOOR_MS,
    CAP_MS,
    MAX_CORRUPT,
    MAX_EXPIRED,
    Fault,
    Next,
    StoreError,
    backoff_ms,
    decide,
)

DECISIONS = {
    Fault.TRANSIENT: (Next.RETRY, Code.STORE_UNAVAILABLE),
    Fault.THROTTLED: (Next.RETRY, Code.STORE_UNAVAILABLE),
    Fault.CORRUPT: (Next.RETRY, Code.STORE_UNAVAILABLE),
    Fault.UNREACHABLE: (Next.BLOCK, Code.STORE_UNREACHABLE),
    Fault.CREDENTIALS: (Next.BLOCK, Code.STORE_CREDENTIALS),
    Fault.UNTRUSTED: (Next.BLOCK, Code.STORE_UNTRUSTED),
    Fault.EXPIRED: (Next.RETRY, Code.STORE_UNAVAILABLE),
    Fault.SKEWED: (Next.BLOCK, Code.STORE_CLOCK),
    Fault.UNSUPPORTED: (Next.BLOCK, Code.STORE_UNSUPPORTED),
    Fault.DENIED: (Next.BLOCK, Code.STORE_DENIED),
    Fault.NO_BUCKET: (Next.BLOCK, Code.STORE_NO_BUCKET),
    Fault.NOT_MOUNTED: (Next.BLOCK, Code.STORE_NOT_MOUNTED),
    Fault.FULL: (Next.BLOCK, Code.STORE_FULL),
    Fault.GONE: (Next.RESTART, Code.STORE_UNAVAILABLE),
    Fault.MISSING: (Next.RESTART, Code.OBJECT_MISSING),
    Fault.REFUSED: (Next.FAIL, Code.STORE_REFUSED),
}
attempts = st.integers(1, 10_000)
jitters = st.floats(0, 1, exclude_max=True)


def test_every_fault_has_a_decision():
    assert set(DECISIONS) == set(Fault)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("attempt", [1, 2])
def test_what_follows_a_fault(fault: Fault, attempt: int):
    decision = decide(fault, "503 Slow Down", attempt, 0.5)
    following, code = DECISIONS[fault]
    assert decision.next is following
    assert decision.trouble == Trouble(code, "503 Slow Down", TABLE[code].hint)


@pytest.mark.parametrize("fault", set(Fault) - {Fault.CORRUPT, Fault.EXPIRED})
def test_no_other_fault_hangs_on_the_attempt(fault: Fault):
    assert {decide(fault, "no", attempt, 0.5).next for attempt in range(1, 30)} == {DECISIONS[fault][0]}


def test_three_damaged_arrivals_block():
    seen = [decide(Fault.CORRUPT, "BadDigest", attempt, 0.0) for attempt in range(1, 6)]
    assert [one.next for one in seen] == [Next.RETRY, Next.RETRY, Next.BLOCK, Next.BLOCK, Next.BLOCK]
    assert [one.trouble.code for one in seen[1:3]] == [Code.STORE_UNAVAILABLE, Code.STORE_CORRUPTED]
    assert seen[2].delay_ms == BLOCKED_FLOOR_MS
    assert MAX_CORRUPT == 3


def test_credentials_that_had_ended_three_times_block():
    seen = [decide(Fault.EXPIRED, "ExpiredToken", attempt, 0.0) for attempt in range(1, 5)]
    assert [one.next for one in seen] == [Next.RETRY, Next.RETRY, Next.BLOCK, Next.BLOCK]
    assert [one.trouble.code for one in seen[1:3]] == [Code.STORE_UNAVAILABLE, Code.STORE_CREDENTIALS]
    assert seen[2].delay_ms == BLOCKED_FLOOR_MS
    assert MAX_EXPIRED == 3


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(Fault), attempts, jitters)
def test_the_delay_fits_the_decision(fault: Fault, attempt: int, jitter: float):
    decision = decide(fault, "no", attempt, jitter)
    least = {Next.BLOCK: BLOCKED_FLOOR_MS}.get(decision.next, 0)
    expected = 0 if decision.next is Next.FAIL else max(least, backoff_ms(attempt, jitter))
    assert decision.delay_ms == expected <= CAP_MS


@settings(deadline=None, max_examples=200)
@given(attempts, jitters)
def test_the_backoff_is_bounded(attempt: int, jitter: float):
    ceiling = min(CAP_MS, BASE_MS * 2 ** (attempt - 1))
    assert 0 <= backoff_ms(attempt, jitter) < ceiling


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 199), (2, 399), (5, 3199), (8, 25599), (9, 29999), (10**9, 29999)]
)
def test_the_jitter_is_full(attempt: int, longest: int):
    assert backoff_ms(attempt, 0.0) == 0
    assert backoff_ms(attempt, 0.999_999) == longest


def test_a_store_error_speaks_in_the_stores_words():
    refused = StoreError(Fault.DENIED, "AccessDenied: no")
    assert (refused.fault, str(refused)) == (Fault.DENIED, "AccessDenied: no")
