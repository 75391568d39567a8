"""What every catalog must do."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dashd.core.model import EVERYBODY, FileRecord, Scope, Selection
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.system import NoFaults
from ml_dashd.ports import Catalog

EXPERIMENT = ("alice", "cv", "resnet")


@pytest.fixture(params=["sqlite"])
async def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Catalog]:
    made = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    yield made
    await made.close()


def record(number: int, path: str = "models/best.pt", experiment: tuple[str, str, str] = EXPERIMENT) -> FileRecord:
    prefix, _, filename = path.rpartition("/")
    return FileRecord(
        id=number,
        owner_uid=1000,
        namespace=experiment[0],
        project=experiment[1],
        experiment=experiment[2],
        prefix=prefix,
        filename=filename,
        size_bytes=5,
        content_type="application/octet-stream",
        created_ms=1,
        updated_ms=2,
        description="größe",
        tags=("best", "checkpoint"),
        bindrs=("b",),
        metadata='{"epoch": 3}',
        sha256="ab" * 32,
        crc64nvme=2**64 - 1,
        key=f"files/{number}",
        etag="e",
        uploaded_ms=3,
    )


async def paths(catalog: Catalog, **changes) -> list[tuple[str, int]]:
    selection = Selection(*EXPERIMENT, **changes)
    return [(found.path, found.id) for found in await catalog.select(selection)]


async def test_records_of_all_experiments_in_the_order_of_their_ids(catalog: Catalog) -> None:
    """A page at a time, each as far as its reader may see; what was deleted is left out."""
    other = ("bob", "nlp", "bert")
    some = [record(5), record(2, "a.txt", other), record(9, "z.txt"), record(7), record(11)]
    await catalog.commit([replace(each, owner_uid=1001) if each.id == 11 else each for each in some])
    await catalog.delete([7], at_ms=10)
    assert [found.id for found in await catalog.newer(0, EVERYBODY, 2)] == [2, 5]
    assert [found.id for found in await catalog.newer(5, EVERYBODY, 10)] == [9, 11]
    assert [found.id for found in await catalog.newer(0, Scope(1001), 10)] == [11]
    assert [found.id for found in await catalog.newer(0, Scope(1001, frozenset({"bob"})), 10)] == [2, 11]
    assert (await catalog.newer(2, EVERYBODY, 1))[0] == record(5)


async def test_what_was_committed_comes_back_field_by_field(catalog: Catalog) -> None:
    await catalog.commit([record(2**62)])
    assert await catalog.get([2**62, 5]) == [record(2**62)]


async def test_commit_is_idempotent(catalog: Catalog) -> None:
    await catalog.commit([record(7)])
    await catalog.commit([record(7), record(8)])  # what was listed in a life that ended, beside what was not
    assert await paths(catalog) == [("models/best.pt", 8), ("models/best.pt", 7)]
    assert await catalog.get([7, 8]) == [record(7), record(8)]


async def test_a_repeated_commit_takes_back_no_deletion(catalog: Catalog) -> None:
    await catalog.commit([record(7)])
    await catalog.delete([7], 99)
    await catalog.commit([record(7)])
    assert await paths(catalog) == []
    assert (await catalog.get([7]))[0].deleted_ms == 99


async def test_delete_is_idempotent_and_keeps_the_first_time(catalog: Catalog) -> None:
    await catalog.commit([record(7)])
    assert await catalog.delete([7, 8], 99) == [7]
    assert await catalog.delete([7], 100) == [7]
    assert (await catalog.get([7]))[0].deleted_ms == 99


async def test_lists_come_by_path_newest_version_first(catalog: Catalog) -> None:
    for number, path in enumerate(["b/x", "a", "b/x", "b-c/y", "b/x"], start=1):
        await catalog.commit([record(number, path)])
    assert await paths(catalog) == [("a", 2), ("b-c/y", 4), ("b/x", 5), ("b/x", 3), ("b/x", 1)]


async def test_a_prefix_is_a_folder_or_a_file_never_a_part_of_a_name(catalog: Catalog) -> None:
    for number, path in enumerate(["model", "model/a", "models/b", "model-c", "model.pt"], start=1):
        await catalog.commit([record(number, path)])
    assert await paths(catalog, prefix="model") == [("model", 1), ("model/a", 2)]


async def test_pages_follow_each_other_without_gap_or_double(catalog: Catalog) -> None:
    for number in range(1, 24):
        await catalog.commit([record(number, f"p{number % 5}")])
    whole = await paths(catalog)
    pages: list[tuple[str, int]] = []
    cursor = None
    while page := await paths(catalog, cursor=cursor, limit=4):
        pages += page
        cursor = page[-1]
    assert pages == whole
    assert len(whole) == 23


async def test_experiments_do_not_see_each_other(catalog: Catalog) -> None:
    await catalog.commit([record(1)])
    await catalog.commit([record(2, experiment=("alice", "cv", "resnet/b"))])
    await catalog.commit([record(3, experiment=("alice", "nlp", "resnet"))])
    assert await paths(catalog) == [("models/best.pt", 1)]


@pytest.mark.parametrize(
    ("scope", "seen"),
    [
        (EVERYBODY, [1, 2, 3]),
        (Scope(1000), [1, 3]),
        (Scope(2000, frozenset({"bob", "carol"})), [2]),
        (Scope(3000, frozenset({"bob", "alice"})), [1, 2, 3]),
        (Scope(3000), []),
        (Scope(0), []),
    ],
)
async def test_a_list_keeps_to_its_scope(catalog: Catalog, scope: Scope, seen: list[int]) -> None:
    for number, owner in enumerate([1000, 2000, 1000], start=1):
        await catalog.commit([replace(record(number, f"p{number}"), owner_uid=owner)])
    assert [number for _, number in await paths(catalog, scope=scope)] == seen
    first = await paths(catalog, scope=scope, limit=1)
    assert first == (await paths(catalog, scope=scope))[:1]


async def test_a_list_reads_an_index(tmp_path: Path) -> None:
    made = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    await made.close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM files WHERE deleted_ms IS NULL AND namespace = 'a' AND project = 'b' "
            "AND experiment = 'c' AND (path > 'x' OR (path = 'x' AND id < 5)) ORDER BY path, id DESC LIMIT 10"
        ).fetchall()
    connection.close()
    assert "files_by_path" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


async def test_records_without_the_optional_fields(catalog: Catalog) -> None:
    bare = replace(record(3), description=None, tags=(), bindrs=(), metadata=None, crc64nvme=None, etag=None)
    await catalog.commit([bare])
    assert await catalog.get([3]) == [bare]
