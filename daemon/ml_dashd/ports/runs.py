"""Experiments, and the folder in which people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ml_dashd.core.model import Scope, Trouble
from ml_dashd.core.runs import BroughtRow, MetricLength, NewRow, Opened, Row, Run, RunKey, RunStatus


class Runs(Protocol):
    """What the catalog keeps of experiments: their runs, parameters and metrics. A call is one transaction.

    What writes needs no record: where there is none, one is begun. Only `append` without `on_disk` may be lost with the
    machine, until the next other change, or `sync`.
    """

    async def open(self, key: RunKey, opened: Opened) -> None:
        """Begins a run, or opens it again. Idempotent."""

    async def end(self, key: RunKey, status: RunStatus, at_ms: int, error: str | None) -> None:
        """Notes how a run that is open has ended; one that is not stays as it is."""

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        """The records of a prefix, one a user, the oldest first."""

    async def select(self, below: Sequence[str], scope: Scope, after: RunKey | None, limit: int) -> list[Run]:
        """Records at and below a namespace, a project, an experiment, as many as are named; in the order of keys."""

    async def set_params(self, key: RunKey, values: Mapping[str, str], at_ms: int, most_bytes: int) -> None:
        """Sets parameters, JSON texts by their names, in the place of those that can't stand beside them.

        Raises INVALID_ARGUMENT where all together would be too many. Idempotent.
        """

    async def params(self, key: RunKey, since_ms: int | None = None) -> dict[str, str]:
        """All parameters, by name; with a time, those that were set in changes of the record after it."""

    async def append(
        self, key: RunKey, writer: int, number: int, rows: Sequence[NewRow], at_ms: int, *, on_disk: bool = False
    ) -> None:
        """Appends rows, all or none; those of the same writer and number that a metric has are left out.

        It survives the daemon when it returns; `on_disk` the machine, too. Raises INVALID_ARGUMENT for one metric too
        many.
        """

    async def bring(self, run: Run, params: Mapping[str, str], most_bytes: int) -> bool:
        """Keeps a record and parameters that were kept elsewhere before (`core.runs.brought_together`).

        Whether anything has changed. Raises INVALID_ARGUMENT where the parameters would be too many. Idempotent.
        """

    async def bring_rows(self, key: RunKey, rows: Sequence[BroughtRow]) -> int:
        """Appends rows that were kept elsewhere before, all or none, as `append` does with `on_disk`.

        How many are new. Idempotent.
        """

    async def sync(self) -> None:
        """Returns once everything that was appended is on stable storage."""

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        """The metrics of an experiment, by name."""

    async def rows(self, key: RunKey, metric: str, start: int, limit: int) -> list[Row]:
        """Rows of a metric, from a position on."""

    def trouble(self) -> Trouble | None:
        """Why nothing can be noted now, and not by itself in a moment: its disk is full, or has failed."""

    async def close(self) -> None:
        """Lets go of files and connections."""


class ShownRuns(Runs, Protocol):
    """Those of this machine, with how much of them is known to be shown elsewhere: by a tree, or by the fleet."""

    async def behind(self) -> list[RunKey]:
        """The experiments that are not known to be shown whole."""

    async def shown(self, key: RunKey, as_of_ms: int) -> None:
        """Notes that the record and the parameters are shown as they were last changed then. Idempotent.

        What is noted of this may be lost with the machine.
        """

    async def rows_shown(self, key: RunKey, metric: str, count: int) -> None:
        """Notes how many rows of a metric are shown. Idempotent."""


class Tree(Protocol):
    """The folder of a local store, where people read what the catalog has. All calls block, and raise OSError."""

    def note(self, prefix: str, name: str, content: str) -> None:
        """Puts a small file into an experiment's folder, whole or not at all."""

    def read_note(self, prefix: str, name: str) -> str | None:
        """Such a file's text; None where there is none."""

    def metrics(self, prefix: str) -> list[str]:
        """The metrics that have rows there."""

    def length(self, prefix: str, metric: str) -> int:
        """How many whole rows a metric has there; a begun one at the end is cut off."""

    def lines(self, prefix: str, metric: str, start: int) -> list[str]:
        """The rows from a position on, a line each."""

    def append(self, prefix: str, metric: str, lines: Sequence[str], *, anew: bool = False) -> None:
        """Appends rows; who reads meanwhile sees whole lines, but the last may be begun. `anew`: beside those there."""

    def clear(self, prefix: str, metric: str) -> None:
        """Drops what was written anew before. Idempotent."""

    def publish(self, prefix: str, metric: str) -> None:
        """Puts what was written anew in the place of the rows that are there, in one step."""

    def sync(self, prefix: str, metric: str) -> None:
        """Brings a metric's rows to stable storage. Idempotent."""
