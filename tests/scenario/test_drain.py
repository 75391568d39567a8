"""`ml-dash drain`, and the drain of a stop: what can be sent is sent, what can't is listed, and nothing is lost."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.raw_client import RawClient
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, eventually, make_file
from tests.scenario.shell import RUN, Ended, Shell

pytestmark = pytest.mark.slow

MIB = 1 << 20
NOBODY = 65534


@dataclass
class Node:
    """A daemon whose store takes nothing while `gate` stands, and the command for it."""

    daemon: DaemonProcess
    shell: Shell
    gate: Path

    @property
    def manifest(self) -> Path:
        return self.daemon.state / "drain.json"

    def open_gate(self) -> None:
        self.gate.unlink()

    def run(self) -> contextlib.AbstractContextManager[Experiment]:
        return self.daemon.experiment().run


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    store = Folder(tmp_path / "store")
    gate = store.root / PREFIX.partition("/")[0]
    folder = tmp_path / "work"
    folder.mkdir()
    # Without copies, so that a file that is overwritten fails.
    settings = "[spool]\ncopy_below = 0\n"
    with DaemonProcess(tmp_path / "daemon", store, settings, "drain_timeout = 60") as daemon:
        gate.touch()
        yield Node(daemon, Shell(folder, ["--socket", str(daemon.socket)]), gate)


@contextlib.contextmanager
def draining(node: Node, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in the background, once it has said how much is left."""
    command = node.shell.command("drain", *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert " left" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)


def held_file(node: Node, name: str = "best.pt", size: int = 70_000) -> tuple[dict[str, Any], str]:
    """A file that can't be stored, tried at least once."""
    expected = make_file(node.shell.folder / name, size)
    with node.run() as exp:
        record = exp.files.upload(node.shell.folder / name, tags=["x"])
    eventually(lambda: node.daemon.rows(f"SELECT 1 FROM files WHERE id = {record['id']} AND blocked"))
    return record, expected


def test_an_empty_queue_is_drained_at_once(node: Node) -> None:
    done = node.shell("drain", "--deadline", "1h")
    assert done.out == "everything is stored\n"
    assert node.shell.json("drain") == {
        "leftFiles": 0, "leftBytes": 0, "failedFiles": 0, "manifest": None, "files": [],
    }  # fmt: skip
    assert not node.manifest.exists()


def test_what_is_left_is_listed_kept_and_goes_on(node: Node) -> None:
    record, expected = held_file(node)
    said = node.shell("drain", "--deadline", "0", status=1)
    assert "1 file left, 70.0 kB to send; they go on by themselves" in said.out
    assert record["id"] in said.out
    assert f"all of them: {node.manifest}" in said.out
    assert node.manifest.stat().st_mode & 0o777 == 0o600
    listed = json.loads(node.manifest.read_text())
    (file,) = listed.pop("files")
    assert listed.pop("madeAt").startswith("20")
    assert listed == {"why": "drain", "leftFiles": 1, "leftBytes": 70_000, "failedFiles": 0}
    assert (file["id"], file["experimentId"], file["path"]) == (record["id"], PREFIX, "best.pt")
    assert (file["sizeBytes"], file["sentBytes"], file["state"], file["priority"]) == (70_000, 0, "SENDING", 0)
    assert str(node.gate.parent) in file["why"]
    assert file["hint"]
    answer = json.loads(node.shell("drain", "--deadline", "0s", "--json", status=1).out)
    assert (answer["leftFiles"], answer["leftBytes"], answer["manifest"]) == (1, 70_000, str(node.manifest))
    assert answer["files"][0]["error"]["code"] == "STORE_NO_BUCKET"
    node.open_gate()
    with node.run() as exp:
        exp.files.flush(timeout=60)
        assert_whole(node.daemon, exp, {"best.pt": expected})
    eventually(lambda: not node.manifest.exists())


def test_many_files_are_counted_and_the_foremost_named(node: Node) -> None:
    with node.run() as exp:
        for number in range(60):
            exp.files.save_blob(b"x" * (number + 1), to=f"{number}.bin", priority=1 if number == 40 else 0)
    answer = json.loads(node.shell("drain", "--deadline", "0", "--json", status=1).out)
    assert answer["leftFiles"] == 60
    smallest = [f"{number}.bin" for number in range(50) if number != 40]
    assert [one["filename"] for one in answer["files"]] == ["40.bin", *smallest]
    assert [one["path"] for one in json.loads(node.manifest.read_text())["files"]][-1] == "59.bin"
    assert "and 10 more" in node.shell("drain", "--deadline", "0", status=1).out


