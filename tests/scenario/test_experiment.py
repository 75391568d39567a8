"""`Experiment` and its run: prefixes, which daemon, how a run begins and ends, threads, forks, and importing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Timer

import msgpack
import pytest

import ml_dash
from ml_dash import Experiment, MLDashError, NetworkError
from ml_dash.errors import Code
from tests.harness import DaemonProcess, file_sha256, make_file
from tests.scenario.conftest import Held, path_in_store

pytestmark = pytest.mark.slow

LARGE = 100_000
"""More than travels inside a message (64 KiB)."""


def paths(exp: Experiment) -> list[str]:
    return [f"{each['path']}/{each['filename']}".lstrip("/") for each in exp.files().list()]


def refused(failure: BaseException, code: Code) -> MLDashError:
    assert isinstance(failure, MLDashError)
    assert failure.code is code
    assert failure.hint
    return failure


# ---- the prefix


@pytest.mark.parametrize("prefix", ["alice", "alice/cv"])
def test_a_prefix_of_fewer_than_three_segments(service: DaemonProcess, prefix: str) -> None:
    with pytest.raises(ValueError) as caught:
        service.experiment(prefix)
    failure = refused(caught.value, Code.INVALID_PREFIX)
    assert "fewer than three segments" in str(failure)
    assert "namespace/project/experiment" in (failure.hint or "")


def test_a_prefix_of_more_segments(service: DaemonProcess) -> None:
    """The third part of the experiment's name is all the rest."""
    with service.experiment("alice/cv/deep/er/resnet").run as exp:
        assert exp.files.save_text("x", to="a")["experimentId"] == "alice/cv/deep/er/resnet"


def test_a_prefix_typed_decomposed(service: DaemonProcess) -> None:
    with service.experiment("alice/cv/e\u0301").run as exp:
        exp.files.save_text("x", to="a")
    with service.experiment("alice/cv/é").run as again:
        assert paths(again) == ["a"]
        assert again.files().list()[0]["experimentId"] == "alice/cv/é"


