"""The folders of experiments: what keeps one of them back keeps back no other, and no stored file is touched."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import Scope
from ml_dashd.core.runs import MetricLength, NewRow, Opened, Run, RunKey
from ml_dashd.edge import tree as edge_tree
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.runs_sqlite import SqliteRuns
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.edge.tree import FolderTree
from ml_dashd.flow.mirror import Mirror
from ml_dashd.ports import JournalError
from tests.edge.test_cancelled import Door

ANN, BEN = RunKey("a", "b", "ann", 1), RunKey("a", "b", "ben", 1)


class Troubled(SqliteRuns):
    """A database that can't be used while `away` is set, for anybody or for an experiment."""

    away = False
    hidden: RunKey | None = None

    async def behind(self) -> list[RunKey]:
        self._check()
        return await super().behind()

    async def get(self, namespace: str, project: str, experiment: str, scope: Scope) -> list[Run]:
        self._check()
        return await super().get(namespace, project, experiment, scope)

    async def metrics(self, key: RunKey) -> list[MetricLength]:
        if key == self.hidden:
            raise RuntimeError("a defect")
        return await super().metrics(key)

    def _check(self) -> None:
        if self.away:
            raise JournalError("the runs can't be used now: locked", Code.DISK_FAILED)


@dataclass
class World:
    runs: Troubled
    mirror: Mirror
    root: Path

    async def begin(self, key: RunKey, metadata: str | None = None) -> None:
        await self.runs.open(key, Opened(at_ms=1000, metadata=metadata))

    def shown(self, key: RunKey) -> bool:
        return (self.root / key.prefix / "experiment.json").exists()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    threads = Pool(1, "test")
    runs = Troubled(tmp_path / "runs.sqlite", NoFaults())
    root = tmp_path / "store"
    root.mkdir()
    yield World(runs, Mirror(runs=runs, tree=FolderTree(root), threads=threads, clock=SystemClock()), root)
    await runs.close()
    threads.close()


async def test_a_database_that_is_away_is_no_end(world: World) -> None:
    await world.begin(ANN)
    world.runs.away = True
    assert not await world.mirror.bring(ANN)
    await world.mirror.settle(ANN)
    await world.mirror.close()
    world.runs.away = False
    assert await world.mirror.bring(ANN)
    assert world.shown(ANN)


async def test_a_database_that_is_away_at_the_start_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dashd.flow.mirror.AGAIN_S", 0.01)
    await world.begin(ANN)
    world.runs.away = True
    running = asyncio.create_task(world.mirror.run())
    await asyncio.sleep(0)
    world.runs.away = False
    async with asyncio.timeout(10):
        while not world.shown(ANN):
            assert not running.done()
            await asyncio.sleep(0.01)
    running.cancel()


async def test_an_experiment_that_can_not_be_shown_keeps_no_other_back(world: World) -> None:
    await world.begin(ANN)
    await world.begin(BEN)
    world.runs.hidden = ANN
    world.mirror.touch(ANN)
    world.mirror.touch(BEN)
    await world.mirror.close()
    assert world.shown(BEN)