def test_what_waits_for_its_time_is_tried_at_once(node: Node) -> None:
    _, expected = held_file(node)
    postpone(node)
    node.open_gate()
    assert node.shell("drain", "--deadline", "2m").out == "everything is stored\n"
    with node.run() as exp:
        assert_whole(node.daemon, exp, {"best.pt": expected})


def test_a_file_that_is_handed_over_meanwhile_is_taken_and_sent(node: Node) -> None:
    _, expected = held_file(node)
    last = make_file(node.shell.folder / "last.pt", 17 * MIB, seed=1)
    with draining(node, "--deadline", "10m") as process:
        with node.run() as exp:
            exp.files.upload(node.shell.folder / "last.pt")
        node.open_gate()
        assert ended(process).status == 0
    with node.run() as exp:
        assert_whole(node.daemon, exp, {"best.pt": expected, "last.pt": last})


def test_a_file_that_fails_meanwhile_is_told_of(node: Node) -> None:
    record, _ = held_file(node)
    postpone(node)
    (node.shell.folder / "best.pt").write_bytes(b"other bytes")
    node.open_gate()
    said = node.shell("drain", status=1)
    assert "1 file failed" in said.out
    assert "SOURCE_CHANGED" in said.out
    assert "left" not in said.out
    (file,) = json.loads(node.manifest.read_text())["files"]
    assert (file["id"], file["state"]) == (record["id"], "FAILED")
    # One that had failed before is no news.
    assert node.shell("drain").out == "everything is stored\n"
    assert not node.manifest.exists()


def test_ctrl_c_ends_the_drain_and_nothing_else(node: Node) -> None:
    _, expected = held_file(node)
    with draining(node, "--deadline", "1h") as process:
        process.send_signal(signal.SIGINT)
        assert ended(process).status == 130
    eventually(lambda: "drain_cancelled" in node.daemon.log())
    assert not node.manifest.exists()
    node.open_gate()
    with node.run() as exp:
        exp.files.flush(timeout=60)
        assert_whole(node.daemon, exp, {"best.pt": expected})


def test_the_daemon_may_be_ended_with_it(node: Node) -> None:
    """Where nothing else would. What is left is listed; the deadline is not followed by another wait."""
    _, expected = held_file(node)
    assert node.shell("drain", "--deadline", "0", "--stop", status=1).out.endswith(f"all of them: {node.manifest}\n")
    assert node.daemon.process is not None
    assert node.daemon.process.wait(30) == 0
    assert node.manifest.exists()
    node.shell("drain", status=3)
    node.open_gate()
    node.daemon.start()
    with node.run() as exp:
        exp.files.flush(timeout=60)
        assert_whole(node.daemon, exp, {"best.pt": expected})
    assert "recovered files=1 " in node.daemon.log()
    eventually(lambda: not node.manifest.exists())


