"""Three nodes of a fleet: daemons with their own state folders, sockets and networks, one bucket, one MongoDB.

Everything that they save is there once, whatever is killed meanwhile; and each sees what the others have. The S3 server
is Swift, which keeps its objects when it is killed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.doubles.fleets import NODES, Fleet
from tests.doubles.network import Network
from tests.doubles.nodes import PATIENCE_S, Saving, assert_one_each
from tests.doubles.schedules import KINDS, Schedule, drawn
from tests.harness import eventually
from tests.scenario.shell import Shell
from tests.servers.mongodb import MongoDB
from tests.servers.swift import Swift

pytestmark = pytest.mark.slow

SEEDS = os.environ.get("ML_DASH_TEST_SEEDS", "")
"""The schedules to run, as `37` or `37-71`, in place of all."""


@pytest.fixture
def fleet(tmp_path: Path, swift: Swift, members: int) -> Iterator[Fleet]:
    with MongoDB(tmp_path / "mongodb", members) as mongodb, Fleet(tmp_path, swift, mongodb) as made:
        yield made
    if not swift.pids:  # other tests share it
        swift.start()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that comes back is looked for as long as a machine takes that others want, too: that may be a minute."""
    for module in ("persistence", "connection"):
        monkeypatch.setattr(f"ml_dash.{module}.RECONNECT_S", PATIENCE_S)


@pytest.mark.parametrize("members", [3])
def test_a_primary_and_a_daemon_are_killed_while_three_nodes_save(
    fleet: Fleet, tmp_path: Path, full_size: bool
) -> None:
    nodes, mongodb = fleet.nodes, fleet.mongodb
    files = 2000 if full_size else 100
    saving = Saving(nodes, files)
    saving.wait_for(files)
    mongodb.kill(mongodb.primary())
    saving.wait_for(files // 2)
    nodes[0].kill()
    nodes[0].start()
    saving.end()
    one, two, _ = (daemon.experiment().run.start() for daemon in nodes)
    records = assert_one_each(one, fleet.bucket, saving.expected)
    assert len(records) == NODES * files
    shell = Shell(tmp_path, ["--socket", str(nodes[0].socket)])
    listed = json.loads(shell("ls", "node2/*", "--prefix", "alice/cv/resnet", "--json").out)
    assert sorted(record["filename"] for record in listed) == sorted(f"{number}.txt" for number in range(files))
    result = one.files("node1").save_text("just finished", to="last.txt").wait(60)
    assert Path(two.files("node1/last.txt").download(to=tmp_path / "last.txt")).read_text() == "just finished"
    assert two.files("node1").list("last.txt")[0]["id"] == result["id"]


@pytest.fixture
def members(full_size: bool) -> int:
    return 3 if full_size else 1


@pytest.fixture
def schedules(members: int, full_size: bool) -> list[Schedule]:
    """All, or those that are asked for: a hundred take the better part of an hour."""
    files, blows, seeds = (100, 4, range(100)) if full_size else (12, 1, range(5))
    if SEEDS:
        first, _, last = SEEDS.partition("-")
        seeds = range(int(first), int(last or first) + 1)
    return [drawn(seed, files=files, blows=blows, nodes=NODES, members=members) for seed in seeds]


@pytest.mark.skipif(bool(SEEDS), reason="some schedules alone")
def test_the_schedules_strike_everything(schedules: list[Schedule]) -> None:
    assert {victim.kind for each in schedules for blow in each.blows for victim in blow.victims} == set(KINDS)


def test_nodes_and_servers_are_killed_at_random(fleet: Fleet, schedules: list[Schedule]) -> None:
    """Each schedule has an experiment of its own; at the end the bucket has what the experiments list, and no more."""
    listed = []
    for schedule in schedules:
        print(schedule)
        prefix = f"alice/cv/seed{schedule.seed}"
        saving = fleet.suffer(schedule, prefix)
        assert len(saving.expected) == NODES * schedule.files
        # Of another node, each time: it has nothing of the others' in its journal.
        reader = fleet.nodes[schedule.seed % NODES].experiment(prefix).run.start()
        listed += assert_one_each(reader, fleet.bucket, saving.expected)
    assert [one for one, times in Counter(record["id"] for record in listed).items() if times > 1] == []
    expected = sorted(fleet.bucket.key_of(record) for record in listed)
    # What a node made to find out what the store does, and could not remove when it was killed, goes a little later.
    eventually(lambda: fleet.bucket.keys() == expected, timeout=120)


class Greeting:
    """A server that says a word to whoever comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                with self._listener.accept()[0] as client:
                    client.sendall(b"hello")


def test_a_nodes_network_leads_to_its_servers_alone_and_nowhere_once_it_is_cut() -> None:
    with Greeting() as server, Greeting() as other, Network([server.port]) as network:
        if not network.is_apart:
            pytest.skip("no network namespaces here")

        def heard(port: int) -> str:
            ask = f"import socket; print(socket.create_connection(('127.0.0.1', {port}), 30).recv(9))"
            command = [*network.under, sys.executable, "-I", "-c", ask]
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            return ran.stdout.strip() or ran.stderr.strip().rpartition("\n")[2].partition(":")[0]

        assert heard(server.port) == "b'hello'"
        assert heard(other.port) == "ConnectionRefusedError"
        network.cut()
        assert heard(server.port) == "b''"
        network.mend()
        assert heard(server.port) == "b'hello'"
