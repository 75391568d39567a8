"""How often, and for how long, a request is asked again whose daemon went away: requests are idempotent."""

from __future__ import annotations

import threading
import time

from ml_dash.errors import Code, MLDashError, error
from ml_dash.reach import Endpoint

RECONNECT_S = 30.0
"""How long a lost daemon is looked for, at a stretch: a restart takes drain_timeout (10 s) and a few seconds."""
LOSSES = 10
"""How often a request is asked again after the connection broke before its answer: one that kills the daemon each time
is given up."""
PASSING = (Code.CONNECTION_LOST, Code.DAEMON_UNAVAILABLE, Code.SHUTTING_DOWN, Code.RETRY_LATER)
"""Failures that end when the daemon is back, or has room again."""
LOOK_S = 0.05


class Persistence:
    """Of one request. A daemon that was never there is not looked for."""

    def __init__(self, endpoint: Endpoint, patience_s: float | None = None) -> None:
        """`patience_s`: RECONNECT_S where it is None."""
        self._endpoint = endpoint
        self._patience_s = RECONNECT_S if patience_s is None else patience_s
        self._losses = 0
        self._away_since = float("inf")

    def wait(self, lost: ConnectionError | EOFError, *, was_there: bool) -> None:
        """Waits a moment, after which it is asked again. Raises what was lost where that has no sense any more."""
        failure = away(lost, self._endpoint)
        now = time.monotonic()
        if failure.code is Code.CONNECTION_LOST:  # it was there until now, however long the answer took
            self._losses, self._away_since = self._losses + 1, now
        self._away_since = min(self._away_since, now)
        known = was_there or failure.code is not Code.DAEMON_UNAVAILABLE
        too_long = self._losses > LOSSES or now - self._away_since >= self._patience_s
        if failure.code not in PASSING or not known or too_long:
            raise failure from None
        threading.Event().wait(LOOK_S)


def away(lost: ConnectionError | EOFError, endpoint: Endpoint) -> MLDashError:
    """A broken connection in our own words; an error that has its code already is left as it is."""
    if isinstance(lost, MLDashError):
        return lost
    return error(Code.CONNECTION_LOST, f"the daemon at {endpoint.socket} went away: {lost}")