def test_the_daemon_of_a_root_is_drained_and_ended(tmp_path: Path) -> None:
    """It names its list by the path that people know, and lets go of the root."""
    root = tmp_path / "root"
    shell = Shell(tmp_path, ["--root", str(root)])
    make_file(tmp_path / "a.bin", 70_000)
    shell("put", "a.bin", "--prefix", PREFIX, "--wait")
    (root / "bob").touch()
    shell("put", "a.bin", "--prefix", "bob/cv/other")
    answer = json.loads(shell("drain", "--deadline", "0", "--stop", "--json", status=1).out)
    manifest = root / ".ml-dashd" / "drain.json"
    assert (answer["leftFiles"], answer["manifest"]) == (1, str(manifest))
    with (root / ".ml-dashd" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it has ended
    assert json.loads(manifest.read_text())["files"][0]["experimentId"] == "bob/cv/other"
    assert "no daemon runs for" in shell.refused("drain", status=3)["message"]


def test_a_stop_sends_what_it_can_and_lists_the_rest(node: Node) -> None:
    """What is held up by an operator's business is tried once more and not waited for: drain_timeout is a minute."""
    record, expected = held_file(node)
    with node.daemon.experiment("bob/cv/other").run as exp:
        exp.files.save_text("fine", to="fine.txt")
    assert node.daemon.stop() == 0
    listed = json.loads(node.manifest.read_text())
    assert (listed["why"], listed["leftFiles"]) == ("stop", 1)
    assert [one["id"] for one in listed["files"]] == [record["id"]]
    assert node.daemon.rows("SELECT state FROM files WHERE filename = 'fine.txt'") == [("DONE",)]
    node.open_gate()
    node.daemon.start()
    with node.run() as exp:
        exp.files.flush(timeout=60)
        assert exp.files().list()[0]["checksum"] == expected
    eventually(lambda: not node.manifest.exists())


def test_who_drains_is_answered_when_the_daemon_is_stopped_meanwhile(node: Node) -> None:
    held_file(node)
    with draining(node, "--deadline", "1h") as process:
        assert node.daemon.stop() == 0
        said = ended(process)
    assert said.status == 1
    assert "1 file left" in said.out


def test_a_drain_outlives_the_daemon(node: Node) -> None:
    """kill -9 and a new start: it is asked again for the time that is left."""
    held_file(node)
    with draining(node, "--deadline", "10m") as process:
        node.daemon.kill()
        node.open_gate()
        node.daemon.start()
        assert ended(process).status == 0


AS_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
peer = socket.socket(socket.AF_UNIX)
peer.connect("socket")
peer.sendall(bytes.fromhex(sys.argv[1]))
peer.shutdown(socket.SHUT_WR)
while piece := peer.recv(65536):
    sys.stdout.buffer.write(piece)
"""


def test_only_the_daemons_own_user_may_drain(tmp_path: Path) -> None:
    """Not even one that may hand files over."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    settings = f'[access]\nuids = [{NOBODY}]\nsocket_mode = "0666"\n'
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
        daemon.folder.chmod(0o755)
        asked = m.encode(m.Hello(request=0, min_version=1, max_version=1, client="test"))
        asked += m.encode(m.Drain(request=1, deadline_ms=0, stop=True))
        command = [sys.executable, "-c", AS_NOBODY, asked.hex()]
        done = subprocess.run(command, cwd=daemon.folder, capture_output=True, check=True, timeout=30)
        _, answer = m.wire.Decoder(m.REPLY_LIMITS).feed(done.stdout)
        refused = m.decode(answer, m.REPLIES)
        assert isinstance(refused, m.Failed)
        assert (refused.code, refused.message) == (Code.ACCESS_DENIED, f"uid {NOBODY} may not drain this daemon")
        assert "drain_started" not in daemon.log()
        with RawClient(daemon.socket).greet():
            assert daemon.stop() == 0


def test_a_deadline_has_a_bound(node: Node) -> None:
    with RawClient(node.daemon.socket).greet() as client:
        refused = client.ask(m.Failed, m.Drain(request=1, deadline_ms=24 * 3600 * 1000 + 1))
        assert refused.code == Code.INVALID_ARGUMENT
        assert isinstance(client.ask(m.Progress, m.Drain(request=2, deadline_ms=24 * 3600 * 1000)), m.Progress)
        assert client.reply() == m.Drained(request=2, left_files=0, left_bytes=0, failed_files=0)


@pytest.mark.parametrize("words", ["25h", "1d", "-1", "m", "", "nan", "1e9"])
def test_deadlines_that_are_none(node: Node, words: str) -> None:
    assert "deadline" in node.shell.refused("drain", f"--deadline={words}", status=2)["message"]


def test_a_bar_on_a_terminal(node: Node) -> None:
    held_file(node)
    shown = node.shell.on_a_terminal("drain", "--deadline", "1", run=RUN)
    assert "1 file left" in shown.err
    assert "0/70.0" in shown.err.replace(" ", "")
    assert "1 file left" in shown.out


# ---- priorities


def test_a_priority_is_taken_by_every_way_of_handing_over(node: Node) -> None:
    make_file(node.shell.folder / "a.pt", 70_000)
    with node.run() as exp:
        exp.files.upload(node.shell.folder / "a.pt", priority=5)
        exp.files("b").save_json({}, to="b.json", priority=-100)
        exp.files.save_blob(bytes(100_000), to="c.bin", priority=100)
        exp.files.save(bytes(10), to="d.bin")
    node.shell("put", "a.pt", "--prefix", PREFIX, "--to", "e.pt", "--priority", "-7")
    assert node.daemon.rows("SELECT filename, priority FROM files ORDER BY filename") == [
        ("a.pt", 5), ("b.json", -100), ("c.bin", 100), ("d.bin", 0), ("e.pt", -7),
    ]  # fmt: skip


@pytest.mark.parametrize("priority", [101, -101, 1.0, True, "high", None])
def test_a_priority_that_is_none(node: Node, priority: Any) -> None:
    with node.run() as exp, pytest.raises(MLDashError) as refused:
        exp.files.save_json({}, to="a.json", priority=priority)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "priority" in refused.value.message


def postpone(node: Node) -> None:
    """Nothing of what is blocked is tried by itself any more. It was blocked just now, so none is being tried."""
    with closing(sqlite3.connect(node.daemon.state / "journal.sqlite")) as journal, journal:
        journal.execute("UPDATE files SET not_before_ms = 1 << 60 WHERE blocked")


@pytest.mark.parametrize("deadline", ["bogus", "s", "-1s", "2d"])
def test_a_deadline_that_is_none_is_named_as_it_was_typed(node: Node, deadline: str) -> None:
    assert repr(deadline) in node.shell.refused("drain", f"--deadline={deadline}", status=2)["message"]
