"""What the nodes of a fleet do to MongoDB, hour by hour: the load from which its size follows.

Each node saves 100 files an hour, logs a row of a metric a second, renews its number, and looks at a page of its
experiment once a minute. Here its commits hold one file each, the most that it makes of them; its rows go four at a
time, every fourth second, as flow/forward.py gathers them. The daemon's own modules write, in an order and at times
that do not wait for the answers: what MongoDB can't keep up with shows as a rate that is not reached.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pymongo
import rig
from catalog import record
from rig import percentile

from ml_dashd.core.lease import BEAT_S, Claim, Place
from ml_dashd.core.model import Selection
from ml_dashd.core.runs import BroughtRow, Row, RunKey
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.leases_mongo import MongoLeases
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import EXPERIMENTS, FILES, METRICS, ROWS, prepare
from ml_dashd.edge.runs_mongo import MongoRuns
from ml_dashd.edge.system import SystemClock
from ml_dashd.flow.forward import GATHER_S

FILES_AN_HOUR, ROWS_A_SECOND, LISTS_A_MINUTE = 100, 1.0, 1
PAGE = 500
CONNECTIONS = 64
"""Of all nodes together; each would have two or more of its own."""
BEGIN_AT_ONCE = 32
BEFORE = 1 << 40
"""From here on the rows are numbered with which nodes begin: count after count, so each node has one."""
IDLE_S = 3.0
COLLECTIONS = (FILES, ROWS, METRICS, EXPERIMENTS)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many nodes there are, which share of their load is made, and for how long."""

    nodes: int
    rate: float
    seconds: float


def per_second() -> dict[str, float]:
    """What a node does a second, on average: jitter takes a quarter of half of what a wait may be at most."""
    return {
        "commits": FILES_AN_HOUR / 3600,
        "rows": 1 / (GATHER_S * 0.75),
        "renewals": 1 / (BEAT_S * 0.875),
        "lists": LISTS_A_MINUTE / 60,
    }


class Nodes:
    """All of them, in one process, on one client. Each has an experiment and a metric of its own."""

    def __init__(self, mongo: Mongo, count: int) -> None:
        self._catalog, self._runs, self._leases = MongoCatalog(mongo), MongoRuns(mongo), MongoLeases(mongo)
        self._clock = SystemClock()
        self._count = count
        self._tokens: dict[int, str] = {}
        self._rows_a_time = round(ROWS_A_SECOND / per_second()["rows"])

    async def begin(self) -> None:
        """Each has a number, an experiment and a first row."""
        left = iter(range(self._count))

        async def begin() -> None:
            for at in left:
                await self._leases.take(at + 1, self._claim(at))
                await self.rows(BEFORE + at)

        await asyncio.gather(*(begin() for _ in range(BEGIN_AT_ONCE)))

    def deeds(self) -> dict[str, Callable[[int], Awaitable[object]]]:
        """By the names of `per_second`; each is given how often it was done before."""
        return {"commits": self.commit, "rows": self.rows, "renewals": self.renew, "lists": self.list}

    async def commit(self, number: int) -> None:
        made = replace(record(number + 1, 10**6, self._clock.now_ms()), experiment=self._key(number).experiment)
        await self._catalog.commit([made])

    async def rows(self, number: int) -> None:
        at, now_ms = number % self._count, self._clock.now_ms()
        data = json.dumps({"epoch": number, "loss": 1 / (number + 1), "_ts": now_ms})
        numbers = range(number * self._rows_a_time, (number + 1) * self._rows_a_time)
        await self._runs.bring_rows(
            self._key(number), [BroughtRow("train", Row(now_ms, data, at, each)) for each in numbers]
        )

    async def renew(self, number: int) -> None:
        at = number % self._count
        known = {self._tokens[at]}
        await self._leases.renew(at + 1, known, self._claim(at))

    async def list(self, number: int) -> None:
        key = self._key(number)
        await self._catalog.select(Selection(key.namespace, key.project, key.experiment, limit=PAGE))

    def _key(self, number: int) -> RunKey:
        namespace, project, _ = rig.PREFIX.split("/")
        return RunKey(namespace, project, f"run{number % self._count}", 1000)

    def _claim(self, at: int) -> Claim:
        token = f"{at}-{self._clock.monotonic()}"
        self._tokens[at] = token
        return Claim(token, Place(f"machine{at}", "boot", "1:2"), self._clock.now_ms(), f"node{at}")


