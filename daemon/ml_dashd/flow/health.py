"""Whether files can be taken in now: asked before each hand-off, and shown by status.

A disk that has refused a sync states that error once, and would then say that all is well: nothing is trusted to it any
more until the daemon is started again, which an operator does once the disk is mended. A full disk mends itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Trouble
from ml_dashd.ports import Catalog, Journal, Runs

log = logging.getLogger("ml_dashd.flow")

_OF_OTHERS = {
    Code.CATALOG_UNREACHABLE: "stored files wait to be listed",
    Code.CATALOG_DENIED: "stored files wait to be listed",
    Code.CATALOG_FULL: "stored files wait to be listed",
    Code.CONFIG: "stored files wait to be listed",
    Code.STORE_NOT_MOUNTED: "files wait to be stored",
}
"""A catalog of a fleet, or the folder of a store, that takes nothing: files are taken in all the same."""
READ_ONLY = "nothing is taken in until the daemon is restarted on a disk that works; what it has goes on"


def waits(trouble: Trouble | None) -> str:
    """What files that are taken in all the same wait for; "" where none are."""
    return "" if trouble is None else _OF_OTHERS.get(trouble.code, "")


class Health:
    """The daemon's own disk."""

    def __init__(
        self,
        journal: Journal,
        catalog: Catalog,
        runs: Runs,
        number: Callable[[], Trouble | None] = lambda: None,
        store: Callable[[], Trouble | None] = lambda: None,
    ) -> None:
        """`number` says why no id can be made (flow/lease.py), `store` why nothing is stored (flow/mount.py)."""
        self._journal = journal
        self._catalog = catalog
        self._runs = runs
        self._number = number
        self._store = store
        self._failed: Trouble | None = None

    def trouble(self) -> Trouble | None:
        """Why nothing can be taken in, stored, listed, or noted of experiments now; None where all is well."""
        return self._of_files() or self._runs.trouble() or self._store()

    def spool_trouble(self) -> Trouble | None:
        """What the spool's disk has refused; None where it is trusted."""
        return self._failed

    def check(self) -> None:
        """Raises what a hand-off is refused with. Whether a full disk has room again, only a try can tell.

        A file needs no parameters and no rows: what troubles those is only shown.
        """
        trouble = self._of_files()
        if trouble is not None and trouble.code is not Code.DISK_FULL and not waits(trouble):
            raise error(trouble.code, trouble.message, trouble.hint)

    def _of_files(self) -> Trouble | None:
        return self._failed or self._journal.trouble() or self._number() or self._catalog.trouble()

    def disk_failed(self, what: str) -> MLDashError:
        """Notes that the spool's disk has refused a sync; returns the error to raise. Only a restart takes it back."""
        if self._failed is None:
            self._failed = Trouble(Code.DISK_FAILED, f"the spool's disk failed: {what}", READ_ONLY)
            log.critical("read_only", extra={"error": what})
        return error(Code.DISK_FAILED, what, READ_ONLY)
