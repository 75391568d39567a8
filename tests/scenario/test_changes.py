"""What changes of a file after it was handed over: what is said of it, before and after it is stored; its deletion."""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.conftest import Held
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow

SAID = {
    "description": "the first words",
    "tags": ["old", "kept"],
    "bindrs": ["run"],
    "metadata": {"epoch": 1, "größe": [1, 2]},
}


def said_of(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in SAID}


@pytest.mark.parametrize(
    "change",
    [
        {"description": "second"},
        {"tags": ["new", "tags"]},
        {"bindrs": []},
        {"metadata": {"updated": True}},
        {"description": "", "tags": [], "bindrs": ["a", "b"], "metadata": {}},
        {},
    ],
    ids=lambda change: ", ".join(change) or "nothing",
)
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "on its way"])
def test_an_update_changes_what_is_given_and_nothing_else(held: Held, stored: bool, change: dict[str, Any]) -> None:
    saved = held.exp.files("models", **SAID).save_json({"lr": 1}, to="best.json")
    if stored:
        held.let_go()
        saved.wait(30)
    before = dict(saved.refresh())
    updated = held.exp.files(file_id=saved["id"], **change).update()
    assert said_of(updated) == SAID | change
    assert updated["updatedAt"] >= before["updatedAt"]
    same = {name for name in before if name not in {*SAID, "updatedAt", "uploadedAt", "state", "pin"}}
    assert {name: updated[name] for name in same} == {name: before[name] for name in same}
    held.let_go()
    saved.wait(30)
    assert said_of(saved) == SAID | change
    assert [said_of(one) for one in held.exp.files("models").list()] == [SAID | change]
    assert json.loads(held.exp.files("models/best.json").read_text()) == {"lr": 1}


def test_the_calls_words_go_before_the_builders(exp: Experiment) -> None:
    saved = exp.files(**SAID).save_text("a", to="a.txt")
    updated = exp.files(file_id=int(saved["id"]), tags=["builder"], description="builder").update(tags=["call"])
    assert said_of(updated) == SAID | {"tags": ["call"], "description": "builder"}


def test_an_update_needs_an_id_that_a_file_has(exp: Experiment) -> None:
    saved = exp.files.save_text("a", to="a.txt")
    refused(exp.files("a.txt", tags=["x"]).update, Code.INVALID_ARGUMENT, ValueError, "id")
    for unknown in ("4611686018427387903", 4611686018427387903, "0"):
        refused(exp.files(file_id=unknown, tags=["x"]).update, Code.UNKNOWN_FILE, FileNotFoundError, str(unknown))
    refused(lambda: exp.files(file_id="abc"), Code.UNKNOWN_FILE, FileNotFoundError, "abc")
    exp.files("a.txt").delete()
    refused(exp.files(file_id=saved["id"], tags=["x"]).update, Code.UNKNOWN_FILE, FileNotFoundError, saved["id"])
    with pytest.raises(TypeError):
        exp.files(file_id=saved["id"], colour="red")
    with pytest.raises(TypeError):
        exp.files(file_id=saved["id"]).update(colour="red")


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        ({"tags": "best"}, Code.INVALID_ARGUMENT, ValueError),
        ({"tags": ["a\n"]}, Code.INVALID_ARGUMENT, ValueError),
        ({"metadata": {"a": object()}}, Code.INVALID_METADATA, TypeError),
        ({"metadata": [1]}, Code.INVALID_METADATA, TypeError),
        ({"description": 5}, Code.INVALID_ARGUMENT, ValueError),
        ({"description": "x" * 20_000}, Code.INVALID_ARGUMENT, ValueError),
        ({"tags": ["x"] * 129}, Code.INVALID_ARGUMENT, ValueError),
    ],
)
def test_words_that_can_not_be_said(exp: Experiment, words: dict[str, Any], code: Code, kind: type[Exception]) -> None:
    saved = exp.files(**SAID).save_text("a", to="a.txt")
    refused(lambda: exp.files(file_id=saved["id"]).update(**words), code, kind)
    assert said_of(saved.refresh()) == SAID


def test_words_that_are_too_long_together(exp: Experiment) -> None:
    """Each update fits; what would be said of the file then does not travel in a record."""
    saved = exp.files.save_text("a", to="a.txt", metadata={"a": "ä" * 200_000})
    call = exp.files(file_id=saved["id"], tags=[f"{n:03}" + "数" * 250 for n in range(128)], description="数" * 16_000)
    refused(call.update, Code.INVALID_ARGUMENT, ValueError, "a.txt")
    assert saved.refresh()["tags"] == []


