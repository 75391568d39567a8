"""A service that is down: files are left in its inbox, and are its own once it is back. Nothing is lost, or doubled."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment, MLDashError
from ml_dash import messages as m
from ml_dash.errors import Code
from ml_dash.reach import endpoint_of, find_endpoint
from tests.doubles.users import User
from tests.harness import DaemonProcess, Folder, assert_whole, eventually, file_sha256, make_file
from tests.scenario.shell import Shell

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.connection.INBOX_AFTER_S", 0.2)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """As the service makes it for its own user."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    folder.chmod(0o3700)
    return folder


@pytest.fixture
def daemon(tmp_path: Path, inbox: Path) -> Iterator[DaemonProcess]:
    """A service with an inbox, which is not started yet."""
    daemon = DaemonProcess(
        tmp_path / "daemon", Folder(tmp_path / "store"), daemon_settings=f'inbox = "{inbox}"\npeer_timeout = 5\n'
    )
    yield daemon
    daemon.kill()


def names(inbox: Path) -> list[str]:
    return sorted(path.name for path in inbox.iterdir())


def emptied(inbox: Path) -> None:
    eventually(lambda: names(inbox) == [])


def test_everything_that_is_saved_while_it_is_down_is_stored_once_it_is_back(
    daemon: DaemonProcess,
    inbox: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By each way of handing over; and its id, then its checksum, are known as soon as it is."""
    monkeypatch.setenv("ML_DASH_INBOX", str(inbox))
    sha256 = make_file(tmp_path / "a.bin", 3 * MIB + 5)
    small = make_file(tmp_path / "small.bin", 5)
    exp = daemon.experiment()
    exp.run.start()
    saved = [
        exp.files("models").upload(tmp_path / "a.bin", description="the best", tags=["best"], metadata={"epoch": 3}),
        exp.files.save_json({"lr": 0.1}, to="configs/c.json"),
        exp.files.save_blob(bytes(200_000), to="blob.bin"),
        exp.files.save_pkl(list(range(100_000)), to="data.pkl"),
        exp.files.save_image(np.zeros((8, 8, 3), np.uint8), to="a.png"),
        *exp.files("many").upload_many([tmp_path / "small.bin", tmp_path / "a.bin"]),
    ]
    (tmp_path / "a.bin").write_bytes(b"overwritten")
    assert repr(saved[0]["filename"]) == "'a.bin'"
    assert dict.get(saved[0], "id") is None
    assert "'id': None" in repr(saved[0])
    assert (saved[0]["ack"], saved[0]["pin"], saved[0]["path"]) == ("disk", "inbox", "/models")
    assert saved[0].state == "QUEUED"
    with pytest.raises(MLDashError) as late:
        saved[0].wait(timeout=0.2)
    assert late.value.code is Code.TIMEOUT
    said = capfd.readouterr().err
    assert said.count("is down: files wait in its inbox") == 1
    assert str(inbox) in said
    daemon.start()
    assert [result["id"] for result in saved] == sorted({result["id"] for result in saved}, key=int)
    exp.files.flush(60)
    assert [result.wait(60)["state"] for result in saved] == ["DONE"] * 7
    expected = {
        "models/a.bin": sha256,
        "configs/c.json": saved[1]["checksum"],
        "blob.bin": hashlib.sha256(bytes(200_000)).hexdigest(),
        "data.pkl": saved[3]["checksum"],
        "a.png": saved[4]["checksum"],
        "many/small.bin": small,
        "many/a.bin": sha256,
    }
    assert_whole(daemon, exp, expected)
    assert json.loads(exp.files("configs/c.json").read_text()) == {"lr": 0.1}
    with open(exp.files("data.pkl").download(to=str(tmp_path / "back.pkl")), "rb") as file:  # noqa: PTH123
        assert pickle.load(file) == list(range(100_000))  # noqa: S301 our own
    best = exp.files("models").list()[0]
    assert (best["description"], best["tags"], best["metadata"]) == ("the best", ["best"], {"epoch": 3})
    assert exp.files(file_id=saved[0]["id"], tags=["kept"]).update()["tags"] == ["kept"]
    emptied(inbox)


def test_it_goes_down_in_the_middle_of_a_run_and_nobody_waits_long(daemon: DaemonProcess, inbox: Path) -> None:
    """Where the inbox is, the client heard while the service was there."""
    daemon.start()
    with daemon.experiment().run as exp:
        first = exp.files.save_text("1", to="a.txt").wait(60)
        daemon.kill()
        began = time.monotonic()
        left = [exp.files.save_text(str(number), to="a.txt") for number in range(2, 7)]
        assert time.monotonic() - began < 5 * 30, "a daemon without an inbox is looked for that long, each time"
        daemon.start()
        last = exp.files.save_text("7", to="a.txt")
        exp.files.flush(60)
        ids = [first["id"], *(result["id"] for result in left), last["id"]]
        assert [each["id"] for each in exp.files("a.txt").list()] == ids[::-1], "versions are in the order of hand-offs"
        assert exp.files("a.txt").read_text() == "7"
    emptied(inbox)


def test_versions_are_in_the_order_of_their_hand_offs(daemon: DaemonProcess, inbox: Path, monkeypatch: Any) -> None:
    """Also where one is left in the inbox when the service has just come up: what is handed over next is newer."""
    monkeypatch.setenv("ML_DASH_INBOX", str(inbox))
    exp = daemon.experiment()
    exp.run.start()
    saved = []
    for number in range(3):
        saved.append(exp.files.save_text(f"left {number}", to="a.txt"))
        daemon.start()
        saved.append(exp.files.save_text(f"handed over {number}", to="a.txt"))
        daemon.kill()
    daemon.start()
    exp.files.flush(60)
    assert [each["id"] for each in exp.files("a.txt").list()] == [each["id"] for each in saved][::-1]
    created = [each["createdAt"] for each in exp.files("a.txt").list()]
    assert created == sorted(created, reverse=True)


def test_a_service_that_says_nothing_is_as_good_as_down(
    daemon: DaemonProcess, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind systemd's socket, where a client can connect to a service that is stopped. It takes the file once."""
    monkeypatch.setattr("ml_dash.connection.SILENT_S", 0.5)
    monkeypatch.setattr("ml_dash.silence.LOOK_S", 1)
    monkeypatch.setattr("ml_dash.silence.PROBE_S", 1)
    daemon.start()
    assert daemon.process is not None
    with daemon.experiment().run as exp:
        daemon.process.send_signal(signal.SIGSTOP)
        result = exp.files.save_text("here", to="a.txt")
        assert dict.get(result, "pin") == "inbox"
        daemon.process.send_signal(signal.SIGCONT)
        result.wait(60)
        assert [each["id"] for each in exp.files.list()] == [result["id"]]
    emptied(inbox)


@pytest.mark.parametrize(
    ("point", "size"),
    [("accept.pinned", 300_000), ("accept.journaled", 5), ("inbox.adopted", 300_000), ("inbox.removed", 5)],
)
def test_killed_at_any_step_of_taking_it_in(
    daemon: DaemonProcess, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, size: int
) -> None:
    monkeypatch.setenv("ML_DASH_INBOX", str(inbox))
    expected = {name: make_file(tmp_path / name, size, seed) for seed, name in enumerate(("a.bin", "b.bin"))}
    exp = daemon.experiment()
    exp.run.start()
    saved = [exp.files.upload(tmp_path / name) for name in expected]
    daemon.start(faults=f"{point}=kill")
    daemon.wait_for_death()
    assert point in daemon.faults_met()
    daemon.start()
    assert [each.wait(60)["state"] for each in saved] == ["DONE"] * 2
    assert_whole(daemon, exp, expected)
    emptied(inbox)


LEAVE = """
import sys
from ml_dash import Experiment
exp = Experiment("alice/cv/resnet", socket=sys.argv[1])
exp.run.start()
print("begins", flush=True)
for number in range(10_000):
    exp.files.upload(sys.argv[2], to=f"{number}.bin")
    print(number, flush=True)
"""


def test_a_client_that_is_killed_has_handed_over_what_it_was_told_and_at_most_one_file_more(
    daemon: DaemonProcess, inbox: Path, tmp_path: Path
) -> None:
    sha256 = make_file(tmp_path / "a.bin", 5 * MIB)
    environment = os.environ | {"ML_DASH_INBOX": str(inbox)}
    told = 0
    for wanted in (1, 4):
        command = [sys.executable, "-c", LEAVE, str(daemon.socket), str(tmp_path / "a.bin")]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
            assert client.stdout is not None
            for _ in range(wanted + 1):
                client.stdout.readline()
            client.kill()
            told += wanted + client.stdout.read().count(b"\n")
    daemon.start()
    exp = daemon.experiment()
    exp.run.start()
    exp.files.flush(60)
    files = exp.files.list()
    assert told <= len(files) <= told + 2
    assert {each["checksum"] for each in files} == {sha256}
    assert all(name.startswith(".") or name.endswith(".data") for name in names(inbox)), "halves, for a day"


def test_what_can_not_be_taken_in_is_told_to_its_owner_and_keeps_nobody_up(
    daemon: DaemonProcess, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_INBOX", str(inbox))
    exp = daemon.experiment()
    exp.run.start()
    bad = exp.files.save_text("a", to="../a.txt")
    good = exp.files.save_text("b", to="b.txt")
    daemon.start()
    good.wait(60)
    for _ in range(2):
        with pytest.raises(MLDashError) as refused:
            bad["id"]
        assert refused.value.code is Code.INVALID_PATH
    daemon.kill()
    daemon.start()
    with pytest.raises(MLDashError, match="INVALID_PATH"):
        bad.wait(60)
    assert [name.partition(".")[2] for name in names(inbox)] == ["data", "message", "refused"], "for a week"
    assert daemon.log().count("inbox_refused") == 1


def test_hostile_content_is_harmless(daemon: DaemonProcess, inbox: Path, tmp_path: Path) -> None:
    """Links, pipes, folders, sockets, rubbish, halves and a crowd: a service that starts takes in what is right."""
    (tmp_path / "secret").write_text("the operator's")
    message = m.encode(
        m.Upload(request=0, key=bytes(16), file=described("stolen.txt"), source="x", durability="disk"), 1
    )

    def leave(number: int, data: bytes | None, said: bytes | None = None) -> str:
        key = number.to_bytes(16, "big")
        name = key.hex()
        if data is not None:
            (inbox / f"{name}.data").write_bytes(data)
        words = m.encode(m.Upload(request=0, key=key, file=described(f"{number}.txt"), source="x"), 1)
        (inbox / f"{name}.message").write_bytes(words if said is None else said)
        return name

    (inbox / f"{leave(1, None)}.data").symlink_to(tmp_path / "secret")
    os.mkfifo(inbox / f"{leave(2, None)}.data")
    (inbox / f"{leave(3, None)}.data").mkdir()
    leave(4, None)
    leave(5, b"a", message)  # another's key
    leave(6, b"a", b"")
    leave(7, b"a", secrets.token_bytes(5000))
    leave(8, b"a", message[:-1])
    leave(9, b"a", message + message)
    leave(10, b"a", bytes(5 * MIB))
    os.mkfifo(inbox / f"{11:032x}.message")
    (inbox / f"{13:032x}.message").symlink_to(inbox / f"{leave(12, b'twelve')}.message")
    (inbox / f"{14:032x}.message").mkdir()
    (inbox / "not a name \udcff".encode(errors="surrogateescape").decode(errors="surrogateescape")).touch()
    for number in range(3000):
        (inbox / f"crowd-{number}").touch()
    daemon.start()
    with daemon.experiment().run as exp:
        exp.files.save_text("mine", to="mine.txt")
        exp.files.flush(60)
        assert sorted(each["filename"] for each in exp.files.list()) == ["12.txt", "mine.txt"]
        assert exp.files("12.txt").read_text() == "twelve"
    assert (tmp_path / "secret").read_text() == "the operator's"
    assert daemon.log().count("inbox_refused") == 10


def described(name: str) -> m.Described:
    return m.Described(place=m.Place(namespace="alice", project="cv", experiment="resnet"), to=name)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user gets to: pytest's own are root's."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-inbox-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_a_file_is_its_owners_and_nobody_elses(open_folder: Path) -> None:
    """Whose it is says the file. A user who is not served, or who names another's data, gets nothing in."""
    mine, other, stranger = 64001, 64002, 64009
    inbox, keys = open_folder / "inbox", [secrets.token_bytes(16) for _ in range(4)]
    daemon = DaemonProcess(
        open_folder / "daemon",
        Folder(open_folder / "store"),
        settings=f'[access]\nuids = [{mine}, {other}]\nsocket_mode = "0666"\n',
        daemon_settings=f'inbox = "{inbox}"\n',
    )
    with daemon:
        daemon.kill()
        assert stat.S_IMODE(inbox.stat().st_mode) == 0o3733, "nobody sees what others have left, or removes it"
        for number, (uid, owner) in enumerate([(mine, mine), (other, other), (stranger, stranger), (other, mine)]):
            key, file = keys[number], described(f"{number}.txt")
            message = m.encode(m.Upload(request=0, key=key, file=file, source="x"), 1)
            for ending, whose, content in (("data", owner, b"content"), ("message", uid, message)):
                path = inbox / f"{key.hex()}.{ending}"
                path.write_bytes(content)
                os.chown(path, whose, -1)
        daemon.start()
        with daemon.experiment().run as exp:
            found = eventually(lambda: len(files := exp.files.list()) == 2 and files)
            assert sorted(each["filename"] for each in found) == ["0.txt", "1.txt"]
        eventually(lambda: daemon.log().count("inbox_refused") == 2)
        owners = daemon.rows("SELECT filename, owner_uid FROM files ORDER BY filename")
        assert owners == [("0.txt", mine), ("1.txt", other)]
        user = User(other, daemon.socket)
        try:
            assert isinstance(user.ask(m.FindHanded(request=1, key=keys[1])), m.Accepted)
            theirs = user.ask(m.FindHanded(request=2, key=keys[0]))
            assert isinstance(theirs, m.Failed)
            assert theirs.code == Code.UNKNOWN_FILE
        finally:
            user.close()


def test_a_script_finds_a_service_that_is_down_by_its_inbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    assert find_endpoint(None, None) == endpoint_of(".dash")
    (tmp_path / "state/ml-dash/inbox").mkdir(parents=True)
    assert find_endpoint(None, None).socket == tmp_path / "run/ml-dash/ml-dashd.sock"
    assert find_endpoint(None, ".dash") == endpoint_of(".dash"), "a root that is named is a root"
    with Experiment("alice/cv/resnet").run as exp:
        exp.files.save_text("a", to="a.txt")
    assert len(names(tmp_path / "state/ml-dash/inbox")) == 2


def test_put_leaves_a_file_too_and_with_wait_it_waits(daemon: DaemonProcess, inbox: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
    (tmp_path / "a.txt").write_text("a")
    ended = shell("put", "a.txt", "--prefix", "alice/cv/resnet", ML_DASH_INBOX=str(inbox))
    assert ended.out == "in the inbox  a.txt  QUEUED\n"
    assert "is down" in ended.err
    starting = threading.Timer(0.5, daemon.start)
    starting.start()
    ended = shell("put", "a.txt", "--prefix", "alice/cv/resnet", "--wait", ML_DASH_INBOX=str(inbox))
    starting.join()
    assert ended.out.endswith("DONE\n")


def test_put_leaves_several_files_too(daemon: DaemonProcess, inbox: Path, tmp_path: Path) -> None:
    """Small ones, which travel together, and larger ones; none waits for the id that the service will give it."""
    shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
    (tmp_path / "a.txt").write_text("a")
    make_file(tmp_path / "b.bin", 300_000)
    ended = shell("put", "a.txt", "b.bin", "--prefix", "alice/cv/resnet", ML_DASH_INBOX=str(inbox))
    assert ended.out.splitlines() == [
        "in the inbox  a.txt  QUEUED",
        "in the inbox  b.bin  QUEUED",
        "2 files handed over",
    ]
    assert "is down" in ended.err
    assert len([name for name in names(inbox) if name.endswith(".message")]) == 2
    starting = threading.Timer(0.5, daemon.start)
    starting.start()
    ended = shell("put", "a.txt", "b.bin", "--prefix", "alice/cv/resnet", "--wait", ML_DASH_INBOX=str(inbox))
    starting.join()
    assert ended.out.splitlines()[-1] == "2 files stored"
    with daemon.experiment().run as exp:
        exp.files.flush(60)
        assert sorted(each["filename"] for each in exp.files.list()) == ["a.txt", "a.txt", "b.bin", "b.bin"]
    emptied(inbox)


def test_without_an_inbox_a_service_that_is_down_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MLDashError) as refused:
        Experiment("alice/cv/resnet", socket=tmp_path / "socket").run.start()
    assert refused.value.code is Code.DAEMON_UNAVAILABLE


def test_a_source_that_is_written_to_meanwhile_is_not_left(
    daemon: DaemonProcess, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end, in place, or when it is read once more because its times were set. To set them does no harm."""
    monkeypatch.setenv("ML_DASH_INBOX", str(inbox))
    path = tmp_path / "a.bin"
    exp = daemon.experiment()
    exp.run.start()
    copied, read = os.copy_file_range, os.pread

    def write(mode: str) -> None:
        with path.open(mode) as file:
            file.write(b"more")

    def touch() -> None:
        subprocess.run(["touch", path], check=True)

    def touch_and_write_later() -> None:
        def read_and_write(*words: Any) -> bytes:
            monkeypatch.setattr(os, "pread", read)
            write("r+b")
            return b""

        touch()
        monkeypatch.setattr(os, "pread", lambda *words: read(*words) if words[2] == 0 else read_and_write(*words))

    def meanwhile(act: Callable[[], object]) -> Callable[..., int]:
        def copy(*words: Any) -> int:
            count = copied(*words)
            act()
            return count

        return copy

    for act in (lambda: write("ab"), lambda: write("r+b"), touch_and_write_later):
        make_file(path, MIB)
        monkeypatch.setattr(os, "copy_file_range", meanwhile(act))
        with pytest.raises(MLDashError) as changed:
            exp.files.upload(path)
        assert changed.value.code is Code.SOURCE_CHANGED
        assert names(inbox) == []
    sha256 = make_file(path, MIB)
    monkeypatch.setattr(os, "copy_file_range", meanwhile(touch))
    assert exp.files.upload(path)["pin"] == "inbox"
    (content,) = [name for name in names(inbox) if name.endswith(".data")]
    assert file_sha256(inbox / content) == sha256