async def measured(url: str, plan: Plan) -> dict[str, Any]:
    mongo = Mongo(with_options(url, f"maxPoolSize={CONNECTIONS}&waitQueueTimeoutMS=60000"))
    try:
        await prepare(mongo)
        nodes = Nodes(mongo, plan.nodes)
        rig.tell(f"{plan.nodes:,} nodes begin")
        await nodes.begin()
        idle = await cores(mongo, asyncio.sleep(IDLE_S))
        rig.tell(f"{plan.seconds:g} seconds of {plan.rate:g} of their load")
        deeds: list[dict[str, Any]] = []
        busy = await cores(mongo, do_all(nodes, plan, deeds))
    finally:
        await mongo.close()
    return {
        "nodes": plan.nodes,
        "rate": plan.rate,
        "deeds": deeds,
        "cores": busy,
        "idle_cores": idle,
        "cores_of_all": (busy - idle) / plan.rate,
        "collections": sizes(url),
    }


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}"


async def cores(mongo: Mongo, work: Awaitable[object]) -> float:
    """How many cores MongoDB's server keeps busy meanwhile."""
    before, begun = await cpu_s(mongo), time.monotonic()
    await work
    return (await cpu_s(mongo) - before) / (time.monotonic() - begun)


async def cpu_s(mongo: Mongo) -> float:
    said = (await mongo.call(mongo.client.admin.command("serverStatus")))["extra_info"]
    return (said["user_time_us"] + said["system_time_us"]) / 1e6


async def do_all(nodes: Nodes, plan: Plan, found: list[dict[str, Any]]) -> None:
    asked = {name: rate * plan.nodes * plan.rate for name, rate in per_second().items()}
    kinds = [do(name, deed, asked[name], plan.seconds) for name, deed in nodes.deeds().items()]
    found += await asyncio.gather(*kinds)


async def do(name: str, deed: Callable[[int], Awaitable[object]], rate: float, seconds: float) -> dict[str, Any]:
    """Begins one after the other at their times, whether those before have ended or not."""
    took: list[float] = []
    begun = time.monotonic()

    async def timed(number: int) -> None:
        await asyncio.sleep(begun + number / rate - time.monotonic())
        started = time.monotonic()
        await deed(number)
        took.append((time.monotonic() - started) * 1e3)

    await asyncio.gather(*map(timed, range(max(1, round(rate * seconds)))))
    return {
        "deed": name,
        "asked_per_second": rate,
        "reached_per_second": len(took) / max(seconds, time.monotonic() - begun),
        "p50_ms": percentile(took, 0.5),
        "p99_ms": percentile(took, 0.99),
    }


def sizes(url: str) -> list[dict[str, Any]]:
    """Documents, and bytes of one: as BSON, on disk, and in all indexes together."""
    with pymongo.MongoClient[Any](url) as client:
        client.admin.command("fsync")
        said = {name: client.get_default_database().command("collstats", name) for name in COLLECTIONS}
    return [
        {
            "collection": name,
            "documents": each["count"],
            "document": each["avgObjSize"],
            "on_disk": each["storageSize"] / each["count"],
            "indexes": each["totalIndexSize"] / each["count"],
        }
        for name, each in said.items()
        if each["count"]
    ]


def show_all(found: dict[str, Any]) -> None:
    print(found["machine"])
    rig.show(
        f"{found['nodes']:,} nodes at {found['rate']:g} of their load, a second",
        ["", "asked", "reached", "p50 ms", "p99 ms"],
        [
            [each["deed"]]
            + [f"{each[name]:.1f}" for name in ("asked_per_second", "reached_per_second", "p50_ms", "p99_ms")]
            for each in found["deeds"]
        ],
    )
    rig.show(
        "bytes a document",
        ["", "documents", "BSON", "on disk", "indexes"],
        [
            [each["collection"], f"{each['documents']:,}"]
            + [f"{each[name]:,.0f}" for name in ("document", "on_disk", "indexes")]
            for each in found["collections"]
        ],
    )
    print(
        f"MongoDB kept {found['cores']:.2f} cores busy ({found['idle_cores']:.2f} with no load): "
        f"{found['cores_of_all']:.2f} for all of the load of {found['nodes']:,} nodes"
    )