@pytest.mark.parametrize(
    ("point", "small"),
    [("finish.before_catalog", True), ("finish.before_catalog", False), ("catalog.before_commit", True)],
)
def test_an_update_between_the_commit_and_its_end_is_not_undone(tmp_path: Path, point: str, *, small: bool) -> None:
    """The old words are on their way into the catalog, or there, and the journal still has the file."""
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), faults=f"{point}=hang") as daemon,
        daemon.experiment().run as exp,
    ):
        saved = exp.files(**SAID).save_blob(b"x" * (1000 if small else 100_000), to="a.bin")
        daemon.wait_until_hung()
        updating = threading.Thread(target=exp.files(file_id=saved["id"], tags=["late"]).update)
        updating.start()  # its request lies in the socket when the daemon goes on
        daemon.resume()
        updating.join(30)
        saved.wait(30)
        assert said_of(saved) == SAID | {"tags": ["late"]}
        assert [one["id"] for one in exp.files().list(tags=["late"])] == [saved["id"]]
        assert exp.files().list(tags=["old"]) == []


@pytest.mark.parametrize("point", ["finish.before_catalog", "finish.after_catalog"])
def test_an_update_outlives_kill_9(tmp_path: Path, point: str) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        gate = tmp_path / "store" / "held"
        gate.parent.mkdir(exist_ok=True)
        gate.touch()
        with daemon.experiment("held/cv/resnet").run as exp:
            saved = exp.files(**SAID).save_blob(b"x" * 1000, to="a.bin")
            exp.files(file_id=saved["id"], metadata={"epoch": 2}).update()
            daemon.kill()
            gate.unlink()
            daemon.start(faults=f"{point}=kill")
            daemon.wait_for_death(30)
            daemon.start()
            saved.wait(30)
            assert said_of(saved) == SAID | {"metadata": {"epoch": 2}}
            assert said_of(exp.files("a.bin").list()[0]) == SAID | {"metadata": {"epoch": 2}}


def test_updates_and_commits_at_once_lose_no_word(service: DaemonProcess) -> None:
    """Many files, each amended again and again while it goes up; the last word of each holds."""
    with service.experiment(f"alice/cv/{secrets.token_hex(4)}").run as exp:
        saved = [exp.files(tags=["0"]).save_blob(content_of(number), to=f"{number}.bin") for number in range(60)]

        def amend(some: list[Any]) -> None:
            for word in range(1, 4):
                for one in some:
                    exp.files(file_id=one["id"], tags=[str(word)]).update()

        threads = [threading.Thread(target=amend, args=[saved[start::3]]) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        exp.files.flush(60)
        assert {tuple(one["tags"]) for one in exp.files().list()} == {("3",)}
        assert len(exp.files().list(tags=["3"])) == 60


def content_of(number: int) -> bytes:
    return bytes([number]) * (70_000 if number % 10 == 0 else 100)


def test_a_file_that_is_deleted_while_it_is_updated_stays_deleted(service: DaemonProcess) -> None:
    """Whichever comes first: the update goes through or finds no file, and nothing is listed in the end."""
    with service.experiment(f"alice/cv/{secrets.token_hex(4)}").run as exp:
        for number in range(20):
            saved = exp.files.save_text("a", to=f"{number}.txt")
            outcome: list[Any] = []

            def update(one: Any = saved, into: list[Any] = outcome) -> None:
                try:
                    into.append(exp.files(file_id=one["id"], tags=["x"]).update()["tags"])
                except MLDashError as failure:
                    into.append(failure.code)

            updating = threading.Thread(target=update)
            updating.start()
            exp.files(file_id=saved["id"]).delete()
            updating.join(30)
            assert outcome in ([["x"]], [Code.UNKNOWN_FILE])
        eventually(lambda: exp.files().list() == [])
        exp.files.flush(30)
        assert exp.files().list() == []


def test_a_file_that_the_catalog_knows_as_deleted_is_taken_back(tmp_path: Path) -> None:
    """Another daemon of the catalog has deleted it meanwhile, and reclaimed its bytes, say: it is not listed again."""
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), faults="finish.after_catalog=kill") as daemon,
        daemon.experiment().run as exp,
    ):
        saved = exp.files.save_text("a", to="a.txt")
        daemon.wait_for_death(30)
        with contextlib.closing(sqlite3.connect(daemon.state / "catalog.sqlite")) as catalog, catalog:
            catalog.execute("UPDATE files SET deleted_ms = 1, reclaimed_ms = 2 WHERE id = ?", (int(saved["id"]),))
        daemon.start()
        exp.files("other").save_text("b", to="b.txt").wait(30)
        eventually(lambda: [store_path(path) for path in daemon.store.keys()] == ["b.txt"])  # noqa: SIM118
        assert [one["filename"] for one in exp.files().list()] == ["b.txt"]
        assert saved.refresh()["deletedAt"] is not None


def store_path(key: str) -> str:
    return key.rpartition("/")[2]
