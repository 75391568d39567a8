"""The connection to MongoDB: what it raises, what it shows, and what a cancelled caller leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure, ServerSelectionTimeoutError

from ml_dash.errors import Code, MLDashError
from ml_dashd.edge.catalog_mongo import MongoCatalog
from ml_dashd.edge.mongo import Mongo
from ml_dashd.edge.mongo_failures import named
from ml_dashd.edge.mongo_schema import prepare
from ml_dashd.ports import JournalError
from tests.servers.mongodb import MongoDB

SECRET = "hunter%2F2"


async def test_a_server_that_is_away_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dashd.edge.mongo.SELECTION_MS", 50)
    mongo = Mongo(f"mongodb://ml:{SECRET}@127.0.0.1:1/fleet")
    with pytest.raises(JournalError) as refused:
        await mongo.call(mongo.collection("files").find_one())
    assert refused.value.code is Code.CATALOG_UNREACHABLE
    assert "mongodb://127.0.0.1:1/fleet" in str(refused.value)
    trouble = mongo.trouble()
    assert trouble is not None
    assert trouble.code is Code.CATALOG_UNREACHABLE
    assert "hunter" not in f"{refused.value} {trouble}"
    assert refused.value.__cause__ is None
    await mongo.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # pymongo leaves what TLS refused to the collector
async def test_by_tls_it_trusts_the_authority_that_the_url_names_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dashd.edge.mongo.SELECTION_MS", 2000)
    own, other = trustme.CA(), trustme.CA()
    own.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    with MongoDB(tmp_path / "mongodb", certificate=tmp_path / "server.pem") as server:
        trusting = Mongo(server.url("fleet", f"&tls=true&tlsCAFile={tmp_path}/own.pem"), prepare)
        assert await MongoCatalog(trusting).get([1]) == []
        met = (await trusting.call(trusting.client.admin.command("serverStatus")))["transportSecurity"]
        assert sum(map(int, met.values())) > 0, "nobody came by TLS"
        await trusting.close()
        for options in (f"&tls=true&tlsCAFile={tmp_path}/other.pem", "&tls=true"):
            doubting = Mongo(server.url("fleet", options), prepare)
            with pytest.raises(JournalError, match="certificate verify failed") as refused:
                await MongoCatalog(doubting).get([1])
            assert refused.value.code is Code.CATALOG_UNREACHABLE
            await doubting.close()


async def test_what_was_begun_is_done_though_its_caller_is_cancelled(mongodb_url: str) -> None:
    mongo = Mongo(mongodb_url)
    files = mongo.collection("files")
    await mongo.call(files.insert_one({"_id": 1}))
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        for number in range(2, 30):
            await files.insert_one({"_id": number})

    task = asyncio.create_task(mongo.call(work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await mongo.close()
    again = Mongo(mongodb_url)
    assert await again.call(again.collection("files").count_documents({})) == 29
    assert again.trouble() is None
    await again.close()


async def test_a_duplicate_key_is_the_callers_to_judge(mongodb_url: str) -> None:
    mongo = Mongo(mongodb_url)
    await mongo.call(mongo.collection("files").insert_one({"_id": 1}))
    with pytest.raises(DuplicateKeyError):
        await mongo.call(mongo.collection("files").insert_one({"_id": 1}))
    assert mongo.trouble() is None, "the server has answered"
    await mongo.close()


@pytest.mark.parametrize(
    "url", [f"mongodb://ml:{SECRET}@host/", f"mongodb://ml:{SECRET}@host/db?tls=maybe", "mongodb://ml:a/b@host/db"]
)
def test_a_url_that_is_refused_is_named_without_its_password(url: str) -> None:
    with pytest.raises(MLDashError) as refused:
        Mongo(url)
    assert refused.value.code is Code.CONFIG
    assert "catalog.url" in refused.value.message
    assert "hunter" not in str(refused.value)


def test_an_option_that_is_mistyped_is_named() -> None:
    with pytest.raises(MLDashError, match=r"Unknown option 'tsl'\. Did you mean one of") as refused:
        Mongo("mongodb://host/db?replicaSet=rs0&tsl=true")
    assert refused.value.code is Code.CONFIG


def test_a_certificate_that_is_not_there_is_the_settings_fault(tmp_path: Path) -> None:
    with pytest.raises(MLDashError, match=r"catalog\.url .*tlscafile file is not readable") as refused:
        Mongo(f"mongodb://host/db?tls=true&tlsCAFile={tmp_path}/none.pem")
    assert refused.value.code is Code.CONFIG


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (134, "Read concern majority reads are currently not possible."),
        (211, "No keys found for HMAC that is valid for time: { ts: Timestamp(1, 1) } with id: 7"),
        (239, "Unable to read from a snapshot"),
        (246, "Unable to read from a snapshot"),
    ],
)
def test_what_a_restart_or_a_fail_over_brings_is_asked_for_again(number: int, said: str) -> None:
    """A list takes several questions of one moment; a set that asks for users reads its keys late."""
    refused = named(OperationFailure(said, number), "mongodb://a/fleet")
    assert refused is not None
    assert refused.code is Code.CATALOG_UNREACHABLE


NOBODY = ServerSelectionTimeoutError('No replica set members match selector "Primary()", Timeout: 5.0s, Topology …')


def test_why_there_is_no_primary_is_said_once_for_all_members() -> None:
    def gone(port: int) -> AutoReconnect:
        limits = "(configured timeouts: socketTimeoutMS: 5000.0ms, connectTimeoutMS: 5000.0ms)"
        return AutoReconnect(f"a:{port}: [Errno 111] Connect call failed ('127.0.0.1', {port}) {limits}")

    refused = named(NOBODY, "mongodb://a/fleet", {"a:1": gone(1), "a:2": gone(2), "a:3": AutoReconnect("a:3: frozen")})
    assert refused is not None
    assert refused.code is Code.CATALOG_UNREACHABLE
    assert str(refused) == "the catalog mongodb://a/fleet: no primary; a:1, a:2: Connection refused; a:3: frozen"


def test_a_wrong_password_stays_one_when_the_primary_is_asked_again() -> None:
    """PyMongo forgets a member that has refused, and says then that there is none."""
    refused = named(NOBODY, "mongodb://a/fleet", {"a:1": OperationFailure("Authentication failed.", 18)})
    assert refused is not None
    assert refused.code is Code.CATALOG_DENIED
    assert str(refused) == "the catalog mongodb://a/fleet: Authentication failed."


def test_what_a_role_lacks_is_named_without_the_rest_of_the_command() -> None:
    said = (
        'not authorized on mldash to execute command { createIndexes: "sets", indexes: [ { name: "by_number" } ], '
        "$clusterTime: { signature: { hash: BinData(0, 8FA5) } } }"
    )
    refused = named(OperationFailure(said, 13), "mongodb://a/mldash")
    assert refused is not None
    assert refused.code is Code.CATALOG_DENIED
    assert str(refused).endswith(": not authorized on mldash to execute command createIndexes in sets")
