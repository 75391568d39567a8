"""What people read of an experiment in the folder of a local store, and what becomes of folders from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash import messages as m
from tests.doubles.raw_client import RawClient
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.embedded import Root

pytestmark = pytest.mark.slow

TREE = Path("alice/cv/resnet")


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonProcess:
    """Not started yet."""
    return DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))


def tree_of(daemon: DaemonProcess) -> Path:
    assert isinstance(daemon.store, Folder)
    return daemon.store.root / TREE


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole rows of a metric."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path: Path) -> list[int]:
    rows = lines(path)
    assert [row["index"] for row in rows] == [*range(len(rows))]
    return [row["data"]["n"] for row in rows]


def log(exp: Experiment, *which: int) -> None:
    for number in which:
        exp.metrics("train").log(n=number)


def note(path: Path, **values: Any) -> dict[str, Any]:
    """A file's object, once it has these values."""
    return eventually(
        lambda: path.is_file() and (found := json.loads(path.read_text())) and values.items() <= found.items() and found
    )


def test_the_folder_of_an_experiment(daemon: DaemonProcess) -> None:
    tree = tree_of(daemon)
    with daemon:
        with daemon.experiment(readme="größe", tags=["a"], metadata={"k": 1}).run as exp:
            exp.params.set(lr=0.1, opt={"name": "adam"})
            exp.metrics.log(epoch=1, train={"loss": 0.5}, **{"eval/small": {"loss": 0.6}})
            begun = note(tree / "experiment.json", status="RUNNING")
            assert begun | {"prefix": "alice/cv/resnet", "name": "resnet", "project": "cv", "readme": "größe"} == begun
            assert begun | {"tags": ["a"], "bindrs": [], "metadata": {"k": 1}, "endedAt": None, "error": None} == begun
            assert note(tree / "parameters.json", data={"lr": 0.1, "opt.name": "adam"})["updatedAt"].endswith("Z")
            data = tree / "metrics/train/data.jsonl"
            (row,) = eventually(lambda: data.is_file() and lines(data))  # read while it runs
            assert row["index"] == 0
            assert {**row["data"], "_ts": 0} == {"epoch": 1, "loss": 0.5, "_ts": 0}
            exp.metrics("train").log(loss=0.25)
        # What was logged is there when the run has ended, without waiting.
        assert [row["data"]["loss"] for row in lines(data)] == [0.5, 0.25]
        assert json.loads((tree / "experiment.json").read_text())["status"] == "COMPLETED"
        assert lines(tree / "metrics/None/data.jsonl")[0]["data"]["epoch"] == 1
        assert lines(tree / "metrics/eval/small/data.jsonl")[0]["data"]["loss"] == 0.6
        assert (data.stat().st_mode & 0o777, data.parent.stat().st_mode & 0o777) == (0o640, 0o750)
        assert [each.name for each in tree.iterdir() if each.name.startswith(".")] == []


def test_half_a_surrogate_pair_is_shown(daemon: DaemonProcess) -> None:
    """It is JSON, and no UTF-8."""
    tree = tree_of(daemon)
    words = {"a": "\ud800", "größe": 1}
    with daemon, daemon.experiment().run:
        connection = RawClient(daemon.socket).greet()
        place = m.Place(namespace="alice", project="cv", experiment="resnet")
        connection.ask(m.Done, m.OpenExperiment(request=1, place=place, metadata=json.dumps(words)))
        connection.ask(m.Done, m.SetParams(request=2, place=place, values=json.dumps(words)))
        row = m.NewRow(metric="train", data=json.dumps(words))
        connection.ask(m.Done, m.LogRows(request=3, place=place, writer=1, number=1, rows=(row,)))
        connection.close()
        note(tree / "experiment.json", metadata=words)
        note(tree / "parameters.json", data=words)
        eventually((tree / "metrics/train/data.jsonl").is_file)
        assert lines(tree / "metrics/train/data.jsonl")[0]["data"] == words


def test_rows_are_appended_to_the_same_file(daemon: DaemonProcess) -> None:
    data = tree_of(daemon) / "metrics/train/data.jsonl"
    with daemon:
        for start in (0, 3, 6):
            with daemon.experiment().run as exp:
                log(exp, *range(start, start + 3))
            if not start:
                inode = data.stat().st_ino
            assert data.stat().st_ino == inode
            daemon.stop()
            daemon.start()
        assert numbers(data) == [*range(9)]


@pytest.mark.parametrize("harm", ["torn", "cut", "gone", "foreign rows at the end"])
def test_what_a_crash_or_a_hand_did_to_the_rows_is_mended(daemon: DaemonProcess, harm: str) -> None:
    data = tree_of(daemon) / "metrics/train/data.jsonl"
    with daemon:
        with daemon.experiment().run as exp:
            log(exp, *range(5))
        daemon.kill()
        whole = data.read_text()
        if harm == "torn":
            data.write_text(whole + '{"index": 5, "da')
        elif harm == "cut":
            data.write_text("".join(whole.splitlines(keepends=True)[:2]))
        elif harm == "gone":
            shutil.rmtree(data.parent)
        else:
            data.write_text(whole + '{"index": 5, "data": {"n": 50}, "createdAt": "2026-01-01T00:00:00Z"}\n')
        daemon.start()
        with daemon.experiment().run as exp:
            log(exp, 5)
            expected = [0, 1, 2, 3, 4, 50, 5] if "foreign" in harm else [*range(6)]
            assert [row["n"] for row in exp.metrics("train")] == expected
        assert numbers(data) == expected


