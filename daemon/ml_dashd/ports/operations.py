"""What whoever runs the daemon is shown: counts, signs of life, the machine, what a drain has left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ml_dash.errors import Code
from ml_dashd.core.checkup import Check


class Meter(Protocol):
    """Counts what happens, for whoever watches. A call takes about a microsecond, from any thread, and never fails."""

    def accepted(self, size_bytes: int) -> None:
        """A new file was acknowledged."""

    def sent(self, size_bytes: int) -> None:
        """The store took the body of a request."""

    def stored(self, size_bytes: int) -> None:
        """A file is verified and listed."""

    def cancelled(self) -> None:
        """A file was deleted on its way."""

    def superseded(self) -> None:
        """A file was dropped for a newer version of its path."""

    def retried(self, fault: str) -> None:
        """A file, or a part of one, is tried again later: a Fault (core/retry.py), "journal" or "defect"."""

    def failed(self, code: Code) -> None:
        """A file was given up."""

    def found(self, kind: str) -> None:
        """Store and catalog do not go together in something: a Kind (core/reconcile.py)."""

    def committing(self) -> AbstractContextManager[None]:
        """Held while the journal commits a change."""

    def lagged(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""


class Supervisor(Protocol):
    """Who started the daemon and looks after it, such as systemd."""

    pause_s: float
    """It wants to hear from the daemon this often."""

    def report(self, text: str) -> None:
        """Says that the daemon lives and, in a line, how it does. Never waits, never fails."""


class Machine(Protocol):
    """What the daemon runs on. All calls block: run them in a thread."""

    def disks(self) -> list[Check]:
        """The disks of journal and spool."""

    def limits(self) -> list[Check]:
        """The process's limits, and what it computes with."""


class Manifest(Protocol):
    """The file of the state folder that lists what a drain has left. All calls block: run them in a thread."""

    def write(self, facts: Mapping[str, Any]) -> str:
        """Puts it in the place of the last one, whole or not at all; returns its name there. Raises OSError."""

    def exists(self) -> bool:
        """Whether there is one."""

    def remove(self) -> None:
        """Takes it away. Idempotent."""
