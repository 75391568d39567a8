"""What [retention] takes for a version: not what was deleted while it was listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.access import Policy
from ml_dashd.core.retention import Rule
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.system import NoFaults
from ml_dashd.flow.prune import Prune
from ml_dashd.ports import Handed
from tests.edge.journal_rig import SetClock, job, key_of, opened, record


class OneLook(BaseException):
    """The pause after a look at everything."""


class Clock(SetClock):
    async def sleep(self, seconds: float) -> None:
        raise OneLook


async def test_a_version_that_was_deleted_while_it_was_listed_keeps_no_place(tmp_path: Path) -> None:
    """The daemon was killed between its commit and its deletion: lists leave it out, and so does this."""
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    async with opened(tmp_path / "journal.sqlite") as journal:
        older, newer = (record(number, sha256="0" * 64, key=str(number)) for number in (7, 8))
        await catalog.commit([older, newer])
        ((taken, _),) = await journal.accept_all([Handed(job(8), key_of(8))])
        for state in (State.SENDING, State.VERIFIED):
            taken = await journal.advance(taken, state)
        await journal.cancel([8])
        await journal.advance_all([taken], State.DONE)
        browse: Any = None  # which is for requests
        prune = Prune(
            browse=browse, journal=journal, catalog=catalog, policy=Policy(0), clock=Clock(), faults=NoFaults()
        )
        with pytest.raises(OneLook):
            await prune.retain(Rule(1), "**")
        assert [each.deleted_ms for each in await catalog.get([7, 8])] == [None, None]
    await catalog.close()
