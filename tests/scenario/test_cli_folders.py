"""`put -r` and `get -r`: whole folders, there and back, as often as it takes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.doubles.s3_double import S3Double
from tests.harness import PREFIX, Bucket, DaemonProcess, Folder, make_file
from tests.scenario.embedded import Root
from tests.scenario.shell import WITHOUT_RICH, Shell, put

pytestmark = pytest.mark.slow

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def tree(shell: Shell) -> Path:
    """A folder with all that a folder can have in it, and the names of what can be stored."""
    folder = shell.folder / "run"
    for name, size in (("a.txt", 5), ("models/best.pt", 300 * KIB), ("models/old/x.pt", 70_000), (".cfg/.h", 1)):
        make_file(folder / name, size, seed=len(name))
    (folder / "empty").touch()
    (folder / "link").symlink_to("models/best.pt")
    (folder / "shared").symlink_to("models/old")
    return folder


STORED = [".cfg/.h", "a.txt", "empty", "link", "models/best.pt", "models/old/x.pt", "shared/x.pt"]


def spoil(folder: Path) -> Iterator[tuple[str, str, socket.socket | None]]:
    """Puts what can't be stored into a folder: its name, its code."""
    os.mkfifo(folder / "pipe")
    yield "pipe", "NOT_A_FILE", None
    (folder / "models" / "up").symlink_to("..")
    yield "models/up", "NOT_A_FILE", None
    (folder / "broken").symlink_to("nowhere")
    yield "broken", "FILE_NOT_FOUND", None
    (folder / "bad\x01name").touch()
    yield "bad\x01name", "INVALID_PATH", None
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).touch()
    yield f"{folder.name}/\\xff.txt", "INVALID_PATH", None
    (folder / ".ml-dashd").mkdir()
    (folder / ".ml-dashd" / "mine").touch()  # left out without a word
    (folder / ".dash" / ".ml-dashd").mkdir(parents=True)
    (folder / ".dash" / "stored.pt").touch()  # a root: it may be the one that the files go to


def paths(shell: Shell, *words: str) -> list[str]:
    found = shell.json("ls", "--prefix", PREFIX, *words)
    return [f"{each['path']}/{each['filename']}".lstrip("/") for each in found]


