"""Three nodes of a fleet: daemons with their own state folders and sockets, one bucket, one MongoDB of three members.

Everything that they save is there once, whatever is killed meanwhile; and each sees what the others have.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.doubles.nodes import assert_one_each, node
from tests.harness import PREFIX, Bucket, DaemonProcess
from tests.scenario.shell import Shell
from tests.servers.mongodb import MongoDB

pytestmark = pytest.mark.slow
NODES = 3


@pytest.fixture
def bucket(request: pytest.FixtureRequest, full_size: bool) -> Bucket:
    return Bucket(request.getfixturevalue("swift" if full_size else "s3_double"))


@pytest.fixture
def mongodb(tmp_path: Path) -> Iterator[MongoDB]:
    with MongoDB(tmp_path / "mongodb", members=3) as server:
        yield server


@pytest.fixture
def nodes(tmp_path: Path, bucket: Bucket, mongodb: MongoDB) -> Iterator[list[DaemonProcess]]:
    url = mongodb.url("fleet", "&serverSelectionTimeoutMS=1000")
    made = [node(tmp_path / f"node{number}", bucket, url) for number in range(1, NODES + 1)]
    for daemon in made:
        daemon.start()
    yield made
    for daemon in made:
        daemon.kill()


class Saving:
    """Files that every node hands over at the same time, each from a client of its own."""

    def __init__(self, nodes: list[DaemonProcess], files: int, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self.expected: dict[str, str] = {}
        self._nodes = nodes
        self._files = files
        self._saved = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(len(nodes))
        self._ends = [self._pool.submit(self._save, daemon, at) for at, daemon in enumerate(nodes, start=1)]

    def _save(self, daemon: DaemonProcess, at: int) -> None:
        with daemon.experiment(self._prefix, wait=False).run as exp:
            for number in range(self._files):
                text = f"{at} {number} " * (15_000 if number % 10 == 0 else 1)
                exp.files(f"node{at}").save_text(text, to=f"{number}.txt")
                self.expected[f"node{at}/{number}.txt"] = hashlib.sha256(text.encode()).hexdigest()
                self._saved.release()

    def wait_for(self, files: int) -> None:
        """Returns once so many more are handed over."""
        for _ in range(files):
            assert self._saved.acquire(timeout=120)

    def end(self) -> None:
        """Returns once all are listed."""
        for each in self._ends:
            each.result()
        self._pool.shutdown()
        for daemon in self._nodes:
            daemon.experiment(self._prefix).run.start().files.flush(timeout=180)


def test_a_primary_and_a_daemon_are_killed_while_three_nodes_save(
    nodes: list[DaemonProcess], bucket: Bucket, mongodb: MongoDB, tmp_path: Path, full_size: bool
) -> None:
    files = 2000 if full_size else 100
    saving = Saving(nodes, files)
    saving.wait_for(files)
    mongodb.kill(mongodb.primary())
    saving.wait_for(files // 2)
    nodes[0].kill()
    nodes[0].start()
    saving.end()
    one, two, _ = (daemon.experiment().run.start() for daemon in nodes)
    records = assert_one_each(one, bucket, saving.expected)
    assert len(records) == NODES * files
    shell = Shell(tmp_path, ["--socket", str(nodes[0].socket)])
    listed = json.loads(shell("ls", "node2/*", "--prefix", "alice/cv/resnet", "--json").out)
    assert sorted(record["filename"] for record in listed) == sorted(f"{number}.txt" for number in range(files))
    result = one.files("node1").save_text("just finished", to="last.txt").wait(60)
    assert Path(two.files("node1/last.txt").download(to=tmp_path / "last.txt")).read_text() == "just finished"
    assert two.files("node1").list("last.txt")[0]["id"] == result["id"]


@pytest.fixture
def at_full_size(full_size: bool) -> None:
    """Asked for before any server is started."""
    if not full_size:
        pytest.skip("in `make long`")


@pytest.mark.usefixtures("at_full_size")
def test_nodes_and_members_are_killed_at_random(nodes: list[DaemonProcess], bucket: Bucket, mongodb: MongoDB) -> None:
    """A hundred schedules, each of an experiment of its own; `make test` has the one above."""
    for seed in range(100):
        print(f"seed {seed}")
        chance, prefix = random.Random(seed), f"alice/cv/seed{seed}"
        saving = Saving(nodes, 100, prefix)
        for _ in range(5):
            saving.wait_for(chance.randrange(20, 60))
            victim = chance.choice(["node", "members", "store"])
            if victim == "node":
                daemon = chance.choice(nodes)
                daemon.kill()
                daemon.start()
            elif victim == "store":
                bucket.server.kill()
                bucket.server.start()
            else:
                for port in chance.sample(mongodb.ports, chance.randint(1, 3)):
                    mongodb.kill(port)
                mongodb.start()
        saving.end()
        assert_one_each(nodes[0].experiment(prefix).run.start(), bucket, saving.expected)
