"""What is shown of the daemon's own disks, and what of it refuses a hand-off."""

from __future__ import annotations

from typing import cast

from ml_dash.errors import Code
from ml_dashd.core.model import Trouble
from ml_dashd.flow.health import Health
from ml_dashd.ports import Catalog, Journal, Runs


class Says:
    """A database with this trouble."""

    def __init__(self, trouble: Trouble | None = None) -> None:
        self._trouble = trouble

    def trouble(self) -> Trouble | None:
        return self._trouble


def test_what_keeps_parameters_and_rows_is_shown_and_refuses_no_file() -> None:
    failed = Trouble(Code.DISK_FAILED, "the runs' disk refused a sync", "mend it")
    health = Health(cast("Journal", Says()), cast("Catalog", Says()), cast("Runs", Says(failed)))
    assert health.trouble() == failed
    health.check()
