"""Roots that are moved, copied, removed, shared between namespaces, or can't be used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from ml_dash import Experiment, MLDashError, NetworkError
from ml_dash.errors import Code
from tests.harness import PREFIX, eventually, file_sha256, make_file
from tests.scenario.embedded import Root, gone, held, opened, run_trainer, trainer

pytestmark = pytest.mark.slow

LARGE = 100_000
"""More than travels inside a message (64 KiB)."""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, mounts and other users need root")


def remove(path: Path) -> None:
    """What is written there in this moment makes it fail once."""
    while path.exists():
        with suppress(OSError):
            shutil.rmtree(path)


def is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def names_of(exp: Experiment) -> dict[str, str]:
    return {each["filename"]: each["state"] for each in exp.files().list()}


# ---- moved, removed, copied


def test_a_root_that_is_moved_under_its_daemon(make_root: Callable[..., Root], tmp_path: Path) -> None:
    """It goes along. Whoever uses the old path gets a new root, and neither touches the other's journal."""
    before, after = make_root("before"), make_root("after")
    digest = make_file(tmp_path / "a.bin", LARGE)
    with held(before), before.experiment(wait=False).run as exp:
        exp.files.upload(tmp_path / "a.bin")
        exp.files.save_text("b", to="b.txt")
        first = before.status()
        before.path.rename(after.path)
        other = before.experiment(wait=False).run.start()
        other.files.save_text("other", to="other.txt").wait(30)
        exp.files.save_text("c", to="c.txt")  # a connection that was open goes on, too
    assert after.status().pid == first.pid != before.status().pid
    eventually(lambda: after.status().store == after.path.as_uri())
    assert after.status().state_dir == str(after.path / ".ml-dashd")
    (after.path / PREFIX / "files").unlink()  # what held them
    with after.experiment().run as moved:
        moved.files.flush(30)
        assert names_of(moved) == {"a.bin": "DONE", "b.txt": "DONE", "c.txt": "DONE"}
        assert file_sha256(Path(str(moved.files("a.bin").download(to=tmp_path / "back")))) == digest
    assert len(after.files()) == 3
    after.end()
    # Its end has left the logs of the other one alone, which has the same path as it had.
    other.files.save_text("more", to="more.txt").wait(30)
    before.end(signal.SIGKILL)
    assert names_of(other) == {"other.txt": "DONE", "more.txt": "DONE"}
    assert len(before.files()) == 2
    with after.experiment().run as moved:
        assert len(names_of(moved)) == 3


@pytest.mark.parametrize("successor", [False, True], ids=["nothing at the old path", "another root there"])
def test_leaving_a_run_waits_for_the_root_that_was_moved(
    make_root: Callable[..., Root], tmp_path: Path, successor: bool
) -> None:
    """What waits has a connection of its own, and the path leads to nobody, or to somebody else."""
    before, after = make_root("before"), make_root("after")
    with held(before), ThreadPoolExecutor(1) as trainer, before.experiment(exit_wait=60).run as exp:
        exp.files.save_blob(bytes(LARGE), to="a.bin")
        before.path.rename(after.path)
        if successor:
            with before.experiment().run as other:
                other.files.save_text("other", to="other.txt").wait(30)
        flushing = trainer.submit(exp.files.flush, 60)
        eventually(lambda: after.status().connections >= 3)  # the kept one, flush's, and the one that asks
        assert not flushing.done()
        (after.path / PREFIX / "files").unlink()  # what held it
        flushing.result()
        assert names_of(exp) == {"a.bin": "DONE"}
        second = exp.files.save_text("b", to="b.txt")
    assert second.refresh()["state"] == "DONE"
    assert before.path.exists() is successor, "a daemon was started where nobody has a root any more"


OF_AN_EARLIER_RELEASE = """
    import os, sys
    from pathlib import Path
    from ml_dash import messages
    from ml_dashd import app, config
    for table in (messages.REQUESTS, messages.REQUEST_LIMITS):
        del table[messages.Branch.kind]
    os.chdir(sys.argv[1])
    app.run(config.embedded(Path(sys.argv[1])), lambda left: print("ready", flush=True))
"""