def test_the_prefix_of_the_environment(service: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer name goes before the older, and what the script says before both."""
    monkeypatch.setenv("DASH_PREFIX", "alice/cv/old")
    assert experiment_of(Experiment(socket=service.socket)) == "alice/cv/old"
    monkeypatch.setenv("ML_DASH_PREFIX", "alice/cv/new")
    assert experiment_of(Experiment(socket=service.socket)) == "alice/cv/new"
    assert experiment_of(Experiment("alice/cv/said", socket=service.socket)) == "alice/cv/said"
    assert experiment_of(Experiment(prefix="alice/cv/said", socket=service.socket)) == "alice/cv/said"


def experiment_of(experiment: Experiment) -> str:
    """Where its files really go."""
    with experiment.run as exp:
        return str(exp.files.save_text("x", to="a")["experimentId"])


def test_an_unknown_keyword_is_a_type_error(service: DaemonProcess) -> None:
    with pytest.raises(TypeError, match="scoket"):
        Experiment("alice/cv/a", scoket=service.socket)  # type: ignore[call-arg]


# ---- which daemon


def test_the_socket_of_the_environment(service: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before a root, and an argument before it; no other daemon is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_DASH_SOCKET", str(service.socket))
    for options in ({}, {"dash_root": tmp_path / "root"}):
        with Experiment("alice/cv/socket", **options).run as exp:
            exp.files.save_text("x", to="a").wait(30)
    with service.experiment("alice/cv/socket").run as exp:
        assert paths(exp) == ["a", "a"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("ML_DASH_SOCKET", str(tmp_path / "nowhere"))
    assert experiment_of(Experiment("alice/cv/socket", socket=service.socket)) == "alice/cv/socket"


def test_the_users_service(service: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found where services listen; then nothing is made in the working folder."""
    listening = tmp_path / "runtime" / "ml-dash" / "ml-dashd.sock"
    listening.parent.mkdir(parents=True)
    listening.symlink_to(service.socket)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    with Experiment("alice/cv/found").run as exp:
        result = exp.files.save_text("x", to="a").wait(30)
    assert path_in_store(service, result).is_file()
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("there", ["nothing", "a file", "a file as its folder", "a socket that nobody serves"])
def test_a_socket_where_nobody_listens(tmp_path: Path, there: str) -> None:
    """Said at the start of the run, at once; making the object asks nobody."""
    socket = tmp_path / "socket"
    if there == "a file":
        socket.touch()
    elif there == "a file as its folder":
        socket.touch()
        socket = socket / "socket"
    elif there != "nothing":
        serve_once = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
        subprocess.run([sys.executable, "-c", serve_once, str(socket)], check=True)
    experiment = Experiment("alice/cv/none", socket=socket)
    with pytest.raises(NetworkError) as caught, experiment.run:
        raise AssertionError("the run did not begin")
    failure = refused(caught.value, Code.DAEMON_UNAVAILABLE)
    assert isinstance(failure, ConnectionError)
    assert str(socket) in failure.message
    assert "ml-dashd run" in (failure.hint or "")
    assert experiment.run.state == "CREATED"
    with pytest.raises(RuntimeError):
        _ = experiment.files


# ---- the run


def test_files_belong_to_an_open_run(service: DaemonProcess) -> None:
    experiment = service.experiment("alice/cv/run")
    for state in ("CREATED", "COMPLETED"):
        assert experiment.run.state == state
        with pytest.raises(RuntimeError) as caught:
            _ = experiment.files
        assert "alice/cv/run" in str(refused(caught.value, Code.RUN_NOT_OPEN))
        with experiment.run as exp:
            assert exp is experiment
            assert exp.run.state == "RUNNING"
            exp.files.save_text("x", to="a")


def test_start_and_end_are_idempotent_and_a_run_may_be_opened_again(service: DaemonProcess) -> None:
    experiment = service.experiment("alice/cv/again")
    run = experiment.run
    run.complete()  # nothing was begun
    assert run.state == "CREATED"
    assert run.start() is experiment
    experiment.files.save_text("x", to="a")
    assert run.start() is experiment
    assert paths(experiment) == ["a"]
    for end, state in ((run.complete, "COMPLETED"), (run.fail, "FAILED"), (run.cancel, "CANCELLED")):
        assert run.start() is experiment
        experiment.files.save_text("x", to=state)
        end()
        assert run.state == state
        run.complete()  # it has ended, and stays as it did
        end()
        assert run.state == state
    with run as exp:
        assert paths(exp) == ["CANCELLED", "COMPLETED", "FAILED", "a"]


def test_an_exception_ends_the_run_as_failed_and_keeps_its_files(
    service: DaemonProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = service.experiment("alice/cv/raises")
    trouble = KeyError("loss")

    def train() -> None:
        with experiment.run as exp:
            exp.files.save_blob(bytes(LARGE), to="last.bin")
            raise trouble

    with pytest.raises(KeyError) as caught:
        train()
    assert caught.value is trouble
    assert caught.value.__context__ is None
    assert experiment.run.state == "FAILED"
    with experiment.run as exp:
        exp.files.flush(30)
        assert paths(exp) == ["last.bin"]
    assert capfd.readouterr() == ("", "")


def test_leaving_does_not_wait_for_a_service(held: Held, capfd: pytest.CaptureFixture[str]) -> None:
    """Its files are on their way, and it outlives the script."""
    for options in ({}, {"wait": None}, {"wait": False}):
        experiment = Experiment(held.exp.prefix, socket=held.exp._connection.endpoint.socket, **options)
        with experiment.run as exp:
            result = exp.files.save_text("x", to="a")
        assert experiment.run.state == "COMPLETED"
        assert result.state in ("QUEUED", "SENDING")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("raises", [False, True])
def test_leaving_waits_where_it_is_asked_to(service: DaemonProcess, held: Held, raises: bool) -> None:
    """However long it takes: here until the files are let go, a moment after the end."""
    experiment = service.experiment(held.exp.prefix, wait=True)
    with suppress(KeyError), experiment.run as exp:
        results = [exp.files.save_blob(bytes(size), to="a.bin") for size in (10, LARGE)]
        assert {result.state for result in results} <= {"QUEUED", "SENDING"}
        Timer(0.3, held.let_go).start()
        if raises:
            raise KeyError
    assert experiment.run.state == ("FAILED" if raises else "COMPLETED")
    assert [path_in_store(service, result).is_file() for result in results] == [True, True]
    assert [result.state for result in results] == ["DONE", "DONE"]


# ---- threads and forks


def test_threads_share_an_experiment(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """Eight of them save, upload, list and download at once; no file is another's."""
    digests = {}
    for worker in range(8):
        for number in range(10):
            digests[f"{worker}/{number}.bin"] = make_file(
                tmp_path / f"{worker}/{number}.bin", LARGE if number % 2 else 1000, seed=100 * worker + number
            )

    def work(worker: int) -> None:
        files = exp.files(str(worker))
        for number in range(10):
            source = tmp_path / f"{worker}/{number}.bin"
            if number % 4 < 2:
                files.upload(source)
            else:
                files.save_blob(source.read_bytes(), to=source.name).wait(30)
            assert len(files.list()) == number + 1
            back = files.download(source.name, to=tmp_path / f"{worker}.back")
            assert file_sha256(Path(str(back))) == digests[f"{worker}/{number}.bin"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [None] * 8
    exp.files.flush(60)
    assert {path: each["checksum"] for path, each in zip(paths(exp), exp.files().list(), strict=True)} == digests
    for each in exp.files().list():
        assert service.store.sha256(service.store.key_of(each)) == each["checksum"]


FORKING = """
    import os, signal, sys, threading, warnings
    from ml_dash import Experiment

    warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)

    def save(exp, who):
        for number in range(20):
            size = 100_000 if number % 5 == 0 else 10
            exp.files(who).save_blob(f"{who} {number} ".encode() * size, to=f"{number}.bin")

    with Experiment("alice/cv/fork", socket=sys.argv[1]).run as exp:
        save(exp, "before")
        threads = [threading.Thread(target=save, args=(exp, f"thread-{n}")) for n in range(int(sys.argv[2]))]
        for thread in threads:
            thread.start()
        children = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # one that hangs is not left behind
                save(exp, f"child-{number}")
                exp.files.flush(30)
                os._exit(0)
            children.append(child)
        save(exp, "parent")
        for thread in threads:
            thread.join()
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        exp.files.flush(30)
"""


@pytest.mark.parametrize("threads", [0, 2], ids=["alone", "while threads save"])
def test_a_forked_child_saves_while_its_parent_saves(service: DaemonProcess, exp: Experiment, threads: int) -> None:
    said = python(FORKING.replace("alice/cv/fork", exp.prefix), str(service.socket), str(threads))
    assert said == "[0, 0, 0, 0]\n"
    who = ["before", "parent", *(f"child-{n}" for n in range(4)), *(f"thread-{n}" for n in range(threads))]
    records = exp.files().list()
    assert len(records) == 20 * len(who)
    for each in records:
        number = int(each["filename"].removesuffix(".bin"))
        content = f"{each['path'].strip('/')} {number} ".encode() * (100_000 if number % 5 == 0 else 10)
        assert each["checksum"] == hashlib.sha256(content).hexdigest()
        assert service.store.sha256(service.store.key_of(each)) == each["checksum"]
    assert {each["path"].strip("/") for each in records} == set(who)


SPAWNING = """
    import multiprocessing, sys
    from ml_dash import Experiment

    def save(socket, who):
        with Experiment("alice/cv/fork", socket=socket).run as exp:
            for number in range(5):
                size = 100_000 if number == 0 else 1
                exp.files(who).save_blob(f"{who} {number} ".encode() * size, to=f"{number}.bin")

    if __name__ == "__main__":
        with Experiment("alice/cv/fork", socket=sys.argv[1]).run as exp:
            context = multiprocessing.get_context("spawn")
            children = [context.Process(target=save, args=(sys.argv[1], f"child-{n}")) for n in range(2)]
            for child in children:
                child.start()
            save(sys.argv[1], "parent")
            for child in children:
                child.join()
            print([child.exitcode for child in children])
            exp.files.flush(30)
"""


def test_spawned_children_save_while_their_parent_saves(
    service: DaemonProcess, exp: Experiment, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SPAWNING).replace("alice/cv/fork", exp.prefix))
    ended = subprocess.run(
        [sys.executable, str(script), str(service.socket)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[0, 0]\n", "")
    assert paths(exp) == [f"{who}/{number}.bin" for who in ("child-0", "child-1", "parent") for number in range(5)]
    assert {each["state"] for each in exp.files().list()} == {"DONE"}


# ---- importing


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install ml-dash` puts in place: the client and msgpack, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    for package in (ml_dash, msgpack):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = folder / "ml_dash-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ml-dash\nVersion: 1.0\n")
    return folder


IMPORTING = """
    import os, sys, threading
    seen = []
    def watch(event, args):
        if event.partition(".")[0] in ("socket", "subprocess", "tempfile", "sqlite3") or event in (
            "os.mkdir", "os.fork", "os.posix_spawn", "os.system", "os.putenv", "os.rename", "os.remove", "os.chmod",
        ):
            seen.append(event)
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append((event, str(args[0])))
    descriptors = os.listdir("/proc/self/fd")
    sys.addaudithook(watch)
    import ml_dash
    from ml_dash import Experiment, FileResult, MLDashError, NetworkError, StorageError
    import json
    json.dump({
        "seen": seen,
        "threads": threading.active_count(),
        "new descriptors": sorted(set(os.listdir("/proc/self/fd")) - set(descriptors)),
        "modules": sorted({
            "asyncio", "numpy", "PIL", "av", "matplotlib", "aiohttp", "uvloop", "awscrt", "ml_dashd"
        } & set(sys.modules)),
    }, sys.stdout)
"""


@pytest.mark.parametrize("alone", [True, False], ids=["a base install", "all that is here"])
def test_importing_opens_nothing_and_needs_only_msgpack(base: Path, alone: bool) -> None:
    told = json.loads(python(IMPORTING, path=base if alone else None))
    assert told == {"seen": [], "threads": 1, "new descriptors": [], "modules": []}


def test_a_base_install_talks_to_a_service(service: DaemonProcess, exp: Experiment, base: Path) -> None:
    """With nothing but msgpack beside it, and no asyncio or numpy even then."""
    script = """
        import sys
        from ml_dash import Experiment
        with Experiment(sys.argv[1], socket=sys.argv[2]).run as exp:
            exp.files.save_text("x", to="a.txt")
            exp.files.save_blob(bytes(100_000), to="b.bin").wait(30)
            exp.files.flush(30)
            print(len(exp.files().list()), exp.files("a.txt").download(to=sys.argv[3]))
            try:
                exp.files.save_image([[0]], to="a.png")
            except ImportError as missing:
                print(missing)
            print({"asyncio", "numpy"} & set(sys.modules))
    """
    target = base.parent / f"{exp.prefix.rpartition('/')[2]}.txt"
    said = python(script, exp.prefix, str(service.socket), str(target), path=base).splitlines()
    assert (said[0], said[2]) == (f"2 {target}", "set()")
    assert said[1].startswith("Pillow is needed")
    assert said[1].endswith('(pip install "ml-dash[media]") [MISSING_LIBRARY]')
    assert target.read_text() == "x"


def test_a_library_that_was_not_installed_works(service: DaemonProcess, exp: Experiment, base: Path) -> None:
    """It lies on Python's path, without what pip notes beside it."""
    (noted,) = base.glob("ml_dash-*.dist-info")
    noted.rename(base / "elsewhere")
    script = """
        import sys, ml_dash
        from ml_dash import Experiment
        with Experiment(sys.argv[1], socket=sys.argv[2]).run as exp:
            print(ml_dash.__version__, exp.files.save_text("x", to="a.txt").wait(30)["state"])
    """
    try:
        assert python(script, exp.prefix, str(service.socket), path=base) == "unknown DONE\n"
    finally:
        (base / "elsewhere").rename(noted)


def python(script: str, *arguments: str, path: Path | None = None) -> str:
    """What a script prints; nothing may stand on stderr. With a `path` it has the packages of that folder alone."""
    alone = [] if path is None else ["-S"]
    environment = {"PYTHONDONTWRITEBYTECODE": "1"} | ({} if path is None else {"PYTHONPATH": str(path)})
    ended = subprocess.run(
        [sys.executable, *alone, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.returncode == 0
    return ended.stdout
