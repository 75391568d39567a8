"""How many requests the store is sent at once: as many as make it faster, fewer as soon as it says that it is too much.

Additive increase, multiplicative decrease, as TCP does it. Time is an argument, in seconds that never step.
"""

from __future__ import annotations

START = 8
"""Requests at the beginning; each window doubles them until the store shows where its end is."""
WINDOW_S = 0.1
"""The throughput is measured for at least so long, and for as many requests as may be under way."""
KEPT = 0.8
"""A window that brings less than this of the best one, with more requests, has shown that those are too many. By less
two windows differ by chance."""
REST_WINDOWS = 10
"""After such a step back the next one up is tried so many windows later."""
REQUEST_BYTES = 64 * 1024
"""What a request costs a server beside its bytes, in bytes: small files are measured by their number."""
RATE_HOLDS_S = 5.0
"""A rate that was measured longer ago says nothing of now."""

DEADLINE_S = 120.0
"""A request may take this long, however few its bytes: a server under load may think for a minute."""
SLOWEST = 32 * 1024
"""And a second for so many bytes. 16 MiB get ten minutes in all, less than a signature holds (15 minutes)."""
CAP_SHARE = 4
"""Under a cap, a request may be this much slower than its equal share of it."""


class Limit:
    """How many requests may be under way, between 1 and `most`."""

    def __init__(self, most: int, now_s: float) -> None:
        self.places = min(START, most)
        self._most = most
        self._doubling = True
        self._resting = 0
        self._best = self.places, 0.0
        """The places that brought most since the last step back or cut, and what they brought."""
        self._cut_s = float("-inf")
        self._measured_s = now_s
        self._rate = 0.0
        self._scarce = False
        self._begin(now_s)

    def rate(self, now_s: float) -> float:
        """Bytes a second, as measured last; 0 where that is long ago."""
        return self._rate if now_s - self._measured_s <= RATE_HOLDS_S else 0.0

    def ended(self, size_bytes: int, now_s: float, *, scarce: bool) -> None:
        """A request was answered. `scarce`: another waits for a place; else more places would change nothing."""
        self._bytes += size_bytes
        self._requests += 1
        self._scarce = self._scarce or scarce
        elapsed = now_s - self._began_s
        if elapsed < WINDOW_S or self._requests < self.places:
            return
        self._rate, self._measured_s = self._bytes / elapsed, now_s
        if self._scarce:
            self._judge((self._bytes + self._requests * REQUEST_BYTES) / elapsed)
        self._begin(now_s)

    def slowed(self, began_s: float, now_s: float) -> None:
        """A request that began then was refused as too much, or not answered: half the places, once a round trip.

        One that was on its way when they were halved before was sent at the old pace: it says nothing new.
        """
        if began_s <= self._cut_s:
            return
        self.places = max(1, self.places // 2)
        self._cut_s = now_s
        self._doubling, self._best, self._resting = False, (self.places, 0.0), 0
        self._begin(now_s)

    def _judge(self, rate: float) -> None:
        best_places, best_rate = self._best
        if rate >= best_rate:
            self._best = self.places, rate
        if rate < KEPT * best_rate and self.places > best_places:
            self.places = best_places
            self._doubling, self._best, self._resting = False, (best_places, 0.0), REST_WINDOWS
        elif self._resting:
            self._resting -= 1
        elif self.places < self._most:
            self.places = min(self._most, self.places * 2 if self._doubling else self.places + 1)

    def _begin(self, now_s: float) -> None:
        self._began_s = now_s
        self._bytes = self._requests = 0
        self._scarce = False


def deadline_s(size_bytes: int, bandwidth: int, at_once: int) -> float:
    """How long a request with so many bytes may take in all, of `at_once` that share `bandwidth` (bytes/s, 0: no cap).

    One that moves at all is left alone for long: that one which does not is seen by the watchdog (edge/s3_bulk.py).
    """
    slowest = min(SLOWEST, bandwidth / (CAP_SHARE * at_once)) if bandwidth else SLOWEST
    return DEADLINE_S + size_bytes / slowest
