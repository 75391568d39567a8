"""What a node keeps of experiments reaches the fleet's catalog, whatever that does meanwhile; SQLite stands for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.errors import TABLE, Code, MLDashError, error
from ml_dashd.core.model import EVERYBODY, Trouble
from ml_dashd.core.runs import BroughtRow, NewRow, Opened, RunKey, RunStatus
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.runs_sqlite import SqliteRuns
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow import forward as under_test
from ml_dashd.flow.forward import Forward
from ml_dashd.ports import JournalError
from tests.contract.test_catalog_runs import KEY, MIB


class FleetRuns(SqliteRuns):
    """A fleet's catalog that is away when the test says so, and may lose the answer to what it has done."""

    away = False
    deaf = False
    refuses: MLDashError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, NoFaults())
        self.heard = asyncio.Event()

    async def _unless_away(self, work: Any) -> Any:
        if self.away:
            work.close()
            raise JournalError("away", Code.CATALOG_UNREACHABLE)
        done = await work
        if self.deaf:
            raise JournalError("no answer", Code.CATALOG_UNREACHABLE)
        return done

    async def bring(self, *args: Any) -> bool:
        return bool(await self._unless_away(super().bring(*args)))

    async def set_params(self, *args: Any) -> None:
        await self._unless_away(super().set_params(*args))

    async def bring_rows(self, key: RunKey, rows: Any) -> int:
        if self.refuses is not None:
            raise self.refuses
        new = int(await self._unless_away(super().bring_rows(key, rows)))
        self.heard.set()
        return new

    async def rows(self, *args: Any) -> Any:
        return await self._unless_away(super().rows(*args))

    def trouble(self) -> Trouble | None:
        code = Code.CATALOG_UNREACHABLE
        return Trouble(code, "away", TABLE[code].hint) if self.away else None


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[FleetRuns]:
    made = FleetRuns(tmp_path / "fleet.sqlite")
    yield made
    await made.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[SqliteRuns]:
    made = SqliteRuns(tmp_path / "here.sqlite", NoFaults())
    yield made
    await made.close()


@pytest.fixture
def node(here: SqliteRuns, fleet: FleetRuns) -> Forward:
    return Forward(here=here, fleet=fleet, clock=SystemClock())


async def test_who_writes_waits_for_no_catalog_and_who_reads_finds_it_there(node: Forward, fleet: FleetRuns) -> None:
    fleet.away = True
    await node.open(KEY, Opened(5, "node-1"))
    await node.set_params(KEY, {"lr": "1"}, 6, MIB)
    for number in range(1200):  # more than a piece
        await node.append(KEY, 7, number, [NewRow("train", str(number))], 7)
    assert len(await node.rows(KEY, "train", 0, 5000)) == 1200, "as this node knows them"
    await node.end(KEY, RunStatus.COMPLETED, 8, None)
    fleet.away = False
    for _ in range(2):
        assert [row.data for row in await node.rows(KEY, "train", 1199, 5)] == ["1199"]
        (run,) = await fleet.get(KEY.namespace, KEY.project, KEY.experiment, EVERYBODY)
        assert (run.status, run.host) == (RunStatus.COMPLETED, "node-1")
        assert await fleet.params(KEY) == {"lr": "1"}
        assert [metric.rows for metric in await fleet.metrics(KEY)] == [1200]


async def test_a_lost_answer_doubles_nothing(node: Forward, fleet: FleetRuns) -> None:
    await node.append(KEY, 7, 1, [NewRow("train", "1")], 7)
    fleet.deaf = True
    for _ in range(3):
        await node.rows(KEY, "train", 0, 5)
    fleet.deaf = False
    await node.append(KEY, 7, 2, [NewRow("train", "2")], 7)
    assert [row.data for row in await node.rows(KEY, "train", 0, 5)] == ["1", "2"]
    assert len(await fleet.rows(KEY, "train", 0, 5)) == 2


async def test_a_parameter_is_what_some_node_has_set_last(node: Forward, fleet: FleetRuns) -> None:
    """A node brings what was set there since, not all that it knows, whose clock ever is ahead."""
    await node.set_params(KEY, {"lr": "1", "epochs": "10"}, 100, MIB)
    assert await node.params(KEY) == {"lr": "1", "epochs": "10"}
    await fleet.set_params(KEY, {"lr": "2"}, 500, MIB)  # by another node
    await node.set_params(KEY, {"epochs": "20"}, 200, MIB)
    await node.end(KEY, RunStatus.COMPLETED, 900, None)
    assert await node.params(KEY) == {"lr": "2", "epochs": "20"}


async def test_what_a_life_has_left_is_brought_by_the_next(
    here: SqliteRuns, fleet: FleetRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "GATHER_S", 0.01)
    await here.open(KEY, Opened(5))
    await here.append(KEY, 7, 1, [NewRow("train", "1")], 7)
    node = Forward(here=here, fleet=fleet, clock=SystemClock())
    running = asyncio.create_task(node.run())
    await asyncio.wait_for(fleet.heard.wait(), 20)
    assert await node.rows(KEY, "train", 0, 5), "after what is under way"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await here.behind() == []


async def test_what_the_fleet_refuses_keeps_no_other_experiment_back(node: Forward, fleet: FleetRuns) -> None:
    fleet.refuses = error(Code.INVALID_ARGUMENT, "one metric too many")
    await node.append(KEY, 7, 1, [NewRow("train", "1")], 7)
    assert await node.rows(KEY, "train", 0, 5) == []
    fleet.refuses = None
    await node.bring_rows(KEY, [BroughtRow("train", row) for row in await node.rows(KEY, "train", 0, 0)])
    assert [row.data for row in await node.rows(KEY, "train", 0, 5)] == ["1"], "it is tried with the next change"
