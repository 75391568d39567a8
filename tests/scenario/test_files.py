"""`exp.files`: names and folders, versions, globs, downloads, deletions, and waiting for all of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ml_dash import Experiment, FileResult, MLDashError, StorageError
from ml_dash.errors import Code
from ml_dash.media.encoding import encoding_of
from ml_dash.media.video import write_video
from tests.harness import DaemonProcess, eventually, file_sha256, make_file
from tests.scenario.conftest import Held, path_in_store

pytestmark = pytest.mark.slow

PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
PAGE = SimpleNamespace(to_html=lambda: "<html>", write_html=None)
"""A figure of plotly's as far as it goes."""


def png() -> bytes:
    Image.fromarray(PIXELS).save(out := io.BytesIO(), format="PNG")
    return out.getvalue()


def mp4() -> bytes:
    write_video(out := io.BytesIO(), PIXELS[None], "a.mp4", Fraction(30), encoding_of("a.mp4"))  # type: ignore[arg-type]
    return out.getvalue()


LARGE = 100_000
"""More than travels inside a message (64 KiB): it takes the way of a slot, or of a pin."""
SAVERS: dict[str, tuple[Callable[..., FileResult], bytes]] = {
    "upload": (lambda files, folder, to: files.upload(folder / "source", to=to), b"uploaded"),
    "save_json": (lambda files, _, to: files.save_json({"lr": 1e-3}, to=to), b'{"lr": 0.001}'),
    "save_text": (lambda files, _, to: files.save_text("größe\n", to=to), "größe\n".encode()),
    "save_blob": (lambda files, _, to: files.save_blob(b"\x00\x01", to=to), b"\x00\x01"),
    "save_image": (lambda files, _, to: files.save_image(PIXELS, to=f"{to}.png"), png()),
    "save_fig": (lambda files, _, to: files.save_fig(PAGE, to=f"{to}.html"), b"<html>"),
    "save_video": (lambda files, _, to: files.save_video(PIXELS[None], to=f"{to}.mp4"), mp4()),
    "save a path": (lambda files, folder, to: files.save(str(folder / "source"), to=to), b"uploaded"),
    "save bytes": (lambda files, _, to: files.save(b"\x02", to=to), b"\x02"),
    "save a dict": (lambda files, _, to: files.save({"a": [1]}, to=to), b'{"a": [1]}'),
    "save pixels": (lambda files, _, to: files.save(PIXELS, to=f"{to}.png"), png()),
}


def path_of(record: dict[str, Any]) -> str:
    return f"{record['path']}/{record['filename']}".lstrip("/")


def paths(records: list[FileResult]) -> list[str]:
    return [path_of(record) for record in records]


def content_of(exp: Experiment, path: str, folder: Path, **by: Any) -> bytes:
    target = folder / "content"
    exp.files(None if by else path, **by).download(to=target)
    return target.read_bytes()


def refused(call: Callable[[], Any], code: Code, kind: type[Exception], *named: str) -> None:
    """A refusal has its code, the built-in that old scripts catch, and names the thing in message or hint."""
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, MLDashError)
    assert caught.value.code is code
    for text in named:
        assert text in str(caught.value)


# ---- names


@pytest.mark.parametrize("saver", SAVERS)
def test_builder_and_direct_style(service: DaemonProcess, exp: Experiment, tmp_path: Path, saver: str) -> None:
    """`to` may have folders, for every saver; a prefix goes before it."""
    save, content = SAVERS[saver]
    (tmp_path / "source").write_bytes(b"uploaded")
    made = [
        save(exp.files("p/q"), tmp_path, "a/b.bin"),
        save(exp.files("p/q/"), tmp_path, "a/b.bin"),
        save(exp.files(prefix="p/q/a"), tmp_path, "b.bin"),
        save(exp.files(), tmp_path, "p/q/a/b.bin"),
        save(exp.files, tmp_path, "p/q/a/b.bin"),
    ]
    exp.files.flush(30)
    assert [(each["path"], each["filename"][:5]) for each in made] == [("/p/q/a", "b.bin")] * 5
    assert sorted(each["id"] for each in made) == sorted(each["id"] for each in exp.files("p/q/a").list("b.bin*"))
    for each in made:
        assert path_in_store(service, each).read_bytes() == content
        assert path_in_store(service, each).parent.parent.parts[-5:] == (
            exp.files.place.experiment, "files", "p", "q", "a",
        )  # fmt: skip


