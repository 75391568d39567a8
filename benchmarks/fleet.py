"""What a fleet asks of MongoDB: commits a second, what lists take among a million documents, and what nodes write.

    python benchmarks/fleet.py [--quick] [--json] [--folder DIR] [--documents N] [--url mongodb://…/database]
    python benchmarks/fleet.py --simulate NODES [--files N] [--rate SHARE] [--seconds S] [--processes N] …
    python benchmarks/fleet.py --connect NODES …

A mongod of the tests' own is started, with one member and its defaults but a cache of 256 MiB; or an empty database is
named. The catalog's own module asks. First many writers commit, as many as nodes would at once; each record is of
another file. Then the database is filled, past the catalog, and each list is timed; MongoDB's profiler says from which
index each was answered, and how many keys and documents were read for it, and the benchmark fails where one scans the
collection.

With `--simulate` so many nodes do what benchmarks/fleet_nodes.py says, or a share of it; told is what of it was
reached, and MongoDB's CPU, connections and memory. With `--connect` so many are connected to it, and do nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fleet_connections
import fleet_load
import pymongo
import rig
from catalog import record
from fleet_nodes import stored, stored_of
from rig import percentile

from ml_dashd.core.model import EVERYBODY, FileRecord, Selection
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_records import document
from ml_dashd.edge.mongo_schema import FILES, prepare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.servers.mongodb import MongoDB

FILL = 5000
"""Documents of a request while the database is filled."""
PAGE = 500
MOST_MS = 1_800_000
"""For an index of the million."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many documents there are, how often a list is timed, and for how long writers commit, as how many."""

    documents: int
    calls: int
    seconds: float
    commits: tuple[tuple[int, int], ...] = ((1, 1), (16, 1), (64, 1), (16, 64), (4, 500))
    """Writers, and records of each one's commits."""


FULL = Plan(documents=1_000_000, calls=100, seconds=10.0)
QUICK = Plan(documents=5_000, calls=3, seconds=0.1, commits=((1, 1), (4, 64)))


def main() -> None:
    parser = rig.parser("What a fleet asks of MongoDB.")
    parser.add_argument("--documents", type=int, help="how many the lists are timed among")
    parser.add_argument("--url", default="", help="an empty database of a replica set, in place of one's own")
    parser.add_argument("--simulate", type=int, metavar="NODES", help="how many nodes write, in place of the above")
    parser.add_argument("--files", type=int, default=100, help="of each node, when it begins (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.1, help="the share of their load (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="that make the load")
    parser.add_argument("--connect", type=int, metavar="NODES", help="how many nodes are connected, and idle")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    with rig.workplace(options.folder) as folder, database(folder, options.url) as url:
        if options.simulate:
            found, show = simulated(url, options), fleet_load.show_all
        elif options.connect:
            found, show = asyncio.run(fleet_connections.measured(url, options.connect)), fleet_connections.show_all
        else:
            found, show = asyncio.run(measured(url, plan, options.documents or plan.documents)), show_all
        found = {"machine": rig.machine(folder), **found}
    print(json.dumps(found, indent=2)) if options.json else show(found)


def simulated(url: str, options: argparse.Namespace) -> dict[str, Any]:
    nodes, files = options.simulate, options.files
    seconds = 2.0 if options.quick else options.seconds
    rig.tell(f"{nodes * files:,} documents")
    fill(url, (stored_of(node, index, nodes) for index in range(files) for node in range(nodes)))
    asyncio.run(make_indexes(url))
    return fleet_load.measured(url, fleet_load.Plan(nodes, files, options.rate, seconds, options.processes))


@contextmanager
def database(folder: Path, url: str) -> Iterator[str]:
    """The URL of an empty database, which is dropped afterwards."""
    if url:
        with pymongo.MongoClient[Any](url) as client:
            if client.get_default_database().list_collection_names():
                raise SystemExit(f"{url.rpartition('@')[2]} is not empty")
            yield url
            client.drop_database(client.get_default_database().name)
        return
    with MongoDB(folder / "mongodb") as server:
        with pymongo.MongoClient[Any](server.url("admin")) as client:  # the tests' server breaks them off after 5 s
            client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=60)
        yield server.url(f"fleet_{secrets.token_hex(4)}")


async def measured(url: str, plan: Plan, documents: int) -> dict[str, Any]:
    mongo = Mongo(url)
    await prepare(mongo)
    catalog = MongoCatalog(mongo)
    try:
        commits = [await committing(catalog, plan, writers, size) for writers, size in plan.commits]
        rig.tell(f"{documents:,} documents")
        begun = time.monotonic()
        fill(url, (stored(number, documents) for number in range(1, documents + 1)))
        await make_indexes(url)
        return {
            "commits": commits,
            "filled_s": time.monotonic() - begun,
            "lists": [each async for each in listing(catalog, url, plan.calls, documents)],
            "bytes": sizes(url),
        }
    finally:
        await mongo.close()


# ---- commits


async def committing(catalog: MongoCatalog, plan: Plan, writers: int, size: int) -> dict[str, Any]:
    """So many writers commit, one after the other each, for so long."""
    rig.tell(f"{writers} writers, {size} records a commit")
    took: list[float] = []
    begun = time.monotonic()

    async def write(writer: int) -> None:
        number = (writer << 40) + secrets.randbits(16) * 1_000_000 + 1
        while time.monotonic() - begun < plan.seconds:
            started = time.monotonic()
            await catalog.commit([record(number + at, 10**6, 0) for at in range(size)])
            took.append((time.monotonic() - started) * 1e3)
            number += size

    await asyncio.gather(*map(write, range(1, writers + 1)))
    seconds = time.monotonic() - begun
    return {
        "writers": writers,
        "records": size,
        "commits_per_second": len(took) / seconds,
        "records_per_second": len(took) * size / seconds,
        "p50_ms": percentile(took, 0.5),
        "p99_ms": percentile(took, 0.99),
    }