def test_a_folder_there_and_back(shell: Shell, tree: Path) -> None:
    """What can't be stored is named and holds nothing else up; what is there already is not sent, or fetched, again."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tree / "socket"))
        refused = [(name, code) for name, code, _ in spoil(tree)] + [("socket", "NOT_A_FILE")]
        ended = shell("put", "-r", "run", "--prefix", PREFIX, "--to", "runs/1", "--wait", status=1)
    assert ended.out.splitlines()[-1] == f"{len(STORED)} files stored, {len(refused)} failed"
    assert paths(shell) == [f"runs/1/{name}" for name in STORED]
    for name in STORED:
        (stored,) = (shell.folder.parent / "root" / PREFIX / "files/runs/1" / Path(name).parent).glob(
            f"*/{Path(name).name}"
        )
        assert stored.read_bytes() == (tree / name).read_bytes()

    done = shell("put", "-r", "run", "--prefix", PREFIX, "--to", "runs/1", "--json", status=1)
    said = json.loads(done.out)
    assert (said["uploaded"], said["skipped"]) == ([], len(STORED))
    assert sorted((each["path"], each["code"]) for each in said["failed"]) == sorted(refused)
    assert all(each["hint"] for each in said["failed"])
    assert all(f"ml-dash: {each['message']}\nhint: {each['hint']}\n" in ended.err for each in said["failed"])
    would = shell("put", "-r", "run", "--prefix", PREFIX, "--to", "runs/2", "--dry-run", status=1)
    assert would.out.splitlines()[-1] == f"{len(STORED)} files would be handed over, {len(refused)} failed"
    (tree / "a.txt").write_bytes(b"other")  # of the same size
    for extra in ("pipe", "broken", "bad\x01name", "socket", "models/up"):
        (tree / extra).unlink()
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff.txt")).unlink()
    again = shell.json("put", "-r", "run", "--prefix", PREFIX, "--to", "runs/1", "--wait")
    assert [(each["filename"], each["state"]) for each in again["uploaded"]] == [("a.txt", "DONE")]
    assert paths(shell, "runs/1/a.txt") == ["runs/1/a.txt"] * 2

    ended = shell("get", "-r", "runs", "--prefix", PREFIX, "-o", "back")
    assert ended.out.splitlines()[-1] == f"{len(STORED)} files downloaded"
    for name in STORED:
        assert (shell.folder / "back/runs/1" / name).read_bytes() == (tree / name).read_bytes()
    assert paths(shell, ".") == paths(shell, "./") == paths(shell)  # as the folder that the experiment stands for
    again = shell("get", "-r", ".", "--prefix", PREFIX, "-o", "back")
    assert again.out == f"0 files downloaded, {len(STORED)} skipped, there already\n"
    for command in ("rm", "get"):  # what removes, or takes one file, is not told it by a dot
        assert shell.refused(command, ".", "--prefix", PREFIX, status=2)["code"] == "INVALID_PATH"


def test_a_download_that_goes_on(shell: Shell, tree: Path) -> None:
    """Whole files stay as they are, damaged ones are replaced; a file that can't be had holds nothing else up."""
    shell("put", "-r", "run", "--prefix", PREFIX, "--wait")
    assert shell.json("get", "-r", "--prefix", PREFIX, "-o", "back", "--dry-run")["dryRun"] is True
    assert not (shell.folder / "back").exists()
    shell("get", "-r", "--prefix", PREFIX, "-o", "back")
    back = shell.folder / "back"
    kept = (back / "models/best.pt").stat().st_ino
    damaged = bytearray((back / "models/old/x.pt").read_bytes())
    damaged[40_000] ^= 1
    (back / "models/old/x.pt").write_bytes(damaged)
    (back / "a.txt").unlink()
    (back / "a.txt").mkdir()
    (back / "empty").unlink()
    outside = shell.folder / "outside"
    outside.mkdir()
    (back / "shared/x.pt").unlink()
    (back / "shared").rmdir()
    (back / "shared").symlink_to(outside)
    ended = shell("get", "-r", "**/*", "--prefix", PREFIX, "-o", "back", "--json", status=1)
    said = json.loads(ended.out)
    assert sorted(each["filename"] for each in said["downloaded"]) == ["empty", "x.pt"]
    assert said["skipped"] == len(STORED) - 4
    assert sorted(each["path"] for each in said["failed"]) == ["a.txt", "shared/x.pt"]  # a folder, and a link out
    assert "INVALID_PATH" in {each["code"] for each in said["failed"]}
    assert all(each["hint"] for each in said["failed"])
    assert (back / "models/best.pt").stat().st_ino == kept
    assert (back / "models/old/x.pt").read_bytes() == (tree / "models/old/x.pt").read_bytes()
    assert list(outside.iterdir()) == []
    put(shell, "a.txt", b"more", "--to", "shared/y.pt")
    ended = shell("get", "-r", "shared", "--prefix", PREFIX, "-o", "back", status=1)
    assert ended.err.count("leads out of back") == 1  # said once of both files
    assert ended.out == "0 files downloaded, 2 failed\n"
    assert shell.refused("get", "-r", "none", "--prefix", PREFIX, status=1)["code"] == "NO_MATCH"
    assert "get -r" in shell.refused("get", "models", "--prefix", PREFIX, status=1)["hint"]