def test_an_upload_keeps_its_name(exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for given in ("./model.pt", tmp_path / "model.pt", str(tmp_path / "model.pt")):
        assert path_of(exp.files("models").upload(given)) == "models/model.pt"
    assert path_of(exp.files.save("model.pt")) == "model.pt"


def test_composed_and_decomposed_names_are_one(exp: Experiment, tmp_path: Path) -> None:
    composed, decomposed = "é/ñ.txt", "e\u0301/n\u0303.txt"
    folder, name = decomposed.split("/")
    exp.files(folder).save_text("old", to=name)
    exp.files.save_text("new", to=composed)
    for typed in (composed, decomposed):
        assert paths(exp.files(typed).list()) == paths(exp.files().list(typed)) == [composed] * 2
        assert content_of(exp, typed, tmp_path) == b"new"
        # Relative to the prefix, however that is typed.
        got = exp.files(typed.split("/")[0]).download("*", to=tmp_path / "out")
        assert got == [str(tmp_path / "out" / "ñ.txt")]
    receipt = exp.files(decomposed).delete()
    assert len(receipt["ids"]) == 2
    assert exp.files().list() == []


# ---- versions, lists and globs


def test_every_save_is_a_version(exp: Experiment, tmp_path: Path) -> None:
    """Saved one right after the other: none replaces another, and the last is the newest."""
    made = [exp.files("m").save_blob(bytes([n]) * size, to="best.pt") for n, size in enumerate([10, LARGE] * 3)]
    other = exp.files("m").save_text("x", to="a.txt")
    ids = [each["id"] for each in made]
    assert ids == sorted(ids, key=int)
    assert len(set(ids)) == len(ids)
    for _ in range(2):  # on their way, and stored
        assert [each["id"] for each in exp.files("m").list()] == [other["id"], *reversed(ids)]
        assert [each["id"] for each in exp.files("m").list(latest=True)] == [other["id"], ids[-1]]
        assert [each["id"] for each in exp.files().list("m/*.pt", latest=True)] == [ids[-1]]
        assert content_of(exp, "m/best.pt", tmp_path) == bytes([5]) * LARGE
        exp.files.flush(30)
    for number, size in enumerate([10, LARGE] * 3):
        assert content_of(exp, "", tmp_path, file_id=ids[number]) == bytes([number]) * size


TREE = [
    "model.pt",
    "top.json",
    "model/a.json",
    "model/deep/b.json",
    "models/c.json",
    "models/x/y/d.json",
    "models/e.pt",
]


@pytest.mark.parametrize(
    ("prefix", "pattern", "found"),
    [
        ("", None, sorted(TREE)),
        ("model", None, ["model/a.json", "model/deep/b.json"]),
        ("models", None, ["models/c.json", "models/e.pt", "models/x/y/d.json"]),
        ("mod", None, []),
        ("", "*", ["model.pt", "top.json"]),
        ("", "*.json", ["top.json"]),
        ("", "model*", ["model.pt"]),
        ("", "*/*.json", ["model/a.json", "models/c.json"]),
        ("", "**/*.json", ["model/a.json", "model/deep/b.json", "models/c.json", "models/x/y/d.json", "top.json"]),
        ("", "**", sorted(TREE)),
        ("", "models/**", ["models/c.json", "models/e.pt", "models/x/y/d.json"]),
        ("", "models/**/d.json", ["models/x/y/d.json"]),
        ("", "**/x/**/*.json", ["models/x/y/d.json"]),
        ("models", "*.json", ["models/c.json"]),
        ("models", "**/*.json", ["models/c.json", "models/x/y/d.json"]),
        ("models", "?.[!j]*", ["models/e.pt"]),
        ("", "model?a.json", []),
        ("", "model[!x]a.json", []),
        ("models", "models/*", []),
        ("models/x", "y/d.json", ["models/x/y/d.json"]),
    ],
)
def test_globs(treed: Experiment, prefix: str, pattern: str | None, found: list[str]) -> None:
    """`*` stays inside a folder, `**` spans any number of them, both below the prefix they are asked at."""
    assert paths(treed.files(prefix).list(pattern)) == found


@pytest.fixture(scope="module")
def treed(service: DaemonProcess) -> Experiment:
    exp = service.experiment("alice/cv/globs").run.start()
    for path in TREE:
        exp.files.save_text(path, to=path)
    return exp


def test_names_with_the_marks_of_globs(exp: Experiment, tmp_path: Path) -> None:
    """A name that is given as a prefix is taken as it is."""
    for name in ("a[1].txt", "a1.txt", "b*.txt", "bb.txt", "c?.txt"):
        exp.files.save_text(name, to=name)
    for name in ("a[1].txt", "b*.txt", "c?.txt"):
        assert content_of(exp, name, tmp_path) == name.encode()
        assert len(exp.files(name).delete()["ids"]) == 1
    assert paths(exp.files().list()) == ["a1.txt", "bb.txt"]


def test_experiments_do_not_see_each_other(service: DaemonProcess, exp: Experiment) -> None:
    """Not even one whose prefix goes on where another's ends."""
    exp.files.save_text("x", to="deep/a.txt")
    with service.experiment(f"{exp.prefix}/deep").run as below:
        below.files.save_text("x", to="b.txt")
        assert paths(below.files().list()) == ["b.txt"]
        assert paths(exp.files().list()) == ["deep/a.txt"]
        assert below.files().list()[0]["experimentId"] == f"{exp.prefix}/deep"


def test_what_was_handed_over_is_listed_at_once(held: Held, tmp_path: Path) -> None:
    """Before it is stored, and in every moment of its way."""
    make_file(tmp_path / "a.bin", LARGE)
    made = [
        held.exp.files("x").upload(tmp_path / "a.bin"),
        held.exp.files("x").save_blob(b"b" * LARGE, to="b.bin"),
        held.exp.files("x").save_text("c", to="c.txt"),
    ]
    ids = [each["id"] for each in made]
    assert [each["id"] for each in held.exp.files().list()] == ids
    assert {each["state"] for each in held.exp.files().list()} <= {"QUEUED", "SENDING"}
    held.let_go()
    looks = 0
    while True:
        listed = held.exp.files("x").list()
        assert [each["id"] for each in listed] == ids
        if {each["state"] for each in listed} == {"DONE"}:
            break
        looks += 1
    assert looks


def test_lists_are_whole_while_files_are_saved(service: DaemonProcess, exp: Experiment) -> None:
    """A reader of its own sees every file that was acknowledged before it asked."""
    acknowledged: list[str] = []
    done = Event()

    def save() -> None:
        for number in range(150):
            size = LARGE if number % 10 == 0 else 10
            acknowledged.append(exp.files("m").save_blob(bytes(size), to=f"{number % 7}.bin")["id"])
        done.set()

    saving = Thread(target=save)
    saving.start()
    with service.experiment(exp.prefix).run as reader:
        looks = 0
        while not done.is_set():
            before = set(acknowledged)
            ids = [each["id"] for each in reader.files().list()]
            assert len(ids) == len(set(ids))
            assert before <= set(ids)
            looks += 1
        saving.join()
        assert looks > 5
        assert {each["id"] for each in reader.files().list()} == set(acknowledged)


# ---- download


def test_download_goes_to_the_working_folder(exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp.files.save_text("hello", to="models/model.pt")
    monkeypatch.chdir(tmp_path)
    for download in (exp.files("models/model.pt").download, partial(exp.files("models").download, "model.pt")):
        assert download() == "model.pt"
        assert Path("model.pt").read_text() == "hello"
        Path("model.pt").unlink()
    assert list(tmp_path.iterdir()) == []


def test_download_to_a_file_or_a_folder(exp: Experiment, tmp_path: Path) -> None:
    exp.files.save_text("hello", to="models/model.pt")
    (tmp_path / "there").mkdir()
    (tmp_path / "old.pt").write_text("a longer text, which is replaced whole")
    for to, expected in {
        tmp_path / "new.pt": "new.pt",
        f"{tmp_path}/made/for/it.pt": "made/for/it.pt",
        tmp_path / "there": "there/model.pt",
        f"{tmp_path}/not/there/": "not/there/model.pt",
        str(tmp_path / "old.pt"): "old.pt",
    }.items():
        assert exp.files("models/model.pt").download(to=to) == str(tmp_path / expected)
        assert (tmp_path / expected).read_text() == "hello"
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["made/for/it.pt", "new.pt", "not/there/model.pt", "old.pt", "there/model.pt"]


def test_a_downloaded_file_has_the_mode_of_any_new_file(exp: Experiment, tmp_path: Path) -> None:
    exp.files.save_text("hello", to="a.txt")
    exp.files("a.txt").download(to=tmp_path / "a.txt")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_download_of_a_glob_keeps_folders(exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of each; two of one name do not meet."""
    for path in ("img/a/0.png", "img/a/0.png", "img/b/0.png", "img/1.png", "img/a/x.txt", "images/2.png"):
        exp.files.save_text(f"{path} {len(exp.files().list())}", to=path)
    got = exp.files("img").download("**/*.png", to=tmp_path / "out")
    expected = {"1.png": "img/1.png 3", "a/0.png": "img/a/0.png 1", "b/0.png": "img/b/0.png 2"}
    assert got == [str(tmp_path / "out" / name) for name in expected]
    assert {name: (tmp_path / "out" / name).read_text() for name in expected} == expected
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3
    monkeypatch.chdir(tmp_path)
    assert exp.files().download("img/*/0.png") == ["img/a/0.png", "img/b/0.png"]
    assert Path("img/b/0.png").read_text() == "img/b/0.png 2"
    assert exp.files("img").download("1.*") == ["1.png"]  # a list, as a glob always gives


def test_download_of_what_is_not_there(exp: Experiment, tmp_path: Path) -> None:
    exp.files.save_text("x", to="models/a.txt")
    nothing = [
        lambda: exp.files("b.txt").download(to=tmp_path / "b.txt"),
        lambda: exp.files("models").download(to=tmp_path / "models"),
        lambda: exp.files("models").download("*.pt", to=tmp_path / "models"),
    ]
    for call in nothing:
        refused(call, Code.NO_MATCH, ValueError, exp.prefix)
    for unknown in ("123", 123, "pending", ""):
        call = lambda unknown=unknown: exp.files(file_id=unknown).download(to=tmp_path / "b.txt")  # noqa: E731
        refused(call, Code.UNKNOWN_FILE, FileNotFoundError, str(unknown))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10, LARGE, 20 << 20], ids=["inline", "one request", "parts"])
def test_download_of_a_file_on_its_way(held: Held, tmp_path: Path, size: int) -> None:
    """It comes from its pin, though the source is gone."""
    digest = make_file(tmp_path / "a.bin", size)
    uploaded = held.exp.files.upload(tmp_path / "a.bin")
    saved = held.exp.files.save_blob((tmp_path / "a.bin").read_bytes(), to="b.bin")
    (tmp_path / "a.bin").unlink()
    for name in ("a.bin", "b.bin"):
        assert file_sha256(Path(held.exp.files(name).download(to=tmp_path / "back"))) == digest
    assert {uploaded.state, saved.state} <= {"QUEUED", "SENDING", "COMPLETING"}


@pytest.mark.parametrize("damage", ["a flipped byte", "cut short", "emptied"])
def test_a_damaged_object_is_no_download(service: DaemonProcess, exp: Experiment, tmp_path: Path, damage: str) -> None:
    """What lies at the destination is left alone, and nothing beside it."""
    make_file(tmp_path / "source", 20 << 20)
    record = exp.files.upload(tmp_path / "source", to="sub/a.bin").wait(30)
    with path_in_store(service, record).open("r+b") as file:
        if damage == "a flipped byte":
            file.seek(LARGE)
            byte = file.read(1)
            file.seek(LARGE)
            file.write(bytes([byte[0] ^ 1]))
        else:
            file.truncate(LARGE if damage == "cut short" else 0)
    target = tmp_path / "out" / "sub" / "a.bin"
    target.parent.mkdir(parents=True)
    target.write_text("mine")
    before = target.stat()
    for call in (
        lambda: exp.files("sub/a.bin").download(to=target),
        lambda: exp.files().download("**", to=tmp_path / "out"),
        lambda: exp.files(file_id=record["id"]).download(to=target),
    ):
        refused(call, Code.CHECKSUM_MISMATCH, StorageError, "sub/a.bin", record["id"])
    assert target.read_text() == "mine"
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]


def test_an_object_that_is_gone(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """Somebody removed it behind the daemon's back: it is named, and nothing else is to be mended."""
    record = exp.files.save_text("x", to="sub/a.txt").wait(30)
    path_in_store(service, record).unlink()
    refused(
        lambda: exp.files("sub/a.txt").download(to=tmp_path / "a.txt"), Code.OBJECT_MISSING, FileNotFoundError, "a.txt"
    )
    assert list(tmp_path.iterdir()) == []


def test_download_right_after_the_save(exp: Experiment, tmp_path: Path) -> None:
    """In whatever moment of its way the file is: from its pin before it is stored, from the store after."""
    for number in range(50):
        content = f"{number} ".encode() * 100
        exp.files.save_blob(content, to="a.bin")
        for _ in range(3):
            assert content_of(exp, "a.bin", tmp_path) == content


# ---- delete


def test_delete_takes_all_versions_of_a_path(exp: Experiment, tmp_path: Path) -> None:
    made = [exp.files("m").save_text(str(n), to="a.txt") for n in range(3)]
    kept = exp.files("m").save_text("x", to="a.txt.bak")
    exp.files.flush(30)
    receipt = exp.files("m/a.txt").delete()
    newest_first = [each["id"] for each in reversed(made)]
    assert receipt == {"id": newest_first[0], "ids": newest_first, "deletedAt": receipt["deletedAt"]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", receipt["deletedAt"])
    assert {each.refresh()["deletedAt"] for each in made} == {receipt["deletedAt"]}
    assert [each["id"] for each in exp.files().list()] == [kept["id"]]
    refused(lambda: exp.files("m/a.txt").download(to=tmp_path), Code.NO_MATCH, ValueError)
    refused(lambda: exp.files("m/a.txt").delete(), Code.NO_MATCH, ValueError, "m/a.txt")
    refused(lambda: exp.files(file_id=made[0]["id"]).download(to=tmp_path), Code.UNKNOWN_FILE, FileNotFoundError)
    refused(lambda: exp.files(file_id=made[0]["id"]).delete(), Code.UNKNOWN_FILE, FileNotFoundError, made[0]["id"])
    assert list(tmp_path.iterdir()) == []


def test_delete_by_glob_gives_a_receipt_a_path(exp: Experiment) -> None:
    first, second, third = (exp.files("img").save_text("x", to=name)["id"] for name in ("0.png", "1.png", "0.png"))
    exp.files("img").save_text("x", to="a/2.png")
    exp.files("img").save_text("x", to="3.txt")
    receipts = exp.files("img").delete("*.png")
    assert [(each["id"], each["ids"]) for each in receipts] == [(third, [third, first]), (second, [second])]
    assert all(each.keys() == {"id", "ids", "deletedAt"} for each in receipts)
    assert paths(exp.files().list()) == ["img/3.txt", "img/a/2.png"]
    refused(lambda: exp.files("img").delete("*.png"), Code.NO_MATCH, ValueError, "img/*.png")
    assert [len(each["ids"]) for each in exp.files().delete("**")] == [1, 1]


def test_delete_of_one_version(exp: Experiment, tmp_path: Path) -> None:
    old, middle, new = (exp.files.save_text(text, to="a.txt")["id"] for text in ("old", "middle", "new"))
    receipt = exp.files(file_id=new).delete()
    assert (receipt["id"], receipt["ids"]) == (new, [new])
    assert [each["id"] for each in exp.files().list()] == [middle, old]
    assert content_of(exp, "a.txt", tmp_path) == b"middle"
    exp.files(file_id=int(old)).delete()
    assert [each["id"] for each in exp.files().list()] == [middle]


def test_delete_names_a_file(exp: Experiment) -> None:
    """A folder is not deleted by its name alone."""
    exp.files.save_text("x", to="models/a.txt")
    for call in (exp.files("models").delete, exp.files().delete, exp.files.delete):
        refused(call, Code.NO_MATCH, ValueError)
    assert paths(exp.files().list()) == ["models/a.txt"]


@pytest.mark.parametrize("size", [10, LARGE, 20 << 20], ids=["inline", "one request", "parts"])
def test_delete_of_a_file_on_its_way_cancels_it(service: DaemonProcess, held: Held, tmp_path: Path, size: int) -> None:
    """Nothing of it gets into the store afterwards, and nothing stays in the spool."""
    make_file(tmp_path / "a.bin", size)
    uploaded = held.exp.files.upload(tmp_path / "a.bin")
    saved = held.exp.files.save_blob((tmp_path / "a.bin").read_bytes(), to="a.bin")
    kept = held.exp.files.save_text("x", to="b.txt")
    assert held.exp.files("a.bin").delete()["ids"] == [saved["id"], uploaded["id"]]
    assert [each["id"] for each in held.exp.files().list()] == [kept["id"]]
    assert (uploaded.state, saved.state) == ("CANCELLED", "CANCELLED")
    refused(lambda: held.exp.files("a.bin").download(to=tmp_path / "b"), Code.NO_MATCH, ValueError)
    held.let_go()
    held.exp.files.flush(30)
    kept.wait(30)
    for gone in (uploaded, saved):
        refused(partial(gone.wait, 30), Code.CANCELLED, RuntimeError, gone["id"])
    eventually(lambda: [name for name in service.spool() if uploaded["id"] in name] == [])
    mine = [path for path in held.gate.rglob("*") if path.is_file()]
    assert mine == [path_in_store(service, kept)]
    assert (tmp_path / "a.bin").stat().st_size == size  # the user's own


def test_a_cancelled_file_is_not_waited_for(held: Held) -> None:
    """Not even until the store, which may be away for long, has nothing of it any more."""
    gone = [held.exp.files.save_blob(bytes(size), to="a.bin") for size in (10, LARGE)]
    held.exp.files("a.bin").delete()
    for each in gone:
        assert each.state == "CANCELLED"
        refused(partial(each.wait, 5), Code.CANCELLED, RuntimeError, each["id"])
    held.exp.files.flush(5)


def test_a_cancelled_file_leaves_no_bytes_in_the_store(service: DaemonProcess, held: Held) -> None:
    """Nor in the store's own folder for what is not whole yet: it has been tried already."""
    result = held.exp.files.save_blob(b"secret" * LARGE, to="a.bin")
    eventually(lambda: any(record.id == int(result["id"]) for record in service.status().blocked))
    held.exp.files("a.bin").delete()
    held.let_go()
    refused(partial(result.wait, 30), Code.CANCELLED, RuntimeError)
    eventually(lambda: [name for name in service.store.open_uploads() if result["id"] in name] == [])


def test_delete_of_a_failed_file_while_the_store_is_away(service: DaemonProcess, held: Held, tmp_path: Path) -> None:
    make_file(tmp_path / "a.bin", LARGE)
    result = held.exp.files.upload(tmp_path / "a.bin")
    eventually(lambda: any(record.id == int(result["id"]) for record in service.status().blocked))
    make_file(tmp_path / "a.bin", LARGE + 1)
    refused(partial(result.wait, 30), Code.SOURCE_CHANGED, StorageError)
    assert held.exp.files("a.bin").delete()["ids"] == [result["id"]]
    assert held.exp.files().list() == []
    held.exp.files.flush(5)
    held.let_go()
    assert result.state == "CANCELLED"
    eventually(lambda: service.rows(f"SELECT state FROM files WHERE id = {result['id']}") == [("CANCELLED",)])


# ---- flush


def test_flush(service: DaemonProcess, held: Held) -> None:
    held.exp.files.flush(0)  # nothing to wait for
    made = [held.exp.files.save_blob(bytes(size), to="a.bin") for size in (10, LARGE)]
    for timeout in (0.2, 0, -1):
        refused(partial(held.exp.files.flush, timeout), Code.TIMEOUT, TimeoutError, "2 files")
    held.let_go()
    held.exp.files.flush()
    assert [path_in_store(service, each).is_file() for each in made] == [True, True]
    assert [each["state"] for each in held.exp.files().list()] == ["DONE", "DONE"]


def test_flush_raises_what_became_of_a_file(held: Held, tmp_path: Path) -> None:
    """The others are stored all the same. A later run is not told of it again."""
    make_file(tmp_path / "a.bin", LARGE)
    held.exp.files.upload(tmp_path / "a.bin")
    kept = held.exp.files.save_text("x", to="b.txt")
    make_file(tmp_path / "a.bin", LARGE + 1)
    held.let_go()
    refused(lambda: held.exp.files.flush(30), Code.SOURCE_CHANGED, StorageError, "/a.bin")
    assert kept.state == "DONE"
    held.exp.run.complete()
    held.exp.run.start().files.flush(30)
