"""Old versions: which of them go, on request and by [retention]; the bytes of what was deleted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash.errors import Code
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow


def versions(exp: Experiment, path: str, count: int, **tagged: list[str]) -> list[str]:
    """Saves versions of a file, one after the other; returns their ids, oldest first."""
    return [
        exp.files.save_text(str(number), to=path, tags=tagged.get(f"v{number}", []))["id"] for number in range(count)
    ]


def ids(records: Any) -> list[str]:
    return [record["id"] for record in records]


def test_the_newest_stay_and_what_is_tagged(exp: Experiment) -> None:
    best = versions(exp, "models/best.pt", 5, v0=["gold"], v1=["silver", "x"])
    last = versions(exp, "models/last.pt", 2)
    other = versions(exp, "logs/a.txt", 4)
    exp.files.flush(30)
    keep: dict[str, Any] = {"keep_last": 2, "keep_tags": ["gold", "bronze"]}
    would = exp.files("models").prune(**keep, dry_run=True)
    assert ids(would) == [best[2], best[1]]
    assert {one["deletedAt"] for one in would} == {None}
    assert len(exp.files().list()) == 11
    gone = exp.files("models").prune(**keep)
    assert ids(gone) == [best[2], best[1]]
    assert None not in {one["deletedAt"] for one in gone}
    assert ids(exp.files("models").list()) == [best[4], best[3], best[0], last[1], last[0]]
    assert exp.files("models").prune(**keep) == []
    assert ids(exp.files().prune("**/*.txt", keep_last=1)) == other[2::-1]
    assert ids(exp.files("models/best.pt").prune(keep_last=1)) == [best[3], best[0]]


def test_more_versions_than_a_page(exp: Experiment, tmp_path: Path) -> None:
    source = tmp_path / "empty"
    source.touch()
    names = {f"{number % 2}.bin": source for number in range(2)}
    saved = [one["id"] for _ in range(260) for one in exp.files.upload_many(names)]
    exp.files.flush(60)
    assert len(exp.files().prune(keep_last=7)) == 520 - 14
    assert sorted(ids(exp.files().list())) == sorted(saved[-14:])


def test_more_tags_than_fit_into_an_answer(exp: Experiment) -> None:
    tags = [f"{number} {'語' * 250}" for number in range(128)]
    saved = [exp.files.save_text(str(number), to="a.txt", tags=tags)["id"] for number in range(50)]
    exp.files.flush(60)
    assert ids(exp.files().prune(keep_last=1, dry_run=True)) == saved[-2::-1]
    assert ids(exp.files().prune(keep_last=1)) == saved[-2::-1]
    assert ids(exp.files().list()) == saved[-1:]


def test_what_can_not_be_kept(exp: Experiment) -> None:
    for bad in (0, -1, 1.5, True, None, "3"):
        refused(lambda bad=bad: exp.files().prune(keep_last=bad), Code.INVALID_ARGUMENT, ValueError)
    refused(lambda: exp.files().prune(keep_last=1, keep_tags="best"), Code.INVALID_ARGUMENT, ValueError)
    refused(lambda: exp.files().prune("a//b", keep_last=1), Code.INVALID_PATH, ValueError)
    with pytest.raises(TypeError):
        exp.files().prune()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), "delete_grace = 0\n") as daemon:
        yield daemon


def test_what_is_on_its_way_pushes_nothing_out(folder: DaemonProcess, tmp_path: Path) -> None:
    temporary = tmp_path / "store" / ".ml-dash-tmp"
    with folder.experiment().run as exp:
        stored = versions(exp, "best.pt", 3)
        exp.files.flush(30)
        temporary.rename(tmp_path / "aside")
        temporary.touch()  # nothing more is stored
        pending = exp.files.save_text("new", to="best.pt")
        assert ids(exp.files("best.pt").prune(keep_last=2)) == [stored[0]]
        assert ids(exp.files("best.pt").list()) == [pending["id"], stored[2], stored[1]]
        temporary.unlink()
        (tmp_path / "aside").rename(temporary)
        pending.wait(30)
        assert ids(exp.files("best.pt").prune(keep_last=2)) == [stored[1]]
        eventually(lambda: len(folder.store.keys()) == 2)
        assert exp.files("best.pt").read_text() == "new"


def test_pruning_beside_new_saves_loses_none_of_the_newest(exp: Experiment) -> None:
    """Whenever it looks, the two newest stored versions stay; what is tagged in that moment, too."""
    done = threading.Event()
    pruned: list[str] = []

    def prune() -> None:
        while not done.is_set():
            pruned.extend(ids(exp.files("best.pt").prune(keep_last=2, keep_tags=["gold"])))

    pruning = threading.Thread(target=prune)
    pruning.start()
    saved, gold = [], []
    for number in range(40):
        saved.append(exp.files.save_text(str(number), to="best.pt"))
        if number % 10 == 0:
            gold.append(exp.files(file_id=saved[-1]["id"], tags=["gold"]).update()["id"])
    exp.files.flush(30)
    done.set()
    pruning.join(30)
    exp.files("best.pt").prune(keep_last=2, keep_tags=["gold"])
    left = ids(exp.files("best.pt").list())
    assert left == sorted({*ids(saved[-2:]), *gold}, key=int, reverse=True)
    assert set(pruned).isdisjoint(left)


def test_the_command(service: DaemonProcess, exp: Experiment) -> None:
    best = versions(exp, "models/best.pt", 3, v0=["gold"])
    exp.files.flush(30)
    place = exp.files("x")._place
    prefix = f"{place.namespace}/{place.project}/{place.experiment}"

    def prune(*words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "ml_dash.cli", "prune", *words, "--prefix", prefix]
        ended = subprocess.run(
            [*command, "--socket", str(service.socket)], capture_output=True, text=True, timeout=30, check=False
        )
        assert ended.returncode == status, ended.stderr
        return ended.stdout

    assert prune("models", "--keep-last", "1", "--dry-run").splitlines() == [
        f"would delete {best[1]}  models/best.pt",
        f"would delete {best[0]}  models/best.pt",
        "2 versions (2 bytes) would be deleted",
    ]
    gone = json.loads(prune("**", "--keep-last", "1", "--keep-tag", "gold", "--json"))
    assert [one["id"] for one in gone] == [best[1]]
    assert prune("--keep-last", "1", "--keep-tag", "gold") == "0 versions (0 bytes) deleted\n"
    for words in (("--keep-last", "0"), ()):
        assert prune(*words, status=2) == ""
    assert ids(exp.files().list()) == [best[2], best[0]]


def test_retention_by_the_settings(folder: DaemonProcess) -> None:
    with folder.experiment().run as exp:
        best = versions(exp, "models/best.pt", 4, v0=["gold"])
        log = versions(exp, "logs/a.txt", 3)
        exp.files.flush(30)
        with folder.experiment("alice/cv/other").run as other:
            versions(other, "deep/models/best.pt", 3)
            other.files.flush(30)
            folder.stop()
            folder.settings += '[retention]\nkeep_last = 1\nkeep_tags = ["gold"]\npattern = "**/*.pt"\n'
            folder.start()
            eventually(lambda: len(other.files().list()) == 1)
        eventually(lambda: ids(exp.files("models").list()) == [best[3], best[0]])
        assert ids(exp.files("logs").list()) == log[::-1]
        eventually(lambda: len(folder.store.keys()) == 6)
    assert "versions_pruned files=2" in folder.log()


def test_bytes_stay_for_the_grace_and_then_go(folder: DaemonProcess) -> None:
    """A week by default; here the same daemon is started with another grace."""
    folder.stop()
    folder.settings = ""
    folder.start()
    with folder.experiment().run as exp:
        saved = exp.files.save_text("a", to="a.txt").wait(30)
        kept = exp.files.save_text("b", to="b.txt").wait(30)
        exp.files("a.txt").delete()
        folder.stop()
        folder.start()
        assert len(folder.store.keys()) == 2
        folder.stop()
        folder.settings = "delete_grace = 0\n"
        folder.start()
        eventually(lambda: folder.store.keys() == [folder.store.key_of(kept)])
        reclaimed = "SELECT id FROM files WHERE deleted_ms > 0 AND deleted_ms < reclaimed_ms"
        eventually(lambda: folder.rows(reclaimed, "catalog") == [(int(saved["id"]),)])  # noted once they are gone
        assert folder.rows("SELECT count(*) FROM files WHERE deleted_ms > 0", "catalog") == [(1,)]
        refused(exp.files(file_id=saved["id"]).read_text, Code.UNKNOWN_FILE, FileNotFoundError)
