"""Duplicates: made within the store, of what is stored and of what is on its way, and files of their own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.doubles.gate import Answer, Asked, Gate, refusal
from tests.harness import (
    Bucket,
    DaemonProcess,
    Folder,
    StoreUnderTest,
    assert_whole,
    away,
    eventually,
    make_file,
)
from tests.scenario.conftest import Held
from tests.scenario.test_changes import SAID, said_of
from tests.scenario.test_files import refused
from tests.servers.swift import Swift

pytestmark = pytest.mark.slow

MIB = 1 << 20
IN_PARTS = 40 * MIB + 5
"""Three parts, where a server copies 16 MiB at once (tests/doubles/small_copies.py)."""


@pytest.fixture(params=["local", "s3_double", "swift"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    return Folder(tmp_path / "store") if request.param == "local" else Bucket(request.getfixturevalue("s3_double"))


@pytest.fixture
def small_copies(store: StoreUnderTest, tmp_path: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path / "daemon", store, settings="delete_grace = 1\n")
    process.module = ["tests.doubles.small_copies"]
    with process:
        yield process


def sha256_in_store(daemon: DaemonProcess, record: Any) -> str:
    return daemon.store.sha256(daemon.store.key_of(record))


def test_a_duplicate_of_what_is_stored(small_copies: DaemonProcess, tmp_path: Path) -> None:
    daemon = small_copies
    with daemon.experiment().run as exp:
        sources = {
            "tiny.json": exp.files("a", **SAID).save_json([1], to="tiny.json"),
            "empty": exp.files("a").save_blob(b"", to="empty"),
            "one.bin": exp.files("a").save_blob(b"x" * 100_000, to="one.bin"),
        }
        sha256 = make_file(tmp_path / "parts.bin", IN_PARTS)
        sources["parts.bin"] = exp.files("a").upload(tmp_path / "parts.bin")
        exp.files.flush(60)
        copies = {name: exp.files.duplicate(f"a/{name}", f"b/größe {name}") for name in sources}
        for name, copy in copies.items():
            assert copy["checksum"] == sources[name]["checksum"], "known at once"
            assert (copy["path"], copy["filename"]) == ("/b", f"größe {name}")
        exp.files.flush(60)
        assert said_of(copies["tiny.json"]) == SAID
        assert copies["parts.bin"]["checksum"] == sha256
        for name, copy in copies.items():
            assert copy["id"] != sources[name]["id"]
            assert sha256_in_store(daemon, copy) == sources[name]["checksum"]
        assert len(daemon.store.keys()) == 8
        assert daemon.store.open_uploads() == []
        exp.files("a").delete("*")
        eventually(lambda: len(daemon.store.keys()) == 4)  # the bytes of the sources are reclaimed
        for name, copy in copies.items():
            assert sha256_in_store(daemon, copy) == sources[name]["checksum"]
            target = exp.files(file_id=copy["id"]).download(to=tmp_path / "back")
            assert hashlib.sha256(Path(target).read_bytes()).hexdigest() == copy["checksum"]


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[DaemonProcess, Callable[[bool], None]]]:
    """A daemon whose folder can be closed: a plain file stands where files are begun, and nothing more is stored."""
    store = Folder(tmp_path / "store")
    temporary, aside = store.root / ".ml-dash-tmp", tmp_path / "aside"

    def close(closed: bool) -> None:
        if closed:
            temporary.rename(aside)
            temporary.touch()
        elif aside.exists():
            temporary.unlink()
            aside.rename(temporary)

    with DaemonProcess(tmp_path / "daemon", store, settings="delete_grace = 0\n") as daemon:
        with daemon.experiment("warm/up/run").run as exp:
            exp.files.save_text("a", to="a").wait(30)
        yield daemon, close


def test_a_duplicate_of_what_is_on_its_way_needs_it_no_more(service: DaemonProcess, held: Held, tmp_path: Path) -> None:
    exp = held.exp
    make_file(tmp_path / "link.bin", 300_000)
    sources = {
        "inline": exp.files.save_text("inline", to="inline"),
        "slot": exp.files.save_blob(secrets.token_bytes(200_000), to="slot"),
        "link": exp.files.upload(tmp_path / "link.bin", to="link"),
        "copy": exp.files.upload(tmp_path / "link.bin", to="copy", snapshot="copy"),
    }
    checksums = {name: source["checksum"] for name, source in sources.items()}
    assert sources["slot"]["pin"] == "slot"
    copies = {name: exp.files.duplicate(int(source["id"]), f"{name} 2") for name, source in sources.items()}
    exp.files().delete("*[a-z]")
    (tmp_path / "link.bin").unlink()
    exp.files.save_blob(secrets.token_bytes(200_000), to="another")  # a slot that may be used again
    for name, copy in copies.items():
        target = exp.files(file_id=copy["id"]).download(to=tmp_path / name)
        assert hashlib.sha256(Path(target).read_bytes()).hexdigest() == checksums[name]
    held.let_go()
    exp.files.flush(60)
    for name, copy in copies.items():
        assert sha256_in_store(service, copy) == copy["checksum"] == checksums[name]
    assert len(exp.files().list()) == 5


def test_a_duplicate_of_a_copy_that_the_store_has_taken_as_it_is(tmp_path: Path) -> None:
    """The copy is an object by then, which its folder is told of: nobody has written to what was duplicated."""
    sha256 = make_file(tmp_path / "a.bin", IN_PARTS)
    with (
        away(tmp_path, "copy_below = 0\n", faults="upload.before_begin=error@2") as (daemon, gate),
        daemon.experiment().run as exp,
    ):
        gate.unlink()
        namespace = gate.with_name("alice")
        namespace.touch()  # parts can be sent, and the object can't be made
        source = exp.files.upload(tmp_path / "a.bin", snapshot="copy")
        eventually(lambda: source.refresh()["state"] == "COMPLETING")
        assert "file_adopted" in daemon.log()
        exp.files.duplicate(source["id"], "b.bin")
        eventually(lambda: "file_stumbled" in daemon.log())  # it is read only when the first one is stored
        namespace.unlink()
        exp.files.flush(60)
        assert_whole(daemon, exp, {"a.bin": sha256, "b.bin": sha256})
        keys = daemon.store.keys()
        assert not (tmp_path / "store" / keys[0]).samefile(tmp_path / "store" / keys[1])


def test_what_is_to_be_duplicated_outlives_its_deletion(gated: Any, tmp_path: Path) -> None:
    """Deleted bytes are reclaimed at once here, but not while a duplicate is still to be made of them."""
    daemon, close = gated
    with daemon.experiment().run as exp:
        source = exp.files.save_blob(b"weights" * 20_000, to="best.pt").wait(30)
        close(True)
        first = exp.files.duplicate("best.pt", "first.pt")
        second = exp.files.duplicate(first, "second.pt")
        assert (first["pin"], second["pin"], first["ack"]) == ("object", "object", "disk")
        exp.files("best.pt").delete()
        daemon.kill()
        daemon.start()
        assert exp.files("second.pt").exists()
        target = exp.files("first.pt").download(to=tmp_path / "first.pt")
        assert Path(target).read_bytes() == b"weights" * 20_000
        close(False)
        first.wait(30)
        second.wait(30)
        assert sha256_in_store(daemon, second) == source["checksum"]
        eventually(lambda: daemon.store.key_of(source) not in daemon.store.keys())  # noqa: SIM118 a list
        assert sha256_in_store(daemon, first) == source["checksum"]


def test_a_duplicate_whose_object_is_gone_says_so(gated: Any) -> None:
    daemon, close = gated
    with daemon.experiment().run as exp:
        source = exp.files.save_blob(b"weights" * 20_000, to="best.pt").wait(30)
        close(True)
        copy = exp.files.duplicate("best.pt", "copy.pt")
        (daemon.store.root / daemon.store.key_of(source)).unlink()
        close(False)
        with pytest.raises(MLDashError) as failed:
            copy.wait(30)
        assert failed.value.code is Code.OBJECT_MISSING
        assert "copy.pt" in str(failed.value)
        exp.files("copy.pt").delete()


def test_words_of_a_duplicate(exp: Experiment) -> None:
    exp.files("a", **SAID).save_text("a", to="a.txt")
    assert said_of(exp.files.duplicate("a/a.txt", "b.txt")) == SAID
    assert said_of(exp.files(tags=["builder"]).duplicate("a/a.txt", "b.txt", description="call")) == SAID | {
        "tags": ["builder"],
        "description": "call",
    }
    assert said_of(exp.files("a", metadata={}, tags=[]).duplicate("a.txt", "b.txt")) == SAID | {
        "tags": [],
        "metadata": {},
    }
    with pytest.raises(TypeError):
        exp.files("a").duplicate("a.txt", "b.txt", colour="red")


def test_what_a_source_may_be(exp: Experiment) -> None:
    saved = exp.files("a").save_text("first", to="7.txt")
    named = exp.files("a").save_text("by name", to="12345678")
    by_id = [
        exp.files.duplicate(saved["id"], "x"),
        exp.files.duplicate(int(saved["id"]), "x"),
        exp.files.duplicate(dict(saved), "x"),
        exp.files(file_id=saved["id"]).duplicate(to="x"),
        exp.files("a/7.txt").duplicate(to="x"),
    ]
    assert [one["checksum"] for one in by_id] == [saved["checksum"]] * 5
    assert [one["path"] for one in by_id] == ["/", "/", "/", "/", "/a/7.txt"]
    assert exp.files("a").duplicate("12345678", "y")["checksum"] == named["checksum"], "no file has that id"
    newer = exp.files("a").save_text("second", to="7.txt")
    assert exp.files("a").duplicate("7.txt", "y")["checksum"] == newer["checksum"]


def test_what_can_not_be_duplicated(exp: Experiment) -> None:
    saved = exp.files.save_text("a", to="a.txt")
    refused(lambda: exp.files.duplicate("b.txt", "c.txt"), Code.NO_MATCH, ValueError, "b.txt")
    refused(lambda: exp.files.duplicate(4611686018427387903, "c.txt"), Code.UNKNOWN_FILE, FileNotFoundError)
    refused(lambda: exp.files.duplicate("a.txt"), Code.INVALID_PATH, ValueError, "to=")
    for to in ("/abs", "../up", "a//b", ""):
        refused(lambda to=to: exp.files.duplicate("a.txt", to), Code.INVALID_PATH, ValueError)
    exp.files("a.txt").delete()
    refused(lambda: exp.files.duplicate(saved["id"], "c.txt"), Code.NO_MATCH, ValueError)
    refused(lambda: exp.files.duplicate(int(saved["id"]), "c.txt"), Code.UNKNOWN_FILE, FileNotFoundError)
    assert exp.files().list() == []


def test_a_server_that_copies_no_parts(swift: Swift, tmp_path: Path) -> None:
    """A copy of the whole is tried. Where there is none either, the file is blocked, and says why."""
    allowed = "nothing"

    def refuse(asked: Asked) -> Answer | None:
        copies = "x-amz-copy-source" in asked.headers
        is_part = "partNumber" in asked.target
        return refusal(501, "NotImplemented") if copies and (is_part or allowed == "nothing") else None

    with Gate(swift.endpoint, refuse) as gate:
        daemon = DaemonProcess(tmp_path / "daemon", Bucket(swift, endpoint=gate.endpoint))
        daemon.module = ["tests.doubles.small_copies"]
        with daemon, daemon.experiment().run as exp:
            sha256 = make_file(tmp_path / "a.bin", 20 * MIB)
            exp.files.upload(tmp_path / "a.bin").wait(60)
            copy = exp.files.duplicate("a.bin", "b.bin")
            (blocked,) = eventually(lambda: daemon.status().blocked)
            assert blocked.error_code == Code.STORE_UNSUPPORTED
            assert "b.bin" in (blocked.error_message or "")
            allowed = "CopyObject"
            copy.wait(60)
            assert sha256_in_store(daemon, copy) == sha256
            assert daemon.store.open_uploads() == []


def test_the_parts_of_an_upload_are_listed_once_before_and_once_after(swift: Swift, tmp_path: Path) -> None:
    """Not once a part: 100 GB are 187 of them."""
    with Gate(swift.endpoint) as gate:
        daemon = DaemonProcess(tmp_path / "daemon", Bucket(swift, endpoint=gate.endpoint))
        daemon.module = ["tests.doubles.small_copies"]
        with daemon, daemon.experiment().run as exp:
            make_file(tmp_path / "a.bin", IN_PARTS)
            exp.files.upload(tmp_path / "a.bin").wait(60)
            gate.asked.clear()
            exp.files.duplicate("a.bin", "b.bin").wait(60)
            copied = [asked for asked in gate.asked if "partNumber" in asked.target]
            listed = [asked for asked in gate.asked if asked.method == "GET" and "uploadId" in asked.target]
            assert (len(copied), len(listed)) == (3, 3), "the last is before the object is completed"