def test_a_daemon_of_an_earlier_release_whose_root_was_moved(make_root: Callable[..., Root]) -> None:
    """It hangs up on who asks it for another connection; the client goes by the path, as it did then."""
    before, after = make_root("before"), make_root("after")
    before.path.mkdir()
    daemon = trainer(OF_AN_EARLIER_RELEASE, str(before.path))
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "ready\n"
    with before.experiment().run as exp:
        exp.files.save_text("a", to="a.txt").wait(30)
        before.path.rename(after.path)
        exp.files.flush(30)
        exp.files.save_text("b", to="b.txt").wait(30)
        exp.files.flush(30)
        assert names_of(exp) == {"b.txt": "DONE"}
    assert before.status().pid != after.status().pid == daemon.pid
    after.end()
    daemon.communicate(timeout=60)


@pytest.mark.parametrize("what", ["the root", "the daemon's folder in it"])
def test_a_root_that_is_removed_ends_its_daemon(root: Root, what: str) -> None:
    with root.experiment().run as exp:
        exp.files.save_text("x", to="a.txt").wait(30)
    with opened(os.pidfd_open(root.status().pid)) as process:
        shutil.rmtree(root.path if what == "the root" else root.path / ".ml-dashd")
        with root.experiment().run as exp:  # at once: a new one, which the old one does not disturb
            exp.files.save_text("x", to="b.txt").wait(30)
            assert gone(process)
            exp.files.save_text("x", to="c.txt").wait(30)
            root.end(signal.SIGKILL)
            assert names_of(exp) == {"b.txt": "DONE", "c.txt": "DONE"}


@pytest.mark.parametrize(
    ("what", "first", "durability"),
    [
        ("", "text", "memory"),
        ("", "many", "memory"),
        ("", "blob", "disk"),
        ("", "upload", "memory"),
        (".ml-dashd", "upload", "disk"),
        (".ml-dashd/spool", "blob", "memory"),
        (".ml-dashd/spool", "upload", "memory"),
        (".ml-dashd/spool/slots", "blob", "disk"),
    ],
)
def test_saves_right_after_a_root_was_removed_are_kept(
    root: Root, tmp_path: Path, what: str, first: str, durability: str
) -> None:
    """Its daemon still lives. What it acknowledged now would be lost with it: the next one takes it."""
    digests = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", LARGE, number) for number in range(3)}
    saves = {
        "text": lambda: exp.files.save_text("text", to="text.txt"),
        "blob": lambda: exp.files.save_blob((tmp_path / "0.bin").read_bytes(), to="0.bin"),
        "upload": lambda: exp.files.upload(tmp_path / "1.bin"),
        "copy": lambda: exp.files.upload(tmp_path / "2.bin", snapshot="copy"),
        "many": lambda: exp.files.upload_many(small),
    }
    small = [tmp_path / f"{number}.txt" for number in range(3)]
    digests |= {path.name: make_file(path, 100) for path in small}
    with root.experiment(durability=durability).run as exp:
        exp.files.save_blob(bytes(LARGE), to="before.bin").wait(30)
        remove(root.path / what)
        saves[first]()
        for name, save in saves.items():
            if name != first:
                save()
        exp.files.flush(60)
        root.end(signal.SIGKILL)
        stored = {each["filename"]: each["checksum"] for each in exp.files().list() if each["state"] == "DONE"}
    assert {name: stored[name] for name in digests} == digests
    assert "text.txt" in stored


