"""Tells whoever supervises the daemon that it lives, and how it does."""

from __future__ import annotations

from ml_dashd.core.figures import Backlog
from ml_dashd.core.model import Trouble
from ml_dashd.flow.health import Health, waits
from ml_dashd.ports import Clock, Journal, Supervisor

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


class Heartbeat:
    """Runs beside the worker, until the journal is closed."""

    def __init__(self, journal: Journal, health: Health, supervisor: Supervisor, clock: Clock) -> None:
        self._journal = journal
        self._health = health
        self._supervisor = supervisor
        self._clock = clock

    async def run(self) -> None:
        """Reports now and then, and only when the journal's thread has answered: without it nothing can be accepted.

        A refusal is an answer, too: a new start mends no full disk, and frees no file that a backup has locked.
        """
        while True:
            try:
                said = summary(await self._journal.backlog(), self._health.trouble())
            except Exception as failure:  # noqa: BLE001 it is told where an operator looks, in the status line
                said = f"the journal refuses: {failure}"
            self._supervisor.report(said)
            await self._clock.sleep(self._supervisor.pause_s)


def summary(backlog: Backlog, trouble: Trouble | None) -> str:
    """One line of what is on its way, what holds it up, and why nothing more is taken in, if so it is."""
    said = ["nothing on its way"]
    files, size_bytes = backlog.on_their_way()
    if files:
        said = [f"{'1 file on its way' if files == 1 else f'{files} files on their way'}, {_size(size_bytes)}"]
    if backlog.blocked:
        worst = max(backlog.blocked, key=lambda each: each.files)
        said.append(f"{sum(each.files for each in backlog.blocked)} blocked: {worst.trouble.message}")
    if trouble is not None:
        said.append(f"{waits(trouble) or 'nothing is taken in'}: {trouble.message}")
    return "; ".join(said)


def _size(size_bytes: int) -> str:
    for unit, name in _UNITS:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"
