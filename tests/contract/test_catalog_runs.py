"""What every catalog must do for experiments, parameters and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dash.messages import METRICS
from ml_dashd.core.model import EVERYBODY, Scope
from ml_dashd.core.runs import BroughtRow, MetricLength, NewRow, Opened, Row, Run, RunKey, RunStatus
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import prepare
from ml_dashd.edge.runs_mongo import MongoRuns
from ml_dashd.edge.runs_sqlite import SqliteRuns
from ml_dashd.ports import Runs

KEY = RunKey("alice", "cv", "resnet", 1000)
MIB = 1 << 20


@pytest.fixture(params=["sqlite", "mongodb"])
async def runs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runs]:
    made: Runs
    if request.param == "sqlite":
        made = SqliteRuns(tmp_path / "runs.sqlite", NoFaults())
    else:
        mongo = Mongo(request.getfixturevalue("mongodb_url"))
        await prepare(mongo)
        made = MongoRuns(mongo)
    yield made
    await made.close()


async def record(runs: Runs, key: RunKey = KEY):
    (found,) = await runs.get(key.namespace, key.project, key.experiment, Scope(key.owner_uid))
    return found


async def datas(runs: Runs, metric: str, start: int = 0, limit: int = 1000) -> list[str]:
    return [row.data for row in await runs.rows(KEY, metric, start, limit)]


# ---- runs


async def test_what_is_said_at_the_start_is_kept(runs: Runs) -> None:
    await runs.open(KEY, Opened(5, "node-1", "alice", "größe", ("a",), ("b",), '{"k": 1}'))
    found = await record(runs)
    assert found == replace(
        found, key=KEY, status=RunStatus.RUNNING, host="node-1", user="alice", created_ms=5, started_ms=5,
        ended_ms=None, error=None, readme="größe", tags=("a",), bindrs=("b",), metadata='{"k": 1}',
    )  # fmt: skip


async def test_a_run_that_is_opened_again_keeps_what_is_not_said_anew(runs: Runs) -> None:
    await runs.open(KEY, Opened(5, "node-1", "alice", "first", ("a",), None, "{}"))
    await runs.end(KEY, RunStatus.FAILED, 6, "ValueError: x")
    await runs.open(KEY, Opened(7, "node-2", "bob", None, (), ("b",), None))
    found = await record(runs)
    assert (found.created_ms, found.started_ms, found.ended_ms, found.error) == (5, 7, None, None)
    assert (found.host, found.readme, found.tags, found.bindrs, found.metadata) == ("node-2", "first", (), ("b",), "{}")
    assert found.status is RunStatus.RUNNING


async def test_the_first_end_of_a_run_stays(runs: Runs) -> None:
    await runs.open(KEY, Opened(5))
    await runs.end(KEY, RunStatus.FAILED, 6, "ValueError: x")
    await runs.end(KEY, RunStatus.COMPLETED, 7, None)
    found = await record(runs)
    assert (found.status, found.ended_ms, found.error) == (RunStatus.FAILED, 6, "ValueError: x")


async def test_lists_come_by_prefix_within_their_scope(runs: Runs) -> None:
    places = [("bob", "cv", "x", 2000), ("alice", "cv", "b", 1000), ("alice", "nlp", "b", 1000),
              ("alice", "cv", "b/c", 1000), ("alice", "cv", "bc", 1000), ("alice", "cv", "b", 2000)]  # fmt: skip
    for number, place in enumerate(places):
        await runs.open(RunKey(*place), Opened(number))

    async def listed(*below: str, scope: Scope = EVERYBODY, after: RunKey | None = None, limit: int = 99) -> list[str]:
        return [f"{run.key.prefix} {run.key.owner_uid}" for run in await runs.select(below, scope, after, limit)]

    everything = [
        "alice/cv/b 1000", "alice/cv/b 2000", "alice/cv/b/c 1000", "alice/cv/bc 1000", "alice/nlp/b 1000",
        "bob/cv/x 2000",
    ]  # fmt: skip
    assert await listed() == everything
    assert await listed("alice", "cv", "b") == everything[:3]
    assert await listed("alice", "cv") == everything[:4]
    assert await listed("alice") == everything[:5]
    assert await listed(scope=Scope(2000)) == [everything[1], everything[5]]
    assert await listed(scope=Scope(3000, frozenset({"bob"}))) == [everything[5]]
    assert await listed(after=RunKey("alice", "cv", "b", 2000), limit=2) == everything[2:4]


async def test_records_of_a_prefix_the_oldest_first(runs: Runs) -> None:
    for at_ms, owner in ((7, 1000), (5, 2000), (6, 3000)):
        await runs.open(replace(KEY, owner_uid=owner), Opened(at_ms))
    found = await runs.get("alice", "cv", "resnet", EVERYBODY)
    assert [run.key.owner_uid for run in found] == [2000, 3000, 1000]
    assert [run.key.owner_uid for run in await runs.get("alice", "cv", "resnet", Scope(3000))] == [3000]
    assert await runs.get("alice", "cv", "other", EVERYBODY) == []


# ---- parameters


async def test_parameters_are_added_to_those_that_there_are(runs: Runs) -> None:
    await runs.set_params(KEY, {"lr": "1", "opt.name": "2"}, 1, MIB)
    await runs.set_params(KEY, {"lr": "3", "opt.beta": "4"}, 2, MIB)
    assert await runs.params(KEY) == {"lr": "3", "opt.name": "2", "opt.beta": "4"}
    assert await runs.params(replace(KEY, owner_uid=1)) == {}


async def test_a_value_takes_the_place_of_a_group_and_the_other_way_round(runs: Runs) -> None:
    await runs.set_params(KEY, {"a.b": "1", "a.c": "1", "d": "1"}, 1, MIB)
    await runs.set_params(KEY, {"a": "2", "d.e": "2"}, 2, MIB)
    assert await runs.params(KEY) == {"a": "2", "d.e": "2"}


async def test_parameters_that_were_set_since(runs: Runs) -> None:
    """What another catalog has not heard of yet."""
    await runs.set_params(KEY, {"lr": "1", "opt.name": "2"}, 1, MIB)
    heard_ms = (await record(runs)).updated_ms
    assert await runs.params(KEY, heard_ms) == {}
    await runs.set_params(KEY, {"lr": "1", "opt": "3", "late": "4"}, 1, MIB)
    assert await runs.params(KEY, heard_ms) == {"opt": "3", "late": "4"}
    assert await runs.params(KEY, 0) == {"lr": "1", "opt": "3", "late": "4"}


async def test_too_many_parameters_change_nothing(runs: Runs) -> None:
    await runs.set_params(KEY, {"a": "1"}, 1, MIB)
    with pytest.raises(MLDashError) as refused:
        await runs.set_params(KEY, {"a": "2", "b": '"' + "x" * 100 + '"'}, 2, 100)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert await runs.params(KEY) == {"a": "1"}


# ---- metrics


async def test_rows_come_back_in_their_order(runs: Runs) -> None:
    for number in range(25):
        rows = [NewRow("train", f'{{"n": {number}}}'), NewRow("", "{}")]
        await runs.append(KEY, 1, number, rows, number)
    assert await datas(runs, "train") == [f'{{"n": {number}}}' for number in range(25)]
    assert await datas(runs, "train", 20, 3) == [f'{{"n": {number}}}' for number in (20, 21, 22)]
    assert await runs.rows(KEY, "train", 24, 5) == [Row(24, '{"n": 24}', writer=1, number=24)]
    assert await runs.metrics(KEY) == [MetricLength("", 25), MetricLength("train", 25)]
    assert await datas(runs, "other") == []
    assert await runs.rows(replace(KEY, owner_uid=1), "train", 0, 5) == []


async def test_a_row_that_comes_again_is_there_once(runs: Runs) -> None:
    for writer, number, data in ((1, 1, "{}"), (1, 1, "{}"), (2, 1, "[2]"), (1, 2, "[3]"), (1, 1, "{}")):
        await runs.append(KEY, writer, number, [NewRow("train", data)], 5)
    assert await datas(runs, "train") == ["{}", "[2]", "[3]"]


async def test_writers_together_lose_and_double_nothing(runs: Runs) -> None:
    async def write(writer: int) -> None:
        for number in range(50):
            await runs.append(KEY, writer, number, [NewRow("train", f"{writer} {number}")], 5)

    await asyncio.gather(*map(write, range(1, 5)))
    found = [tuple(map(int, data.split())) for data in await datas(runs, "train")]
    for writer in range(1, 5):
        assert [number for each, number in found if each == writer] == list(range(50))
    assert len(found) == 200


async def test_one_metric_too_many_appends_nothing(runs: Runs) -> None:
    for start in range(0, METRICS, 100):
        await runs.append(KEY, 1, start, [NewRow(f"m{start + at}", "{}") for at in range(100)], 5)
    with pytest.raises(MLDashError) as refused:
        await runs.append(KEY, 1, METRICS, [NewRow("m0", "[1]"), NewRow("more", "{}")], 5)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "more" in refused.value.message
    assert await datas(runs, "m0") == ["{}"]
    assert len(await runs.metrics(KEY)) == METRICS


async def test_rows_are_there_for_who_comes_next(tmp_path: Path) -> None:
    """With and without waiting for the disk."""
    for on_disk in (False, True):
        made = SqliteRuns(tmp_path / "runs.sqlite", NoFaults())
        await made.append(KEY, 1, int(on_disk), [NewRow("train", "{}")], 5, on_disk=on_disk)
        await made.sync()
        await made.close()
    made = SqliteRuns(tmp_path / "runs.sqlite", NoFaults())
    assert await datas(made, "train") == ["{}", "{}"]
    await made.close()


# ---- what is shown elsewhere of those of this machine


@pytest.fixture
async def own_runs(tmp_path: Path) -> AsyncIterator[SqliteRuns]:
    made = SqliteRuns(tmp_path / "runs.sqlite", NoFaults())
    yield made
    await made.close()


async def test_what_a_tree_is_behind_with(own_runs: SqliteRuns) -> None:
    other = replace(KEY, experiment="other")
    await own_runs.open(KEY, Opened(5))
    await own_runs.open(other, Opened(5))
    await own_runs.append(KEY, 1, 1, [NewRow("train", "{}")], 5)
    assert sorted(await own_runs.behind()) == sorted([KEY, other])
    for key in (KEY, other):
        await own_runs.shown(key, (await record(own_runs, key)).updated_ms)
    assert await own_runs.behind() == [KEY]
    await own_runs.rows_shown(KEY, "train", 1)
    assert await own_runs.metrics(KEY) == [MetricLength("train", 1, 1)]
    assert await own_runs.behind() == []


async def test_every_change_is_seen_whatever_the_clock_does(own_runs: SqliteRuns) -> None:
    await own_runs.open(KEY, Opened(5))
    for change in (
        own_runs.open(KEY, Opened(4)), own_runs.set_params(KEY, {"a": "1"}, 1, MIB),
        own_runs.end(KEY, RunStatus.FAILED, 0, None),
    ):  # fmt: skip
        await own_runs.shown(KEY, (await record(own_runs)).updated_ms)
        assert await own_runs.behind() == []
        await change
        assert await own_runs.behind() == [KEY]


# ---- what comes from elsewhere


async def test_what_is_brought_is_kept_as_it_was(runs: Runs) -> None:
    run = Run(
        KEY, RunStatus.FAILED, "node-1", "alice", created_ms=5, started_ms=6, updated_ms=8, ended_ms=7, error="x",
        readme="größe", tags=("a",), bindrs=("b",), metadata="{}",
    )  # fmt: skip
    assert await runs.bring(run, {"opt.lr": "0.1"}, MIB)
    assert await record(runs) == run
    assert await runs.params(KEY) == {"opt.lr": "0.1"}
    assert not await runs.bring(run, {"opt.lr": "0.1"}, MIB)
    await runs.set_params(KEY, {"opt": "1"}, 9, MIB)
    await runs.open(KEY, Opened(10))
    assert not await runs.bring(run, {"opt.lr": "0.1"}, MIB)
    assert await runs.bring(run, {"opt.lr": "0.1", "late": "2"}, MIB)
    assert await runs.params(KEY) == {"opt": "1", "late": "2"}
    assert (await record(runs)).status is RunStatus.RUNNING
    newer = replace(run, updated_ms=50, error="y", readme=None)
    assert await runs.bring(newer, {"opt.lr": "3"}, MIB)
    assert await record(runs) == replace(newer, readme="größe")
    assert await runs.params(KEY) == {"opt.lr": "3", "late": "2"}


async def test_rows_that_are_brought_are_there_once(runs: Runs) -> None:
    rows = [BroughtRow("train", Row(number, "{}", writer=7, number=number)) for number in range(5)]
    await runs.append(KEY, 7, 0, [NewRow("train", "{}")], 0)
    assert await runs.bring_rows(KEY, rows[:3]) == 2
    assert await runs.bring_rows(KEY, rows) == 2
    assert await runs.bring_rows(KEY, []) == 0
    assert await runs.rows(KEY, "train", 0, 9) == [each.row for each in rows]
