"""The daemon of a folder: started on demand, once, by whoever comes first, and it outlives them."""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer

import msgpack
import pytest

import ml_dash
from ml_dash import Experiment, FileResult, NetworkError
from ml_dash.address import LONGEST
from ml_dash.errors import Code
from tests.harness import PREFIX, file_sha256, make_file
from tests.scenario.embedded import Root, gone, held, opened, run_trainer, trainer

pytestmark = pytest.mark.slow

LARGE = 100_000
"""More than travels inside a message (64 KiB)."""
VECTORS = Path(__file__).parent.parent / "vectors"
SYSTEM_SERVICE = Path("/run/ml-dash/ml-dashd.sock")


# ---- started on demand


def test_it_is_started_with_the_run_and_files_lie_in_the_folder(root: Root, tmp_path: Path) -> None:
    experiment = root.experiment("alice/cv/deep/resnet")
    assert not root.path.exists()  # nobody has asked for anything yet
    digest = make_file(tmp_path / "model.pt", LARGE)
    with experiment.run as exp:
        best = exp.files("models/checkpoints").upload(tmp_path / "model.pt", to="best.pt")
        top = exp.files.save_text("hello", to="top.txt")
        exp.files.flush(30)
    status = root.status()
    assert status.embedded
    assert (status.store, status.state_dir) == (root.path.as_uri(), str(root.path / ".ml-dashd"))
    assert status.pid not in (os.getpid(), os.getppid())
    assert root.files() == sorted(
        [
            f"alice/cv/deep/resnet/files/models/checkpoints/{best['id']}/best.pt",
            f"alice/cv/deep/resnet/files/{top['id']}/top.txt",
        ]
    )
    stored = root.path / "alice/cv/deep/resnet/files/models/checkpoints" / best["id"] / "best.pt"
    assert file_sha256(stored) == digest
    assert stored.stat().st_nlink == 1  # never a link to the user's own file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "root"]


