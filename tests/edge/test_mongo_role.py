"""The role that docs/fleet.md gives to the daemon's user is enough for all that it does, and for nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymongo
import pytest

from ml_dash.errors import Code
from ml_dashd.core.lease import Claim, Place
from ml_dashd.core.model import EVERYBODY, Amendment, Selection
from ml_dashd.core.runs import BroughtRow, NewRow, Opened, Row, RunStatus
from ml_dashd.core.sets import SetSelection, SetState, Verdict
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.leases_mongo import MongoLeases
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_schema import prepare
from ml_dashd.edge.runs_mongo import MongoRuns
from ml_dashd.ports import JournalError
from tests.contract.test_catalog import EXPERIMENT, record
from tests.contract.test_catalog_runs import KEY, MIB
from tests.contract.test_catalog_sets import bring, key, share
from tests.servers.mongodb import MongoDB

PAGE = Path(__file__).parents[2] / "docs/fleet.md"
pytestmark = pytest.mark.slow


def role() -> list[dict[str, Any]]:
    """The privileges that the page lists: JavaScript's objects, read as JSON."""
    (block,) = re.findall(r"privileges: \[(.*?),\n  \],", PAGE.read_text(), re.DOTALL)
    found: list[dict[str, Any]] = json.loads(re.sub(r"(\w+):", r'"\1":', f"[{block}]"))
    return found


async def test_the_role_of_the_page_is_enough(tmp_path: Path) -> None:
    """On a mongod of its own, for it asks for users."""
    with MongoDB(tmp_path / "mongodb", secured=True) as server:
        (port,) = server.ports
        with pymongo.MongoClient[Any](f"mongodb://127.0.0.1:{port}/?directConnection=true") as anybody:
            anybody.admin.command("createUser", "root", pwd="root", roles=["root"])
        with pymongo.MongoClient[Any](f"mongodb://root:root@127.0.0.1:{port}/?directConnection=true") as root:
            root.admin.command("createRole", "mlDashDaemon", privileges=role(), roles=[])
            root.admin.command("createUser", "ml", pwd="right", roles=["mlDashDaemon"])
        url = server.url("mldash", "&authSource=admin")
        wrong = Mongo(url.replace("//", "//ml:wrong@"), prepare)
        with pytest.raises(JournalError) as refused:
            await MongoCatalog(wrong).get([1])
        assert refused.value.code is Code.CATALOG_DENIED
        assert "wrong" not in str(refused.value)
        await wrong.close()
        for _ in range(2):  # an empty database, and one that was made before
            mongo = Mongo(url.replace("//", "//ml:right@"), prepare)
            await ask_everything(MongoCatalog(mongo), MongoRuns(mongo))
            await take_a_number(MongoLeases(mongo))
            await ask_of_sets(MongoCatalog(mongo))
            with pytest.raises(JournalError) as refused:
                await mongo.call(mongo.collection("files").delete_one({"_id": 1}))
            assert refused.value.code is Code.CATALOG_DENIED
            await mongo.close()


async def take_a_number(leases: MongoLeases) -> None:
    claim = Claim("token", Place("machine", "boot", "folder"), 1)
    await leases.taken(claim)
    await leases.take(1, claim)
    await leases.renew(1, {"token"}, claim)
    await leases.nodes(0, 5)


async def ask_everything(catalog: MongoCatalog, runs: MongoRuns) -> None:
    await catalog.commit([record(1), record(2)])
    await catalog.commit([record(1)])
    await catalog.select(Selection(*EXPERIMENT))
    await catalog.select(Selection(*EXPERIMENT, latest=True))
    await catalog.newer(0, EVERYBODY, 5)
    await catalog.experiments()
    await catalog.amend(1, Amendment(description="x"), 5)
    await catalog.delete([1], 5)
    await catalog.prune([record(2)], 5)
    await catalog.inventory.mark(await catalog.inventory.records("", 5), 9)
    was = await catalog.inventory.round()
    await catalog.inventory.turn(was, replace(was, holder="me"))
    await catalog.reclaimed(await catalog.deleted(99, (0, 0), 5), 9)
    await runs.open(KEY, Opened(1))
    await runs.set_params(KEY, {"lr": "1"}, 2, MIB)
    await runs.append(KEY, 1, 1, [NewRow("train", "{}"), NewRow("", "{}")], 3)
    await runs.bring_rows(KEY, [BroughtRow("train", Row(1, "{}", 2, 2))])
    await runs.end(KEY, RunStatus.COMPLETED, 5, None)
    await runs.select([], EVERYBODY, None, 5)
    await runs.rows(KEY, "train", 0, 9)


async def ask_of_sets(catalog: MongoCatalog) -> None:
    shares = [share(rank, again=again) for again in range(2) for rank in range(2)]  # saved again: one is replaced
    for number, each in enumerate(shares, start=100):
        assert await bring(catalog, each, number) is Verdict.DELIVERED
    (found, *_) = await catalog.sets.select(SetSelection(tuple(SetState), EVERYBODY))
    await catalog.sets.get(found.id)
    await catalog.sets.holding(shares[-1].key)
    await catalog.sets.members(key(), shares[-1].key)
    await catalog.sets.files(found.id, 0, 9)
    await catalog.sets.report(99, 99, 9)
    await catalog.sets.strays(99, 9)
    await catalog.sets.drop(found.id, 99)
    await catalog.sets.abandon(99, 99, 9)
