"""Files that are somewhere already: verified, listed by versions, stopped, tried again, and watched."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.meddling_proxy import Answer, MeddlingProxy, Request, refusal
from tests.doubles.s3_double import S3Double
from tests.harness import PREFIX, Bucket, DaemonProcess, eventually, file_sha256
from tests.scenario.conftest import Held
from tests.scenario.shell import Shell, put

pytestmark = pytest.mark.slow


# ---- verify and versions


def test_verify_names_what_is_damaged_or_missing(shell: Shell) -> None:
    """Each in a line with what to do; the others are read all the same."""
    made = {}
    for name in ("whole", "flipped", "short", "long", "gone", "empty"):
        content = b"" if name == "empty" else os.urandom(90_000)
        made[name] = put(shell, f"{name}.bin", content, "--wait")
    ended = shell("verify", "--prefix", PREFIX)
    assert (ended.out, ended.err) == ("6 files, 450.0 kB, as they were stored\n", "")
    root = shell.folder.parent / "root"
    at = {name: next(root.glob(f"**/{record['id']}/*")) for name, record in made.items()}
    for path in at.values():
        path.chmod(0o600)
    content = bytearray(at["flipped"].read_bytes())
    content[50_000] ^= 1
    at["flipped"].write_bytes(content)
    os.truncate(at["short"], 80_000)
    with at["long"].open("ab") as file:
        file.write(b"x")
    at["gone"].unlink()
    at["empty"].unlink()
    found = json.loads(shell("verify", "*.bin", "--prefix", PREFIX, "--json", status=1).out)
    assert found["files"] == 6
    assert {each["path"]: each["code"] for each in found["damaged"]} == {
        "flipped.bin": "CHECKSUM_MISMATCH",
        "short.bin": "CHECKSUM_MISMATCH",
        "gone.bin": "OBJECT_MISSING",
        "empty.bin": "OBJECT_MISSING",
        "long.bin": "CHECKSUM_MISMATCH",
    }
    ended = shell("verify", "--id", made["flipped"]["id"], "--id", made["whole"]["id"], status=1)
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"{made['flipped']['id']}  flipped.bin  CHECKSUM_MISMATCH: its SHA-256 in the store is ")
    assert file_sha256(at["flipped"]) in lines[0]
    assert lines[1].startswith("  hint: ")
    assert lines[2] == "1 of 2 files damaged or missing"
    assert shell.refused("verify", "none", "--prefix", PREFIX, status=1)["code"] == "NO_MATCH"
    assert shell.refused("verify", "--id", "12", status=1)["code"] == "UNKNOWN_FILE"


def test_verify_shows_how_far_it_is(shell: Shell) -> None:
    for number in range(3):
        put(shell, f"{number}.bin", os.urandom(20_000_000), "--wait")
    ended = shell.on_a_terminal("verify", "--prefix", PREFIX)
    assert "3 files" in ended.err
    assert ended.out == "3 files, 60.0 MB, as they were stored\n"


def test_versions_of_one_path(shell: Shell) -> None:
    first = put(shell, "a.txt", b"one", "--to", "x/a.txt", "--wait")
    second = put(shell, "a.txt", b"second", "--to", "x/a.txt", "--wait")
    put(shell, "b.txt", b"b", "--to", "x/a.txt.bak", "--wait")
    assert [each["id"] for each in shell.json("versions", "x/a.txt", "--prefix", PREFIX)] == [second["id"], first["id"]]
    head, *rows = shell("versions", "x/a.txt", "--prefix", PREFIX).out.splitlines()
    assert head.split() == ["ID", "STATE", "SIZE", "CREATED", "SHA-256"]
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [
        (second["id"], second["checksum"]),
        (first["id"], first["checksum"]),
    ]
    assert shell.refused("versions", "x", "--prefix", PREFIX, status=1)["code"] == "NO_MATCH"


def test_update_of_the_newest_and_of_one_version(shell: Shell) -> None:
    """What is not typed stays as it is."""
    words = ("--description", "first", "--tag", "old", "--metadata", '{"epoch": 1}')
    first = put(shell, "a.txt", b"one", "--to", "x/a.txt", "--wait", *words)
    second = put(shell, "a.txt", b"second", "--to", "x/a.txt", "--wait")
    ended = shell("update", "x/a.txt", "--prefix", PREFIX, "--tag", "best", "--tag", "kept")
    assert ended.out == f"{second['id']}  x/a.txt\n"
    changed = shell.json("update", "--id", first["id"], "--metadata", '{"epoch": 2}')
    assert changed["metadata"] == {"epoch": 2}
    newest, oldest = shell.json("versions", "x/a.txt", "--prefix", PREFIX)
    assert (newest["description"], newest["tags"], newest["metadata"]) == (None, ["best", "kept"], None)
    assert (oldest["description"], oldest["tags"], oldest["metadata"]) == ("first", ["old"], {"epoch": 2})
    bare = shell.json("update", "--id", first["id"], "--clear-tags")
    assert (bare["tags"], bare["description"]) == ([], "first")
    assert shell.json("update", "--id", first["id"], "--clear-tags", "--tag", "new")["tags"] == ["new"]
    assert shell.refused("update", "x/a.txt", "--prefix", PREFIX, status=2)["code"] == "INVALID_ARGUMENT"
    assert shell.refused("update", "x", "--prefix", PREFIX, "--tag", "a", status=1)["code"] == "NO_MATCH"
    assert shell.refused("update", "--id", "12", "--tag", "a", status=1)["code"] == "UNKNOWN_FILE"


def test_verify_leaves_out_what_is_on_its_way(stuck: Shell) -> None:
    put(stuck, "a.bin", b"x" * 100_000)
    assert (
        stuck("verify", "--prefix", PREFIX).out
        == "0 files, 0 bytes, as they were stored; 1 file not stored, and not read\n"
    )


# ---- cancel and retry


def test_cancel_stops_what_is_on_its_way(stuck: Shell) -> None:
    first = put(stuck, "a.bin", b"x" * 100_000)
    second = put(stuck, "a.bin", b"y" * 100_000)
    third = put(stuck, "b.bin", b"z" * 100_000)
    other = put(stuck, "c.bin", b"c")
    ended = stuck("cancel", third["id"], "a.bin", "--prefix", PREFIX)
    assert sorted(re.findall(r"file (\d+)", ended.out)) == sorted(each["id"] for each in (first, second, third))
    assert [each["id"] for each in stuck.json("ls", "--prefix", PREFIX)] == [other["id"]]
    assert stuck.json("cancel", third["id"])[0]["id"] == third["id"]  # once more
    assert stuck.refused("cancel", "12", status=1)["code"] == "UNKNOWN_FILE"
    assert stuck.refused("cancel", "none", "--prefix", PREFIX, status=1)["code"] == "NO_MATCH"


def test_cancel_leaves_alone_what_is_stored(service: DaemonProcess, held: Held, tmp_path: Path) -> None:
    """An error that says `rm`; then nothing of the same request is stopped either."""
    shell = Shell(tmp_path, ["--socket", str(service.socket)])
    moving = held.exp.files.save_text("on its way", to="moving.txt")
    stored = put(shell, "stored.txt", b"stored", "--wait")
    for words in ((stored["id"], moving["id"]), ("stored.txt", "--prefix", PREFIX)):
        failure = shell.refused("cancel", *words, status=1)
        assert failure["code"] == "ALREADY_STORED"
        assert "ml-dash rm" in failure["hint"]
    assert held.exp.files("moving.txt").list()[0]["state"] != "CANCELLED"
    assert shell.json("ls", "stored.txt", "--prefix", PREFIX)[0]["state"] == "DONE"
    held.let_go()
    held.exp.files.flush(timeout=60)


def test_a_failed_file_goes_back_to_the_queue(tmp_path: Path, s3_double: S3Double) -> None:
    """The store has refused it for good, then it is mended: its source was kept, and may be gone by now."""
    refuses = True

    def before(request: Request) -> Answer | None:
        return refusal(400, "InvalidRequest") if refuses and request.method in ("PUT", "POST") else None

    with MeddlingProxy(s3_double.endpoint, before) as proxy:
        store = Bucket(s3_double, proxy.endpoint)
        settings = 'checksum = "crc64nvme"\n'
        with DaemonProcess(tmp_path / "daemon", store, settings) as daemon:
            shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
            records = [put(shell, f"{size}.bin", os.urandom(size)) for size in (10, 100_000, 20_000_000)]
            eventually(lambda: len(shell.json("status")["failed"]) == 3)
            content = (tmp_path / "20000000.bin").read_bytes()
            for record in records:
                (tmp_path / record["filename"]).unlink()
            assert shell("retry", "--all").out == "3 files tried again\n"
            eventually(lambda: len(shell.json("status")["failed"]) == 3)  # it still refuses
            refuses = False
            assert shell.json("retry", *(record["id"] for record in records)) == {"files": 3, "failed": []}
            shell("wait", *(record["id"] for record in records), "--timeout", "50")
            assert shell("verify", "--prefix", PREFIX).out.startswith("3 files, ")
            shell("get", "20000000.bin", "--prefix", PREFIX, "-o", "back.bin")
            assert (tmp_path / "back.bin").read_bytes() == content
            assert store.keys() == sorted(store.key_of(record) for record in records)
            assert store.open_uploads() == []
            failed = json.loads(shell("retry", records[0]["id"], "--json", status=1).out)["failed"]
            assert [each["code"] for each in failed] == ["ALREADY_STORED"]


def test_a_failed_file_whose_source_has_changed_says_so(stuck: Shell) -> None:
    record = put(stuck, "a.bin", b"x" * 100_000)
    other = put(stuck, "b.bin", b"b")
    status: dict[str, Any] = {"failed": []}
    for count in range(1, 400):
        (stuck.folder / "a.bin").write_bytes(b"y" * (100_000 + count))
        if (status := stuck.json("status"))["failed"]:
            break
    assert status["failed"]
    ended = stuck("retry", record["id"], other["id"], status=1)
    assert ended.out == "1 file tried again\n"
    assert f"a.bin (file {record['id']}) is not tried: " in ended.err
    assert "hint: " in ended.err
    refused = json.loads(stuck("retry", "--all", "--json", status=1).out)
    assert [(each["id"], each["code"]) for each in refused["failed"]] == [(record["id"], "SOURCE_CHANGED")]
    assert stuck.refused("retry", "12", status=1)["code"] == "UNKNOWN_FILE"


def test_a_blocked_file_is_tried_now(service: DaemonProcess, held: Held, tmp_path: Path) -> None:
    shell = Shell(tmp_path, ["--socket", str(service.socket)])
    result = held.exp.files.save_blob(os.urandom(100_000), to="a.bin")
    eventually(lambda: result.refresh() and result._record.error_code)
    held.let_go()
    assert shell("retry", result["id"]).out == "1 file tried again\n"
    result.wait(timeout=60)


# ---- top


def test_top_for_scripts(stuck: Shell) -> None:
    record = put(stuck, "model.pt", b"x" * 100_000)
    eventually(lambda: stuck.json("status")["blocked"])
    seen = stuck.json("top")
    assert seen.keys() == {"files", "bytesPerSecond", "moving", "blocked", "failed"}
    assert sum(count["files"] for count in seen["files"].values()) == 1
    assert [each["id"] for each in seen["blocked"]] == [record["id"]]
    for words in (("top",), ("top", "--once")):
        ended = stuck(*words)  # without a terminal
        assert f"{record['id']}  {PREFIX}: model.pt" in ended.out
        assert "STORE_UNREACHABLE" in ended.out
        assert "hint: " in ended.out
        assert "\x1b" not in ended.out + ended.err


def test_top_names_what_is_under_way(tmp_path: Path, s3_double: S3Double) -> None:
    """With how much of it is sent, and how quickly."""
    settings = "part_size = 5242880\n[limits]\nbandwidth = 5000000\nconnections = 1\n"
    with DaemonProcess(tmp_path / "daemon", Bucket(s3_double), settings) as daemon:
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        record = put(shell, "big.bin", os.urandom(60_000_000))
        seen = eventually(
            lambda: [each for each in shell.json("top")["moving"] if each["sentBytes"] or each["bytesPerSecond"]]
        )
        assert seen[0]["id"] == record["id"]
        assert "of 60.0 MB" in shell("top", "--once").out


def test_top_on_a_terminal(stuck: Shell, full_size: bool) -> None:
    """Live, however much is queued; another size of the terminal is another screen; q ends it and leaves no trace."""
    (stuck.folder / "many").mkdir()
    count = 10_000 if full_size else 1_000
    for number in range(count):
        (stuck.folder / "many" / f"{number:05}").write_bytes(b"x")
    stuck("put", "-r", "many", "--prefix", PREFIX)
    eventually(lambda: stuck.json("status")["blocked"])
    ours, theirs = pty.openpty()
    try:
        _resize(theirs, 30, 100)
        before = termios.tcgetattr(theirs)
        with subprocess.Popen(
            stuck.command("top"), stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"},
            start_new_session=True,
        ) as process:  # fmt: skip
            screen = _until(ours, "q quits", f"QUEUED {count}", "STORE_UNREACHABLE", "hint: ")
            assert len(screen.split("\x1b[H")[-1].splitlines()) <= 30
            _resize(theirs, 20, 60)
            _until(ours, "q quits")
            os.write(ours, b"x")
            os.write(ours, b"q")
            rest = _until(ours, "\x1b[?1049l")
            assert process.wait(30) == 0
        assert "\x1b[?25h" in rest  # the cursor is back
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _until(terminal: int, *words: str) -> str:
    """What the terminal shows until all these words have come."""
    shown = ""
    while not all(word in shown for word in words):
        assert select.select([terminal], [], [], 30)[0], f"{words} do not come: {shown[-2000:]!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
