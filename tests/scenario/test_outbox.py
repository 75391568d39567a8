"""A fleet's catalog that is away: from the first moment on, for a while, or with a password that nobody may read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dash import MLDashError, NetworkError
from ml_dash.connection import Connection
from ml_dash.messages import Retried, Retry
from ml_dash.reach import Endpoint
from ml_dashd.core.model import EVERYBODY, FileRecord
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from tests.contract.test_catalog import record
from tests.doubles.http_client import HttpClient
from tests.doubles.nodes import assert_one_each, node
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.shell import Shell
from tests.servers.mongodb import MongoDB

pytestmark = pytest.mark.slow
SECRET = "hunter%2F2"


def ask_again(daemon: DaemonProcess) -> None:
    """`ml-dash retry`: what is away is asked now."""
    connection = Connection(Endpoint(daemon.socket))
    connection.call(Retried, lambda number: Retry(request=number, everything=True))
    connection.close()


def test_what_is_saved_while_mongodb_is_away_is_stored_and_listed_once_it_is_back(tmp_path: Path) -> None:
    """The daemon has its number. It is killed meanwhile, and again when half of it may be listed."""
    store, mongodb = Folder(tmp_path / "store"), MongoDB(tmp_path / "mongodb")
    url = mongodb.url("fleet", "&serverSelectionTimeoutMS=500")
    daemon = node(tmp_path / "daemon", store, url)
    expected = {}

    def save(exp, start: int) -> None:
        for number in range(start, start + 30):
            text = f"{number} " * (1 if number % 3 else 20_000)  # in the journal, and in the spool
            result = exp.files("logs").save_text(text, to=f"{number}.txt", tags=["late"])
            expected[f"logs/{number}.txt"] = result["checksum"] = hashlib.sha256(text.encode()).hexdigest()

    mongodb.start()
    with daemon:
        mongodb.kill()
        exp = daemon.experiment(wait=False).run.start()
        exp.params.set(lr=0.1)
        exp.metrics.log(epoch=1, train={"loss": 0.5})
        save(exp, 0)
        eventually(lambda: len(store.keys()) == 30 and daemon.rows("SELECT 1 FROM files WHERE lane <> 'outbox'") == [])
        report = daemon.status()
        assert [(count.state, count.files) for count in report.counts] == [("VERIFIED", 30)]
        assert {record.error_code for record in report.blocked} == {"CATALOG_UNREACHABLE"}
        assert report.error_code == "CATALOG_UNREACHABLE"
        status = Shell(tmp_path, ["--socket", str(daemon.socket)])("status").out
        assert status.count("CATALOG_UNREACHABLE: ") == 1, "once, whatever waits for it"
        assert f": no primary; 127.0.0.1:{mongodb.ports[0]}: Connection refused\n" in status
        assert status.count("VERIFIED, ") == len(report.blocked)
        with pytest.raises(NetworkError, match="CATALOG_UNREACHABLE"):
            exp.files().list()
        assert exp.params.get() == {"lr": 0.1}
        daemon.kill()
        daemon.start()
        save(exp, 30)
        late = exp.files("logs").save_text("late", to="late.txt")
        assert late.refresh()["state"] in ("QUEUED", "SENDING", "VERIFIED")
        expected["logs/late.txt"] = late["checksum"]
        eventually(lambda: len(store.keys()) == 61 and daemon.rows("SELECT 1 FROM files WHERE lane <> 'outbox'") == [])
        daemon.kill()  # before there is a catalog again: else it may have listed them all
        with mongodb:
            daemon.start("finish.after_catalog=kill")
            daemon.wait_for_death()
            daemon.start()
            ask_again(daemon)
            exp.files.flush(timeout=60)
            records = assert_one_each(exp, store, expected)
            assert all(record["tags"] == ["late"] for record in records if record["filename"] != "late.txt")
            assert exp.metrics("train").read()["total"] == 1
            assert "outbox_drained" in daemon.log()
            with node(tmp_path / "other", store, url) as other:
                seen = other.experiment().run.start()
                assert seen.params.get() == {"lr": 0.1}
                # What the daemon had begun when it was killed holds its rows for as long as the server lets it.
                eventually(lambda: seen.metrics("train").read()["data"], timeout=60)
                assert seen.metrics("train").read()["data"][0]["data"]["loss"] == 0.5
            exp.run.complete()


def test_a_password_is_shown_nowhere(tmp_path: Path) -> None:
    """Of a catalog that is away; and that is said plainly wherever one looks."""
    url = f"mongodb://ml:{SECRET}@127.0.0.1:1/fleet?serverSelectionTimeoutMS=300"
    with node(tmp_path / "daemon", Folder(tmp_path / "store"), url) as daemon:
        config = str(daemon.folder / "ml-dashd.toml")
        checked = subprocess.run(
            [sys.executable, "-m", "ml_dashd", "check-config", "--config", config],
            capture_output=True,
            text=True,
            check=True,
        )
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        status = eventually(lambda: (said := shell("status").out) and "CATALOG_UNREACHABLE" in said and said)
        assert "NOTHING IS TAKEN IN NOW" in status, "without a number, which the catalog gives"
        assert "no node number is held" in status
        doctor = shell("doctor", "--json", status=1).out
        verdicts = {check["name"]: check["verdict"] for check in json.loads(doctor)["checks"]}
        assert (verdicts["catalog"], verdicts["hand-offs"], verdicts["node number"]) == ("bad", "bad", "bad")
        assert "127.0.0.1:1/fleet" in doctor
        listed = shell("ls", "--prefix", "alice/cv/resnet", status=1).err
        assert "catalog" in listed
        reasons = json.dumps(HttpClient(daemon.folder / "http").reasons())
        assert "CATALOG_UNREACHABLE" in reasons
        for said in (checked.stdout, checked.stderr, status, doctor, listed, reasons, daemon.log()):
            assert "hunter" not in said


@pytest.mark.parametrize("same_key", [False, True])
def test_an_id_that_another_file_has_is_reported_and_nothing_is_overwritten(tmp_path: Path, same_key: bool) -> None:
    """As of two machines that were woken from one snapshot. What the other one has stays, be it at the same key."""
    store = Folder(tmp_path / "store")
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        daemon.kill()
        daemon.start("finish.before_catalog=kill")
        exp = daemon.experiment(wait=False).run.start()
        mine = exp.files.save_text("mine", to="a.txt")
        daemon.wait_for_death()
        (key,) = store.keys()
        other = replace(record(int(mine["id"])), key=key if same_key else "files/other", owner_uid=os.geteuid())
        asyncio.run(list_it(daemon.state / "catalog.sqlite", other))
        daemon.start()
        with pytest.raises(MLDashError, match="another file has the id"):
            mine.wait(30)
        eventually(lambda: store.keys() == ([key] if same_key else []))
        assert "save it again" in Shell(tmp_path, ["--socket", str(daemon.socket)])("status").out
        assert asyncio.run(list_it(daemon.state / "catalog.sqlite")) == [other]
        again = exp.files.save_text("mine", to="a.txt")
        assert again.wait(30)["state"] == "DONE"
        exp.files(file_id=mine["id"]).delete()
        eventually(lambda: store.keys() == sorted([store.key_of(again), *([key] if same_key else [])]))
        assert asyncio.run(list_it(daemon.state / "catalog.sqlite"))[0] == other


async def list_it(path: Path, *some: FileRecord) -> list[FileRecord]:
    """What a catalog has, once these are listed in it."""
    catalog = SqliteCatalog(path, NoFaults())
    if some:
        await catalog.commit(some)
    found = await catalog.newer(0, EVERYBODY, 9)
    await catalog.close()
    return found
