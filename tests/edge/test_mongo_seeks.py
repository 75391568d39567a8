"""Lists of MongoDB that pass over what can't be in them: nothing is left out, and what is passed over is not read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pymongo
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.asynchronous.collection import AsyncCollection

from ml_dashd.core import names
from ml_dashd.core.model import FileRecord, Scope, Selection
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_records import document
from ml_dashd.edge.mongo_schema import FILES, prepare
from tests.contract.test_catalog import EXPERIMENT, record
from tests.edge.mongo_profile import Database, noted, profiled
from tests.edge.test_listing import paths, selections

Files = list[tuple[str, int, tuple[str, ...], bool]]
"""Of each its path, owner, tags, and whether it is pending."""
TAGS = [(), ("a",), ("b",), ("a", "b")]


@pytest.mark.slow
def test_pages_have_what_fits_in_order(mongodb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for, with pages of keys so small that much is passed over."""
    monkeypatch.setattr("ml_dashd.edge.seeking_mongo.LEAST", 2)
    with asyncio.Runner() as runner, pymongo.MongoClient[Any](mongodb_url) as client:
        mongo = Mongo(mongodb_url)
        runner.run(prepare(mongo))

        @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
        @given(
            st.data(),
            st.lists(
                st.tuples(paths, st.sampled_from([1000, 2000]), st.sampled_from(TAGS), st.booleans()),
                min_size=1,
                max_size=20,
            ),
            st.integers(1, 12),
        )
        def hold(data: st.DataObject, some: Files, times: int) -> None:
            # With 1 any older version is skipped by MongoDB's own seeks.
            monkeypatch.setattr("ml_dashd.edge.seeking_mongo.FEW", data.draw(st.sampled_from([1, 8])))
            files = client.get_default_database()[FILES]
            records = [made(number, each) for number, each in enumerate(some * times, start=1)]
            files.delete_many({})
            files.insert_many([document(each) for each in records])
            selection, prefix, pattern = data.draw(selections([each[0] for each in some]))
            asked = replace(selection, tags=data.draw(st.sampled_from(TAGS)), pending=data.draw(st.booleans()))
            try:
                expected = seen(records, asked, prefix, pattern)
            except ValueError:  # a set that can't be
                return
            found = runner.run(all_pages(MongoCatalog(mongo), asked))
            assert [each for each in found if names.matches(each[0], prefix, pattern)] == expected
            assert len(set(found)) == len(found)

        try:
            hold()
        finally:
            runner.run(mongo.close())


def made(number: int, file: tuple[str, int, tuple[str, ...], bool]) -> FileRecord:
    path, owner, tags, pending = file
    return replace(record(number, path), owner_uid=owner, tags=tags, pending=pending)


def seen(records: list[FileRecord], asked: Selection, prefix: str, pattern: str | None) -> list[tuple[str, int]]:
    fitting = [
        (each.path, each.id)
        for each in sorted(records, key=lambda each: (each.path, -each.id))
        if names.matches(each.path, prefix, pattern)
        if asked.scope.owner_uid in (None, each.owner_uid)
        if set(asked.tags) <= set(each.tags) and (asked.pending or not each.pending)
    ]
    if asked.latest:
        fitting = [each for at, each in enumerate(fitting) if not at or fitting[at - 1][0] != each[0]]
    return fitting


async def all_pages(catalog: MongoCatalog, asked: Selection) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    while True:
        page = await catalog.select(replace(asked, cursor=found[-1] if found else None))
        found += [(each.path, each.id) for each in page]
        if len(page) < asked.limit:
            return found


# ---- what is read for it


@pytest.fixture
async def catalog(mongodb_url: str):
    """Twenty folders of three hundred files, and a file of two thousand versions."""
    mongo = Mongo(mongodb_url)
    await prepare(mongo)
    some = [record(number, f"runs/{number % 20}/{number // 20}.png") for number in range(6000)]
    some += [record(number, f"many/{number % 2}.pt") for number in range(6000, 8000)]
    some += [record(8000, "top.txt"), record(8001, "runs/7/deep/er.png")]
    await mongo.call(mongo.collection(FILES).insert_many([document(each) for each in some]))
    yield MongoCatalog(mongo)
    await mongo.close()


@pytest.fixture
def watched(catalog: MongoCatalog, mongodb_url: str) -> Iterator[Database]:
    with profiled(mongodb_url) as database:
        yield database


def keys_read(database: Database) -> int:
    return sum(plan.get("keysExamined", 0) for plan in noted(database, "query", "command", "getmore"))


LISTS: list[tuple[dict[str, Any], int, int]] = [
    ({"pattern": "*"}, 1, 300),
    ({"pattern": "*", "latest": True}, 1, 300),
    ({"prefix": "runs", "pattern": "*/29?.png"}, 200, 3500),
    ({"prefix": "many", "pattern": "*", "latest": True}, 2, 300),
    ({"prefix": "many", "pattern": "*", "latest": True, "scope": Scope(1000)}, 2, 900),
    ({"prefix": "many", "latest": True, "tags": ("best",)}, 2, 300),
    ({"prefix": "many", "latest": True, "tags": ("best", "checkpoint")}, 2, 900),
]
"""What is asked, how many there are, and fewer keys than which are read."""


async def test_what_can_not_be_in_a_list_is_not_read(catalog: MongoCatalog, watched: Database) -> None:
    read = 0
    for asked, count, most in LISTS:
        found = await all_pages(catalog, Selection(*EXPERIMENT, **({"limit": 100} | asked)))
        before, read = read, keys_read(watched)
        assert (len(found), read - before < most) == (count, True), (asked, read - before)


async def test_a_server_that_tells_paths_in_no_order_is_asked_for_keys(
    mongodb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shards of a collection would."""
    mongo = Mongo(mongodb_url)
    await prepare(mongo)
    catalog = MongoCatalog(mongo)
    await catalog.commit([record(number, f"many/{number % 10}.pt") for number in range(1, 401)])
    monkeypatch.setattr("ml_dashd.edge.seeking_mongo.LEAST", 4)

    aggregate = AsyncCollection.aggregate

    def in_shards(self: AsyncCollection[Any], stages: list[dict[str, Any]], **options: Any) -> Any:
        *before, limit = stages
        return aggregate(self, [*before, {"$sort": {"_id": -1}}, limit], **options)

    monkeypatch.setattr(AsyncCollection, "aggregate", in_shards)
    found = await all_pages(catalog, Selection(*EXPERIMENT, prefix="many", latest=True, limit=4))
    assert found == [(f"many/{number}.pt", 390 + (number or 10)) for number in range(10)]
    await mongo.close()


async def test_a_page_is_of_one_moment(mongodb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set becomes visible after what is listed was read, and before what is pending is."""
    mongo = Mongo(mongodb_url)
    await prepare(mongo)
    catalog, find, asked = MongoCatalog(mongo), AsyncCollection.find, []
    await catalog.commit([replace(record(1), pending=True), record(2, "models/other.pt")])

    def in_between(self: AsyncCollection[Any], *words: Any, **options: Any) -> Any:
        asked.append(words)
        if len(asked) == 2:
            with pymongo.MongoClient[Any](mongodb_url) as client:
                files = client.get_default_database()[FILES]
                files.update_one({"_id": 1}, {"$set": {"pending": False, "listed": True}})
        return find(self, *words, **options)

    monkeypatch.setattr(AsyncCollection, "find", in_between)
    found = await catalog.select(Selection(*EXPERIMENT, pending=True))
    assert len(asked) == 2
    assert [each.id for each in found] == [1, 2]
    await mongo.close()
