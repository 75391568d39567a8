"""kill -9 of trainer and daemon while a slot is asked for and filled: the whole file or none, and the room is free."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, eventually

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 20 * MIB
QUOTA = f"[spool]\nquota = {SIZE + 8 * MIB}\n"
"""Room for one such file: a slot that is not given back would keep the next save out."""
TRAINER = """
import hashlib, sys
from ml_dash import Experiment
from ml_dash.channel import Channel
from ml_dash.lease import Lease

def pause(word):
    print(word, flush=True)
    sys.stdin.readline()

begin, write = Channel.begin, Lease.write

def begin_and_tell(channel, build, descriptors=()):
    begin(channel, build, descriptors)
    Channel.begin = begin
    print("asked", flush=True)

def write_in_halves(lease, data, at):
    half = len(data) // 2
    write(lease, data[:half], at)
    Lease.write = write
    pause("half")
    write(lease, data[half:], at + half)

_, socket, prefix, seed, when = sys.argv
content = hashlib.shake_256(seed.encode()).digest(20 << 20)
with Experiment(prefix, socket=socket, wait=False).run as exp:
    pause("ready")
    if when == "asked":
        Channel.begin = begin_and_tell
    if when == "half":
        Lease.write = write_in_halves
    exp.files.save_blob(content, to=f"{seed}.bin")
    print("saved", flush=True)
"""


@contextmanager
def trainer(daemon: DaemonProcess, seed: str, when: str) -> Iterator[subprocess.Popen[str]]:
    """One that is about to save. What it says is when it has asked for a slot, written half of it, and saved."""
    command = [sys.executable, "-c", TRAINER, str(daemon.socket), PREFIX, seed, when]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert heard(process) == "ready"
        yield process
        process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def sha256(seed: str) -> str:
    return hashlib.sha256(hashlib.shake_256(seed.encode()).digest(SIZE)).hexdigest()


def assert_room_for_one_more(daemon: DaemonProcess, expected: dict[str, str]) -> None:
    """What is there is whole, the spool is empty, and the quota is free."""
    with daemon.experiment(on_full="raise").run as exp:
        exp.files.flush(60)
        eventually(lambda: daemon.spool() == [])
        assert_whole(daemon, exp, expected)
        exp.files.save_blob(hashlib.shake_256(b"next").digest(SIZE), to="next.bin")
        exp.files.flush(60)
        assert_whole(daemon, exp, expected | {"next.bin": sha256("next")})


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings=QUOTA) as process:
        yield process


@pytest.mark.parametrize("when", ["asked", "half"])
def test_the_trainer(daemon: DaemonProcess, when: str) -> None:
    """Nothing of it is there: it was not acknowledged."""
    with trainer(daemon, "a", when) as process:
        bring_to(daemon, process, when)
        process.kill()
        process.wait()
        daemon.resume()
    assert_room_for_one_more(daemon, {})


@pytest.mark.parametrize("when", ["asked", "half"])
def test_the_daemon(daemon: DaemonProcess, when: str) -> None:
    """The trainer still has it, and asks the next one."""
    with trainer(daemon, "a", when) as process:
        bring_to(daemon, process, when)
        daemon.kill()
        daemon.start()
        if when == "half":
            go_on(process)
        assert heard(process) == "saved"
    assert_room_for_one_more(daemon, {"a.bin": sha256("a")})


@pytest.mark.parametrize("when", ["asked", "half"])
def test_both(daemon: DaemonProcess, when: str) -> None:
    with trainer(daemon, "a", when) as process:
        bring_to(daemon, process, when)
        daemon.kill()
        process.kill()
        process.wait()
    daemon.start()
    assert_room_for_one_more(daemon, {})


def test_either_at_any_moment(daemon: DaemonProcess, full_size: bool) -> None:
    """What a trainer was told is saved is there; what it was not told is there whole, or not at all."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    expected: dict[str, str] = {}
    for number in range(100 if full_size else 3):
        name = str(number)
        with trainer(daemon, name, "never") as process:
            go_on(process)
            wait_out(process, chance.uniform(0, 0.1))
            if chance.random() < 0.5:
                daemon.kill()
                daemon.start()
            else:
                process.kill()
            if heard(process) == "saved":
                expected[f"{name}.bin"] = sha256(name)
            process.wait()
        with daemon.experiment().run as exp:
            exp.files.flush(60)
            if {f"{name}.bin"} == {one["filename"] for one in exp.files().list()} - expected.keys():
                expected[f"{name}.bin"] = sha256(name)
    assert_room_for_one_more(daemon, expected)


def bring_to(daemon: DaemonProcess, process: subprocess.Popen[str], when: str) -> None:
    """Until it has asked for a slot (not answered: it is granted to one who is gone), or has half filled it."""
    assert daemon.process is not None
    if when == "asked":
        daemon.process.send_signal(signal.SIGSTOP)
    go_on(process)
    assert heard(process) == when


def wait_out(process: subprocess.Popen[str], seconds: float) -> None:
    """A moment, or until it has ended by itself."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
