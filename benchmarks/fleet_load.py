"""The load of many nodes (benchmarks/fleet_nodes.py), made by several processes at once: what MongoDB takes for it.

Everything begins at its time, whether what was begun before has ended or not, and is timed from then on: what MongoDB
can't keep up with shows as a rate that is not reached. What the clients themselves begin too late is told apart.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import pymongo
import rig
from fleet_nodes import WALKED, Nodes, per_second
from rig import percentile

from ml_dashd.edge.inventory_mongo import MongoInventory
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import EXPERIMENTS, FILES, METRICS, ROWS, prepare
from ml_dashd.ports import JournalError

CONNECTIONS = 1000
"""Of all nodes of a process, opened as they are needed: one that has a transaction open waits for no other's."""
IDLE_S = 3.0
GRACE_S = 15.0
"""What has not ended so long after the last was begun is broken off."""
WALK_S = 10.0
BEGIN_TIMEOUT_S = 600.0
COLLECTIONS = (FILES, ROWS, METRICS, EXPERIMENTS)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many nodes there are, each with so many files, which share of their load is made, for how long, by whom."""

    nodes: int
    files: int
    rate: float
    seconds: float
    processes: int


@dataclass
class Done:
    """Milliseconds of each that was done, from its time on; by how much they were begun too late.

    `reached` were done before the time was over.
    """

    reached: int = 0
    failed: int = 0
    took: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    def add(self, other: Done) -> None:
        self.reached += other.reached
        self.failed += other.failed
        self.took += other.took
        self.late += other.late


def measured(url: str, plan: Plan) -> dict[str, Any]:
    """Nodes begin; then nothing is done, all of their load, and a page after the other is read of all records."""
    context = multiprocessing.get_context("spawn")
    begun = context.Barrier(plan.processes + 1)
    loaded = context.Barrier(plan.processes + 1)
    rig.tell(f"{plan.nodes:,} nodes begin")
    workers, pipes = [], []
    for at in range(plan.processes):
        ours, theirs = context.Pipe(duplex=False)
        workers.append(context.Process(target=work, args=(url, plan, at, begun, loaded, theirs), daemon=True))
        workers[-1].start()
        theirs.close()  # so that a worker that fails is heard of
        pipes.append(ours)
    begun.wait(BEGIN_TIMEOUT_S)
    with pymongo.MongoClient[Any](url) as client:
        idle, _ = cores(client, lambda: time.sleep(IDLE_S))
        rig.tell(f"{plan.seconds:g} seconds of {plan.rate:g} of their load")
        loaded.wait(BEGIN_TIMEOUT_S)
        busy, results = cores(client, lambda: [pipe.recv() for pipe in pipes])
        status = client.admin.command("serverStatus")
        for worker in workers:
            worker.join()
        rig.tell("all records are read")
        walking, walked = cores(client, lambda: asyncio.run(walk(url, plan)))
    deeds = {name: Done() for name in per_second()}
    for result in results:
        for name, done in result.items():
            deeds[name].add(done)
    return {
        "nodes": plan.nodes,
        "rate": plan.rate,
        "processes": plan.processes,
        "deeds": [figures(name, done, plan) for name, done in deeds.items()],
        "late_p99_ms": percentile([each for done in deeds.values() for each in done.late], 0.99),
        "cores": busy,
        "idle_cores": idle,
        "cores_of_all": (busy - idle) / plan.rate,
        "connections": status["connections"]["current"],
        "resident_mib": status["mem"]["resident"],
        "cache_mib": status["wiredTiger"]["cache"]["bytes currently in the cache"] / rig.MIB,
        "walk": {"records_per_second": walked, "cores": walking},
        "collections": sizes(url),
    }


def figures(name: str, done: Done, plan: Plan) -> dict[str, Any]:
    return {
        "deed": name,
        "offered_per_second": per_second()[name] * plan.nodes * plan.rate,
        "reached_per_second": done.reached / plan.seconds,
        "failed": done.failed,
        "p50_ms": percentile(done.took, 0.5) if done.took else float("nan"),
        "p99_ms": percentile(done.took, 0.99) if done.took else float("nan"),
    }


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}"


def cores(client: pymongo.MongoClient[Any], work: Callable[[], Any]) -> tuple[float, Any]:
    """How many cores MongoDB's server keeps busy meanwhile, and the work's result."""
    before, begun = cpu_s(client), time.monotonic()
    result = work()
    return (cpu_s(client) - before) / (time.monotonic() - begun), result


def cpu_s(client: pymongo.MongoClient[Any]) -> float:
    said = client.admin.command("serverStatus")["extra_info"]
    return (said["user_time_us"] + said["system_time_us"]) / 1e6


async def walk(url: str, plan: Plan) -> float:
    """Records a second, as one node reads them to compare them with the store."""
    mongo = Mongo(url)
    inventory, records, after, begun = MongoInventory(mongo), 0, "", time.monotonic()
    while time.monotonic() - begun < min(WALK_S, plan.seconds):
        page = await inventory.records(after, WALKED)
        records, after = records + len(page), (page[-1].key or "") if len(page) == WALKED else ""
    seconds = time.monotonic() - begun
    await mongo.close()
    return records / seconds


# ---- in each of the processes


def work(url: str, plan: Plan, at: int, begun: Barrier, loaded: Barrier, results: Connection) -> None:
    try:
        results.send(asyncio.run(load(url, plan, at, begun, loaded)))
    except BaseException:  # the others do not wait for it
        begun.abort()
        loaded.abort()
        raise


async def load(url: str, plan: Plan, at: int, begun: Barrier, loaded: Barrier) -> dict[str, Done]:
    """Every so many-th node is this process's."""
    mongo = Mongo(with_options(url, f"maxPoolSize={CONNECTIONS}&waitQueueTimeoutMS=60000"))
    try:
        await prepare(mongo)
        mine = range(at, plan.nodes, plan.processes)
        nodes = Nodes(mongo, mine, plan.nodes, plan.files)
        await nodes.begin()
        begun.wait(BEGIN_TIMEOUT_S)
        loaded.wait(BEGIN_TIMEOUT_S)
        deeds = nodes.deeds()
        rates = {name: each * len(mine) * plan.rate for name, each in per_second().items()}
        done = await asyncio.gather(*(do(deeds[name], rates[name], plan.seconds) for name in rates))
        return dict(zip(rates, done, strict=True))
    finally:
        await mongo.close()