def test_rows_that_a_kill_kept_from_the_folder_come_at_the_next_start(daemon: DaemonProcess) -> None:
    """Without anybody opening the experiment again: the folder could not be written while it ran."""
    tree = tree_of(daemon)
    tree.parent.parent.parent.mkdir(parents=True)
    gate = tree.parent.parent
    gate.touch()  # a plain file stands where the namespace has to be
    with daemon:
        with daemon.experiment().run as exp:
            log(exp, *range(5))
            exp.params.set(lr=1)
        assert "tree_not_written" in daemon.log()
        daemon.kill()
        gate.unlink()
        daemon.start()
        note(tree / "experiment.json", status="COMPLETED")
        note(tree / "parameters.json", data={"lr": 1})
        eventually((tree / "metrics/train/data.jsonl").is_file)
        eventually(lambda: numbers(tree / "metrics/train/data.jsonl") == [*range(5)])


def test_a_folder_that_can_not_be_written_is_written_later(daemon: DaemonProcess) -> None:
    tree = tree_of(daemon)
    gate = tree.parent.parent
    gate.parent.mkdir(parents=True)
    gate.touch()
    with daemon, daemon.experiment().run as exp:
        log(exp, 0, 1)
        eventually(lambda: "tree_not_written" in daemon.log())
        gate.unlink()
        log(exp, 2)
        eventually((tree / "metrics/train/data.jsonl").is_file)
        eventually(lambda: numbers(tree / "metrics/train/data.jsonl") == [0, 1, 2])
        assert daemon.log().count("tree_not_written") == 1


# ---- folders from elsewhere


OLD_EXPERIMENT = {
    "name": "resnet", "project": "cv", "description": "from 0.11", "tags": ["old"], "bindrs": ["b"],
    "prefix": "alice/cv/resnet", "metadata": {"k": 1}, "created_at": "2026-11-27T02:09:35.883313Z",
    "write_protected": False,
}  # fmt: skip


def test_the_folder_of_an_earlier_release_goes_on(make_root: Callable[..., Root]) -> None:
    """As ml-dash 0.11 wrote it: readme, parameters and rows are there, and new rows come after them."""
    root = make_root()
    tree = root.path / TREE
    (tree / "metrics/train").mkdir(parents=True)
    (tree / "metrics/None").mkdir(parents=True)
    (tree / "experiment.json").write_text(json.dumps(OLD_EXPERIMENT))
    (tree / "parameters.json").write_text(
        json.dumps({"version": 3, "data": {"lr": 2, "opt.name": "a", "opt": 5}, "updatedAt": "2026-01-27T02:09:35Z"})
    )
    old = '{"index": %d, "data": {"n": %d, "_ts": 1795745375.88}, "createdAt": "2026-01-27T02:09:35.889267Z"}\n'
    (tree / "metrics/train/data.jsonl").write_text("".join(old % (n, n) for n in range(1500)))
    (tree / "metrics/None/data.jsonl").write_text("not json\n" + old % (0, 7) + "[1]\n")
    with root.experiment().run as exp:
        assert exp.params.get() == {"lr": 2, "opt.name": "a"}
        exp.params.set(lr=3)
        log(exp, 1500)
        exp.metrics.log(n=8)
        assert [row["n"] for row in exp.metrics("train")] == [*range(1501)]
        assert [row["n"] for row in exp.metrics()] == [7, 8]
    assert numbers(tree / "metrics/train/data.jsonl") == [*range(1501)]
    assert numbers(tree / "metrics/None/data.jsonl") == [7, 8]
    told = json.loads((tree / "experiment.json").read_text())
    assert (told["readme"], told["tags"], told["bindrs"], told["metadata"]) == ("from 0.11", ["old"], ["b"], {"k": 1})
    assert json.loads((tree / "parameters.json").read_text())["data"] == {"lr": 3, "opt.name": "a"}


def test_a_root_goes_from_host_to_host(make_root: Callable[..., Root], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system: each host has a catalog of its own, and takes in what the other has logged."""
    root = make_root()
    data = root.path / TREE / "metrics/train/data.jsonl"
    seen: list[int] = []
    for turn, host in enumerate(("one", "two", "one", "two")):
        monkeypatch.setenv("ML_DASH_STATE", str(root.path.parent / host))
        here = Root(root.path)
        with here.experiment().run as exp:
            log(exp, turn * 2, turn * 2 + 1)
            exp.params.set({f"turn{turn}": turn})
            seen += [turn * 2, turn * 2 + 1]
            assert [row["n"] for row in exp.metrics("train")] == seen
            assert exp.params.get() == {f"turn{each}": each for each in range(turn + 1)}
        assert numbers(data) == seen
        here.end()


def test_a_copied_root_has_everything(make_root: Callable[..., Root], tmp_path: Path) -> None:
    root = make_root()
    with root.experiment().run as exp:
        log(exp, 0, 1)
        exp.params.set(lr=1)
    root.end()
    copy = make_root("copy")
    shutil.copytree(root.path, copy.path)
    shutil.rmtree(copy.path / ".ml-dashd")  # not even the catalog came along
    with copy.experiment().run as exp:
        log(exp, 2)
        assert [row["n"] for row in exp.metrics("train")] == [0, 1, 2]
        assert exp.params.get() == {"lr": 1}
    assert numbers(copy.path / TREE / "metrics/train/data.jsonl") == [0, 1, 2]
    assert numbers(root.path / TREE / "metrics/train/data.jsonl") == [0, 1]
