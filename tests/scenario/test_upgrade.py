"""A daemon that is started again under its clients: they notice a pause, and every file arrives once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import Queue
from typing import Any, Self

import pytest

from ml_dash import channel, persistence
from ml_dash.connection import Connection
from ml_dash.errors import Code, MLDashError
from ml_dash.reach import Endpoint
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, file_sha256, make_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
CLIENTS = 4
SIZES = (10, 70_000, 3 * MIB, 17 * MIB, 40 * MIB + 5)
"""What one client hands over: in the message, in one request, from a slot, in two parts, in three."""
# It says when it is connected, waits for the word to begin, and says what it was given for each file. The end of its
# run is noted however long the last restart takes beside other tests.
TRAINER = """
import sys
from pathlib import Path
from ml_dash import Experiment
socket, prefix, number, names = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
with Experiment(prefix, socket=socket, wait=False, exit_wait=120).run as exp:
    print("connected", flush=True)
    sys.stdin.readline()
    for name in names:
        path = Path(name)
        if path.stat().st_size % 2:
            result = exp.files(number).upload(path)
        else:
            result = exp.files(number).save_blob(path.read_bytes(), to=path.name)
        print(dict.__getitem__(result, "id"), flush=True)
    exp.files.flush(timeout=120)
"""


class Trainers:
    """Processes that hand files over, and what they say, in the order in which they say it."""

    def __init__(self, daemon: DaemonProcess, names: list[list[Path]]) -> None:
        self.ids: list[str] = []
        self._said: Queue[str] = Queue()
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        for number, mine in enumerate(names):
            words = [str(daemon.socket), PREFIX, str(number), *map(str, mine)]
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", TRAINER, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
            self._readers.append(threading.Thread(target=self._listen, args=[process], daemon=True))
            self._readers[-1].start()

    def __enter__(self) -> Self:
        assert [self.next() for _ in self._processes] == ["connected"] * len(self._processes)
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def begin(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def next(self) -> str:
        return self._said.get(timeout=60)

    def read_ids(self, count: int) -> None:
        """Until they were given so many."""
        while len(self.ids) < count:
            self.ids.append(self.next())

    def end(self) -> None:
        """Each ends well, and has nothing to say of what happened meanwhile."""
        for process, reader in zip(self._processes, self._readers, strict=True):
            assert process.stderr is not None
            said = process.stderr.read()
            assert (process.wait(60), said) == (0, "")
            reader.join(10)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said.put(line.strip())


@pytest.mark.parametrize(("how", "drain_timeout"), [("SIGTERM", 0), ("SIGTERM", 1), ("kill -9", 0)])
def test_started_again_in_the_middle_of_uploads(tmp_path: Path, how: str, drain_timeout: float) -> None:
    """Several times in one go: after so many files were taken, and in the middle of a file in parts."""
    expected: dict[str, str] = {}
    names: list[list[Path]] = [[] for _ in range(CLIENTS)]
    for number in range(CLIENTS):
        for size in SIZES:
            path = tmp_path / str(number) / f"{size}.bin"
            # Odd sizes are uploaded and even ones saved; of each kind every client has some.
            expected[f"{number}/{path.name}"] = make_file(path, size + number, seed=number)
            names[number].append(path)
    settings = f"drain_timeout = {drain_timeout}"
    with DaemonProcess(
        tmp_path / "daemon", Folder(tmp_path / "store"), daemon_settings=settings, faults="upload.part_journaled=hang@2"
    ) as daemon:
        with Trainers(daemon, names) as trainers:
            trainers.begin()
            daemon.wait_until_hung()  # in the middle of the first file in parts, wherever the clients are
            end(daemon, how)
            daemon.start()
            for moment in (6, 11, 16, len(expected)):
                trainers.read_ids(moment)
                end(daemon, how)
                daemon.start()
            trainers.end()
        assert len(set(trainers.ids)) == len(expected)
        with daemon.experiment().run as exp:
            assert_whole(daemon, exp, expected)
            assert {record["id"] for record in exp.files().list()} == set(trainers.ids)
        assert "Traceback" not in daemon.log()


def end(daemon: DaemonProcess, how: str) -> None:
    if how == "kill -9":
        daemon.kill()
        return
    assert daemon.process is not None
    daemon.process.terminate()  # one that hangs hears it when it goes on
    daemon.resume()
    assert daemon.process.wait(60) == 0


# ---- who waits meanwhile


@contextmanager
def stopped_at(kind: str, daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The daemon does not answer the first request of that kind: SIGSTOP. The event says that it is under way."""
    asked = threading.Event()
    encode = channel._encode

    def stop_first(message: Any, descriptors: int) -> bytes:
        if type(message).__name__ == kind and not asked.is_set():
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGSTOP)
            asked.set()
        return encode(message, descriptors)

    with monkeypatch.context() as patched:
        patched.setattr(channel, "_encode", stop_first)
        yield asked


@contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
@pytest.mark.parametrize("waiting", ["wait", "flush", "list", "download", "checksum"])
def test_who_waits_goes_on_when_the_daemon_is_back(
    tmp_path: Path, waiting: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is started again after its question was asked, and before it is answered."""
    expected = make_file(tmp_path / "best.pt", 70_000)
    store = Folder(tmp_path / "store")
    gate = store.root / PREFIX.partition("/")[0]
    here = tmp_path / "here.pt"
    with DaemonProcess(tmp_path / "daemon", store, daemon_settings="drain_timeout = 0") as daemon:
        gate.touch()  # the store can make no folder there: the file stays on its way
        with daemon.experiment(wait=False).run as exp:
            result = exp.files.upload(tmp_path / "best.pt")
            calls: dict[str, tuple[str, Callable[[], Any]]] = {
                "wait": ("Wait", lambda: result.wait()["checksum"]),
                "flush": ("Wait", lambda: exp.files.flush() or expected),
                "list": ("List", lambda: exp.files().list()[0]["checksum"]),
                "download": ("Fetch", lambda: file_sha256(Path(str(exp.files("best.pt").download(to=here))))),
                "checksum": ("Wait", lambda: result["checksum"]),
            }
            kind, call = calls[waiting]
            with stopped_at(kind, daemon, monkeypatch) as asked, in_background(call) as answer:
                assert asked.wait(30)
                end(daemon, how)
                gate.unlink()
                daemon.start()
                assert answer.result(60) == expected
            exp.files.flush(timeout=60)
            assert_whole(daemon, exp, {"best.pt": expected})


def test_how_long_a_daemon_may_be_away_counts_from_when_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from when the question was asked: a wait takes half a minute by itself, a download hours."""
    hours = count(step=3600)
    monkeypatch.setattr(persistence.time, "monotonic", lambda: float(next(hours)))
    patient = Connection(Endpoint(tmp_path / "socket"))
    answers: Iterator[Any] = iter([EOFError("gone"), ConnectionResetError("gone"), EOFError("gone"), "answered"])

    def ask() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patient._persist(ask) == "answered"


def test_a_request_that_always_ends_the_daemon_is_given_up(tmp_path: Path) -> None:
    asked = 0
    poor = Connection(Endpoint(tmp_path / "socket"))

    def ask() -> Any:
        nonlocal asked
        asked += 1
        raise EOFError("gone")

    with pytest.raises(MLDashError) as given_up:
        poor._persist(ask)
    assert given_up.value.code is Code.CONNECTION_LOST
    assert asked == persistence.LOSSES + 1


# ---- each file once


@pytest.mark.parametrize("how", ["upload", "put", "slot"])
def test_a_hand_off_whose_answer_was_lost_is_taken_once(tmp_path: Path, how: str) -> None:
    """It is journaled, and the daemon dies before it says so: the client asks again, with the same key."""
    make_file(tmp_path / "best.pt", 70_000)
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), faults="accept.journaled=kill") as daemon:
        with daemon.experiment().run as exp:
            calls: dict[str, Callable[[], Any]] = {
                "upload": lambda: exp.files.upload(tmp_path / "best.pt"),
                "put": lambda: exp.files.save_blob(b"x", to="best.pt"),
                "slot": lambda: exp.files.save_blob((tmp_path / "best.pt").read_bytes(), to="best.pt"),
            }
            with in_background(calls[how]) as handed_over:
                daemon.wait_for_death()
                ((journaled,),) = daemon.rows("SELECT id FROM files")
                daemon.start()
                result = handed_over.result(60)
            assert result["id"] == str(journaled)
            exp.files.flush(timeout=60)
            (listed,) = exp.files().list()
            assert listed["id"] == result["id"]
            assert_whole(daemon, exp, {"best.pt": listed["checksum"]})
        assert daemon.rows("SELECT count(*) FROM files") == [(1,)]
