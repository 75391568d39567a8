"""Turns at chores of a fleet, on a real MongoDB: what one chore's say is nothing to another's."""

from __future__ import annotations

import asyncio

from ml_dashd.core.rounds import Round
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.rounds_mongo import MongoRounds


async def test_each_chore_has_a_turn_of_its_own(mongodb_url: str) -> None:
    mongo = Mongo(mongodb_url)
    sweeping, cooking = MongoRounds(mongo, "sweeping"), MongoRounds(mongo, "cooking")
    taken = await asyncio.gather(*(sweeping.turn(Round(), Round(f"node {number}", 1000)) for number in range(8)))
    assert sorted(taken) == [False] * 7 + [True]
    assert await cooking.round() == Round()
    assert await cooking.turn(Round(), Round("other", 2000))
    assert await sweeping.round() == Round(f"node {taken.index(True)}", 1000)
    await mongo.close()
