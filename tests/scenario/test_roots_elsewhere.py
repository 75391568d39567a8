"""Roots on a network file system: their state lies on this machine, and another host may hold them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_dash import NetworkError
from ml_dash.errors import Code
from tests.harness import PREFIX, eventually, file_sha256, make_file
from tests.scenario.embedded import Root, held, run_trainer, trainer
from tests.scenario.test_roots import AS_ROOT, LARGE, names_of

pytestmark = pytest.mark.slow


# ---- on a network file system: ML_DASH_STATE has the state of every root elsewhere, as there


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes this process see what a host sees: the shared root, and a state folder of its own."""
    used: set[str] = set()

    def on(name: str) -> None:
        used.add(name)
        monkeypatch.setenv("ML_DASH_STATE", str(tmp_path / f"disk of {name}"))

    on("one")
    yield on
    for name in used:
        on(name)
        for folder in tmp_path.glob(f"disk of {name}/*/*/root"):
            with pytest.MonkeyPatch.context():
                try:
                    Root(Path(folder.read_text().strip())).end()
                except NetworkError:
                    continue


def test_the_state_lies_elsewhere_and_the_files_in_the_root(
    hosts: Callable[[str], None], root: Root, tmp_path: Path
) -> None:
    digest = make_file(tmp_path / "a.bin", LARGE)
    with root.experiment().run as exp:
        result = exp.files.upload(tmp_path / "a.bin")
        exp.files.flush(30)
    assert root.files() == [f"{PREFIX}/files/{result['id']}/a.bin"]
    assert file_sha256(root.path / root.files()[0]) == digest
    assert sorted(path.name for path in (root.path / ".ml-dashd").iterdir()) == ["holder.json", "identity"]
    assert root.state.is_relative_to(tmp_path / "disk of one")
    assert {"journal.sqlite", "catalog.sqlite", "spool", "socket", "lock"} <= {
        each.name for each in root.state.iterdir()
    }
    assert root.status().state_dir == str(root.state)
    root.end()
    assert sorted(path.name for path in (root.path / ".ml-dashd").iterdir()) == ["catalog.sqlite", "identity"]


def test_a_root_that_another_host_holds(hosts: Callable[[str], None], root: Root) -> None:
    """An error that names it, until its daemon has ended; then its files are listed, and ids go on rising."""
    with root.experiment().run as exp:
        first = exp.files.save_text("1", to="a.txt").wait(30)
        gone_again = exp.files.save_text("1", to="gone.txt").wait(30)
        exp.files("gone.txt").delete()
    hosts("two")
    with pytest.raises(NetworkError) as caught:
        root.experiment().run.start()
    assert caught.value.code is Code.ROOT_HELD
    assert f"the daemon on {socket.gethostname()} " in caught.value.message
    assert str(root.path) in caught.value.message
    hosts("one")
    root.end()
    hosts("two")
    with root.experiment().run as exp:
        second = exp.files.save_text("2", to="b.txt").wait(30)
        assert int(second["id"]) > max(int(first["id"]), int(gone_again["id"]))
        assert set(names_of(exp)) == {"a.txt", "b.txt"}
        assert Path(str(exp.files("a.txt").download(to=root.path.parent / "back"))).read_text() == "1"
        exp.files("a.txt").delete()
    root.end()
    hosts("one")
    with root.experiment().run as exp:  # what was deleted there is deleted here
        assert set(names_of(exp)) == {"b.txt"}


def test_a_host_that_was_switched_off_loses_the_root(hosts: Callable[[str], None], root: Root) -> None:
    """After five minutes; what it had on its way goes on when it holds the root again."""
    with held(root):
        with root.experiment(wait=False).run as exp:
            exp.files.save_text("1", to="a.txt")
        root.end(signal.SIGKILL)
    hosts("two")
    with pytest.raises(NetworkError):
        root.experiment().run.start()
    note = root.path / ".ml-dashd" / "holder.json"
    past = note.stat().st_mtime - 301
    os.utime(note, (past, past))
    with root.experiment().run as exp:
        exp.files.save_text("2", to="b.txt").wait(30)
    hosts("one")
    with pytest.raises(NetworkError) as caught:
        root.experiment().run.start()
    assert caught.value.code is Code.ROOT_HELD
    hosts("two")
    root.end()
    hosts("one")
    with root.experiment().run as exp:
        exp.files.flush(30)
        assert names_of(exp) == {"a.txt": "DONE", "b.txt": "DONE"}


def test_a_killed_daemon_of_this_host_is_no_obstacle(hosts: Callable[[str], None], root: Root) -> None:
    with root.experiment().run as exp:
        exp.files.save_text("1", to="a.txt").wait(30)
        root.end(signal.SIGKILL)
        assert names_of(exp) == {"a.txt": "DONE"}


def test_moved_there_it_keeps_its_state(hosts: Callable[[str], None], make_root: Callable[..., Root]) -> None:
    before, after = make_root("before"), make_root("after")
    with held(before):
        with before.experiment(wait=False).run as exp:
            exp.files.save_text("1", to="a.txt")
        pid = before.status().pid
        state = before.state
        before.path.rename(after.path)
    (after.path / PREFIX / "files").unlink()
    with after.experiment().run as exp:
        exp.files.flush(30)
        assert names_of(exp) == {"a.txt": "DONE"}
    assert (after.status().pid, after.state) == (pid, state)
    with before.experiment().run as exp:
        assert names_of(exp) == {}
    assert before.state != state


