"""Every question of the catalog is answered from an index, by what MongoDB itself says of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import EVERYBODY, Scope, Selection
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import FILES, INDEXES, VERSION, prepare
from tests.contract.test_catalog import EXPERIMENT, record
from tests.edge.mongo_profile import Database, noted, profiled

BY_PATH, BY_ENDING, BY_TAG = "by_path", "by_ending", "by_tag"
QUESTIONS = [
    ({}, BY_PATH),
    ({"prefix": "models"}, BY_PATH),
    ({"prefix": "models", "cursor": ("models/best.pt", 9)}, BY_PATH),
    ({"prefix": "models", "pattern": "best*"}, BY_PATH),
    ({"pattern": "**/*.pt"}, BY_ENDING),
    ({"latest": True}, BY_PATH),
    ({"latest": True, "prefix": "models/best.pt", "pattern": ""}, BY_PATH),
    ({"latest": True, "pattern": "**/*.pt"}, BY_ENDING),
    ({"tags": ("best", "checkpoint")}, BY_TAG),
    ({"tags": ("best",), "latest": True, "prefix": "models"}, BY_TAG),
    ({"scope": Scope(1000)}, BY_PATH),
]


@pytest.fixture
async def catalog(mongodb_url: str):
    """Some hundred files, and a few of others that must not be looked at."""
    mongo = Mongo(mongodb_url)
    await prepare(mongo)
    made = MongoCatalog(mongo)
    await made.commit([record(number, f"models/{number % 7}.pt") for number in range(1, 200)])
    await made.commit([record(number, f"logs/{number}.txt") for number in range(200, 400)])
    await made.commit([record(1000, "models/best.pt"), replace(record(1001), namespace="bob")])
    await made.delete(range(150, 170), 10)
    yield made
    await made.close()


@pytest.fixture
def watched(catalog: MongoCatalog, mongodb_url: str) -> Iterator[Database]:
    """The same database, which notes every operation with its plan."""
    with profiled(mongodb_url) as database:
        yield database


def plans(database: Database) -> list[dict[str, Any]]:
    """What was asked of the files since the last look."""
    found = noted(database, "query", "command", "update", "getmore")
    database.command("profile", 0)
    database["system.profile"].drop()
    database.command("profile", 2)
    assert found
    return found


@pytest.mark.parametrize(("asked", "index"), QUESTIONS)
async def test_a_list_reads_its_index(
    catalog: MongoCatalog, watched: Database, asked: dict[str, Any], index: str
) -> None:
    found = await catalog.select(Selection(*EXPERIMENT, limit=10, **asked))
    assert found or "cursor" in asked
    for plan in plans(watched):
        assert "COLLSCAN" not in plan["planSummary"]
        assert not plan.get("hasSortStage"), plan
        if "_id: 1 }" not in plan["planSummary"] and "IDHACK" not in plan["planSummary"]:
            assert plan["planSummary"].replace(" ", "") in (f"IXSCAN{summary(index)}", f"DISTINCT_SCAN{summary(index)}")


def summary(index: str) -> str:
    keys = (f"{key.removeprefix('-')}:{-1 if key.startswith('-') else 1}" for key in INDEXES[FILES][index][0])
    return f"{{{','.join(keys)}}}"


async def test_every_other_question_reads_an_index(catalog: MongoCatalog, watched: Database) -> None:
    gone = await catalog.deleted(99, (0, 0), 5)
    assert [each.id for each in gone] == [150, 151, 152, 153, 154]
    await catalog.deleted(99, (10, 152), 5)
    await catalog.get([1, 2, 3])
    await catalog.newer(100, EVERYBODY, 5)
    await catalog.newer(100, Scope(1000, frozenset({"bob"})), 5)
    assert len(await catalog.experiments()) == 2
    for number in (3, 3000):  # all have one SHA-256
        await catalog.commit([replace(record(number, f"models/{number}.pt"), revision=1)])
    await catalog.delete([1], 5)
    await catalog.prune([record(2, "models/2.pt")], 5)
    await catalog.reclaimed(gone, 100)
    asked = await catalog.inventory.records("files/1", 5)
    assert [each.key for each in asked] == ["files/10", "files/100", "files/1000", "files/1001", "files/101"]
    await catalog.inventory.mark(asked, 5)
    for plan in plans(watched):
        assert "COLLSCAN" not in plan["planSummary"], plan
        assert not plan.get("hasSortStage"), plan
        assert plan.get("keysExamined", 0) <= 60, "a range, not the whole index"


async def test_a_page_of_the_newest_reads_no_version_twice(catalog: MongoCatalog, watched: Database) -> None:
    """Thousands of versions of a path are skipped, not read."""
    for start in range(2000, 6000, 1000):
        await catalog.commit([record(number, "a/many.pt") for number in range(start, start + 1000)])
    plans(watched)
    found = await catalog.select(Selection(*EXPERIMENT, limit=10, latest=True, prefix="a"))
    assert [each.id for each in found] == [5999]
    assert sum(plan.get("keysExamined", 0) for plan in plans(watched)) < 60


async def test_a_database_of_a_newer_release_is_left_alone(mongodb_url: str) -> None:
    mongo = Mongo(mongodb_url)
    await mongo.call(mongo.collection("schema").insert_one({"_id": "version", "number": VERSION + 1}))
    with pytest.raises(MLDashError) as refused:
        await prepare(mongo)
    assert refused.value.code is Code.CONFIG
    assert await mongo.call(mongo.database.list_collection_names()) == ["schema"]
    await mongo.close()


async def test_a_database_is_made_ready_once_and_again(mongodb_url: str) -> None:
    mongo = Mongo(mongodb_url)
    for _ in range(2):
        await prepare(mongo)
    made = await mongo.call(mongo.collection(FILES).index_information())
    assert set(made) == {"_id_", *INDEXES[FILES]}
    await mongo.close()
