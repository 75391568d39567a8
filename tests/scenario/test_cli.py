"""The `ml-dash` command as its users run it: a process, a real daemon, and what comes out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ml_dash.cli import commands, main
from ml_dash.cli.parser import COMMANDS, EXAMPLES, build
from tests.harness import PREFIX, eventually, file_sha256, make_file
from tests.scenario.shell import RECORD, WITHOUT_RICH, Ended, Shell, closing_descriptor, put

pytestmark = pytest.mark.slow

MIB = 1 << 20


# ---- status


def test_status_without_a_daemon_says_so_and_starts_none(shell: Shell, tmp_path: Path) -> None:
    ended = shell("status", status=3)
    assert ended.out == ""
    assert ended.err.splitlines() == [
        f"ml-dash: no daemon runs for {tmp_path / 'root'}",
        "hint: it is started with the next file that is handed over",
    ]
    assert shell.refused("status", status=3)["code"] == "DAEMON_UNAVAILABLE"
    assert not (tmp_path / "root").exists()


def test_a_socket_where_nobody_listens_is_no_daemon(tmp_path: Path) -> None:
    shell = Shell(tmp_path, ["--socket", str(tmp_path / "none")])
    for command in ("status", "wait"):
        assert shell.refused(command, status=3)["code"] == "DAEMON_UNAVAILABLE"
    elsewhere = Shell(tmp_path, [])
    ended = elsewhere("status", status=3, ML_DASH_SOCKET=str(tmp_path / "other"))
    assert ended.err.startswith(f"ml-dash: no daemon answers at {tmp_path / 'other'}\nhint: ")


def test_a_root_that_is_typed_goes_before_the_environment(shell: Shell, tmp_path: Path) -> None:
    """Else what was meant for one store would go to another, without a word."""
    other = Shell(shell.folder, ["--root", str(tmp_path / "runs")])
    ended = other("status", status=3, ML_DASH_SOCKET=shell.where[1])
    assert f"no daemon runs for {tmp_path / 'runs'}" in ended.err


def test_status_of_a_daemon(shell: Shell, tmp_path: Path) -> None:
    put(shell, "a.bin", b"x" * 1536, "--wait")
    status = shell.json("status")
    assert status["files"] == {"DONE": {"files": 1, "sizeBytes": 1536}}
    assert status["embedded"] is True
    assert status["store"] == (tmp_path / "root").as_uri()
    assert status["socket"] == str(tmp_path / "root" / ".ml-dashd" / "socket")
    assert status["spoolBytes"] == 0
    assert status["oldestAt"] is None
    assert (status["blocked"], status["failed"]) == ([], [])
    os.kill(status["pid"], 0)
    lines = shell("status").out.splitlines()
    assert re.fullmatch(rf"daemon   \S+, embedded, pid {status['pid']}, up \d+ s", lines[0])
    assert "waiting  nothing" in lines
    assert re.search(r"^DONE +1 +1.5 kB$", "\n".join(lines), re.MULTILINE)


def test_status_shows_what_is_blocked_and_why(stuck: Shell) -> None:
    record = put(stuck, "model.pt", b"x" * 100_000, "--to", "models/model.pt")
    # The store is asked in the background; what the daemon says of it comes a moment later.
    for _ in range(100):
        if (status := stuck.json("status"))["blocked"]:
            break
    (blocked,) = status["blocked"]
    assert blocked["id"] == record["id"]
    assert blocked["error"]["code"] == "STORE_UNREACHABLE"
    assert blocked["error"]["hint"]
    assert status["oldestAt"] == record["createdAt"]
    out = stuck("status").out
    assert f"{record['id']}  {PREFIX}: models/model.pt" in out
    assert f"STORE_UNREACHABLE: {blocked['error']['message']}" in out
    assert f"hint: {blocked['error']['hint']}" in out


# ---- put, ls, get, rm


def test_round_trip(shell: Shell, tmp_path: Path) -> None:
    """Put two versions, list them, bring them back, delete them; what is on disk is what was put."""
    first, second = os.urandom(70_000), os.urandom(80_000)
    (shell.folder / "model.pt").write_bytes(first)
    ended = shell("put", "model.pt", "--prefix", PREFIX, "--to", "models/best.pt", "--wait")
    assert re.fullmatch(r"\d+  models/best\.pt  DONE\n", ended.out)
    assert ended.err == ""
    old = ended.out.split()[0]
    new = put(shell, "model.pt", second, "--to", "models/best.pt", "--wait")["id"]
    put(shell, "config.json", b"{}", "--wait")

    head, *rows = shell("ls", "--prefix", PREFIX).out.splitlines()
    assert head.split() == ["ID", "STATE", "SIZE", "CREATED", "PATH"]
    assert [(row.split()[0], row.split()[-1]) for row in rows[1:]] == [(new, "models/best.pt"), (old, "models/best.pt")]
    assert re.fullmatch(rf" *{new}  DONE +80\.0 kB  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  models/best\.pt", rows[1])

    target = tmp_path / "root" / PREFIX / "files" / "models" / new / "best.pt"
    assert target.read_bytes() == second
    ended = shell("get", "models/best.pt", "--prefix", PREFIX)
    assert (ended.out, ended.err) == ("best.pt\n", "")
    assert (shell.folder / "best.pt").read_bytes() == second
    assert shell("get", "--id", old, "-o", "old.pt").out == "old.pt\n"
    assert (shell.folder / "old.pt").read_bytes() == first
    assert shell("get", "**/*", "--prefix", PREFIX, "-o", "out").out == "out/config.json\nout/models/best.pt\n"
    assert (shell.folder / "out/models/best.pt").read_bytes() == second

    assert shell("rm", "--id", old).out == "deleted models/best.pt (1 version)\n"
    assert [each["id"] for each in shell.json("ls", "models", "--prefix", PREFIX)] == [new]
    assert shell("rm", "models/best.pt", "--prefix", PREFIX).out == "deleted models/best.pt (1 version)\n"
    assert [each["filename"] for each in shell.json("ls", "--prefix", PREFIX)] == ["config.json"]


def test_put_records_what_is_said_of_a_file(shell: Shell) -> None:
    record = put(
        shell, "a.txt", b"hello",
        "--description", "greeting", "--tag", "x", "--tag", "y", "--metadata", '{"epoch": 3}',
        "--durability", "disk", "--snapshot", "copy", "--wait",
    )  # fmt: skip
    assert record.keys() == RECORD
    assert record["description"] == "greeting"
    assert record["tags"] == ["x", "y"]
    assert record["metadata"] == {"epoch": 3}
    assert (record["experimentId"], record["path"], record["filename"]) == (PREFIX, "/", "a.txt")
    assert (record["state"], record["ack"], record["sizeBytes"]) == ("DONE", "disk", 5)
    assert record["checksum"] == hashlib.sha256(b"hello").hexdigest()


def test_put_does_not_wait_for_a_checksum(stuck: Shell) -> None:
    record = put(stuck, "big.bin", b"x" * 100_000)
    assert record.keys() == RECORD
    assert record["checksum"] is None
    assert record["state"] in ("QUEUED", "SENDING")
    ended = stuck("put", "big.bin", "--prefix", PREFIX)
    assert re.fullmatch(r"\d+  big\.bin  (QUEUED|SENDING)\n", ended.out)


def test_put_takes_the_bytes_of_this_moment(stuck: Shell) -> None:
    """What is still on its way is listed, brought back and deleted like anything else."""
    record = put(stuck, "big.bin", b"x" * 100_000)
    (stuck.folder / "big.bin").unlink()
    (listed,) = stuck.json("ls", "--prefix", PREFIX)
    assert listed["id"] == record["id"]
    (got,) = stuck.json("get", "big.bin", "--prefix", PREFIX, "-o", "back.bin")
    assert (stuck.folder / "back.bin").read_bytes() == b"x" * 100_000
    assert got["checksum"] == hashlib.sha256(b"x" * 100_000).hexdigest()
    (deleted,) = stuck.json("rm", "big.bin", "--prefix", PREFIX)
    assert deleted["ids"] == [record["id"]]
    assert stuck.json("ls", "--prefix", PREFIX) == []


def test_ls_all_lists_what_is_stored_of_every_experiment(shell: Shell) -> None:
    ids = [
        put(shell, "file", str(number).encode(), "--to", f"{number}.txt", "--prefix", prefix, "--wait")["id"]
        for number, prefix in enumerate(("alice/cv/one", "alice/cv/two", "bob/nlp/one"))
    ]
    listed = shell.json("ls", "--all")
    assert [(record["id"], record["experimentId"]) for record in listed] == [
        *zip(ids, ("alice/cv/one", "alice/cv/two", "bob/nlp/one"), strict=True)
    ]
    assert all(record.keys() == RECORD for record in listed)
    assert [line.split()[-2:] for line in shell("ls", "--all").out.splitlines()[1:]] == [
        ["alice/cv/one:", "0.txt"],
        ["alice/cv/two:", "1.txt"],
        ["bob/nlp/one:", "2.txt"],
    ]
    told = shell("ls", "--all", "--json", ML_DASH_PREFIX="alice/cv/one").out
    assert json.loads(told) == listed, "a script's own experiment is no limit"
    for words in (["*.txt"], ["--prefix", PREFIX], ["--latest"], ["--pending"], ["--tag", "best"]):
        assert "--all lists what is stored of every experiment" in shell("ls", "--all", *words, status=2).err


def test_ls_takes_folders_files_and_globs(shell: Shell) -> None:
    for name in ("a.json", "sub/b.json", "sub/deep/c.json", "sub/d.txt", "subway.txt", "a.json"):
        put(shell, "file", name.encode(), "--to", name)

    def names(*words: str) -> list[str]:
        found = shell.json("ls", *words, "--prefix", PREFIX)
        assert all(record.keys() == RECORD for record in found)
        return [f"{record['path']}/{record['filename']}".lstrip("/") for record in found]

    assert names() == ["a.json", "a.json", "sub/b.json", "sub/d.txt", "sub/deep/c.json", "subway.txt"]
    assert names("--latest") == ["a.json", "sub/b.json", "sub/d.txt", "sub/deep/c.json", "subway.txt"]
    assert names("sub") == names("sub/") == ["sub/b.json", "sub/d.txt", "sub/deep/c.json"]
    assert names("sub/d.txt") == ["sub/d.txt"]
    assert names("*.json") == ["a.json", "a.json"]
    assert names("**/*.json", "--latest") == ["a.json", "sub/b.json", "sub/deep/c.json"]
    assert names("sub/*") == ["sub/b.json", "sub/d.txt"]
    assert names("none") == []
    put(shell, "file", b"t", "--to", "sub/tagged.txt", "--tag", "best", "--tag", "kept")
    put(shell, "file", b"u", "--to", "other.txt", "--tag", "best")
    assert names("--tag", "best") == ["other.txt", "sub/tagged.txt"]
    assert names("--tag", "best", "--tag", "kept") == names("sub", "--tag", "best") == ["sub/tagged.txt"]
    assert names("--tag", "none") == []
    ended = shell("ls", "none", "--prefix", PREFIX)
    assert (ended.out, ended.err) == ("", "no files\n")
    assert shell.json("ls", "--prefix", "alice/cv/other") == []


def test_a_prefix_of_more_segments_and_of_the_environment(shell: Shell) -> None:
    put(shell, "a.txt", b"a", "--wait")
    deep = f"{PREFIX}/deep"
    shell("put", "a.txt", ML_DASH_PREFIX=deep)
    assert [each["experimentId"] for each in shell.json("ls", "--prefix", deep)] == [deep]
    assert shell("ls", ML_DASH_PREFIX=PREFIX).out.splitlines()[-1].endswith("  a.txt")


def test_get_and_rm_as_json(shell: Shell) -> None:
    for name in ("x/1.txt", "x/2.txt", "x/1.txt"):
        put(shell, "file", name.encode(), "--to", name)
    got = shell.json("get", "x/*", "--prefix", PREFIX, "-o", "out")
    assert [each.keys() for each in got] == [RECORD | {"localPath"}] * 2
    for each in got:
        assert file_sha256(Path(each["localPath"])) == each["checksum"]
    (alone,) = shell.json("get", "x/2.txt", "--prefix", PREFIX)
    assert alone["localPath"] == str(shell.folder / "2.txt")
    gone = shell.json("rm", "x/*", "--prefix", PREFIX)
    assert [(each["path"], each["filename"], len(each["ids"])) for each in gone] == [
        ("/x", "1.txt", 2),
        ("/x", "2.txt", 1),
    ]
    assert gone[0].keys() == {"id", "ids", "deletedAt", "experimentId", "path", "filename"}
    assert gone[0]["id"] == gone[0]["ids"][0] == got[0]["id"]


def test_get_leaves_nothing_half_written(shell: Shell) -> None:
    record = put(shell, "a.bin", b"right" * 20_000, "--wait")
    stored = next((shell.folder.parent / "root").glob(f"**/{record['id']}/a.bin"))
    stored.chmod(0o600)
    stored.write_bytes(b"wrong" * 20_000)
    (shell.folder / "out").mkdir()
    assert shell.refused("get", "a.bin", "--prefix", PREFIX, "-o", "out/", status=1)["code"] == "CHECKSUM_MISMATCH"
    assert list((shell.folder / "out").iterdir()) == []


# ---- wait


def test_wait_for_ids_an_experiment_and_everything(shell: Shell) -> None:
    make_file(shell.folder / "big.bin", 64 * MIB)
    for words in ("{id}",), ("--prefix", PREFIX), ():
        record = shell.json("put", "big.bin", "--prefix", PREFIX)
        ended = shell("wait", *(word.format(id=record["id"]) for word in words))
        assert ended.err == ""
        assert ended.out in ("1 file stored\n", "nothing is on its way\n")
        assert {each["state"] for each in shell.json("ls", "--prefix", PREFIX)} == {"DONE"}
    assert shell("wait").out == "nothing is on its way\n"
    assert shell.json("wait", record["id"], record["id"]) == {"waitedFor": 1}


def test_wait_gives_up_at_its_time(stuck: Shell) -> None:
    record = put(stuck, "a.txt", b"a")
    for words in (record["id"],), ("--prefix", PREFIX), ():
        failure = stuck.refused("wait", *words, "--timeout", "0.3", status=1)
        assert failure["code"] == "TIMEOUT"
        assert failure["message"] == "1 file is not stored after 0.3 s"


def test_wait_names_what_was_cancelled(stuck: Shell) -> None:
    record = put(stuck, "a.txt", b"a", "--to", "sub/a.txt")
    stuck("rm", "--id", record["id"])
    ended = stuck("wait", record["id"], status=1)
    assert ended.err.splitlines()[0] == f"ml-dash: /sub/a.txt (file {record['id']}) was cancelled"


@pytest.mark.parametrize("words", [("--prefix", PREFIX), ()], ids=["experiment", "everything"])
def test_wait_names_what_failed_meanwhile(stuck: Shell, words: tuple[str, ...]) -> None:
    """The source is overwritten, against the rule, while the store is away."""
    record = put(stuck, "a.bin", b"x" * 100_000)
    ended: list[Ended] = []
    waiting = threading.Thread(target=lambda: ended.append(stuck("wait", *words, "--timeout", "50", status=1)))
    waiting.start()
    eventually(lambda: stuck.json("status")["connections"] > 1)  # besides the one that asks
    for count in range(1, 400):
        (stuck.folder / "a.bin").write_bytes(b"y" * (100_000 + count))
        if stuck.json("status")["failed"]:
            break
    waiting.join()
    assert f"/a.bin (file {record['id']})" in ended[0].err
    assert "hint: " in ended[0].err
    # Afterwards the experiment is still not whole, but nothing is on its way.
    assert stuck.refused("wait", "--prefix", PREFIX, status=1)["code"] == "SOURCE_CHANGED"
    assert stuck("wait").out == "nothing is on its way\n"
    assert stuck.json("status")["failed"][0]["error"]["code"] == "SOURCE_CHANGED"
    assert "\nfailed:\n" in stuck("status").out


# ---- on a terminal


def test_bars_on_a_terminal(shell: Shell) -> None:
    make_file(shell.folder / "big[1].bin", 8 * MIB)
    ended = shell.on_a_terminal("put", "big[1].bin", "--prefix", PREFIX, "--wait")
    assert ended.status == 0
    assert "big[1].bin" in ended.err
    assert "8.4/8.4 MB" in ended.err
    assert re.fullmatch(r"\d+  big\[1\]\.bin  DONE\n", ended.out)
    ended = shell.on_a_terminal("get", "big*", "--prefix", PREFIX, "-o", "back")
    assert "8.4/8.4 MB" in ended.err
    assert ended.out == "back/big[1].bin\n"


def test_one_bar_for_all_files_of_a_glob(shell: Shell) -> None:
    """The daemon sends four at once: they share a bar, and what a program reads stands alone."""
    for number in range(5):
        make_file(shell.folder / f"{number}.bin", 2 * MIB)
        shell("put", f"{number}.bin", "--prefix", PREFIX, "--wait")
    put(shell, "empty.bin", b"")
    ended = shell.on_a_terminal("get", "*.bin", "--prefix", PREFIX, "-o", "back", run=WITHOUT_RICH)
    assert ended.out == "".join(f"back/{name}.bin\n" for name in (0, 1, 2, 3, 4, "empty"))
    assert "\r6 files  100 %  10.5 MB of 10.5 MB" in ended.err
    assert "\r1.bin" not in ended.err
    ended = shell.on_a_terminal("get", "*.bin", "--prefix", PREFIX, "-o", "back", "--json", run=WITHOUT_RICH)
    assert ended.err == ""
    assert len(json.loads(ended.out)) == 6


def test_bars_without_rich(shell: Shell) -> None:
    make_file(shell.folder / "big.bin", 8 * MIB)
    words = ("big.bin", "--prefix", PREFIX)
    for ended in (
        shell.on_a_terminal("put", *words, "--wait", run=WITHOUT_RICH),
        shell.on_a_terminal("get", *words, "-o", "back.bin", run=WITHOUT_RICH),
    ):
        assert ended.status == 0
        assert "\rbig.bin  0 %  0 bytes of 8.4 MB" in ended.err
        assert ended.err.endswith("\rbig.bin  100 %  8.4 MB of 8.4 MB\x1b[K\r\n")


def test_ctrl_c_is_quiet(stuck: Shell) -> None:
    put(stuck, "a.txt", b"a")
    with stuck.terminal("wait", run=WITHOUT_RICH) as (process, terminal):
        shown = b""
        while b"0 of 1 files" not in shown:
            shown += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        with suppress(OSError):
            while piece := os.read(terminal, 65536):
                shown += piece
    assert b"Traceback" not in shown
    assert b"ml-dash: the files go on by themselves\r\nhint: " in shown
    assert shown.endswith(b"\r\n")


@pytest.mark.parametrize("words", [("ls",), ("ls", "--json"), ("get", "*", "-o", "out")], ids=" ".join)
def test_a_closed_pipe_is_no_error(shell: Shell, words: tuple[str, ...]) -> None:
    put(shell, "a.txt", b"a")
    reading, writing = os.pipe()
    os.close(reading)
    with closing_descriptor(writing):
        done = subprocess.run(
            shell.command(*words, "--prefix", PREFIX),
            cwd=shell.folder, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("put", "a.txt", "--prefix", "alice/cv"), 2, "INVALID_PREFIX"),
        (("put", "a.txt", "--prefix", "alice/cv/.."), 2, "INVALID_PREFIX"),
        (("put", "a.txt"), 2, "INVALID_PREFIX"),
        (("ls", "--prefix", "/alice/cv/x"), 2, "INVALID_PREFIX"),
        (("ls", "../x", "--prefix", PREFIX), 2, "INVALID_PATH"),
        (("prune", "", "--keep-last", "1", "--prefix", PREFIX), 2, "INVALID_ARGUMENT"),
        (("wait", "--prefix", "alice"), 2, "INVALID_PREFIX"),
        (("wait", "1", "--prefix", PREFIX), 2, "INVALID_ARGUMENT"),
        (("put", "a.txt", "--prefix", PREFIX, "--to", "../x"), 2, "INVALID_PATH"),
        (("put", "a.txt", "--prefix", PREFIX, "--metadata", "{"), 2, "INVALID_ARGUMENT"),
        (("put", "a.txt", "--prefix", PREFIX, "--metadata", "[1]"), 2, "INVALID_ARGUMENT"),
        (("put", "a.txt", "--prefix", PREFIX, "--metadata", '{"x": NaN}'), 2, "INVALID_METADATA"),
        (("put", "none.txt", "--prefix", PREFIX), 1, "FILE_NOT_FOUND"),
        (("put", ".", "--prefix", PREFIX), 1, "NOT_A_FILE"),
        (("put", b"\xff.txt", "--prefix", PREFIX), 2, "INVALID_PATH"),
        (("get", "none", "--prefix", PREFIX), 1, "NO_MATCH"),
        (("get", "*.none", "--prefix", PREFIX), 1, "NO_MATCH"),
        (("get", "a.txt", "--prefix", PREFIX, "-o", "a.txt/x"), 1, "NOT_A_FOLDER"),
        (("get", "--id", "12"), 1, "UNKNOWN_FILE"),
        (("rm", "none", "--prefix", PREFIX), 1, "NO_MATCH"),
        (("rm", "--id", "12"), 1, "UNKNOWN_FILE"),
        (("wait", "12"), 1, "UNKNOWN_FILE"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value),
)
def test_refusals(shell: Shell, words: tuple[str, ...], status: int, code: str) -> None:
    put(shell, "a.txt", b"a", "--wait")
    Path(os.fsdecode(os.fsencode(shell.folder) + b"/\xff.txt")).write_bytes(b"x")
    words = tuple(os.fsdecode(word) for word in words)
    failure = shell.refused(*words, status=status)
    assert failure["code"] == code
    ended = shell(*words, status=status)
    assert ended.out == ""
    assert f"ml-dash: {failure['message']}\nhint: {failure['hint']}\n" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("put",),
        ("get",),
        ("get", "a.txt", "--id", "1"),
        ("ls", "--no-such-option"),
        ("ls", "--lat"),
        ("wait", "x1"),
        ("wait", "9" * 5000),
        ("wait", "--timeout", "-1"),
        ("wait", "--timeout", "nan"),
        ("put", "x", "--durability", "rock"),
        ("status", "--socket", "x"),
        (),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_wrong_usage(shell: Shell, words: tuple[str, ...]) -> None:
    ended = shell(*words, status=2)
    assert ended.out == ""
    assert ended.err.startswith("usage: ml-dash ")
    assert re.search(r"^ml-dash: .+\nhint: see `ml-dash.* --help`\n\Z", ended.err, re.MULTILINE)
    assert shell.refused(*words, status=2)["code"] == "INVALID_ARGUMENT"


def test_a_word_too_many_is_said_of_the_command(shell: Shell) -> None:
    ended = shell("ls", "a.pt", "b.pt", "--nix", status=2)
    assert ended.err.startswith("usage: ml-dash ls ")
    assert ended.err.endswith("ml-dash: unrecognized arguments: b.pt --nix\nhint: see `ml-dash ls --help`\n")


@pytest.mark.parametrize("words", [("versions",), ("update", "--tag", "x"), ("cancel",)], ids=lambda words: words[0])
@pytest.mark.parametrize("path", ["", "models/"])
def test_what_names_no_file_is_named(shell: Shell, words: tuple[str, ...], path: str) -> None:
    failure = shell.refused(*words, path, "--prefix", PREFIX, status=2)
    assert (failure["code"], failure["message"]) == ("INVALID_PATH", f"{path!r} names no file")


@pytest.mark.parametrize("command", ["get", "rm"])
def test_a_name_with_a_bracket_is_taken_for_a_pattern_and_the_hint_says_so(shell: Shell, command: str) -> None:
    put(shell, "a [1].txt", b"a", "--wait")
    failure = shell.refused(command, "a [1].txt", "--prefix", PREFIX, status=1)
    assert failure["hint"] == """for a "[" that is part of a name, write "[[]": 'a [[]1].txt'"""
    shell(command, "a [[]1].txt", "--prefix", PREFIX)


def test_ctrl_c_speaks_of_the_command_and_not_of_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "rm", interrupted)
    assert main(["rm", "put"]) == 130
    assert capsys.readouterr().err == ""


def test_a_full_disk_where_the_output_goes(shell: Shell) -> None:
    put(shell, "a.txt", b"a")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            shell.command("ls", "--prefix", PREFIX), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "ml-dash: [Errno 28] No space left on device"


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_with_examples(command: str, tmp_path: Path) -> None:
    ended = Shell(tmp_path, [])(command, "--help")
    assert ended.out.startswith(f"usage: ml-dash {command} ")
    assert "\nexamples:\n" in ended.out
    assert ended.err == ""


def test_what_can_be_typed_can_be_done() -> None:
    assert commands.COMMANDS.keys() == COMMANDS.keys()


def test_every_example_can_be_typed() -> None:
    lines = [line for text in EXAMPLES.values() for line in text.splitlines()]
    for line in lines:
        typed = re.search(r"ml-dash [a-z].*", line)
        if typed is None or "COMMAND" in line:
            continue
        words = shlex.split(re.split(r"  +| \||\)| >", typed[0])[0])
        build().parse_args(words[1:])
    assert len(lines) > len(COMMANDS)


def test_version_and_options_before_the_command(shell: Shell) -> None:
    assert re.fullmatch(r"ml-dash \d+\.\S+\n", shell("--version").out)
    before = Shell(shell.folder, [])
    assert before(*shell.where, "--json", "status", status=3).err.startswith('{"error": ')


# ---- where nothing is


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("ls", "--prefix", PREFIX), 0, "no files"),
        (("list", "-p", PREFIX), 0, "no files"),
        (("get", "a.txt", "--prefix", PREFIX), 1, "no file fits 'a.txt' in alice/cv/resnet"),
        (("get", "-r", "--prefix", PREFIX), 1, "no file fits '**/*'"),
        (("get", "--id", "12"), 1, "no file has the id 12"),
        (("rm", "*", "--prefix", PREFIX), 1, "no file fits '*' in alice/cv/resnet"),
        (("verify", "--prefix", PREFIX), 1, "no file fits '**/*'"),
        (("versions", "a.txt", "--prefix", PREFIX), 1, "there is no file 'a.txt'"),
        (("update", "--id", "12", "--tag", "x"), 1, "no file has the id 12"),
        (("cancel", "12"), 1, "no file has the id 12"),
        (("prune", "--prefix", PREFIX, "--keep-last", "1"), 0, "0 versions (0 bytes) deleted"),
        (("wait",), 0, "nothing is on its way"),
        (("wait", "--prefix", PREFIX), 0, "nothing is on its way"),
        (("wait", "12"), 1, "no file has the id 12"),
        (("experiments",), 0, "no experiments"),
        (("params", "--prefix", PREFIX), 1, "no run of alice/cv/resnet is known here"),
        (("metrics", "--prefix", PREFIX), 1, "no run of alice/cv/resnet is known here"),
        (("put", "-r", ".", "--prefix", PREFIX, "--dry-run"), 0, "0 files would be handed over"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_look_where_no_root_is_makes_none(
    shell: Shell, tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    ended = shell(*words, status=status)
    assert said in ended.out + ended.err
    assert not (tmp_path / "root").exists()