def test_copied_there_it_gets_a_state_of_its_own(hosts: Callable[[str], None], make_root: Callable[..., Root]) -> None:
    original, copy = make_root("original"), make_root("copy")
    with original.experiment().run as exp:
        exp.files.save_text("1", to="a.txt").wait(30)
    original.end()
    with original.experiment().run as exp:  # its daemon lives, and holds the original
        subprocess.run(["cp", "-a", original.path, copy.path], check=True)
        with copy.experiment().run as other:
            other.files.save_text("2", to="b.txt").wait(30)
            assert set(names_of(other)) == {"a.txt", "b.txt"}
        assert set(names_of(exp)) == {"a.txt"}
    assert copy.state != original.state
    assert copy.status().pid != original.status().pid


def test_brought_there_from_a_disk_it_goes_on(
    make_root: Callable[..., Root], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal lay in the root itself; what was stored is listed, and what was on its way is stored."""
    root = make_root()
    make_file(tmp_path / "b.bin", LARGE)
    with root.experiment().run as exp:
        exp.files.save_text("1", to="a.txt").wait(30)
    (root.path / PREFIX / "files").rename(root.path / "aside")
    with held(root):
        with root.experiment(wait=False).run as exp:
            exp.files.upload(tmp_path / "b.bin")
            exp.files.save_text("c", to="c.txt")
        root.end(signal.SIGKILL)
    (root.path / "aside").rename(root.path / PREFIX / "files")
    note = root.path / ".ml-dashd" / "holder.json"
    os.utime(note, (1, 1))
    monkeypatch.setenv("ML_DASH_STATE", str(tmp_path / "disk"))
    with root.experiment().run as exp:
        exp.files.flush(30)
        assert names_of(exp) == {"a.txt": "DONE", "b.bin": "DONE", "c.txt": "DONE"}
    assert not (root.path / ".ml-dashd" / "journal.sqlite").exists()
    assert (root.state / "journal.sqlite").exists()


def test_brought_back_to_a_disk_it_lists_everything(
    hosts: Callable[[str], None], root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with root.experiment().run as exp:
        first = exp.files.save_text("1", to="a.txt").wait(30)
    root.end()
    monkeypatch.delenv("ML_DASH_STATE")
    with root.experiment().run as exp:
        second = exp.files.save_text("2", to="b.txt").wait(30)
        assert int(second["id"]) > int(first["id"])
        assert names_of(exp) == {"a.txt": "DONE", "b.txt": "DONE"}
    assert root.state == root.path / ".ml-dashd"
    root.end()


WATCHFUL = """
    import os, sys
    from pathlib import Path
    from ml_dashd import app, config, embedded, logs
    embedded.LOOK_S = embedded.RENEW_S = embedded.CARRY_S = 0.05
    logs.set_up("info", "human")
    root, state = map(Path, sys.argv[1:])
    os.chdir(root)
    app.run(config.embedded(root, state), lambda left: print("ready", flush=True))
"""


def test_a_daemon_whose_root_another_host_has_taken_ends(hosts: Callable[[str], None], root: Root) -> None:
    """It had stood still for too long. What is another's, the note and the catalog, it leaves alone."""
    with root.experiment().run as exp:
        exp.files.save_text("1", to="a.txt").wait(30)
    root.end()
    home, state = root.path / ".ml-dashd", root.state
    daemon = trainer(WATCHFUL, str(root.path), str(state))
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "ready\n"
    exp = root.experiment().run.start()
    exp.files.save_text("2", to="b.txt").wait(30)
    eventually(lambda: b"b.txt" in (home / "catalog.sqlite").read_bytes())  # carried while it runs
    (home / "catalog.sqlite").write_text("another's")
    (home / ".new").write_text('{"host": "elsewhere", "token": "another", "pid": 1}')
    (home / ".new").rename(home / "holder.json")
    err = daemon.communicate(timeout=60)[1]
    assert daemon.returncode == 0
    assert "root_lost error=" in err
    assert "is held by the daemon on elsewhere (pid 1, " in err
    assert (home / "catalog.sqlite").read_text() == "another's"
    assert "elsewhere" in (home / "holder.json").read_text()


@AS_ROOT
def test_two_containers_on_one_network_root(hosts: Callable[[str], None], root: Root) -> None:
    """Each has a host name and a disk of its own: the second is told who the first is."""
    with root.experiment().run as exp:
        exp.files.save_text("x", to="a.txt").wait(30)
        disk = os.environ["ML_DASH_STATE"]
        own = ("sh", "-c", f'hostname box; mount -t tmpfs none "{disk}"; exec "$@"', "-")
        script = """
            import sys
            from ml_dash import Experiment, NetworkError
            try:
                Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run.start()
            except NetworkError as failure:
                print(failure.code, failure.message)
        """
        out, err, status = run_trainer(script, str(root.path), before=("unshare", "--mount", "--uts", *own))
        assert (err, status) == ("", 0)
        assert out.startswith(f"ROOT_HELD the daemon for {root.path} did not start: {root.path} is held by")
        assert f"the daemon on {socket.gethostname()} (pid {root.status().pid}, " in out
        assert names_of(exp) == {"a.txt": "DONE"}
