"""A catalog that travels in its root from host to host."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from ml_dashd.core.model import Amendment, FileRecord, Selection
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults

VECTORS = Path(__file__).parent.parent / "vectors"


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[[str], SqliteCatalog]]:
    """A host's catalog."""
    made: list[SqliteCatalog] = []

    def host(name: str) -> SqliteCatalog:
        (tmp_path / name).mkdir()
        made.append(SqliteCatalog(tmp_path / name / "catalog.sqlite", NoFaults()))
        return made[-1]

    yield host
    for each in made:
        await each.close()


def record(number: int) -> FileRecord:
    return FileRecord(
        id=number, owner_uid=0, namespace="alice", project="cv", experiment="resnet", prefix="", filename=f"{number}",
        size_bytes=1, content_type="text/plain", created_ms=1, updated_ms=1, sha256="0" * 64, key=f"k/{number}",
        tags=("größte",), metadata='{"a": 1}', crc64nvme=2**64 - 1,
    )  # fmt: skip


async def listed(catalog: SqliteCatalog) -> list[int]:
    found = await catalog.select(Selection("alice", "cv", "resnet", limit=100))
    return sorted(each.id for each in found)


async def test_rows_go_from_host_to_host(make: Callable[[str], SqliteCatalog], tmp_path: Path) -> None:
    one, two, carried = make("one"), make("two"), tmp_path / "catalog.sqlite"
    for number in (1, 2, 3):
        await one.commit([record(number)])
    await one.delete([3], 77)
    await one.export(carried)
    await two.commit([record(4)])
    for _ in range(2):  # idempotent
        await two.merge(carried)
    assert await listed(two) == [1, 2, 4]
    assert (await two.get([1]))[0] == record(1)
    assert await two.highest() == 4
    await two.delete([2], 99)
    await two.export(carried)
    await one.merge(carried)
    assert await listed(one) == [1, 4]
    assert [each.deleted_ms for each in await one.get([2, 3])] == [99, 77]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.sqlite", "one", "two"]
    assert [*(tmp_path / "one").glob("export*"), *(tmp_path / "two").glob("merge*")] == []


async def test_what_is_carried_is_one_whole_file(make: Callable[[str], SqliteCatalog], tmp_path: Path) -> None:
    """That anything that knows SQLite can read, wherever it lies."""
    one, carried = make("one"), tmp_path / "catalog.sqlite"
    await one.commit([record(1)])
    await one.export(carried)
    with closing(sqlite3.connect(f"{carried.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("SELECT id FROM files").fetchall() == [(1,)]


async def test_it_is_written_only_where_a_row_has_changed(make: Callable[[str], SqliteCatalog], tmp_path: Path) -> None:
    one, carried = make("one"), tmp_path / "catalog.sqlite"
    await one.export(carried)
    inode = carried.stat().st_ino
    await one.export(carried)
    assert carried.stat().st_ino == inode
    await one.commit([record(1)])
    await one.export(carried)
    assert carried.stat().st_ino != inode


async def test_one_of_the_first_release(make: Callable[[str], SqliteCatalog], tmp_path: Path) -> None:
    carried = tmp_path / "catalog.sqlite"
    with closing(sqlite3.connect(carried)) as database:
        database.executescript((VECTORS / "catalog-1.sql").read_text())
    before = carried.read_bytes()
    one = make("one")
    await one.merge(carried)
    assert await listed(one) == [(1 << 40) + 3]
    assert carried.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 1000])
async def test_one_that_is_missing_or_broken_is_left_alone(
    make: Callable[[str], SqliteCatalog], tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    carried = tmp_path / "catalog.sqlite"
    if content is not None:
        carried.write_bytes(content)
    one = make("one")
    await one.commit([record(1)])
    await one.merge(carried)
    assert await listed(one) == [1]
    assert ("catalog_not_merged" in caplog.text) == bool(content)


async def test_a_root_that_can_not_be_written_to_is_tried_again(
    make: Callable[[str], SqliteCatalog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, carried = make("one"), tmp_path / "away" / "catalog.sqlite"
    await one.commit([record(1)])
    await one.export(carried)
    assert "catalog_not_exported" in caplog.text
    carried.parent.mkdir()
    await one.export(carried)
    assert carried.exists()


async def test_words_tags_and_tombstones_travel(make: Callable[[str], SqliteCatalog], tmp_path: Path) -> None:
    """Of what is said of a file on two hosts, what was changed more often; what is deleted and reclaimed stays so."""
    one, two, carried = make("one"), make("two"), tmp_path / "catalog.sqlite"
    await one.commit([record(1), record(2), record(3)])
    await one.export(carried)
    await two.merge(carried)
    await one.amend(1, Amendment(tags=("one",)), 50)
    await two.amend(1, Amendment(tags=("two",)), 60)
    await two.amend(1, Amendment(description="twice"), 70)
    await two.delete([3], 80)
    await two.reclaimed(await two.deleted(99, (0, 0), 9), 90)
    await two.export(carried)
    await one.merge(carried)
    (found,) = await one.get([1])
    assert (found.description, found.tags, found.updated_ms, found.revision) == ("twice", ("two",), 70, 2)
    assert [each.id for each in await one.select(Selection("alice", "cv", "resnet", tags=("two",)))] == [1]
    assert await one.select(Selection("alice", "cv", "resnet", tags=("one",))) == []
    assert await one.deleted(99, (0, 0), 9) == []
    await one.export(carried)
    await two.merge(carried)
    assert await two.get([1]) == [found]


async def test_tags_of_a_catalog_of_the_first_release(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as database:
        database.executescript((VECTORS / "catalog-1.sql").read_text())
        database.execute("UPDATE files SET tags = ?", ('["best", "größe"]',))
        database.commit()
    catalog = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    found = await catalog.select(Selection("alice", "cv", "resnet", tags=("größe",)))
    assert [(each.filename, each.revision) for each in found] == [("stored.txt", 0)]
    await catalog.close()
