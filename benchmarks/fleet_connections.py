"""The connections of a fleet's nodes to MongoDB, while they do nothing: how many, and what MongoDB needs for them.

Each node has the client that its daemon makes, and has asked something with it, as an idle daemon does every 45 s. A
client keeps two connections to every member of the replica set besides: by one it hears of fail-overs, by the other it
measures how far away the member is. No more are opened than the limit of open files lets client and server have.
"""

from __future__ import annotations

import asyncio
import resource
import time
from functools import partial
from typing import Any

import pymongo
import rig
from fleet_load import cores

from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import prepare

AT_ONCE = 32
OF_A_NODE = 4
"""At most, while it begins."""
SPARE = 500
"""Descriptors for everything else."""
WATCHED_S = 15.0
"""Longer than a member lets who listens for fail-overs wait for a word: 10 s."""


async def measured(url: str, nodes: int) -> dict[str, Any]:
    """What MongoDB says before and after so many, or as many as may be, are connected."""
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE) // OF_A_NODE
    if nodes > most:
        raise SystemExit(f"{nodes:,} nodes need more descriptors than `ulimit -n` allows: {most:,} would do")
    with pymongo.MongoClient[Any](url) as client:
        one = Mongo(url)
        await prepare(one)
        before = said(client)
        rig.tell(f"{nodes:,} nodes connect")
        made = [Mongo(url) for _ in range(nodes)]
        try:
            await asyncio.gather(*(connect(made[at::AT_ONCE]) for at in range(AT_ONCE)))
            busy, _ = await asyncio.to_thread(cores, client, partial(time.sleep, WATCHED_S))
            after = said(client)
        finally:
            await asyncio.gather(*(mongo.close() for mongo in (one, *made)))
    added = after["connections"] - before["connections"]
    return {
        "nodes": nodes,
        "connections": added,
        "of_a_node": added / nodes,
        "kib_of_a_connection": (after["resident_mib"] - before["resident_mib"]) * 1024 / added,
        "cores": busy,
    }


async def connect(some: list[Mongo]) -> None:
    for mongo in some:
        await MongoCatalog(mongo).get([0])


def said(client: pymongo.MongoClient[Any]) -> dict[str, int]:
    status = client.admin.command("serverStatus")
    return {"connections": status["connections"]["current"], "resident_mib": status["mem"]["resident"]}


def show_all(found: dict[str, Any]) -> None:
    print(found["machine"])
    print(
        f"{found['nodes']:,} nodes that do nothing have {found['connections']:,} connections to the primary, "
        f"{found['of_a_node']:.1f} each. Each of these takes {found['kib_of_a_connection']:.0f} KiB of its memory; all "
        f"of them together keep {found['cores']:.2f} cores busy."
    )
