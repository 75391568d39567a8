"""`exists`, `read_text`, lists by tag and by id, and what a builder says of every file that is saved with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment, StorageError, reading
from ml_dash.errors import Code
from tests.edge.test_cancelled import open_descriptors
from tests.harness import DaemonProcess, make_file
from tests.scenario.conftest import Held, path_in_store
from tests.scenario.test_changes import SAID, said_of
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow


def ids(records: Any) -> list[str]:
    return [record["id"] for record in records]


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "on its way"])
def test_what_exists(held: Held, stored: bool) -> None:
    files, saved = held.exp.files, held.exp.files.save_text("a", to="models/a[1].txt")
    if stored:
        held.let_go()
        saved.wait(30)
    assert files("models/a[1].txt").exists()
    assert files("models").exists("a[1].txt") is False, "that is a pattern"
    assert files("models").exists("a[[]1].txt")
    assert files("models").exists("*.txt")
    assert files().exists("**/a*")
    assert files(file_id=saved["id"]).exists() is True
    for nothing in (files("models"), files("a[1].txt"), files("models/b.txt"), files(file_id=4611686018427387903)):
        assert nothing.exists() is False
    refused(lambda: files().exists("../a"), Code.INVALID_PATH, ValueError)
    files("models/a[1].txt").delete()
    assert not files("models/a[1].txt").exists()
    assert not files(file_id=saved["id"]).exists()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "on its way"])
def test_text_is_read_without_a_file(held: Held, stored: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    files = held.exp.files
    texts = {"a.txt": "größe\n", "empty.txt": "", "large.txt": "数" * 300_000}
    saved = [files("notes").save_text(text, to=name) for name, text in texts.items()]
    latin = files("notes").save_blob("größe".encode("latin-1"), to="latin.txt")
    if stored:
        held.let_go()
        held.exp.files.flush(30)
    before = open_descriptors()
    for name, text in texts.items():
        assert files(f"notes/{name}").read_text() == text
        assert files("notes").read_text(name) == text
    assert files(file_id=saved[0]["id"]).read_text(encoding="utf-8") == "größe\n"
    assert files(file_id=int(latin["id"])).read_text(encoding="latin-1") == "größe"
    refused(files("notes/latin.txt").read_text, Code.INVALID_ARGUMENT, ValueError, "notes/latin.txt", "utf-8")
    refused(lambda: files("notes/a.txt").read_text(encoding="none"), Code.INVALID_ARGUMENT, ValueError, "none")
    refused(files("notes/b.txt").read_text, Code.NO_MATCH, ValueError, "notes/b.txt")
    refused(files(file_id=4611686018427387903).read_text, Code.UNKNOWN_FILE, FileNotFoundError)
    newer = files("notes").save_text("newer", to="a.txt")
    assert files("notes/a.txt").read_text() == "newer"
    assert newer["id"] != saved[0]["id"]
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() <= before


def test_what_is_too_large_to_be_read_as_text(exp: Experiment, tmp_path: Path) -> None:
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(reading.MOST_BYTES + 1)
    saved = exp.files.upload(tmp_path / "large.txt")
    refused(exp.files("large.txt").read_text, Code.TOO_LARGE, ValueError, "large.txt", "download()")
    saved.wait(30)


def test_text_that_is_not_what_was_recorded(service: DaemonProcess, exp: Experiment) -> None:
    saved = exp.files.save_text("right", to="a.txt").wait(30)
    path_in_store(service, saved).write_text("wrong")
    refused(exp.files("a.txt").read_text, Code.CHECKSUM_MISMATCH, StorageError, "a.txt")


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "on their way"])
def test_lists_by_tag(held: Held, stored: bool) -> None:
    files = held.exp.files
    old = files.save_text("1", to="m/best.pt", tags=["best", "eval"])
    middle = files.save_text("2", to="m/best.pt", tags=["eval", "best", "x"])
    newest = files.save_text("3", to="m/best.pt", tags=["eval"])
    other = files.save_text("4", to="n.pt", tags=["best"])
    files.save_text("5", to="n.pt")
    if stored:
        held.let_go()
        files.flush(30)
    assert ids(files().list(tags=["best"])) == ids([middle, old, other])
    assert ids(files().list(tags=["best", "eval"])) == ids([middle, old])
    assert ids(files("m").list("*.pt", tags=["eval"], latest=True)) == ids([newest])
    assert ids(files().list(tags=["best"], latest=True)) == ids([middle, other]), "the newest that has it"
    assert files().list("n.*", tags=["eval"]) == []
    assert ids(files(file_id=old["id"]).list()) == ids([old])
    assert ids(files(file_id=old["id"]).list(tags=["best"])) == ids([old])
    assert files(file_id=old["id"]).list(tags=["x"]) == []
    refused(lambda: files().list(tags="best"), Code.INVALID_ARGUMENT, ValueError, "tags")
    with pytest.raises(TypeError):
        files().list(colour="red")


def test_by_id_every_call_is_about_that_version(exp: Experiment, tmp_path: Path) -> None:
    old, new = (exp.files("m").save_text(text, to="a.txt") for text in ("old", "new"))
    for file_id in (old["id"], int(old["id"])):
        one = exp.files(file_id=file_id)
        assert one.read_text() == "old"
        assert Path(one.download(to=tmp_path / "here.txt")).read_text() == "old"
        assert one.list()[0]["id"] == old["id"]
        assert one.exists()
        assert one.update()["id"] == old["id"]
    receipt = exp.files(file_id=old["id"]).delete()
    assert receipt["ids"] == [old["id"]]
    assert ids(exp.files("m").list()) == [new["id"]]


SAVERS: dict[str, Callable[..., Any]] = {
    "upload": lambda files, source, **words: files.upload(source, to="x", **words),
    "save_json": lambda files, _, **words: files.save_json({}, to="x", **words),
    "save_text": lambda files, _, **words: files.save_text("", to="x", **words),
    "save_blob": lambda files, _, **words: files.save_blob(b"", to="x", **words),
    "save_blob, large": lambda files, _, **words: files.save_blob(np.zeros(100_000), to="x", **words),
    "save a path": lambda files, source, **words: files.save(source, to="x", **words),
    "save bytes": lambda files, _, **words: files.save(b"", to="x", **words),
    "save a dict": lambda files, _, **words: files.save({}, to="x", **words),
    "upload_many": lambda files, source, **words: files.upload_many({"x": source}, **words)[0],
}


@pytest.mark.parametrize("saver", SAVERS)
def test_a_builders_words_go_with_every_file_and_the_calls_before_them(
    exp: Experiment, tmp_path: Path, saver: str
) -> None:
    make_file(tmp_path / "source", 10)
    save = SAVERS[saver]
    assert said_of(save(exp.files("m", **SAID), tmp_path / "source")) == SAID
    call = {"description": "", "tags": [], "bindrs": ["call"], "metadata": {"call": None}}
    for name, word in call.items():
        assert said_of(save(exp.files("m", **SAID), tmp_path / "source", **{name: word})) == SAID | {name: word}
    assert said_of(save(exp.files("m"), tmp_path / "source")) == {
        "description": None,
        "tags": [],
        "bindrs": [],
        "metadata": None,
    }
    for where in (
        lambda: exp.files("m", colour="red"),
        lambda: save(exp.files("m"), tmp_path / "source", colour="red"),
    ):
        with pytest.raises(TypeError):
            where()


def test_a_folder_that_is_taken_for_a_file_is_told_from_nothing(exp: Experiment, tmp_path: Path) -> None:
    exp.files("runs/1 [a]").save_text("x", to="a.txt")
    calls: list[Callable[[], object]] = [
        lambda: exp.files("runs/1 [a]").download(to=tmp_path / "a"),
        exp.files("runs/1 [a]").delete,
        exp.files("runs/1 [a]").read_text,
        lambda: exp.files.duplicate("runs/1 [a]", "copy"),
    ]
    for call in calls:
        refused(call, Code.NO_MATCH, ValueError, "'runs/1 [a]' in", "is a folder, and no file", 'the pattern "**"')
    refused(exp.files("runs/1").read_text, Code.NO_MATCH, ValueError, "no file fits 'runs/1' in")
    assert [each["filename"] for each in exp.files("runs").list()] == ["a.txt"]


def test_what_is_looked_for_may_begin_with_a_slash_as_a_records_path_does(exp: Experiment, tmp_path: Path) -> None:
    saved = exp.files("m").save_text("x", to="a.txt")
    full = f"{saved['path']}/{saved['filename']}"
    assert full == "/m/a.txt"
    assert exp.files.read_text(full) == "x"
    assert exp.files.exists(full)
    assert Path(exp.files.download(full, to=tmp_path / "here.txt")).read_text() == "x"
    assert [each["id"] for each in exp.files.list("/m/*")] == [each["id"] for each in exp.files("/m").list("/*.txt")]
    assert exp.files.download("/m/*", to=tmp_path / "out") == [str(tmp_path / "out/m/a.txt")]
    copy = exp.files.duplicate(full, "m/b.txt").wait(30)
    assert [each["id"] for each in exp.files.prune("/m/*", keep_last=1, dry_run=True)] == []
    assert exp.files.delete(full)["id"] == saved["id"]
    assert exp.files.delete("/m/*")[0]["id"] == copy["id"]
    refused(lambda: exp.files("m").delete("/none"), Code.NO_MATCH, ValueError, "no file fits 'm/none' in")
    for pattern in ("/", "//m/*", "/../*"):
        refused(lambda pattern=pattern: exp.files.list(pattern), Code.INVALID_PATH, ValueError, "the pattern")
