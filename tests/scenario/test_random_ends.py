"""A daemon that is ended or killed at random, at random points of its code, while clients do all that they can do."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_dash import Experiment
from tests.crash.test_ended_daemon import SLOW
from tests.doubles.nodes import PATIENCE_S
from tests.harness import Bucket, DaemonProcess, Folder, assert_whole, eventually, fault_points, make_file
from tests.servers.swift import Swift

MIB = 1 << 20
SIZES = (10, 70_000, MIB, 5 * MIB, 11 * MIB + 3)
"""In the message, in one request with others, in one, and in parts of 5 MiB."""
SETTINGS = f"part_size = {5 * MIB}\ndelete_grace = 0\n"

pytestmark = pytest.mark.slow


class Client:
    """Hands files over, changes, duplicates and deletes them, each step drawn; `files` is what is to be there then."""

    def __init__(self, folder: Path, number: int, chance: random.Random) -> None:
        self.files: dict[str, str] = {}
        """SHA-256 by path."""
        self.said: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._folder = folder / f"client{number}"
        self._folder.mkdir()
        self._chance = chance
        self._step = 0

    def run(self, daemon: DaemonProcess, steps: int) -> None:
        with daemon.experiment(wait=False).run as exp:
            for self._step in range(steps):
                kinds = [self._upload, self._overwrite, self._unlink, self._save]
                if self._ids:
                    kinds += [self._update, self._duplicate, self._delete]
                self._chance.choice(kinds)(exp)
            exp.files.flush(timeout=PATIENCE_S)

    def _upload(self, exp: Experiment) -> None:
        source, sha256 = self._source()
        durability = self._chance.choice(["memory", "disk"])
        result = exp.files(self._folder.name).upload(source, durability=durability)
        self._note(result["id"], source.name, sha256)

    def _overwrite(self, exp: Experiment) -> None:
        """What was copied at the hand-off is the daemon's."""
        source, sha256 = self._source()
        result = exp.files(self._folder.name).upload(source, snapshot="copy")
        source.write_bytes(b"the next epoch")
        self._note(result["id"], source.name, sha256)

    def _unlink(self, exp: Experiment) -> None:
        self._upload(exp)
        (self._folder / f"{self._step}.bin").unlink()

    def _save(self, exp: Experiment) -> None:
        source, sha256 = self._source()
        result = exp.files(self._folder.name).save_blob(source.read_bytes(), to=source.name)
        self._note(result["id"], source.name, sha256)

    def _update(self, exp: Experiment) -> None:
        path = self._some()
        self.said[path] = f"step {self._step}"
        exp.files(file_id=self._ids[path]).update(description=self.said[path])

    def _duplicate(self, exp: Experiment) -> None:
        path = self._some()
        result = exp.files(self._folder.name).duplicate(self._ids[path], to=f"{self._step}.bin")
        copy = self._note(result["id"], f"{self._step}.bin", self.files[path])
        if path in self.said:
            self.said[copy] = self.said[path]

    def _delete(self, exp: Experiment) -> None:
        path = self._some()
        exp.files(file_id=self._ids.pop(path)).delete()
        del self.files[path]
        self.said.pop(path, None)

    def _source(self) -> tuple[Path, str]:
        path = self._folder / f"{self._step}.bin"
        size = self._chance.choice(SIZES) + self._step
        return path, make_file(path, size, seed=self._chance.randrange(1 << 30))

    def _some(self) -> str:
        return self._chance.choice([*self._ids])

    def _note(self, file_id: str, name: str, sha256: str) -> str:
        path = f"{self._folder.name}/{name}"
        self._ids[path] = file_id
        self.files[path] = sha256
        return path


def strike(daemon: DaemonProcess, chance: random.Random, points: Sequence[str], done: threading.Event) -> None:
    """Ends the daemon again and again: where its code comes to a point, or at any moment; commits may be slow."""
    while not done.wait(chance.uniform(0.1, 1.5)):
        if chance.random() < 0.5:
            daemon.stop()
        else:
            daemon.kill()
        point, action, hit = chance.choice(points), chance.choice(["end", "kill"]), chance.randint(1, 6)
        daemon.start(",".join([*chance.choice([[], [SLOW]]), f"{point}={action}@{hit}"]))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that always ends is asked more often than a client would have to."""
    for module in ("persistence", "connection"):
        monkeypatch.setattr(f"ml_dash.{module}.RECONNECT_S", PATIENCE_S)
    for module in ("persistence", "patience"):
        monkeypatch.setattr(f"ml_dash.{module}.LOSSES", 1000)


@pytest.mark.parametrize("store", ["local", "swift"])
def test_what_clients_were_told_is_so_however_often_the_daemon_ends(
    store: str, tmp_path: Path, swift: Swift, full_size: bool
) -> None:
    for _ in range(20 if full_size else 1):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        kept = Folder(folder / "store") if store == "local" else Bucket(swift)
        settings = f"drain_timeout = {random.Random(seed).choice([0, 1])}"
        daemon = DaemonProcess(folder / "daemon", kept, settings=SETTINGS, daemon_settings=settings)
        suffer(daemon, folder, seed, steps=60 if full_size else 15)


def suffer(daemon: DaemonProcess, folder: Path, seed: int, steps: int) -> None:
    """Three clients, and who ends the daemon under them; then everything is looked at."""
    clients = [Client(folder, number, random.Random(seed + number)) for number in range(3)]
    done = threading.Event()
    daemon.start()
    with ThreadPoolExecutor(len(clients) + 1) as pool:
        striking = pool.submit(strike, daemon, random.Random(seed), fault_points(), done)
        try:
            for at_work in [pool.submit(client.run, daemon, steps) for client in clients]:
                at_work.result()
        finally:
            done.set()
            striking.result()
            daemon.kill()
    with daemon, daemon.experiment().run as exp:
        exp.files.flush(timeout=PATIENCE_S)
        expected = {path: sha256 for client in clients for path, sha256 in client.files.items()}
        eventually(lambda: len(daemon.store.keys()) == len(expected), timeout=60)  # what was deleted goes soon
        assert_whole(daemon, exp, expected)
        said = {path: text for client in clients for path, text in client.said.items()}
        listed = {
            record["path"].strip("/") + "/" + record["filename"]: record["description"] for record in exp.files().list()
        }
        assert {path: text for path, text in listed.items() if text} == said
    assert "Traceback" not in daemon.log()