def test_the_root_of_the_environment(
    make_root: Callable[..., Root], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of `.dash` in the working folder; what the script says goes before it."""
    if SYSTEM_SERVICE.exists():
        pytest.skip("a service of this machine would be used")
    usual, other, said = make_root(".dash"), make_root("other"), make_root("said")
    monkeypatch.chdir(tmp_path)
    for name, root in ((None, usual), ("other", other), (str(other.path), other)):
        if name is not None:
            monkeypatch.setenv("ML_DASH_ROOT", name)
        with Experiment(PREFIX).run as exp:
            result = exp.files.save_text("x", to="a")
            exp.files.flush(30)
        assert f"{PREFIX}/files/{result['id']}/a" in root.files()
    assert (len(usual.files()), len(other.files())) == (1, 2)
    with Experiment(PREFIX, dash_root="said").run as exp:
        exp.files.save_text("x", to="a").wait(30)
    assert (len(usual.files()), len(other.files()), len(said.files())) == (1, 2, 1)


def test_a_root_whose_socket_has_a_long_path(make_root: Callable[..., Root], tmp_path: Path) -> None:
    """The kernel takes 107 bytes."""
    root = make_root("/".join(["größe" * 10] * 4))
    assert len(os.fsencode(root.socket)) > 2 * LONGEST
    with root.experiment().run as exp:
        exp.files.save_text("hello", to="a.txt").wait(30)
        assert exp.files("a.txt").download(to=tmp_path / "back") == str(tmp_path / "back")
    assert (tmp_path / "back").read_text() == "hello"
    assert root.socket.is_socket()


RANK = """
    import sys
    from ml_dash import Experiment
    from ml_dash.messages import Status, StatusReport
    print("ready", flush=True)
    sys.stdin.readline()
    with Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run as exp:
        exp.files.save_text(sys.argv[2], to=f"{sys.argv[2]}.txt")
        print(exp._connection.call(StatusReport, lambda number: Status(request=number)).pid)
"""


def test_eight_ranks_that_start_at_once_get_one_daemon(root: Root) -> None:
    ranks = [trainer(RANK, str(root.path), str(number)) for number in range(8)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("go\n")
        rank.stdin.flush()
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert said == [(f"{root.status().pid}\n", "")] * 8
    with root.experiment().run as exp:
        exp.files.flush(30)
        assert [each["filename"] for each in exp.files().list()] == [f"{number}.txt" for number in range(8)]


RANKS = """
    # A warm parent forks its ranks, which wait for each other: all start in the same instant.
    import gc, json, multiprocessing, os, signal, sys, time
    from ml_dash import Experiment
    from ml_dash.messages import Status, StatusReport
    gc.freeze()
    context = multiprocessing.get_context("fork")

    def rank(root, number, start, said):
        exp = Experiment("alice/cv/resnet", dash_root=root).run
        start.wait()
        exp = exp.start()
        mine = [exp.files.save_text(f"{number}", to=f"{number}-{count}.txt") for count in range(3)]
        status = exp._connection.call(StatusReport, lambda number: Status(request=number))
        said.put((status.pid, [each["id"] for each in mine]))

    for attempt in range(int(sys.argv[2])):
        root = f"{sys.argv[1]}-{attempt}"
        start, said = context.Barrier(8), context.Queue()
        ranks = [context.Process(target=rank, args=(root, number, start, said)) for number in range(8)]
        for each in ranks:
            each.start()
        heard = [said.get(timeout=60) for _ in ranks]
        for each in ranks:
            each.join()
        with Experiment("alice/cv/resnet", dash_root=root).run as exp:
            exp.files.flush(30)
            listed = exp.files().list()
        (pid,) = {pid for pid, _ in heard}
        os.kill(pid, signal.SIGTERM)
        ids = [each for _, mine in heard for each in mine]
        assert len(set(ids)) == 24
        assert {each["id"] for each in listed} == set(ids)
        assert len({each["filename"] for each in listed}) == 24
        print(attempt, flush=True)
"""


def test_eight_ranks_in_the_same_instant_again_and_again(tmp_path: Path, full_size: bool) -> None:
    """One daemon, every id distinct, all listed."""
    count = 100 if full_size else 20
    ranks = trainer(RANKS, str(tmp_path / "root"), str(count))
    out, err = ranks.communicate(timeout=30 * count)
    assert (out.split(), err, ranks.returncode) == ([str(number) for number in range(count)], "", 0)


def test_a_daemon_that_died_is_started_again(root: Root) -> None:
    """In the middle of a run; nothing that was acknowledged is lost."""
    with held(root) as let_go, root.experiment(wait=False).run as exp:
        before = [exp.files.save_text("x", to="a.txt"), exp.files.save_blob(b"y" * LARGE, to="b.bin")]
        first = root.status().pid
        root.end(signal.SIGKILL)
        after = exp.files.save_text("z", to="c.txt")
        assert root.status().pid != first
        assert int(after["id"]) > max(int(each["id"]) for each in before)
        assert [each["id"] for each in exp.files().list()] == [each["id"] for each in (*before, after)]
        let_go()
        exp.files.flush(30)
        assert {each["state"] for each in exp.files().list()} == {"DONE"}
    assert len(root.files()) == 3


def test_a_root_that_can_not_be(tmp_path: Path) -> None:
    """Said at once, and by its name."""
    (tmp_path / "file").touch()
    with pytest.raises(NetworkError) as caught:
        Experiment(PREFIX, dash_root=tmp_path / "file").run.start()
    assert caught.value.code is Code.DAEMON_UNAVAILABLE
    assert str(tmp_path / "file") in caught.value.message


def test_without_the_daemon_installed(make_root: Callable[..., Root], tmp_path: Path) -> None:
    """As after `pip install ml-dash`: the client and msgpack alone."""
    packages = tmp_path / "site-packages"
    for package in (ml_dash, msgpack):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, packages / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    script = """
        import sys
        from ml_dash import Experiment, NetworkError
        try:
            Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run.start()
        except NetworkError as failure:
            print(failure.code, failure.hint, sep="\\n")
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(script), str(make_root().path)]
    environment = os.environ | {"PYTHONPATH": str(packages)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("DAEMON_NOT_INSTALLED\npip install 'ml-dash[daemon]'\n", "")
    assert not (tmp_path / "root").exists()


# ---- it outlives who started it

KILLED = """
    import os, signal, sys
    from ml_dash import Experiment
    exp = Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run.start()
    exp.files.upload(sys.argv[2], to="a.bin")
    os.unlink(sys.argv[2])
    exp.files.save_blob(bytes(100_000), to="b.bin")
    exp.files.save_text("c", to="c.txt")
    os.killpg(0, signal.SIGKILL)
"""


def test_the_trainers_process_group_is_killed(root: Root, tmp_path: Path) -> None:
    """Right after the acknowledgement, with nothing stored yet: it is stored all the same, by the same daemon."""
    digest = make_file(tmp_path / "a.bin", 20 << 20)
    with held(root) as let_go:
        killed = trainer(KILLED, str(root.path), str(tmp_path / "a.bin"), start_new_session=True)
        assert (*killed.communicate(timeout=60), killed.returncode) == ("", "", -signal.SIGKILL)
        status = root.status()
        assert {count.state for count in status.counts} <= {"QUEUED", "SENDING", "COMPLETING"}
        assert sum(count.files for count in status.counts) == 3
        assert root.files() == [f"{PREFIX}/files"]
        let_go()
        with root.experiment().run as exp:
            exp.files.flush(30)
            found = {each["filename"]: (each["state"], each["checksum"]) for each in exp.files().list()}
            assert set(found) == {"a.bin", "b.bin", "c.txt"}
            assert found["a.bin"] == ("DONE", digest)
    assert root.status().pid == status.pid
    assert len(root.files()) == 3


SAVED = """
    import sys
    from ml_dash import Experiment
    with Experiment("alice/cv/resnet", dash_root=sys.argv[1], wait=False).run as exp:
        exp.files.upload(sys.argv[2], to="a.bin")
        exp.files.save_blob(bytes(100_000), to="b.bin")
        exp.files.save_text("c", to="c.txt")
"""
NEXT = """
    import sys
    from ml_dash import Experiment
    with Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run as exp:
        print(len(exp.files().list()))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A fresh control group that processes can be put into."""
    lines = (line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    for folder in [Path(place.split()[4]) for place, kind in lines if kind.startswith(("cgroup2 ", "cgroup "))]:
        made = folder / f"ml-dash-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        if os.access(made / "cgroup.procs", os.W_OK):
            yield made
            end_all(made)
            made.rmdir()
            return
        made.rmdir()
    pytest.skip("no control group can be made here")


def end_all(group: Path) -> None:
    """As the end of a Slurm step or a container does: everything in the group is killed."""
    while pids := (group / "cgroup.procs").read_text().split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        os.sched_yield()


@pytest.mark.parametrize("how", ["session", "daemon", "cgroup"])
def test_killed_right_after_the_last_line_the_next_run_goes_on_and_says_so(
    root: Root, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    """With the whole session the daemon lives; with a container or a Slurm step it dies, too."""
    digest = make_file(tmp_path / "a.bin", 20 << 20)
    group: Path | None = request.getfixturevalue("group") if how == "cgroup" else None
    before = () if group is None else ("sh", "-c", f'echo $$ > "{group}/cgroup.procs"; exec "$@"', "-")
    with held(root):
        script = textwrap.dedent(SAVED) + "import os, signal\nos.killpg(0, signal.SIGKILL)\n"
        words = (str(root.path), str(tmp_path / "a.bin"))
        _, err, status = run_trainer(script, *words, before=before, start_new_session=True)
        assert (err, status) == ("", -signal.SIGKILL)
        if group is not None:
            end_all(group)
        elif how == "daemon":
            root.end(signal.SIGKILL)
    (tmp_path / "a.bin").unlink()
    out, err, status = run_trainer(NEXT, str(root.path))
    line = "" if how == "session" else "ml-dash: 3 files (21.1 MB) of an earlier run go on\n"
    assert (out, err, status) == ("3\n", line, 0)
    with root.experiment().run as exp:
        exp.files.flush(30)
        found = {each["filename"]: (each["state"], each["checksum"]) for each in exp.files().list()}
    assert found["a.bin"] == ("DONE", digest)
    assert sorted(found) == ["a.bin", "b.bin", "c.txt"]
    assert len(root.files()) == 3
    for path in root.files():
        assert file_sha256(root.path / path) == found[Path(path).name][1]


def test_a_run_is_not_told_of_its_own_files(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    """Its daemon was killed under it: the next one goes on with what this very run has handed over."""
    with held(root) as let_go, root.experiment(wait=False).run as exp:
        exp.files.save_text("mine", to="a.txt")
        root.end(signal.SIGKILL)
        exp.files.save_text("mine, too", to="b.txt")
        root.end(signal.SIGKILL)
        worker = pickle.loads(pickle.dumps(exp))  # noqa: S301 what a spawned worker gets: it is of the same run
        worker.run.start().files.save_text("three", to="c.txt")
        assert capfd.readouterr() == ("", "")
        root.end(signal.SIGKILL)
        with root.experiment(wait=False).run as later:
            assert capfd.readouterr() == ("", "ml-dash: 3 files (18 bytes) of an earlier run go on\n")
            later.files.save_text("later", to="d.txt")
        let_go()
        exp.files.flush(30)
        assert {each["state"] for each in exp.files.list()} == {"DONE"}
    assert capfd.readouterr() == ("", "")


def test_one_file_that_goes_on_is_one(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    with held(root):
        with root.experiment(wait=False).run as exp:
            exp.files.save_text("twelve bytes", to="a.txt")
        root.end(signal.SIGKILL)
    with root.experiment().run as exp:
        exp.files.flush(30)
    assert capfd.readouterr() == ("", "ml-dash: 1 file (12 bytes) of an earlier run goes on\n")
    root.end()
    with root.experiment().run as exp:  # nothing is left: nothing is said
        assert len(exp.files().list()) == 1
    assert capfd.readouterr() == ("", "")


IDLE = """
    import os, sys
    from dataclasses import replace
    from pathlib import Path
    from ml_dashd import app, config
    root = Path(sys.argv[1])
    os.chdir(root)
    settings = config.embedded(root)
    settings = replace(settings, daemon=replace(settings.daemon, idle_timeout=1.0))
    app.run(settings, lambda left: print("ready", flush=True))
"""


def test_it_ends_by_itself_when_nobody_needs_it(root: Root) -> None:
    """Not while somebody is connected, nor while a file is on its way."""
    root.path.mkdir()
    daemon = trainer(IDLE, str(root.path))
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "ready\n"
    with opened(os.pidfd_open(daemon.pid)) as process:
        with root.experiment(wait=False).run as exp:
            assert not gone(process, 2.5)
            with held(root) as let_go:
                result = exp.files.save_text("x", to="a.txt")
                exp._connection.close()
                assert not gone(process, 2.5)
                let_go()
        exp._connection.close()  # over which the end of the run was noted
        assert gone(process)
    assert (daemon.communicate()[0], daemon.returncode) == ("", 0)
    assert root.files() == [f"{PREFIX}/files/{result['id']}/a.txt"]
    assert not root.socket.exists()


def test_a_root_of_the_first_release(root: Root) -> None:
    """Its journal and catalog, as SQL in tests/vectors: what was stored is listed, what was on its way is stored."""
    home = root.path / ".ml-dashd"
    (home / "spool" / "slots").mkdir(parents=True)
    for name in ("journal", "catalog"):
        with closing(sqlite3.connect(home / f"{name}.sqlite")) as database:
            database.executescript((VECTORS / f"{name}-1.sql").read_text())
    with root.experiment().run as exp:
        exp.files.flush(30)
        found = {each["filename"]: each for each in exp.files().list()}
        assert {name: each["state"] for name, each in found.items()} == {"stored.txt": "DONE", "waiting.txt": "DONE"}
        assert found["waiting.txt"]["tags"] == ["best", "größte"]
        assert found["waiting.txt"]["metadata"] == {"epoch": 3}
        assert found["stored.txt"]["uploadedAt"] == "2026-01-01T00:00:05.000Z"
        assert Path(str(exp.files("models/waiting.txt").download(to=root.path / "back"))).read_text() == "on its way"
        new = exp.files.save_text("new", to="new.txt").wait(30)
        assert int(new["id"]) > max(int(each["id"]) for each in found.values())


def test_a_root_may_be_moved(make_root: Callable[..., Root], tmp_path: Path) -> None:
    """With all that is in it: what is stored, and what is still on its way."""
    root = make_root("before")
    digest = make_file(tmp_path / "a.bin", LARGE)
    with root.experiment("bob/cv/done").run as exp:
        exp.files.upload(tmp_path / "a.bin").wait(30)
    with held(root):
        with root.experiment(wait=False).run as exp:
            exp.files.upload(tmp_path / "a.bin")
            exp.files.save_blob((tmp_path / "a.bin").read_bytes(), to="b.bin")
            exp.files.save_text("c", to="c.txt")
            assert {each["state"] for each in exp.files().list()} <= {"QUEUED", "SENDING"}
        (tmp_path / "a.bin").unlink()
        root.end()
    moved = make_root("elsewhere/after")
    moved.path.parent.mkdir()
    root.path.rename(moved.path)
    with moved.experiment("bob/cv/done").run as exp:
        assert file_sha256(Path(str(exp.files("a.bin").download(to=tmp_path / "back")))) == digest
    with moved.experiment().run as exp:
        exp.files.flush(30)
        assert {each["filename"]: each["state"] for each in exp.files().list()} == {
            "a.bin": "DONE", "b.bin": "DONE", "c.txt": "DONE",
        }  # fmt: skip
        for name in ("a.bin", "b.bin"):
            assert file_sha256(Path(str(exp.files(name).download(to=tmp_path / "back")))) == digest
    assert not root.path.exists()


ROUGH = """
    import os, signal, sys
    from ml_dash import Experiment
    if sys.argv[2] == "blocks":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    elif sys.argv[2] == "closes":
        for stream in (0, 1, 2):
            os.close(stream)
    with Experiment("alice/cv/resnet", dash_root=os.fsencode(sys.argv[1]).decode(errors="surrogateescape")).run as exp:
        exp.files.save_text("hello", to="a.txt").wait(30)
"""


@pytest.mark.parametrize("way", ["blocks", "closes"])
def test_what_a_trainer_does_to_itself_is_not_its_daemons(root: Root, way: str) -> None:
    """Signals that it blocks, and standard streams that it has closed, would be the daemon's, too."""
    _, err, status = run_trainer(ROUGH, str(root.path), way)
    assert (err, status) == ("", 0)
    assert len(root.files()) == 1
    root.end(signal.SIGTERM)


def test_a_root_whose_name_is_not_utf8(make_root: Callable[..., Root], tmp_path: Path) -> None:
    root = make_root(os.fsdecode(b"r-\xff\xfe %41 x"))
    with root.experiment().run as exp:
        result = exp.files.save_blob(bytes(LARGE), to="a")
    assert root.files() == [f"{PREFIX}/files/{result['id']}/a"]
    assert len([*tmp_path.iterdir()]) == 1, "another folder was made"
    assert ascii(root.status().state_dir).count("xff") == 1


# ---- leaving the run


def test_leaving_waits_until_all_is_stored(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    """An embedded daemon may end with its container. What takes no time is not talked about."""
    with root.experiment().run as exp:
        for number in range(20):
            exp.files.save_blob(bytes(LARGE), to=f"{number}.bin")
            exp.files.save_text("x", to=f"{number}.txt")
    assert len(root.files()) == 40
    assert capfd.readouterr() == ("", "")


def test_leaving_says_how_many_remain_and_how_to_wait(
    make_root: Callable[..., Root], capfd: pytest.CaptureFixture[str]
) -> None:
    """The command that it names can be pasted, though the folder's name has a space."""
    root = make_root("my root")
    with held(root) as let_go:
        experiment = root.experiment(exit_wait=0.2)
        with experiment.run as exp:
            result = exp.files.save_text("x", to="a")
        assert result.state in ("QUEUED", "SENDING")
        out, err = capfd.readouterr()
        (line,) = err.splitlines()
        said, _, command = line.partition(": ml-dash wait ")
        assert (out, said) == ("", "ml-dash: 1 file not stored yet; the daemon goes on. To wait for it")
        let_go()
        words = [sys.executable, "-m", "ml_dash.cli", "wait", *shlex.split(command)]
        waited = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (waited.returncode, waited.stderr) == (0, "")
        assert result.state == "DONE"


def test_leaving_says_after_a_second_that_it_waits(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    with held(root):
        with root.experiment(exit_wait=1.2).run as exp:
            exp.files.save_text("x", to="a")
            exp.files.save_blob(bytes(LARGE), to="b")
        first, second = capfd.readouterr().err.splitlines()
        assert first == "ml-dash: waiting for 2 files to be stored"
        assert second.startswith("ml-dash: 2 files not stored yet; ")


def test_who_gives_it_no_time_is_told_what_remains(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    with held(root):
        with root.experiment(exit_wait=0).run as exp:
            exp.files.save_text("x", to="a")
        assert capfd.readouterr().err.startswith("ml-dash: 1 file not stored yet; the daemon goes on.")


def test_leaving_need_not_wait(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    with held(root):
        with root.experiment(wait=False).run as exp:
            result = exp.files.save_text("x", to="a")
        assert result.state in ("QUEUED", "SENDING")
        assert capfd.readouterr() == ("", "")


def test_leaving_may_wait_for_as_long_as_it_takes(root: Root) -> None:
    with held(root) as let_go:
        letting_go = Timer(0.5, let_go)
        with root.experiment(wait=True, exit_wait=0.1).run as exp:
            result = exp.files.save_text("x", to="a")
            letting_go.start()
        assert root.files() == [f"{PREFIX}/files/{result['id']}/a"]


def test_an_exception_goes_on_once_the_time_for_waiting_is_over(root: Root, capfd: pytest.CaptureFixture[str]) -> None:
    trouble = ValueError("loss is NaN")
    with held(root) as let_go:
        experiment = root.experiment(exit_wait=0.2)
        results: list[FileResult] = []

        def train() -> None:
            with experiment.run as exp:
                results.append(exp.files.save_text("x", to="a"))
                raise trouble

        with pytest.raises(ValueError) as caught:
            train()
        assert caught.value is trouble
        assert experiment.run.state == "FAILED"
        assert "1 file not stored yet" in capfd.readouterr().err
        let_go()
        assert results[0].wait(30).state == "DONE"
