"""What every catalog must do with sets: they become visible together, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from ml_dashd.core.model import EVERYBODY, Amendment, FileRecord, Scope, Selection
from ml_dashd.core.sets import Delivery, SetKey, SetSelection, SetState, Share, Verdict
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.ports import Catalog
from tests.contract.test_catalog import EXPERIMENT, catalog, record

__all__ = ["catalog"]

OPEN, COMPLETE = SetState.OPEN, SetState.COMPLETE
STEP = "ckpt/step_1000"


def key(attempt: str = "a", name: str = STEP) -> SetKey:
    return SetKey(1000, *EXPERIMENT, name, attempt)


def share(rank: int, world_size: int = 2, attempt: str = "a", again: int = 0, name: str = STEP) -> Share:
    own = hashlib.sha256(f"{attempt} {rank} {again} {name}".encode()).hexdigest()[:32]
    return Share(own, name, attempt, rank, world_size)


def member(number: int, of: Share, filename: str = "", **changes: Any) -> FileRecord:
    path = f"{of.name}/{filename or f'rank{of.rank}.pt'}"
    return replace(record(number, path), share=of, pending=True, **changes)


async def bring(catalog: Catalog, of: Share, *ids: int, at_ms: int = 10) -> Verdict:
    """Files of a share that is ended: listed, then delivered."""
    if ids:
        await catalog.commit([member(number, of) for number in ids])
    delivery = Delivery(key(of.attempt, of.name), of, ids)
    return (await catalog.sets.deliver(delivery, at_ms)).verdict


async def seen(catalog: Catalog, **asked: Any) -> list[tuple[str, int]]:
    return [(found.path, found.id) for found in await catalog.select(Selection(*EXPERIMENT, **asked))]


async def states(catalog: Catalog, scope: Scope = EVERYBODY, **asked: Any) -> list[tuple[str, str, int, SetState]]:
    found = await catalog.sets.select(SetSelection(tuple(SetState), scope, **asked))
    return [(each.key.name, each.key.attempt, each.round, each.state) for each in found]


RANK0, RANK1 = f"{STEP}/rank0.pt", f"{STEP}/rank1.pt"


async def test_a_set_is_seen_whole_or_not_at_all(catalog: Catalog) -> None:
    await catalog.commit([record(1, f"{STEP}/notes.txt")])
    assert await bring(catalog, share(0), 2) is Verdict.DELIVERED
    assert await seen(catalog) == [(f"{STEP}/notes.txt", 1)]
    assert await seen(catalog, latest=True, prefix=STEP) == [(f"{STEP}/notes.txt", 1)]
    assert await seen(catalog, tags=("best",)) == [(f"{STEP}/notes.txt", 1)]
    assert await seen(catalog, pattern="**/*.pt") == []
    assert [each.id for each in await catalog.newer(0, EVERYBODY, 10)] == [1]
    assert await seen(catalog, pending=True) == [(f"{STEP}/notes.txt", 1), (RANK0, 2)]
    assert await catalog.get([2]) == [member(2, share(0))]
    (found,) = await catalog.sets.select(SetSelection((OPEN,), EVERYBODY))
    assert (found.ranks, found.missing, found.delivered, found.files, found.size_bytes) == ((0,), (1,), 1, 1, 5)
    assert await bring(catalog, share(1), 3, at_ms=20) is Verdict.DELIVERED
    assert await seen(catalog, prefix=STEP, pattern="*.pt") == [(RANK0, 2), (RANK1, 3)]
    assert await seen(catalog, tags=("best", "checkpoint"), pattern="**") == [
        (f"{STEP}/notes.txt", 1), (RANK0, 2), (RANK1, 3),
    ]  # fmt: skip
    assert [each.id for each in await catalog.newer(0, EVERYBODY, 10)] == [1, 2, 3]
    assert await catalog.get([3]) == [replace(member(3, share(1)), pending=False)]
    (found,) = await catalog.sets.select(SetSelection((COMPLETE,), EVERYBODY))
    assert (found.completed_ms, found.delivered, found.missing, found.files) == (20, 2, (), 2)
    assert [each.id for each in await catalog.sets.files(found.id, 0, 10)] == [2, 3]
    assert [each.id for each in await catalog.sets.files(found.id, 2, 10)] == [3]


async def test_ranks_that_come_at_the_same_moment(catalog: Catalog) -> None:
    """Whichever is last completes the set, and every one is there."""
    shares = [share(rank, 8) for rank in range(8)]
    assert await asyncio.gather(*(bring(catalog, each, 10 + each.rank) for each in shares)) == [Verdict.DELIVERED] * 8
    assert await states(catalog) == [(STEP, "a", 1, COMPLETE)]
    assert len(await seen(catalog)) == 8


async def test_lists_by_path_pages_and_newest_with_what_is_pending(catalog: Catalog) -> None:
    await catalog.commit([record(number, path) for number, path in ((1, RANK0), (2, "a.pt"), (9, RANK1))])
    await catalog.commit([member(5, share(0)), member(6, share(1))])
    assert await seen(catalog, latest=True) == [("a.pt", 2), (RANK0, 1), (RANK1, 9)]
    assert await seen(catalog, pending=True) == [("a.pt", 2), (RANK0, 5), (RANK0, 1), (RANK1, 9), (RANK1, 6)]
    assert await seen(catalog, pending=True, latest=True) == [("a.pt", 2), (RANK0, 5), (RANK1, 9)]
    assert await seen(catalog, pending=True, limit=1, cursor=(RANK0, 5)) == [(RANK0, 1)]
    assert await seen(catalog, pending=True, tags=("best",), prefix=STEP, limit=2) == [(RANK0, 5), (RANK0, 1)]
    assert (RANK0, 5) in await seen(catalog, pending=True, pattern="**/*.pt", prefix="ckpt")


async def test_a_share_that_comes_again_is_there(catalog: Catalog) -> None:
    """After a crash the daemon does not know whether the catalog has it."""
    for _ in range(2):
        assert await bring(catalog, share(0), 2) is Verdict.DELIVERED
    for _ in range(2):
        assert await bring(catalog, share(1), 3) is Verdict.DELIVERED
    assert await states(catalog) == [(STEP, "a", 1, COMPLETE)]
    await catalog.commit([member(2, share(0)), member(3, share(1))])  # nor whether it has the files
    assert await seen(catalog) == [(RANK0, 2), (RANK1, 3)]


async def test_a_rank_that_saves_again_replaces_its_share(catalog: Catalog) -> None:
    await bring(catalog, share(0), 2, 4)
    await bring(catalog, share(0, again=1), 5)
    assert [each.deleted_ms for each in await catalog.get([2, 4, 5])] == [10, 10, None]
    await bring(catalog, share(1), 6)
    assert await seen(catalog) == [(RANK0, 5), (RANK1, 6)]
    assert await catalog.sets.holding(share(0).key) is None
    holder = await catalog.sets.holding(share(1).key)
    assert holder is not None
    assert holder == await catalog.sets.get(holder.id)


async def test_what_is_saved_at_a_complete_set_is_its_next_round(catalog: Catalog) -> None:
    await bring(catalog, share(0), 2)
    await bring(catalog, share(1), 3)
    await bring(catalog, share(0, again=1), 4)
    assert await seen(catalog) == [(RANK0, 2), (RANK1, 3)], "no mix of two rounds"
    await bring(catalog, share(1, again=1), 5)
    assert await seen(catalog, latest=True) == [(RANK0, 4), (RANK1, 5)]
    assert await states(catalog) == [(STEP, "a", 2, COMPLETE), (STEP, "a", 1, COMPLETE)]


async def test_the_newest_attempt_wins_where_attempts_overlap(catalog: Catalog) -> None:
    """The older one is never seen again: neither is newer at every path, so a list of both would be a mix."""
    first, second = "first", "second"
    for attempt in (first, second):
        await catalog.sets.open(key(attempt), share(0, attempt=attempt), 5)
    await bring(catalog, share(0, attempt=second), 3)
    await bring(catalog, share(0, attempt=first), 2)
    await bring(catalog, share(1, attempt=first), 4)
    assert await seen(catalog) == [(RANK0, 2), (RANK1, 4)]
    await bring(catalog, share(1, attempt=second), 5)
    assert await seen(catalog) == [(RANK0, 3), (RANK1, 5)]
    assert await states(catalog) == [(STEP, second, 1, COMPLETE), (STEP, first, 1, SetState.OVERTAKEN)]


async def test_an_older_attempt_that_comes_late(catalog: Catalog) -> None:
    """It is overtaken where it was saved at the same time, else an older version."""
    for attempt in ("1", "2", "3"):
        await catalog.sets.open(key(attempt), share(0, attempt=attempt), 5)
    await bring(catalog, share(0, 1, attempt="3"), 8, at_ms=10)
    assert await states(catalog) == [(STEP, "3", 1, OPEN), (STEP, "2", 1, OPEN), (STEP, "1", 1, OPEN)], "another size"
    await bring(catalog, share(0, attempt="3"), 10)
    await bring(catalog, share(1, attempt="3"), 11)
    await bring(catalog, share(0, attempt="2"), 9)
    await bring(catalog, share(1, attempt="2"), 12)
    await bring(catalog, share(0, attempt="1"), 2)
    await bring(catalog, share(1, attempt="1"), 3)
    assert await seen(catalog) == [(RANK0, 10), (RANK0, 2), (RANK1, 11), (RANK1, 3)]
    assert [state for *_, state in await states(catalog)] == [COMPLETE, SetState.OVERTAKEN, COMPLETE]


async def test_a_rank_that_counts_other_ranks_is_refused(catalog: Catalog) -> None:
    opened = await catalog.sets.open(key(), share(0), 5)
    assert (opened.world_size, opened.state) == (2, OPEN)
    assert (await catalog.sets.open(key(), share(0, 3), 6)).world_size == 2
    assert await bring(catalog, share(0, 3), 2) is Verdict.MISMATCH
    assert await bring(catalog, share(0, again=1), 3) is Verdict.DELIVERED
    assert await bring(catalog, share(1), 4) is Verdict.DELIVERED
    assert await bring(catalog, share(0, 3, again=2), 5) is Verdict.MISMATCH, "of the complete set, too"


async def test_a_share_whose_file_is_deleted_is_none(catalog: Catalog) -> None:
    assert (await catalog.sets.deliver(Delivery(key(), share(0), (2,)), 9)).verdict is Verdict.LOST, "not listed"
    await bring(catalog, share(0), 2)
    await catalog.delete([2], 15)
    await bring(catalog, share(1), 3)
    assert await seen(catalog) == []
    (found,) = await catalog.sets.select(SetSelection((OPEN,), EVERYBODY))
    assert found.missing == (0,)
    await bring(catalog, share(0, again=1), 4)
    assert await seen(catalog) == [(RANK0, 4), (RANK1, 3)]


async def test_a_rank_without_files(catalog: Catalog) -> None:
    assert await bring(catalog, share(0), 2) is Verdict.DELIVERED
    assert await bring(catalog, share(1)) is Verdict.DELIVERED
    assert await seen(catalog) == [(RANK0, 2)]


async def test_what_is_pending_is_amended_and_deleted_as_any_file(catalog: Catalog) -> None:
    await catalog.commit([member(2, share(0)), member(3, share(0))])
    amended = await catalog.amend(2, Amendment(tags=("new",)), 50)
    assert amended == replace(member(2, share(0)), tags=("new",), revision=1, updated_ms=50)
    assert await catalog.delete([3], 60) == [3]
    assert await seen(catalog, pending=True) == [(RANK0, 2)]
    assert await catalog.commit([member(2, share(0)), member(3, share(0))]) == [3]
    assert await catalog.sets.members(key(), share(0).key) == [2]
    assert await catalog.sets.members(replace(key(), owner_uid=1), share(0).key) == []
    assert [each.id for each in await catalog.deleted(100, (0, 0), 10)] == [3]
    await bring(catalog, share(0, 1, attempt="b"))
    await catalog.sets.deliver(Delivery(key(), share(0, 1), (2,)), 70)
    assert await seen(catalog, tags=("new",)) == [(RANK0, 2)]


async def test_a_set_is_dropped_as_one(catalog: Catalog) -> None:
    await bring(catalog, share(0), 2)
    await bring(catalog, share(1), 3)
    (found,) = await catalog.sets.select(SetSelection((COMPLETE,), EVERYBODY))
    await catalog.amend(3, Amendment(tags=("keep",)), 50)
    assert not await catalog.sets.drop(found.id, 60, ["keep"])
    assert len(await seen(catalog)) == 2
    assert await catalog.sets.drop(found.id, 60, ["other"])
    assert not await catalog.sets.drop(found.id, 70)
    assert await seen(catalog, pending=True) == []
    assert [(each.id, each.deleted_ms) for each in await catalog.sets.files(found.id, 0, 10)] == [(2, 60), (3, 60)]
    assert (await catalog.sets.open(key(), share(0, 5), 80)).round == 2


async def test_sets_of_a_place_and_a_scope(catalog: Catalog) -> None:
    for name in ("a", "ckpt/1", "ckpt/2", "ckpt", "ckpt2"):
        await catalog.sets.open(key(name=name), share(0, name=name), 5)
    await catalog.sets.open(replace(key(), owner_uid=1001, experiment="other"), share(0), 5)
    place = {"experiment": EXPERIMENT}
    assert [name for name, *_ in await states(catalog, **place, prefix="ckpt")] == ["ckpt", "ckpt/2", "ckpt/1"]
    assert [name for name, *_ in await states(catalog, **place, limit=2)] == ["ckpt2", "ckpt"]
    (second,) = (await catalog.sets.select(SetSelection((OPEN,), EVERYBODY, experiment=EXPERIMENT, limit=2)))[1:]
    assert [name for name, *_ in await states(catalog, **place, before=second.number, limit=2)] == ["ckpt/2", "ckpt/1"]
    assert len(await states(catalog)) == 6
    assert [name for name, *_ in await states(catalog, Scope(1001))] == [STEP]
    assert len(await states(catalog, Scope(1, frozenset({"alice"})))) == 6
    assert await states(catalog, Scope(1)) == []


async def test_open_sets_are_reported_once_and_given_up(catalog: Catalog) -> None:
    await bring(catalog, share(0), 2, at_ms=10)
    await bring(catalog, share(0, 1, "done"), 3, at_ms=10)
    assert await catalog.sets.report(10, 20, 5) == []
    assert [each.missing for each in await catalog.sets.report(11, 20, 5)] == [(1,)]
    assert await catalog.sets.report(11, 21, 5) == []
    await bring(catalog, share(0, again=1), 4, at_ms=30)
    assert len(await catalog.sets.report(31, 40, 5)) == 1
    assert await catalog.sets.strays(100, 10) == [], "an open set's files wait for it"
    assert await catalog.sets.abandon(30, 50, 5) == []
    assert [each.key.attempt for each in await catalog.sets.abandon(31, 50, 5)] == ["a"]
    assert [each.id for each in await catalog.sets.strays(100, 10)] == [4]
    assert await catalog.sets.strays(3, 10) == [], "uploaded at 3"
    assert await bring(catalog, share(1), 5, at_ms=60) is Verdict.DELIVERED
    assert await states(catalog, experiment=EXPERIMENT) == [
        (STEP, "a", 2, OPEN), (STEP, "done", 1, COMPLETE), (STEP, "a", 1, SetState.DROPPED),
    ]  # fmt: skip
    assert await seen(catalog) == [(RANK0, 3)]


@pytest.mark.parametrize("catalog", ["mongodb"], indirect=True)
async def test_two_nodes_bring_the_last_shares_at_once(catalog: Catalog, mongodb_url: str) -> None:
    """Two daemons of one catalog, many sets: none is left open, and a list meanwhile sees none in part."""
    other = MongoCatalog(Mongo(mongodb_url))
    names = [f"ckpt/step_{number}" for number in range(20)]

    async def node(on: Catalog, rank: int) -> None:
        for number, name in enumerate(names):
            await bring(on, share(rank, name=name), 100 * rank + number)

    async def watch() -> None:
        while len(whole) < len(names):
            paths = [path for path, _ in await seen(catalog)]
            assert all(paths.count(f"{name}/rank0.pt") == paths.count(f"{name}/rank1.pt") for name in names)
            whole.update(path for path in paths if path.endswith("rank0.pt"))

    whole: set[str] = set()
    try:
        await asyncio.wait_for(asyncio.gather(node(catalog, 0), node(other, 1), watch()), 60)
    finally:
        await other.close()
    assert len(await states(catalog, experiment=EXPERIMENT)) == len(names)
