"""Many processes that save into one experiment: every file is there, once, newest versions first, at every moment."""

from __future__ import annotations

import hashlib
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from tests.doubles.s3_double import S3Double
from tests.harness import Bucket, DaemonProcess, Folder
from tests.scenario.embedded import trainer

pytestmark = pytest.mark.slow

WRITERS = 8
WRITER = """
import hashlib, os, sys
from ml_dash import Experiment
socket, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
told = os.open(sys.argv[4], os.O_WRONLY | os.O_APPEND)
names = ["model.pt", "logs/{who}/epoch_{turn}.json", "größe/{who} [{number}].txt", "deep/{turn}/er/{who}.bin"]
sys.stdin.readline()  # all begin at once
with Experiment("alice/cv/resnet", socket=socket).run as exp:
    for number in range(count):
        path = names[number % 4].format(who=who, number=number, turn=number % 5)
        content = f"{who} {number} ".encode() * (12_000 if number % 20 == 5 else 1)
        prefix, _, name = path.rpartition("/")
        made = exp.files(prefix).save_blob(content, to=name)
        sha256 = hashlib.sha256(content).hexdigest()
        os.write(told, f"{who}\\t{made['id']}\\t{path}\\t{sha256}\\n".encode())
"""


@dataclass(frozen=True)
class Told:
    """What a writer says right after an acknowledgement."""

    who: int
    id: int
    path: str
    sha256: str


@pytest.fixture(params=["local", "s3"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, s3_double: S3Double) -> Iterator[DaemonProcess]:
    store = Folder(tmp_path / "store") if request.param == "local" else Bucket(s3_double)
    with DaemonProcess(tmp_path / "daemon", store) as process:
        yield process


def test_eight_processes_save_while_one_lists(daemon: DaemonProcess, tmp_path: Path, full_size: bool) -> None:
    count = 500 if full_size else 40 if isinstance(daemon.store, Folder) else 15
    told = tmp_path / "told"
    told.touch()
    writers = [trainer(WRITER, str(daemon.socket), str(who), str(count), str(told)) for who in range(WRITERS)]
    with daemon.experiment().run as exp:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        looks = 0
        while any(writer.poll() is None for writer in writers):
            look(exp, read(told))
            looks += 1
        assert [ended(writer) for writer in writers] == [(0, "")] * WRITERS
        assert looks > 5
        saved = read(told)
        assert Counter(each.who for each in saved) == dict.fromkeys(range(WRITERS), count)
        exp.files.flush(60)
        everything_is_there(exp, daemon, saved, tmp_path)


def ended(writer: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = writer.communicate(timeout=60)
    return writer.returncode, said


def read(told: Path) -> list[Told]:
    """Whole lines only: a line is written at once."""
    lines = (line.split("\t") for line in told.read_text().splitlines())
    return [Told(int(who), int(file_id), path, sha256) for who, file_id, path, sha256 in lines]


def look(exp: Experiment, before: list[Told]) -> None:
    """What was acknowledged before the question is in the answer, once, and no newest version is an older one."""
    listed = exp.files().list()
    ids = [int(each["id"]) for each in listed]
    assert len(ids) == len(set(ids))
    assert {each.id for each in before} <= set(ids)
    order = [(path_of(each), -int(each["id"])) for each in listed]
    assert order == sorted(order)
    newest = {path_of(each): int(each["id"]) for each in exp.files().list(latest=True)}
    for each in before:
        assert newest[each.path] >= each.id
    logs = {path_of(each) for each in exp.files().list("**/*.json")}
    assert {each.path for each in before if each.path.endswith(".json")} <= logs


def path_of(record: dict[str, Any]) -> str:
    return f"{record['path']}/{record['filename']}".strip("/")


def everything_is_there(exp: Experiment, daemon: DaemonProcess, saved: list[Told], folder: Path) -> None:
    records = {int(each["id"]): each for each in exp.files().list()}
    assert records.keys() == {each.id for each in saved}
    for each in saved:
        assert (path_of(records[each.id]), records[each.id]["checksum"]) == (each.path, each.sha256)
    for each in saved if isinstance(daemon.store, Folder) else saved[::10]:
        assert daemon.store.sha256(daemon.store.key_of(records[each.id])) == each.sha256
    assert daemon.store.keys() == sorted(map(daemon.store.key_of, records.values()))
    for who in range(WRITERS):  # ids follow the order of hand-off
        ids = [each.id for each in saved if each.who == who]
        assert ids == sorted(ids)
    newest = {each.path: each for each in sorted(saved, key=lambda each: each.id)}
    assert {path_of(each): each["checksum"] for each in exp.files().list(latest=True)} == {
        path: each.sha256 for path, each in newest.items()
    }
    for path in ("model.pt", "logs/3/epoch_1.json"):
        back = Path(str(exp.files(path).download(to=folder / "back")))
        assert hashlib.sha256(back.read_bytes()).hexdigest() == newest[path].sha256


# ---- pools of workers, as data loaders have them

POOL = """
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from ml_dash import Experiment

def begin(opened):
    global exp
    exp = opened

def fetch(number):
    content = b"%d " % number * (30_000 if number % 9 == 0 else 1)
    exp.files(f"batches/{number % 3}").save_blob(content, to=f"{number}.bin")
    return os.getpid()

if __name__ == "__main__":
    how, socket = sys.argv[1:]
    context = multiprocessing.get_context("fork" if how == "executor" else how)
    with Experiment("alice/cv/resnet", socket=socket).run as opened:
        opened.files("mine").save_text("before", to="parent.txt")
        for epoch in range(2):  # a loader makes new workers every epoch
            numbers = range(epoch * 30, epoch * 30 + 30)
            if how == "executor":
                with ProcessPoolExecutor(3, context, begin, (opened,)) as pool:
                    workers = {*pool.map(fetch, numbers)}
            else:
                with context.Pool(3, begin, (opened,), maxtasksperchild=6) as pool:
                    workers = {*pool.imap_unordered(fetch, numbers)}
            opened.files("mine").save_text(f"epoch {epoch}", to="parent.txt")
        opened.files.flush(60)
    print(os.getpid() in workers)
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "executor"])
def test_a_pool_of_workers_that_come_and_go(tmp_path: Path, how: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(POOL)
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        process = trainer(script, how, str(daemon.socket))
        assert (process.communicate(timeout=90), process.returncode) == (("False\n", ""), 0)
        with daemon.experiment().run as exp:
            assert [each["filename"] for each in exp.files("mine").list()] == ["parent.txt"] * 3
            newest = Path(str(exp.files("mine/parent.txt").download(to=tmp_path / "parent.txt")))
            assert newest.read_text() == "epoch 1"
            for each in exp.files("mine").list()[1:]:
                exp.files(file_id=each["id"]).delete()
            expected = {
                f"batches/{number % 3}/{number}.bin": b"%d " % number * (30_000 if number % 9 == 0 else 1)
                for number in range(60)
            } | {"mine/parent.txt": b"epoch 1"}
            batches = {path: hashlib.sha256(content).hexdigest() for path, content in expected.items()}
            listed = {path_of(each): each["checksum"] for each in exp.files().list()}
            assert listed == batches