def test_what_a_root_takes_along_in_the_middle_of_a_hand_off_is_not_acknowledged(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has the file, and is removed before anybody was told: the next daemon is handed it."""
    monkeypatch.setenv("ML_DASHD_FAULTS", "accept.journaled=hang")
    with root.experiment().run as exp, ThreadPoolExecutor(1) as trainer:
        process = root.status().pid
        monkeypatch.delenv("ML_DASHD_FAULTS")
        save = trainer.submit(exp.files.save_text, "x", to="a.txt")
        eventually(lambda: is_stopped(process))
        remove(root.path)
        os.kill(process, signal.SIGCONT)
        save.result(60)
        exp.files.flush(60)
        assert root.status().pid != process
        assert names_of(exp) == {"a.txt": "DONE"}


def test_an_error_names_the_root_as_its_user_knows_it(make_root: Callable[..., Root]) -> None:
    """Also once it was moved; its daemon reaches it through its working folder."""
    before, after = make_root("before"), make_root("after")
    with held(before), before.experiment(wait=False).run as exp:
        exp.files.save_text("x", to="a.txt")
        eventually(lambda: before.status().blocked)
        named = [before.status().blocked[0].error_message, before.log()]
        before.path.rename(after.path)
        named += [after.status().blocked[0].error_message]
        after.end()
    for text in named:
        assert "/proc/self" not in str(text)
    assert str(before.path / PREFIX / "files") in str(named[0])
    assert str(after.path / PREFIX / "files") in str(named[-1])


def test_a_root_that_is_copied_has_a_daemon_of_its_own(make_root: Callable[..., Root], tmp_path: Path) -> None:
    """With what was on its way, which is stored in both."""
    original, copy = make_root("original"), make_root("copy")
    digest = make_file(tmp_path / "a.bin", LARGE)
    with held(original) as let_go:
        with original.experiment(wait=False).run as exp:
            exp.files.upload(tmp_path / "a.bin")
            exp.files.save_blob((tmp_path / "a.bin").read_bytes(), to="b.bin")
            exp.files.save_text("c", to="c.txt")
        pid = original.status().pid
        os.kill(pid, signal.SIGSTOP)
        subprocess.run(["cp", "-a", original.path, copy.path], check=True)
        os.kill(pid, signal.SIGCONT)
        assert copy.socket.is_socket()
        (copy.path / PREFIX / "files").unlink()
        with copy.experiment().run as exp:
            exp.files.flush(30)
            exp.files.save_text("d", to="d.txt").wait(30)
            assert set(names_of(exp)) == {"a.bin", "b.bin", "c.txt", "d.txt"}
            for name in ("a.bin", "b.bin"):
                assert file_sha256(Path(str(exp.files(name).download(to=tmp_path / "back")))) == digest
        assert copy.status().pid != original.status().pid == pid
        let_go()
        with original.experiment().run as exp:
            exp.files.flush(30)
            assert names_of(exp) == {"a.bin": "DONE", "b.bin": "DONE", "c.txt": "DONE"}
    assert (len(copy.files()), len(original.files())) == (4, 3)


# ---- namespaces

HAND_OVER = """
    import sys
    from ml_dash import Experiment
    from ml_dash.messages import Status, StatusReport
    with Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run as exp:
        exp.files.save_blob(bytes(100_000), to=sys.argv[2]).wait(30)
        print(exp._connection.call(StatusReport, lambda number: Status(request=number)).started_ms)
"""
NAMESPACES = {
    "mount": ("unshare", "--mount"),
    "network": ("unshare", "--net"),
    "process": ("unshare", "--pid", "--fork", "--mount-proc"),
    "all": ("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"),
}


@AS_ROOT
@pytest.mark.parametrize("kind", NAMESPACES)
def test_one_daemon_for_every_namespace(root: Root, kind: str) -> None:
    """Started outside and used inside. What it started inside of a process namespace ends with that."""
    with root.experiment().run as exp:
        exp.files.save_text("x", to="out.txt").wait(30)
        out, err, status = run_trainer(HAND_OVER, str(root.path), "in.bin", before=NAMESPACES[kind])
        assert (out, err, status) == (f"{root.status().started_ms}\n", "", 0)
        assert set(names_of(exp)) == {"out.txt", "in.bin"}


@AS_ROOT
@pytest.mark.parametrize("kind", NAMESPACES)
def test_a_daemon_that_was_started_in_a_namespace(root: Root, kind: str) -> None:
    out, err, status = run_trainer(HAND_OVER, str(root.path), "in.bin", before=NAMESPACES[kind])
    assert (err, status) == ("", 0)
    with root.experiment().run as exp:
        exp.files.save_text("x", to="out.txt").wait(30)
        assert set(names_of(exp)) == {"in.bin", "out.txt"}
        same = f"{root.status().started_ms}\n" == out
    assert same == ("--pid" not in NAMESPACES[kind])  # it ends with a process namespace; the next one goes on


AT_ONCE = """
    import sys
    from ml_dash import Experiment
    from ml_dash.messages import Status, StatusReport
    run = Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run
    print("ready", flush=True)
    sys.stdin.readline()
    exp = run.start()
    made = [exp.files.save_text("x", to=f"{sys.argv[2]}-{count}.txt")["id"] for count in range(3)]
    print(exp._connection.call(StatusReport, lambda number: Status(request=number)).started_ms, *made)
"""


@AS_ROOT
def test_ranks_of_several_namespaces_that_start_at_once(make_root: Callable[..., Root], full_size: bool) -> None:
    """Four mount and four network namespaces: one daemon, every id distinct, all listed."""
    for attempt in range(20 if full_size else 2):
        root = make_root(f"root-{attempt}")
        kinds = [NAMESPACES[kind] for kind in ("mount", "network")] * 4
        ranks = [trainer(AT_ONCE, str(root.path), str(number), before=kind) for number, kind in enumerate(kinds)]
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        said = [rank.communicate(timeout=60) for rank in ranks]
        assert [err for _, err in said] == [""] * 8
        heard = [out.split() for out, _ in said]
        assert {started for started, *_ in heard} == {str(root.status().started_ms)}
        with root.experiment().run as exp:
            exp.files.flush(30)
            listed = exp.files().list()
        ids = [each for _, *made in heard for each in made]
        assert len(set(ids)) == 24
        assert sorted(each["id"] for each in listed) == sorted(ids)


# ---- roots that can't be used

REFUSED = """
    import sys
    from ml_dash import Experiment, MLDashError
    try:
        Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run.start()
    except MLDashError as failure:
        print(failure.code, failure.message, failure.hint, sep="\\n")
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can look into."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def refusal(root: Path, *before: str) -> list[str]:
    out, err, status = run_trainer(REFUSED, str(root), before=before)
    assert (err, status) == ("", 0)
    return out.splitlines()


@AS_ROOT
@pytest.mark.parametrize("used", [False, True])
def test_a_read_only_root(make_root: Callable[..., Root], used: bool) -> None:
    root = make_root()
    root.path.mkdir()
    if used:
        with root.experiment().run as exp:
            exp.files.save_text("x", to="a.txt").wait(30)
        root.end()
    remount = f'mount --bind "{root.path}" "{root.path}" && mount -o remount,ro,bind "{root.path}" && exec "$@"'
    code, message, hint = refusal(root.path, "unshare", "--mount", "sh", "-c", remount, "-")
    assert (code, hint) == ("DAEMON_UNAVAILABLE", "name another root")
    assert message.endswith("can't be used: Read-only file system")
    assert str(root.path) in message


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@AS_ROOT
@pytest.mark.skipif(not os.access(Path(sys.executable).parents[2], os.X_OK), reason="others can't run this Python")
def test_a_root_of_another_user(public: Path) -> None:
    """Whether it may be written to or not, and whether a daemon of its owner lives or not."""
    root = Root(public / "root")
    root.path.mkdir()
    assert refusal(root.path, *NOBODY)[:2] == ["ACCESS_DENIED", f"{root.path} belongs to uid 0, and this is uid 65534"]
    root.path.chmod(0o777)
    with root.experiment().run as exp:
        exp.files.save_text("x", to="a.txt").wait(30)
        what = f"{root.path / '.ml-dashd'} belongs to uid 0, and this is uid 65534"
        assert refusal(root.path, *NOBODY)[:2] == ["ACCESS_DENIED", what]
    root.end()
    assert refusal(root.path, *NOBODY)[:2] == ["ACCESS_DENIED", what]


@AS_ROOT
def test_root_does_not_serve_the_root_of_a_user(public: Path) -> None:
    """It would leave files there that the user can't open."""
    home = public / "root" / ".ml-dashd"
    home.mkdir(parents=True)
    os.chown(home, 65534, 65534)
    with pytest.raises(MLDashError) as caught:
        Experiment(PREFIX, dash_root=home.parent).run.start()
    assert caught.value.code is Code.ACCESS_DENIED
    assert "belongs to uid 65534" in caught.value.message
    assert list(home.iterdir()) == []


def test_a_root_that_is_a_file_or_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "root"):
        with pytest.raises(NetworkError) as caught:
            Experiment(PREFIX, dash_root=path).run.start()
        assert caught.value.code is Code.DAEMON_UNAVAILABLE
        assert caught.value.message == f"{tmp_path / 'file'} is no folder"


@AS_ROOT
@pytest.mark.parametrize("size", ["4k", "64k"])
def test_a_root_without_space(make_root: Callable[..., Root], size: str) -> None:
    """For its folder, or for its journal."""
    root = make_root()
    root.path.mkdir()
    mount = f'mount -t tmpfs -o size={size} none "{root.path}" && exec "$@"'
    code, message, hint = refusal(root.path, "unshare", "--mount", "sh", "-c", mount, "-")
    assert code == "DISK_FULL"
    assert str(root.path) in message
    assert "free space" in hint