async def do(deed: Callable[[int], Awaitable[object]], rate: float, seconds: float) -> Done:
    """Begins one after the other at their times, the first after half of the time between two; at least one."""
    done, tasks, begun = Done(), set[asyncio.Task[None]](), time.monotonic()
    first = min(0.5 / rate, seconds / 2)

    async def timed(number: int, due: float) -> None:
        try:
            await deed(number)
        except JournalError:  # MongoDB did not take it in time: a daemon would come again
            done.failed += 1
            return
        now = time.monotonic()
        done.took.append((now - due) * 1e3)
        done.reached += now <= begun + seconds

    for number in range(max(1, round(rate * seconds))):
        due = begun + first + number / rate
        await asyncio.sleep(due - time.monotonic())
        done.late.append(max(0.0, time.monotonic() - due) * 1e3)
        tasks.add(task := asyncio.create_task(timed(number, due)))
        task.add_done_callback(tasks.discard)
        if time.monotonic() - begun > seconds:  # begun too late, by who should have
            break
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return done


# ---- what it leaves, and the tables


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
    rates = ("offered_per_second", "reached_per_second")
    rig.show(
        f"{found['nodes']:,} nodes at {found['rate']:g} of their load, a second",
        ["", "offered", "reached", "p50 ms", "p99 ms", "failed"],
        [
            [each["deed"]]
            + [f"{each[name]:.2f}" for name in rates]
            + [f"{each[name]:.1f}" for name in ("p50_ms", "p99_ms")]
            + [str(each["failed"])]
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
    walk = found["walk"]
    print(
        f"\nMongoDB kept {found['cores']:.2f} cores busy ({found['idle_cores']:.2f} with no load): "
        f"{found['cores_of_all']:.2f} for all of the load of {found['nodes']:,} nodes. It had {found['connections']} "
        f"connections, {found['resident_mib']:,} MiB of memory, {found['cache_mib']:,.0f} of them cache.\n"
        f"One in a hundred began {found['late_p99_ms']:.0f} ms too late or more, for the clients' own sake.\n"
        f"One node reads {walk['records_per_second']:,.0f} records a second to compare them: {walk['cores']:.2f} cores."
    )