def test_what_is_meant_of_a_folder(shell: Shell, tree: Path) -> None:
    words = ("put", "-r", "run", "--prefix", PREFIX)
    for more, meant in (
        (("--include", "**/*.pt"), ["models/best.pt", "models/old/x.pt", "shared/x.pt"]),
        (("--include", "models", "--exclude", "models/old"), ["models/best.pt"]),
        (("--exclude", "**/*.pt", "--exclude", ".cfg"), ["a.txt", "empty", "link"]),
    ):
        would = shell.json(*words, *more, "--dry-run")
        assert [each["path"] for each in would["uploaded"]] == meant
    assert paths(shell) == []
    shell(*words, "--include", "a.txt", "--tag", "x", "--metadata", '{"n": 1}', "--wait")
    (record,) = shell.json("ls", "--prefix", PREFIX)
    assert (record["tags"], record["metadata"]) == (["x"], {"n": 1})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_what_was_interrupted_goes_on(shell: Shell, number: signal.Signals) -> None:
    """In the end every file is there, and none twice."""
    count = 700
    (shell.folder / "many").mkdir()
    for each in range(count):
        (shell.folder / "many" / f"{each:04}").write_bytes(str(each).encode())
    words = shell.command("put", "-r", "many", "--prefix", PREFIX)
    with subprocess.Popen(
        words, cwd=shell.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert re.search(
            r"^ml-dash: \d+ files? handed over so far, they go on by themselves\nhint: ", err, re.MULTILINE
        )
    assert "Traceback" not in err
    said = shell.json("put", "-r", "many", "--prefix", PREFIX, "--wait")
    assert len(said["uploaded"]) + said["skipped"] == count
    assert said["skipped"] > 0
    assert paths(shell) == [f"{each:04}" for each in range(count)]


def test_bars_for_all_and_for_each(shell: Shell) -> None:
    for number in range(3):
        make_file(shell.folder / "big" / f"{number}.bin", 8 * MIB, seed=number)
    shell("put", "-r", "big", "--prefix", PREFIX, "--wait")
    ended = shell.on_a_terminal("get", "-r", "--prefix", PREFIX, "-o", "back")
    assert "25.2/25.2 MB" in ended.err
    assert re.search(r"  [012]\.bin ", ended.err)
    assert ended.out.splitlines()[-1] == "3 files downloaded"
    assert "\x1b" not in ended.out
    ended = shell.on_a_terminal("get", "-r", "--prefix", PREFIX, "-o", "plain", run=WITHOUT_RICH)
    assert "\rplain  100 %  25.2 MB of 25.2 MB" in ended.err
    os.environ["NO_COLOR"] = "1"
    try:
        ended = shell.on_a_terminal("get", "-r", "--prefix", PREFIX, "-o", "grey")
    finally:
        del os.environ["NO_COLOR"]
    assert "25.2/25.2 MB" in ended.err
    assert not re.search(r"\x1b\[(3|4|9)\d", ended.err)


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("put", "-r", "none", "--prefix", PREFIX), 1, "FILE_NOT_FOUND"),
        (("put", "-r", "a.txt", "--prefix", PREFIX), 1, "NOT_A_FILE"),
        (("put", "-r", "", "--prefix", PREFIX), 2, "INVALID_ARGUMENT"),
        (("put", "-r", ".", "", "--prefix", PREFIX), 2, "INVALID_ARGUMENT"),
        (("put", "a.txt", "--prefix", PREFIX, "--include", "*"), 2, "INVALID_ARGUMENT"),
        (("get", "a.txt", "--prefix", PREFIX, "--dry-run"), 2, "INVALID_ARGUMENT"),
        (("get", "-r", "--id", "1"), 2, "INVALID_ARGUMENT"),
        (("put", "-r", ".", "--prefix", PREFIX, "--to", "../x"), 2, "INVALID_PATH"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_folders(shell: Shell, words: tuple[str, ...], status: int, code: str) -> None:
    (shell.folder / "a.txt").touch()
    assert shell.refused(*words, status=status)["code"] == code


def test_a_folder_into_a_bucket(tmp_path: Path, s3_double: S3Double) -> None:
    """The same against S3; then an object is damaged there, and one removed."""
    store = Bucket(s3_double)
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        for name, size in (("a.bin", 3), ("deep/b.bin", 100_000), ("deep/c.bin", 20 * MIB)):
            make_file(tmp_path / "run" / name, size)
        said = shell.json("put", "-r", "run", "--prefix", PREFIX, "--wait")
        assert shell.json("put", "-r", "run", "--prefix", PREFIX)["skipped"] == 3
        got = shell.json("get", "-r", "--prefix", PREFIX, "-o", "back")
        for each in got["downloaded"]:
            assert hashlib.sha256(Path(each["localPath"]).read_bytes()).hexdigest() == each["checksum"]
        whole = shell.json("verify", "--prefix", PREFIX)
        assert whole == {"files": 3, "sizeBytes": 3 + 100_000 + 20 * MIB, "damaged": [], "notStored": 0}
        _, second, third = said["uploaded"]
        client = s3_double.client()
        client.put_object(Bucket=store.bucket, Key=store.key_of(second), Body=b"x" * 100_000)
        client.delete_object(Bucket=store.bucket, Key=store.key_of(third))
        client.close()
        ended = shell("verify", "--prefix", PREFIX, "--json", status=1)
        damaged = {each["id"]: each["code"] for each in json.loads(ended.out)["damaged"]}
        assert damaged == {second["id"]: "CHECKSUM_MISMATCH", third["id"]: "OBJECT_MISSING"}


# ---- several at once


def test_several_files_as_a_shell_names_them(shell: Shell) -> None:
    """`put *.txt`: each gets its own name; one that can't be had is said, and holds none of the others up."""
    for name in ("a.txt", "b.txt"):
        (shell.folder / name).write_text(name)
    (shell.folder / "c.txt").mkdir()
    done = shell("put", "a.txt", "b.txt", "c.txt", "d.txt", "--prefix", PREFIX, "--to", "logs/", "--wait", status=1)
    assert [line.split()[1:] for line in done.out.splitlines()[:-1]] == [
        ["logs/a.txt", "QUEUED"],
        ["logs/b.txt", "QUEUED"],
    ]
    assert done.out.splitlines()[-1] == "2 files stored, 2 failed"
    assert "ml-dash: c.txt is a folder\nhint: with -r, folders are handed over, too\n" in done.err
    assert "d.txt" in done.err
    again = shell.json("put", "a.txt", "b.txt", "--prefix", PREFIX, "--to", "logs", "--tag", "x")
    assert [each["tags"] for each in again["uploaded"]] == [["x"], ["x"]]
    assert shell.json("put", "a.txt", "--prefix", PREFIX, "--to", "new/")["path"] == "/new"
    assert paths(shell, "logs") == [
        "logs/a.txt",
        "logs/a.txt",
        "logs/b.txt",
        "logs/b.txt",
    ]  # without -r none is skipped

    got = shell("get", "logs/a.txt", "none.txt", "new/*", "--prefix", PREFIX, "-o", "out", status=1)
    assert got.out == "out/a.txt\nout/new/a.txt\n"
    assert "no file fits 'none.txt'" in got.err
    assert (shell.folder / "out/a.txt").read_text() == "a.txt"
    gone = shell("rm", "none.txt", "logs/*.txt", "new/a.txt", "--prefix", PREFIX, status=1)
    assert gone.out.splitlines() == [
        "deleted logs/a.txt (2 versions)", "deleted logs/b.txt (2 versions)", "deleted new/a.txt (1 version)",
    ]  # fmt: skip
    assert paths(shell) == []


@pytest.mark.parametrize("words", [("put",), ("put", "-r"), ("get",)], ids=" ".join)
def test_two_that_would_have_one_name_are_both_named(shell: Shell, words: tuple[str, ...]) -> None:
    for folder in ("x", "y"):
        (shell.folder / folder).mkdir()
        (shell.folder / folder / "a.txt").write_text(folder)
    if words == ("get",):
        shell("put", "-r", "x", "y", "--prefix", PREFIX)
    failure = shell.refused(*words, "x/a.txt", "y/a.txt", "--prefix", PREFIX, status=2)
    assert failure["message"] == "x/a.txt and y/a.txt would both be 'a.txt'"
    assert not (shell.folder / "a.txt").exists()
    if words != ("get",):
        assert paths(shell) == []


def test_several_folders_keep_their_names(shell: Shell, tree: Path) -> None:
    (shell.folder / "more").mkdir()
    (shell.folder / "more" / "a.txt").write_text("m")
    (shell.folder / "one.txt").write_text("1")
    said = shell.json("put", "-r", "run/models/", "more", "one.txt", "--prefix", PREFIX, "--to", "all", "--wait")
    names = ["all/models/best.pt", "all/models/old/x.pt", "all/more/a.txt", "all/one.txt"]
    assert (len(said["uploaded"]), paths(shell)) == (4, names)
    assert shell.json("put", "-r", "run/models/", "more", "one.txt", "--prefix", PREFIX, "--to", "all")["skipped"] == 4
    back = shell.json("get", "-r", "all/models", "all/one.txt", "--prefix", PREFIX, "-o", "back")
    assert sorted(each["localPath"] for each in back["downloaded"]) == [
        str(shell.folder / "back" / name) for name in (*names[:2], names[3])
    ]


def test_of_several_folders_one_that_is_not_there_is_named_and_the_rest_comes(shell: Shell, tree: Path) -> None:
    shell("put", "-r", "run", "--prefix", PREFIX, "--wait")
    ended = shell("get", "-r", "a.txt", "none", "models", "--prefix", PREFIX, "-o", "back", status=1)
    assert ended.out.splitlines() == [
        "back/a.txt", "back/models/best.pt", "back/models/old/x.pt", "3 files downloaded, 1 failed",
    ]  # fmt: skip
    assert ended.err.startswith("ml-dash: no file fits 'none'\nhint: ")
    said = json.loads(shell("get", "-r", "none", "a.txt", "--prefix", PREFIX, "-o", "back", "--json", status=1).out)
    assert [(each["path"], each["code"]) for each in said["failed"]] == [("none", "NO_MATCH")]
    assert said["skipped"] == 1


def test_nothing_is_downloaded_into_the_store_that_it_comes_from(shell: Shell, make_root: Callable[..., Root]) -> None:
    """`download` alone means .dash, as it always did: where that is the root itself, its tree would have strangers."""
    root = make_root("work/.dash")
    inside = Shell(shell.folder, ["--root", ".dash"])
    (shell.folder / "a.txt").write_text("a")
    inside("put", "a.txt", "--prefix", PREFIX, "--wait")
    before = root.files()
    for words in (("download", "-p", PREFIX), ("get", "-r", "--prefix", PREFIX, "-o", f".dash/{PREFIX}/files")):
        failure = inside.refused(*words, status=2)
        assert failure["message"].endswith(f"is in the store that the files are in, {shell.folder / '.dash'}")
    assert root.files() == before
    assert inside("get", "-r", "--prefix", PREFIX, "-o", "out").out.endswith("1 file downloaded\n")


def test_a_folder_that_holds_its_own_root_does_not_grow(shell: Shell, make_root: Callable[..., Root]) -> None:
    """Its root would be handed over to itself, and be twice as large the next time."""
    make_root("work/.dash")
    inside = Shell(shell.folder, ["--root", ".dash"])
    (shell.folder / "a.txt").write_text("a")
    for skipped in (0, 1):
        said = inside.json("put", "-r", ".", "--prefix", PREFIX, "--wait")
        assert said["skipped"] == skipped
    assert said["leftOut"] == [{"path": "./.dash", "message": "it is the store that the files go to"}]
    ended = inside("put", "-r", ".", "--prefix", PREFIX, "--dry-run")
    assert ended.err == "ml-dash: ./.dash is left out: it is the store that the files go to\n"
    assert paths(inside) == ["a.txt"]
    for part in (".dash", f".dash/{PREFIX}"):
        failure = inside.refused("put", "-r", part, "--prefix", PREFIX, status=2)
        assert failure["message"] == f"{part} is in the store that the files go to, {shell.folder / '.dash'}"
    assert paths(inside) == ["a.txt"]


def test_a_folder_that_holds_the_store_of_a_service_does_not_grow(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "data" / "sto re")) as daemon:
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        for _ in range(2):
            said = shell.json("put", "-r", "data", "--prefix", PREFIX, "--wait")
        assert (said["skipped"], [each["path"] for each in said["leftOut"]]) == (1, ["data/sto re"])
        assert paths(shell) == ["a.txt"]


def test_names_that_differ_in_their_accents_alone(shell: Shell) -> None:
    (shell.folder / "two").mkdir()
    for name in ("\u00e9.txt", "e\u0301.txt"):
        (shell.folder / "two" / name).write_text(name)
    done = shell("put", "-r", "two", "--prefix", PREFIX, status=1)
    assert done.out.splitlines()[-1] == "1 file handed over, 1 failed"
    assert "differ in how its accents are written" in done.err
    assert len(paths(shell)) == 1