def fill(url: str, records: Iterable[FileRecord]) -> None:
    """The catalog's own documents, in an empty collection whose indexes are made afterwards: so it takes minutes."""
    left = iter(records)
    with pymongo.MongoClient[Any](url, w=1, journal=False) as client:
        files = client.get_default_database()[FILES]
        files.drop()
        while some := [document(each) for each in islice(left, FILL)]:
            files.insert_many(some, ordered=False)


async def make_indexes(url: str) -> None:
    """Of so many documents that takes longer than the daemon waits for an answer."""
    mongo = Mongo(fleet_load.with_options(url, f"socketTimeoutMS={MOST_MS}"))
    try:
        await prepare(mongo)
    finally:
        await mongo.close()


# ---- lists


def questions(catalog: MongoCatalog) -> dict[str, Callable[[], Awaitable[Sequence[Any]]]]:
    """What clients' lists ask the catalog for, by the call; the experiment is the one of `record`."""
    place = rig.PREFIX.split("/")

    def asked(**changes: Any) -> Callable[[], Awaitable[Sequence[Any]]]:
        selection = Selection(*place, **({"limit": PAGE} | changes))
        return lambda: catalog.select(selection)

    return {
        "list(), first page": asked(),
        "list(), a page in the middle": asked(cursor=("frames/50/5", 0)),
        'files("frames/7").list()': asked(prefix="frames/7"),
        'list("**/*.json")': asked(pattern="**/*.json"),
        'list("*"), beside folders alone': asked(pattern="*"),
        'list("configs/*.json")': asked(prefix="configs", pattern="*.json"),
        'list("frames/*/77*.png")': asked(prefix="frames", pattern="*/77*.png"),
        'list(tags=["frame"])': asked(tags=("frame",)),
        'newest of "models/7.pt"': asked(prefix="models/7.pt", pattern="", latest=True, limit=1),
        'list("models/*", latest=True)': asked(prefix="models", pattern="*", latest=True),
        "ml-dash ls --all": lambda: catalog.newer(0, EVERYBODY, PAGE),
        "their names": catalog.experiments,
    }


async def listing(catalog: MongoCatalog, url: str, calls: int, documents: int) -> Any:
    for name, ask in questions(catalog).items():
        rig.tell(name)
        found = await ask()
        took = []
        for _ in range(calls):
            started = time.monotonic()
            await ask()
            took.append((time.monotonic() - started) * 1e3)
        with profiled(url) as plans:
            await ask()
        yield {
            "documents": documents,
            "call": name,
            "listed": len(found),
            "p50_ms": percentile(took, 0.5),
            "p99_ms": percentile(took, 0.99),
            "plan": sorted({plan["planSummary"] for plan in plans}),
            "keys": sum(plan.get("keysExamined", 0) for plan in plans),
            "read": sum(plan.get("docsExamined", 0) for plan in plans),
        }


@contextmanager
def profiled(url: str) -> Iterator[list[dict[str, Any]]]:
    """What MongoDB says of each operation on files that was made meanwhile."""
    plans: list[dict[str, Any]] = []
    with pymongo.MongoClient[Any](url) as client:
        base = client.get_default_database()
        base.command("profile", 2)
        try:
            yield plans
        finally:
            base.command("profile", 0)
        plans += base["system.profile"].find(
            {"ns": f"{base.name}.{FILES}", "op": {"$in": ["query", "command", "getmore"]}}
        )
        base["system.profile"].drop()
    scans = [plan for plan in plans if "COLLSCAN" in plan["planSummary"]]
    if scans or not plans:
        raise SystemExit(f"a list scans the collection: {scans}")


def sizes(url: str) -> dict[str, float]:
    """Bytes a document: as BSON, on disk, and of all indexes together."""
    with pymongo.MongoClient[Any](url) as client:
        client.admin.command("fsync")  # else a part of it is not on the disk yet
        said = client.get_default_database().command("collstats", FILES)
    return {
        "document": said["avgObjSize"],
        "on_disk": said["storageSize"] / said["count"],
        "indexes": said["totalIndexSize"] / said["count"],
    }


# ---- the tables


def show_all(found: dict[str, Any]) -> None:
    print(found["machine"])
    rig.show(
        "commits, each on the disk when it returns",
        ["writers", "records each", "commits/s", "records/s", "p50 ms", "p99 ms"],
        [
            [str(each["writers"]), str(each["records"])]
            + [f"{each[name]:,.0f}" for name in ("commits_per_second", "records_per_second")]
            + [f"{each[name]:.1f}" for name in ("p50_ms", "p99_ms")]
            for each in found["commits"]
        ],
    )
    rig.show(
        "milliseconds that a list takes",
        ["", "documents", "lists", "p50", "p99", "keys", "read", "plan"],
        [
            [each["call"], f"{each['documents']:,}", str(each["listed"])]
            + [f"{each[name]:.2f}" for name in ("p50_ms", "p99_ms")]
            + [str(each["keys"]), str(each["read"]), ", ".join(each["plan"])]
            for each in found["lists"]
        ],
    )
    said = found["bytes"]
    print(f"filled, and indexes made, in {found['filled_s']:.0f} s")
    print(
        f"a document: {said['document']:.0f} bytes, {said['on_disk']:.0f} on disk, {said['indexes']:.0f} in its indexes"
    )


if __name__ == "__main__":
    rig.run(main)
