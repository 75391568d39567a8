"""What every catalog must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core import names
from ml_dashd.core.model import EVERYBODY, Amendment, FileRecord, Scope, Selection
from ml_dashd.core.reconcile import UNSAID
from ml_dashd.core.rounds import Round
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import prepare
from ml_dashd.ports import Catalog, TakenError

EXPERIMENT = ("alice", "cv", "resnet")


@pytest.fixture(params=["sqlite", "mongodb"])
async def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Catalog]:
    made: Catalog
    if request.param == "sqlite":
        made = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    else:
        mongo = Mongo(request.getfixturevalue("mongodb_url"))
        await prepare(mongo)
        made = MongoCatalog(mongo)
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


@pytest.mark.parametrize("other", [{"key": "files/other/9"}, {"owner_uid": 1001}, {"sha256": "cd" * 32}])
async def test_an_id_that_another_file_has_is_refused(catalog: Catalog, other: dict[str, Any]) -> None:
    """As by two machines that were woken from one snapshot. What else was to be listed is."""
    await catalog.commit([record(9), record(7)])
    await catalog.delete([7], at_ms=10)
    late = replace(record(9), revision=5, description="late", **other)
    for _ in range(2):
        with pytest.raises(TakenError) as refused:
            await catalog.commit([record(8), late, record(7)])
        assert refused.value.others == [record(9)]
        assert refused.value.gone == [7]
        assert await catalog.get([8, 9]) == [record(8), record(9)]


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


TREE = [
    "a.json", "a.png", "json", "README", "configs/a.json", "configs/b.yaml", "configs/old/a.json", "configs.json",
    "images/1.png", "images/10.png", "images/x/1.png", "images-2/1.png", "[a]/*.json", "größe/ä.json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "pattern"),
    [
        ("", "**/*.json"),
        ("", "*"),
        ("", "*.json"),
        ("", "**/a*"),
        ("", "**/README"),
        ("", "c[no]*/**/*.json"),
        ("", "**/[a-b].*"),
        ("", "**"),
        ("configs", "**/*.json"),
        ("configs/a.json", ""),
        ("images", "*.png"),
        ("images", "?.png"),
        ("images", "**/1.png"),
        ("images", "*/*"),
        ("[a]", "*.json"),
        ("größe", "?.json"),
    ],
)
async def test_a_list_has_whatever_fits_its_pattern(catalog: Catalog, prefix: str, pattern: str) -> None:
    """In its order, and in pages; what else it has is for its caller to leave out."""
    await catalog.commit([record(number, path) for number, path in enumerate(TREE, start=1)])
    whole = f"{prefix}/{pattern}".strip("/")
    fitting = sorted(path for path in TREE if names.matches(path, "", whole.replace("[a]", "[[]a]")))
    assert fitting
    pages, cursor = [], None
    while page := await paths(catalog, prefix=prefix, pattern=pattern, cursor=cursor, limit=2):
        pages += page
        cursor = page[-1]
    assert pages == sorted(set(pages))
    assert [path for path, _ in pages if path in fitting] == fitting


async def test_the_newest_of_each_path(catalog: Catalog) -> None:
    await catalog.commit([record(number, f"p{number % 5}") for number in range(1, 24)])
    await catalog.commit([record(30, "p2/deep"), record(31, "p2/deep")])
    await catalog.delete([23, 31], 99)  # the newest of p3, and of p2/deep
    newest = [("p0", 20), ("p1", 21), ("p2", 22), ("p2/deep", 30), ("p3", 18), ("p4", 19)]
    assert await paths(catalog, latest=True) == newest
    assert await paths(catalog, latest=True, limit=3) == newest[:3]
    assert await paths(catalog, latest=True, cursor=("p2", 22)) == newest[3:]
    assert await paths(catalog, latest=True, prefix="p2") == newest[2:4]
    assert await paths(catalog, latest=True, prefix="p2", cursor=("p2", 22)) == newest[3:4]
    assert await paths(catalog, latest=True, prefix="p3", pattern="") == [("p3", 18)]
    assert ("p2/deep", 30) in await paths(catalog, latest=True, pattern="**/d*")


async def test_the_newest_that_is_in_the_scope(catalog: Catalog) -> None:
    for number, owner in enumerate([1000, 2000, 1000, 2000], start=1):
        await catalog.commit([replace(record(number), owner_uid=owner)])
    assert await paths(catalog, latest=True, scope=Scope(1000)) == [("models/best.pt", 3)]
    assert await paths(catalog, latest=True) == [("models/best.pt", 4)]


async def test_records_without_the_optional_fields(catalog: Catalog) -> None:
    bare = replace(record(3), description=None, tags=(), bindrs=(), metadata=None, crc64nvme=None, etag=None)
    await catalog.commit([bare])
    assert await catalog.get([3]) == [bare]


# ---- what is said of a file


async def test_an_amendment_changes_what_it_names_and_nothing_else(catalog: Catalog) -> None:
    await catalog.commit([record(7), record(8)])
    amended = await catalog.amend(7, Amendment(tags=("new",), metadata='{"a": 1}'), 99)
    assert amended == replace(record(7), tags=("new",), metadata='{"a": 1}', updated_ms=99, revision=1)
    assert await catalog.get([7, 8]) == [amended, record(8)]
    cleared = await catalog.amend(7, Amendment(description="", bindrs=()), 100)
    assert cleared == replace(amended, description="", bindrs=(), updated_ms=100, revision=2)


async def test_what_is_deleted_or_unknown_is_not_amended(catalog: Catalog) -> None:
    await catalog.commit([record(7)])
    await catalog.delete([7], 50)
    assert await catalog.amend(7, Amendment(tags=("new",)), 99) is None
    assert await catalog.amend(8, Amendment(tags=("new",)), 99) is None
    assert (await catalog.get([7]))[0].tags == record(7).tags


async def test_a_commit_takes_no_later_word_back_and_brings_one(catalog: Catalog) -> None:
    await catalog.commit([record(7)])
    await catalog.amend(7, Amendment(description="first"), 50)
    await catalog.commit([record(7)])
    assert (await catalog.get([7]))[0].description == "first"
    later = replace(record(7), description="second", tags=("second",), updated_ms=60, revision=2)
    assert await catalog.commit([later]) == []
    assert await catalog.get([7]) == [later]
    assert await paths(catalog, tags=("second",)) == [("models/best.pt", 7)]
    assert await paths(catalog, tags=("best",)) == []


async def test_a_commit_names_what_was_deleted_before(catalog: Catalog) -> None:
    await catalog.commit([record(7), record(8)])
    await catalog.delete([7], 50)
    assert await catalog.commit([record(7), record(8), replace(record(9), revision=1)]) == [7]
    assert await catalog.commit([replace(record(7), description="late", revision=5)]) == [7]
    assert await paths(catalog) == [("models/best.pt", 9), ("models/best.pt", 8)]
    assert (await catalog.get([7]))[0].description == record(7).description


# ---- tags


async def test_a_list_by_tags_has_the_files_that_have_them_all(catalog: Catalog) -> None:
    for number, tags in enumerate([("a",), ("a", "b"), (), ("b", "a", "c"), ("A", "ab")], start=1):
        await catalog.commit([replace(record(number, f"p{number % 2}"), tags=tags)])
    assert await paths(catalog, tags=("a",)) == [("p0", 4), ("p0", 2), ("p1", 1)]
    assert await paths(catalog, tags=("a", "b")) == [("p0", 4), ("p0", 2)]
    assert await paths(catalog, tags=("b", "a", "c")) == [("p0", 4)]
    assert await paths(catalog, tags=("nobody",)) == []
    assert await paths(catalog, tags=("a",), prefix="p1") == [("p1", 1)]
    assert await paths(catalog, tags=("a",), limit=1) == [("p0", 4)]
    assert await paths(catalog, tags=("a",), cursor=("p0", 4)) == [("p0", 2), ("p1", 1)]
    assert await paths(catalog, tags=("a",), scope=Scope(7)) == []


async def test_tags_that_change_and_files_that_are_deleted(catalog: Catalog) -> None:
    await catalog.commit([replace(record(number), tags=("a",)) for number in (1, 2, 3)])
    await catalog.amend(1, Amendment(tags=("b", "c")), 50)
    await catalog.delete([2], 60)
    assert await paths(catalog, tags=("a",)) == [("models/best.pt", 3)]
    assert await paths(catalog, tags=("c",)) == [("models/best.pt", 1)]
    await catalog.amend(1, Amendment(tags=()), 70)
    assert await paths(catalog, tags=("c",)) == []


# ---- versions that are not kept, and bytes of what is deleted


async def test_prune_deletes_what_is_as_it_was_read(catalog: Catalog) -> None:
    await catalog.commit([record(number) for number in (1, 2, 3, 4)])
    await catalog.amend(2, Amendment(tags=("keep",)), 50)
    await catalog.delete([3], 60)
    assert await catalog.prune([record(1), record(2), record(3), record(5)], 99) == [1]
    assert await paths(catalog) == [("models/best.pt", 4), ("models/best.pt", 2)]
    assert [each.deleted_ms for each in await catalog.get([1, 3])] == [99, 60]
    assert await catalog.prune([record(1)], 100) == []


async def test_experiments_that_have_files(catalog: Catalog) -> None:
    assert await catalog.experiments() == []
    other = ("alice", "cv", "resnet/b")
    await catalog.commit([record(1), record(2), record(3, experiment=other), record(4, experiment=("bob", "a", "b"))])
    assert sorted(await catalog.experiments()) == [EXPERIMENT, other, ("bob", "a", "b")]
    await catalog.delete([3], 9)
    assert sorted(await catalog.experiments()) == [EXPERIMENT, ("bob", "a", "b")]


async def test_deleted_files_come_by_their_time_until_their_bytes_are_reclaimed(catalog: Catalog) -> None:
    await catalog.commit([record(number) for number in range(1, 8)])
    for number, at_ms in ((5, 10), (2, 10), (1, 20), (7, 30)):
        await catalog.delete([number], at_ms)
    found = await catalog.deleted(30, (0, 0), 10)
    assert [(each.id, each.deleted_ms) for each in found] == [(2, 10), (5, 10), (1, 20)]
    assert [each.id for each in await catalog.deleted(31, (10, 2), 2)] == [5, 1]
    await catalog.reclaimed([found[0], replace(found[1], deleted_ms=9), record(3)], 99)
    assert [each.id for each in await catalog.deleted(31, (0, 0), 10)] == [5, 1, 7]
    await catalog.reclaimed(found, 100)
    assert [each.id for each in await catalog.deleted(31, (0, 0), 10)] == [7]
    assert [each.deleted_ms for each in await catalog.get([2])] == [10], "the record stays"
    assert await catalog.commit([record(2)]) == [2]


async def test_a_list_by_tag_reads_an_index(tmp_path: Path) -> None:
    """What is asked is taken from SQLite itself."""
    made = SqliteCatalog(tmp_path / "catalog.sqlite", NoFaults())
    await made.commit([record(1)])
    asked: list[str] = []
    await made._database.call(lambda connection: connection.set_trace_callback(asked.append))
    for latest in (True, False):
        found = await made.select(Selection(*EXPERIMENT, prefix="models", tags=("best", "checkpoint"), latest=latest))
        assert [each.id for each in found] == [1]
    questions = [each for each in asked if "tags AS files" in each]
    assert len(questions) >= 2
    for question in questions:
        plan = await made._database.call(
            lambda connection, asked=question: connection.execute(f"EXPLAIN QUERY PLAN {asked}").fetchall()
        )
        steps = [row["detail"] for row in plan]
        assert not [step for step in steps if step.startswith("SCAN files")], steps
    await made.close()


# ---- what is compared with the store


async def keys(catalog: Catalog, after: str = "", limit: int = 100) -> list[str | None]:
    return [found.key for found in await catalog.inventory.records(after, limit)]


async def test_records_come_in_the_order_of_their_keys(catalog: Catalog) -> None:
    """As UTF-8, in which "/" stands between "." and "0": as a store lists its objects."""
    names = ["files/a/b/1/x", "files/a.b/2/x", "files/a0/3/x", "files/größe/4/x", "files/模型/5/x", "files/😀/6/x", "n"]
    made = [replace(record(number, f"p{number}"), key=key) for number, key in enumerate(names, start=1)]
    await catalog.commit(made)
    found = await keys(catalog)
    assert found == sorted(names, key=str.encode)
    for at, key in enumerate(found):
        assert await keys(catalog, key or "", 2) == found[at + 1 : at + 3]
    assert await catalog.inventory.records("files/a/b", 1) == [made[0]]


async def test_records_whose_bytes_may_be_there_are_among_them(catalog: Catalog) -> None:
    """Pending ones, and deleted ones until their bytes are reclaimed."""
    await catalog.commit([record(1), replace(record(2, "b"), pending=True), record(3, "c"), record(4, "d")])
    await catalog.delete([3, 4], 99)
    await catalog.inventory.mark([record(4, "d")], 5)
    await catalog.reclaimed([found for found in await catalog.get([4]) if found.deleted_ms], 100)
    found = await catalog.inventory.records("", 10)
    assert [(each.id, each.pending, each.deleted_ms) for each in found] == [
        (1, False, None),
        (2, True, None),
        (3, False, 99),
    ]


async def test_a_missing_object_is_marked_until_it_is_there_again(catalog: Catalog) -> None:
    await catalog.commit([record(1), record(2, "b"), record(3, "c")])
    await catalog.delete([3], 99)
    await catalog.inventory.mark([record(1), record(3, "c"), record(9)], 1000)
    await catalog.inventory.mark([record(1), record(2, "b")], 2000)
    assert [found.missing_ms for found in await catalog.get([1, 2, 3])] == [1000, 2000, None]
    assert [found.missing_ms for found in await catalog.select(Selection(*EXPERIMENT))] == [2000, 1000]
    await catalog.commit([record(1)])
    assert (await catalog.get([1]))[0] == replace(record(1), missing_ms=1000)
    await catalog.inventory.mark([record(1), record(9)], None)
    await catalog.inventory.mark([record(1)], None)
    assert await catalog.get([1, 2]) == [record(1), replace(record(2, "b"), missing_ms=2000)]


async def test_one_takes_the_turn(catalog: Catalog) -> None:
    first = await catalog.inventory.round()
    assert first == Round()
    mine, other = Round("me", 1000, "objects\nfiles/größe"), Round("other", 1000)
    assert await catalog.inventory.turn(first, mine)
    assert not await catalog.inventory.turn(first, other)
    assert await catalog.inventory.round() == mine
    further = replace(mine, until_ms=2000, after="uploads\n")
    assert await catalog.inventory.turn(mine, further)
    assert not await catalog.inventory.turn(mine, other)
    assert await catalog.inventory.turn(further, Round(ended_ms=3000))
    assert await catalog.inventory.round() == Round(ended_ms=3000)


async def test_of_several_at_once_one_takes_the_turn(catalog: Catalog) -> None:
    taken = await asyncio.gather(
        *(catalog.inventory.turn(Round(), Round(f"node {number}", 1000)) for number in range(8))
    )
    assert sorted(taken) == [False] * 7 + [True]
    assert (await catalog.inventory.round()).holder == f"node {taken.index(True)}"


async def test_what_its_node_says_of_a_file_counts_after_its_record_was_made_from_its_object(catalog: Catalog) -> None:
    """Its commit may have waited for weeks. What was said here meanwhile counts more."""
    made = [
        replace(record(number), description=None, tags=(), bindrs=(), metadata=None, revision=UNSAID, updated_ms=1)
        for number in (1, 2, 3)
    ]
    await catalog.commit(made)
    await catalog.amend(2, Amendment(description="said here"), 50)
    await catalog.delete([3], 60)
    assert await catalog.commit([record(1), record(2), record(3)]) == [3]
    first, second = await catalog.get([1, 2])
    assert first == record(1)
    assert (second.description, second.tags) == ("said here", ())
    assert await paths(catalog, tags=("best",)) == [("models/best.pt", 1)]
    await catalog.commit(made)
    assert await catalog.get([1]) == [record(1)]
