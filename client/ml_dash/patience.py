"""What a save does while the daemon has no room for it: it waits, or raises, as its experiment was told."""

from __future__ import annotations

import threading
import time

from ml_dash.errors import Code, MLDashError, error
from ml_dash.persistence import LOSSES, PASSING
from ml_dash.wording import say

POLICIES = ("warn", "wait", "raise")
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
QUIET_S = 1.0
"""After this long a line says that it waits, and then every AGAIN_S."""
AGAIN_S = 30.0


def check_policy(on_full: str) -> str:
    """Raises INVALID_ARGUMENT for a policy that there is not."""
    if on_full not in POLICIES:
        allowed = ", ".join(repr(policy) for policy in POLICIES)
        raise error(Code.INVALID_ARGUMENT, f"on_full={on_full!r}", f"use one of {allowed}")
    return on_full


class Patience:
    """One save's. It waits without an end: nothing of the content is the daemon's yet."""

    def __init__(self, on_full: str) -> None:
        self._on_full = on_full
        self._begun = time.monotonic()
        self._look = FIRST_LOOK_S
        self._speak_at = self._begun + QUIET_S
        self._losses = 0

    def wait(self, refused: MLDashError, *, room_comes: bool = False) -> None:
        """Returns when it is time to ask again; raises the refusal where waiting is not wanted, or does not help.

        `room_comes`: another save of this process is about to make room, so nobody need be told.
        """
        if refused.code is not Code.RETRY_LATER or (self._on_full == "raise" and not room_comes):
            raise refused
        if self._on_full == "warn" and not room_comes:
            self._say(refused)
        threading.Event().wait(self._look)
        self._look = min(2 * self._look, LONGEST_LOOK_S)

    def lost(self, failure: MLDashError) -> None:
        """The daemon went away before its answer. Raises where it is not to be tried again."""
        self._losses += 1
        if failure.code not in PASSING or self._losses > LOSSES:
            raise failure from None

    def _say(self, refused: MLDashError) -> None:
        now = time.monotonic()
        if now >= self._speak_at:
            self._speak_at = now + AGAIN_S
            say(f"a save has waited for {now - self._begun:.0f} s: {refused.message} ({refused.hint})")
