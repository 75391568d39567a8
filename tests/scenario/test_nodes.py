"""Daemons that share a catalog in MongoDB: their numbers, and what a user sees of them."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from ml_dashd.core.ids import node_of
from tests.doubles.http_client import HttpClient
from tests.doubles.nodes import node
from tests.harness import DaemonProcess, Folder
from tests.scenario.shell import Shell
from tests.scenario.test_doctor import bad, examined
from tests.servers.mongodb import MongoDB

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(service: DaemonProcess, tmp_path: Path) -> Shell:
    """The command, for a daemon that has its catalog for itself."""
    return Shell(tmp_path, ["--socket", str(service.socket)])


def test_a_daemon_that_has_its_catalog_for_itself_says_so(alone: Shell) -> None:
    host = socket.gethostname()
    assert alone("nodes").out == (
        f"the daemon on {host} has its catalog for itself: no other node shares it, and its number is 0\n"
    )
    (node,) = alone.json("nodes", "--all")
    assert node == {
        "number": 0,
        "host": host,
        "leaseEndsAt": None,
        "lastSeenAt": None,
        "held": True,
        "thisDaemon": True,
    }


@pytest.fixture
def make_node(tmp_path: Path, mongodb_url: str) -> Iterator[Callable[..., DaemonProcess]]:
    """Nodes by their names, of one catalog; they are started, and ended with the test."""
    made: list[DaemonProcess] = []

    def make(name: str) -> DaemonProcess:
        made.append(node(tmp_path / name, Folder(tmp_path / "store"), mongodb_url))
        return made[-1]

    yield make
    for daemon in made:
        daemon.kill()


def number_of(daemon: DaemonProcess) -> int:
    """The number in the ids that it gives out."""
    with daemon.experiment().run as exp:
        return node_of(int(exp.files.save_text("a", to="a.txt")["id"]))


def shell_of(daemon: DaemonProcess) -> Shell:
    return Shell(daemon.folder, ["--socket", str(daemon.socket)])


def listed(daemon: DaemonProcess, *words: str) -> dict[int, dict[str, Any]]:
    return {each["number"]: each for each in shell_of(daemon).json("nodes", *words)}


def test_each_daemon_has_a_number_of_its_own_and_gets_it_back(make_node: Callable[..., DaemonProcess]) -> None:
    """Killed and started again; and so does a copy of its state folder, which is another node."""
    one, two = make_node("one"), make_node("two")
    one.start()
    two.start()
    numbers = number_of(one), number_of(two)
    assert len({*numbers}) == 2
    assert min(numbers) > 0
    one.kill()
    copy = make_node("copy")
    shutil.copytree(one.state, copy.state)
    copy.start()
    assert number_of(copy) not in numbers
    one.start()
    assert number_of(one) == numbers[0]
    nodes = listed(one)
    assert nodes.keys() == {*numbers, number_of(copy)}
    assert [number for number, each in nodes.items() if each["thisDaemon"]] == [numbers[0]]
    assert {each["host"] for each in nodes.values()} == {socket.gethostname()}
    assert all(each["held"] and each["lastSeenAt"] < each["leaseEndsAt"] for each in nodes.values())
    head, *lines = shell_of(two)("nodes").out.splitlines()
    assert head.split() == ["NUMBER", "LAST", "SEEN", "LEASE", "ENDS", "HOST"]
    assert [line.endswith("(this daemon)") for line in lines] == [number == numbers[1] for number in sorted(nodes)]
    check = examined(one)["node number"]
    assert check["verdict"] == "ok"
    assert check["found"].startswith(f"{numbers[0]}; ")


def test_leases_that_are_over_are_listed_on_request(make_node: Callable[..., DaemonProcess], mongodb_url: str) -> None:
    daemon = make_node("one")
    daemon.start()
    mine = number_of(daemon)
    with pymongo.MongoClient[Any](mongodb_url) as client:
        nodes = client.get_default_database()["nodes"]
        gone = nodes.find_one()
        assert gone is not None
        nodes.insert_one({**gone, "_id": mine % 16_383 + 1, "host": "gone", "until_ms": 1, "seen_ms": 1})
    assert listed(daemon).keys() == {mine}
    assert {each["host"]: each["held"] for each in listed(daemon, "--all").values()} == {
        socket.gethostname(): True,
        "gone": False,
    }
    assert "gone (its lease is over)" in shell_of(daemon)("nodes", "--all").out


def test_without_a_number_and_without_the_catalog_it_is_not_ready_and_says_why(tmp_path: Path) -> None:
    """Who saves waits, or is told at once; it goes on by itself."""
    mongodb = MongoDB(tmp_path / "mongodb")
    url = mongodb.url("fleet", "&serverSelectionTimeoutMS=300")
    with node(tmp_path / "daemon", Folder(tmp_path / "store"), url) as daemon:
        reasons = HttpClient(daemon.folder / "http").reasons()
        assert "no node number is held" in json.dumps(reasons)
        status = shell_of(daemon)("status").out
        assert "NOTHING IS TAKEN IN NOW" in status
        assert "no node number is held: CATALOG_UNREACHABLE: the catalog mongodb://127.0.0.1:" in status
        assert "hint: check catalog.url" in status
        assert bad(examined(daemon)) == {"hand-offs", "catalog", "node number", "store write"}  # a new, empty folder
        at_once = daemon.experiment(on_full="raise").run.start()
        for save in (
            lambda: at_once.files.save_text("a", to="a.txt"),
            lambda: at_once.files.save_blob(bytes(200_000), to="a.bin"),
        ):
            with pytest.raises(MLDashError) as refused:
                save()
            assert refused.value.code is Code.RETRY_LATER
        exp = daemon.experiment().run.start()
        results: list[Any] = []
        saving = [
            threading.Thread(target=lambda: results.append(exp.files.save_text("a", to="a.txt"))),
            threading.Thread(target=lambda: results.append(exp.files.save_blob(bytes(200_000), to="a.bin"))),
        ]
        for each in saving:
            each.start()
        with mongodb:
            for each in saving:
                each.join(60)
            assert {result.wait(60)["state"] for result in results} == {"DONE"}
            assert len(results) == 2
            assert HttpClient(daemon.folder / "http").reasons() == {}
