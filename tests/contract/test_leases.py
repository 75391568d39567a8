"""Whose a node number is, as every catalog of a fleet must say, whatever its clock is read from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from ml_dashd.core.lease import ALIVE_MS, LEASE_MS, Answer, Claim, Place
from ml_dashd.edge.leases_mongo import NODES, MongoLeases
from ml_dashd.edge.mongo import Mongo
from ml_dashd.ports import Leases
from tests.doubles.fleet import FakeLeases, Numbers


def now_ms() -> int:
    return time.time_ns() // 1_000_000


NOW_MS = now_ms()
"""By the claimants' clock, which need not be right."""
HERE = Place("machine", "boot", "1:2")
FIRST = Claim("first", HERE, NOW_MS, "gpu-1")
SKEW_MS = 60_000
"""A real server's clock is read a little later than ours; a test may take so long."""


@dataclass
class Table:
    """Leases, and a way to let the catalog's clock go on."""

    leases: Leases
    pass_time: Callable[[int], Awaitable[None]]


@pytest.fixture(params=["double", "mongodb"])
async def table(request: pytest.FixtureRequest) -> AsyncIterator[Table]:
    if request.param == "double":
        numbers = Numbers(now_ms())

        async def pass_here(milliseconds: int) -> None:
            numbers.now_ms += milliseconds

        yield Table(FakeLeases(numbers), pass_here)
        return
    mongo = Mongo(request.getfixturevalue("mongodb_url"))

    async def pass_there(milliseconds: int) -> None:
        earlier = {"$inc": {"until_ms": -milliseconds, "seen_ms": -milliseconds}}
        await mongo.call(mongo.collection(NODES).update_many({}, earlier))

    yield Table(MongoLeases(mongo), pass_there)
    await mongo.close()


def later(milliseconds: int, token: str, place: Place = HERE) -> Claim:
    return Claim(token, place, NOW_MS + milliseconds, "gpu-2")


async def test_a_number_that_nobody_had_is_taken_with_all_that_is_said(table: Table) -> None:
    node = await table.leases.take(7, replace(FIRST, host="$host"))
    assert node is not None
    assert (node.number, node.token, node.place, node.host) == (7, "first", HERE, "$host")
    assert (node.floor_ms, node.ceiling_ms) == (0, NOW_MS + LEASE_MS)
    assert node.until_ms - node.seen_ms == LEASE_MS
    assert abs(node.seen_ms - now_ms()) < SKEW_MS
    assert await table.leases.nodes(0, 10) == [node]
    assert await table.leases.take(7, replace(FIRST, host="$host")) == node, "an answer that was lost"


async def test_of_many_who_want_a_number_at_once_one_gets_it(table: Table) -> None:
    claims = [replace(FIRST, token=f"t{number}") for number in range(12)]
    taken = await asyncio.gather(*(table.leases.take(7, claim) for claim in claims))
    (node,) = [each for each in taken if each is not None]
    assert [each.token for each in await table.leases.nodes(0, 10)] == [node.token]


@pytest.mark.parametrize(
    ("catalogs_ms", "claimants_ms", "free"),
    [
        (LEASE_MS + SKEW_MS, LEASE_MS + 1, True),
        (LEASE_MS - SKEW_MS, LEASE_MS + 1, False),
        (LEASE_MS + SKEW_MS, LEASE_MS, False),
        (LEASE_MS + SKEW_MS, 0, False),
    ],
)
async def test_a_number_is_free_once_its_time_is_over_by_both_clocks(
    table: Table, catalogs_ms: int, claimants_ms: int, free: bool
) -> None:
    before = await table.leases.take(7, FIRST)
    assert before is not None
    await table.pass_time(catalogs_ms)
    claim = later(claimants_ms, "second")
    assert await table.leases.taken(claim) == ([] if free else [7])
    node = await table.leases.take(7, claim)
    assert (node is not None) is free
    if node is not None:
        assert (node.floor_ms, node.ceiling_ms) == (before.ceiling_ms, claim.ceiling_ms)
        assert (node.token, node.host) == ("second", "gpu-2")


@pytest.mark.parametrize(
    ("known", "place", "later_ms", "said"),
    [
        ({"first"}, HERE, 1, Answer.KEPT),
        ({"other", "first"}, HERE, 1, Answer.KEPT),
        ({"first"}, HERE, 2 * LEASE_MS, Answer.KEPT),
        ({"other"}, HERE, 1, Answer.OVERTAKEN),
        (set(), HERE, 1, Answer.OVERTAKEN),
        ({"first"}, Place("another", "boot", "1:2"), LEASE_MS, Answer.OVERTAKEN),
        ({"first"}, Place("machine", "boot", "1:3"), LEASE_MS, Answer.OVERTAKEN),
        ({"first"}, Place("machine", "later", "1:2"), ALIVE_MS - SKEW_MS, Answer.UNSURE),
        ({"first"}, Place("machine", "later", "1:2"), ALIVE_MS, Answer.KEPT),
    ],
)
async def test_who_keeps_its_number(table: Table, known: set[str], place: Place, later_ms: int, said: Answer) -> None:
    before = await table.leases.take(7, FIRST)
    assert before is not None
    await table.pass_time(later_ms)
    answer, node = await table.leases.renew(7, known, later(5, "second", place))
    assert answer is said
    (there,) = await table.leases.nodes(0, 10)
    if said is not Answer.KEPT:
        assert node is None
        assert (there.token, there.place, there.ceiling_ms) == ("first", HERE, before.ceiling_ms)
    else:
        assert there == node
        assert (there.token, there.place, there.host) == ("second", place, "gpu-2")
        assert (there.floor_ms, there.ceiling_ms) == (0, before.ceiling_ms + 5)
        assert there.until_ms - there.seen_ms == LEASE_MS


async def test_a_number_that_is_unknown_is_not_renewed(table: Table) -> None:
    assert await table.leases.renew(7, {"first"}, FIRST) == (Answer.OVERTAKEN, None)
    assert await table.leases.nodes(0, 10) == []


async def test_more_time_is_never_less(table: Table) -> None:
    before = await table.leases.take(7, FIRST)
    assert before is not None
    await table.pass_time(-SKEW_MS)  # the catalog's clock was put back
    _, node = await table.leases.renew(7, {"first"}, later(-SKEW_MS, "second"))
    (there,) = await table.leases.nodes(0, 10)
    assert there == node
    assert there.ceiling_ms == before.ceiling_ms
    assert there.until_ms - there.seen_ms > LEASE_MS


async def test_nodes_come_a_page_at_a_time(table: Table) -> None:
    for number in (9, 2, 5):
        await table.leases.take(number, replace(FIRST, token=f"t{number}"))
    assert [node.number for node in await table.leases.nodes(0, 2)] == [2, 5]
    assert [node.number for node in await table.leases.nodes(5, 2)] == [9]
