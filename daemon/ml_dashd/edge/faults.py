"""The points at which tests make things fail, and what stands where nobody watches."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from ml_dash.errors import Code


class NoMeter:
    """Nobody watches: nothing is counted."""

    def accepted(self, size_bytes: int) -> None:
        return

    def sent(self, size_bytes: int) -> None:
        return

    def stored(self, size_bytes: int) -> None:
        return

    def cancelled(self) -> None:
        return

    def superseded(self) -> None:
        return

    def retried(self, fault: str) -> None:
        return

    def failed(self, code: Code) -> None:
        return

    def found(self, kind: str) -> None:
        return

    def committing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def lagged(self, seconds: float) -> None:
        return


class NoFaults:
    """Nothing ever happens at a fault point."""

    def at(self, point: str) -> None:
        return


EVERY_TIME, NEVER = 0, -1
SIGNALS = {"kill": signal.SIGKILL, "end": signal.SIGTERM, "hang": signal.SIGSTOP}
SLOW_S = 0.05
"""As a commit takes on a disk that others keep busy."""


class TestFaults:
    """Does what a test asked for at a named point: `{"upload.part_sent": "kill@3"}` dies at the third part.

    The actions are kill (SIGKILL to this process), end (SIGTERM), hang (SIGSTOP), error (an OSError), and slow (SLOW_S
    pass), once, or with "@*" every time.
    """

    __test__ = False

    def __init__(self, plan: Mapping[str, str], log_path: str | None = None) -> None:
        self._plan = {point: _parse(action) for point, action in plan.items()}
        self._hits: dict[str, int] = {}
        self._log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if log_path else -1

    def at(self, point: str) -> None:
        count = self._hits[point] = self._hits.get(point, 0) + 1
        if self._log >= 0:
            os.write(self._log, f"{point}\n".encode())
        action, when = self._plan.get(point, ("", NEVER))
        if when not in (count, EVERY_TIME):
            return
        if action == "error":
            raise OSError(5, f"fault point {point}")
        if action == "slow":
            time.sleep(SLOW_S)  # noqa: TID251 what is slow is what is asked for
        else:
            os.kill(os.getpid(), SIGNALS[action])


def _parse(action: str) -> tuple[str, int]:
    name, _, when = action.partition("@")
    return name, EVERY_TIME if when == "*" else int(when or 1)