async def test_a_stop_while_rows_are_shown_shows_each_of_them_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the experiment that is at hand, of which more come meanwhile, and those of the others."""
    monkeypatch.setattr("ml_dashd.flow.mirror.GATHER_S", 0)
    tree = FolderTree(world.root)
    for key in (ANN, BEN):
        await world.begin(key)
        for n in range(3):
            assert await world.mirror.bring(key)
            await world.runs.append(key, 1, n, [NewRow("loss", json.dumps({"n": n}))], 1000)
    door = Door(tree.append)
    monkeypatch.setattr(FolderTree, "append", door)
    running = asyncio.create_task(world.mirror.run())
    await asyncio.to_thread(door.reached.wait, 20)
    for key in (ANN, BEN):
        await world.runs.append(key, 1, 3, [NewRow("loss", json.dumps({"n": 3}))], 1000)
    world.mirror.touch(ANN)
    await door.cancel(running)
    await world.mirror.close()
    shown = [[json.loads(line)["data"]["n"] for line in tree.lines(key.prefix, "loss", 0)] for key in (ANN, BEN)]
    assert shown == [[0, 1, 2, 3], [0, 1, 2, 3]]


async def test_rows_that_were_half_written_on_a_full_disk_are_there_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece in which the disk became full ends in the middle of a row."""
    tree = FolderTree(world.root)
    await world.begin(ANN)
    for n in range(4):
        if n == 3:
            with monkeypatch.context() as patched:
                patched.setattr(edge_tree, "_write", write_half)
                assert not await world.mirror.bring(ANN)
        await world.runs.append(ANN, 1, n, [NewRow("loss", json.dumps({"n": n}))], 1000)
        if n == 1:
            assert await world.mirror.bring(ANN)
    assert await world.mirror.bring(ANN)
    assert [json.loads(line)["data"]["n"] for line in tree.lines(ANN.prefix, "loss", 0)] == [0, 1, 2, 3]


def write_half(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_an_experiment_below_the_metrics_of_another_keeps_its_rows(world: World) -> None:
    """`a/b/ann/metrics/x` with the metric "c", and `a/b/ann` with "x/metrics/c", would have one file for their rows."""
    below, above = RunKey("a", "b", "ann/metrics/x", 2), RunKey("a", "b", "ann", 2)
    for key, metrics, n in ((below, ["c", ""], 1), (above, ["x/metrics/c", "x/metrics/None", "x", "metrics"], 2)):
        await world.runs.open(key, await world.mirror.adopt(key, Opened(at_ms=1000)))
        await world.runs.append(key, 1, 1, [NewRow(name, json.dumps({"n": n})) for name in metrics], 1000)
        assert await world.mirror.bring(key, settled=True)
        assert sorted((each.name, each.rows) for each in await world.runs.metrics(key)) == sorted(
            (name, 1) for name in metrics
        )
    top = world.root / "a/b/ann/metrics"
    rows = {str(path.relative_to(top).parent): path.read_text() for path in top.rglob("data.jsonl")}
    assert sorted((name, json.loads(row)["data"]["n"]) for name, row in rows.items()) == [
        ("metrics", 2), ("x", 2), ("x/metrics/None", 1), ("x/metrics/c", 1),
    ]  # fmt: skip
    assert (top / "x/experiment.json").is_file()


@pytest.mark.parametrize(
    ("experiment", "metric", "stored"),
    [
        ("ann/files/config/123", None, "ann/files/config/123/experiment.json"),
        ("ann/files/123", None, "ann/files/123/parameters.json"),
        ("ann/files", "123", "ann/files/metrics/123/data.jsonl"),
        ("ann", "files/p/123", "ann/metrics/files/p/123/data.jsonl"),
    ],
)
async def test_no_stored_file_is_written_over(world: World, experiment: str, metric: str | None, stored: str) -> None:
    """The prefix of an experiment, or a metric, may be chosen such that its folder would be that of a stored file."""
    path = world.root / "a/b" / stored
    path.parent.mkdir(parents=True)
    path.write_text('{"data": {"n": 1}}\nno line that ends')
    key = RunKey("a", "b", experiment, 2)
    await world.runs.open(key, await world.mirror.adopt(key, Opened(at_ms=1000)))
    await world.runs.set_params(key, {"lr": "1"}, 1000, 1000)
    if metric is not None:
        await world.runs.append(key, 1, 1, [NewRow(metric, '{"n": 2}')], 1000)
    assert await world.mirror.bring(key, settled=True)
    assert path.read_text() == '{"data": {"n": 1}}\nno line that ends'
    assert [each.rows for each in await world.runs.metrics(key)] == ([] if metric is None else [1])
