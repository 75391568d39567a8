"""kill -9 of the daemon, and of ranks, while a set of files becomes complete: it is seen whole, or not at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from tests.crash.test_kill_daemon import revived
from tests.harness import PREFIX, Bucket, DaemonProcess, Folder, eventually

pytestmark = pytest.mark.slow

DELIVERY = (
    "sets.before_journal",
    "sets.after_journal",
    "sets.before_deliver",
    "sets.after_deliver",
    "sets.after_forget",
)
RANKS = 4
RANK = """
import sys
from ml_dash import Experiment

socket, prefix, name, rank, attempt = sys.argv[1:6]
with Experiment(prefix, socket=socket, wait=True).run as exp:
    print("open", flush=True)
    with exp.files.checkpoint(name, world_size=4, rank=int(rank), attempt=attempt) as ck:
        for number in range(3):
            ck.save_blob(rank.encode() * (60_000 * (number + 1)), to=f"{rank}/{number}.bin")
"""


def seen(exp: Experiment, **asked: Any) -> list[str]:
    return sorted(f"{one['path']}/{one['filename']}".strip("/") for one in exp.files().list(**asked))


def save(exp: Experiment, rank: int, name: str = "s", world_size: int = 2, **given: Any) -> None:
    with exp.files.checkpoint(name, world_size=world_size, rank=rank, attempt="a") as ck:
        ck.save_text(str(rank), to=f"{rank}.txt", **given)
        ck.save_blob(bytes(100_000), to=f"{rank}.bin")


@pytest.mark.parametrize(("kind", "points"), [("local", DELIVERY), ("s3_double", ("sets.after_deliver",))])
def test_killed_while_the_last_share_comes(
    request: pytest.FixtureRequest, kind: str, points: tuple[str, ...], tmp_path: Path
) -> None:
    """At each point, of a set of its own."""
    store = Folder(tmp_path / "store") if kind == "local" else Bucket(request.getfixturevalue(kind))
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        for point in points:
            save(exp, 0, point)
        exp.files.flush(60)
        assert seen(exp) == []
        for count, point in enumerate(points, start=1):
            daemon.kill()
            daemon.start(faults=f"{point}=kill")
            with revived(daemon):
                save(exp, 1, point)
            exp.files.flush(60)
            assert seen(exp, pattern=f"{point}/*") == [
                f"{point}/{name}" for name in ("0.bin", "0.txt", "1.bin", "1.txt")
            ]
            assert len(exp.files.checkpoints()) == count
        assert exp.files.checkpoints(incomplete=True) == []
        assert daemon.rows("SELECT count(*) FROM shares") == [(0,)]
        assert set(points) <= daemon.faults_met()


def test_killed_while_a_set_goes(tmp_path: Path) -> None:
    """Deleted, or pruned: all of it is there, or nothing."""
    points = ("sets.before_drop", "sets.after_drop", "prune.before_set", "prune.after_set")
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        for point in points:
            for rank in (0, 1, 0, 1):  # and its next round
                save(exp, rank, point)
        exp.files.flush(60)
        for point in points:
            newest, old = exp.files(point).checkpoints()
            daemon.kill()
            daemon.start(faults=f"{point}=kill")
            with revived(daemon):
                if point.startswith("sets"):
                    old.delete()
                else:
                    exp.files(point).prune(keep_last=1)
            assert [one.id for one in exp.files(point).checkpoints()] == [newest.id]
            assert len(exp.files(point).list(pending=True)) == 4
        assert set(points) <= daemon.faults_met()


def test_killed_while_it_cleans(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    settings = "delete_grace = 0\n[retention]\nincomplete_sets = 1\n"
    points = ("sets.before_clean", "sets.after_clean")
    with DaemonProcess(tmp_path / "daemon", store, settings=settings) as daemon, daemon.experiment().run as exp:
        for point in points:
            daemon.kill()
            daemon.start(faults=f"{point}=kill")
            with revived(daemon):
                save(exp, 0, point)
            exp.files.flush(60)
        eventually(lambda: seen(exp, pending=True) == [])
        eventually(lambda: store.keys() == [])
        assert set(points) <= daemon.faults_met()


def test_killed_anywhere_ranks_and_daemon(tmp_path: Path, full_size: bool) -> None:
    """Four ranks as processes, restarted as a new attempt when one of them was killed; whoever looks sees no part."""
    kills, seed = 60 if full_size else 2, random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        names = []
        for number in range(kills):
            names.append(f"step_{number}")
            ranks = start(daemon, names[-1], attempt=0)
            time.sleep(chance.uniform(0, 0.2))
            if number % 2:
                chance.choice(ranks).send_signal(signal.SIGKILL)
            else:
                daemon.kill()
                daemon.start()
            look(exp, names)
            failed = {*end(ranks)} - {0}
            assert failed <= {-signal.SIGKILL}
            look(exp, names)
            if failed:
                assert end(start(daemon, names[-1], attempt=1)) == [0] * RANKS
            exp.files.flush(60)
            newest = exp.files.latest_checkpoint()
            assert newest is not None
            assert (newest.name, len(newest.files)) == (names[-1], 3 * RANKS)
        look(exp, names)


def start(daemon: DaemonProcess, name: str, attempt: int) -> list[subprocess.Popen[bytes]]:
    """Ranks of a job, which have all reached the daemon."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(daemon.folder)}
    words = [sys.executable, "-c", RANK, str(daemon.socket), PREFIX, name]
    ranks = [
        subprocess.Popen([*words, str(rank), str(attempt)], env=environment, stdout=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"open\n"
    return ranks


def end(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    """Their exit statuses."""
    for rank in ranks:
        rank.communicate(timeout=60)
    return [rank.returncode for rank in ranks]


def look(exp: Experiment, names: list[str]) -> None:
    """Of each set all files, of one attempt, or none."""
    found = exp.files().list(latest=True)
    for name in names:
        mine = [one for one in found if one["checkpoint"]["name"] == name]
        assert len(mine) in (0, 3 * RANKS)
        assert len({one["checkpoint"]["attempt"] for one in mine}) <= 1
    newest = exp.files.latest_checkpoint()
    assert newest is None or newest.is_whole()
