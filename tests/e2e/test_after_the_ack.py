"""Once a file is acknowledged, neither its trainer nor its name is needed any more."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import PREFIX, DaemonProcess, assert_whole, make_file

MIB = 1 << 20
SIZES = {"inline.bin": 1000, "one-request.bin": MIB, "parts.bin": 20 * MIB}
TRAINER = """
import os, signal, sys
from pathlib import Path
from ml_dash import Experiment

exp = Experiment(sys.argv[1], socket=sys.argv[2]).run.start()
for name in sys.argv[3:]:
    exp.files("uploaded").upload(name)
    exp.files("saved").save_blob(Path(name).read_bytes(), to=name)
os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.slow


def test_the_trainer_is_killed(daemon: DaemonProcess, tmp_path: Path) -> None:
    digests = {name: make_file(tmp_path / name, size, seed) for seed, (name, size) in enumerate(SIZES.items())}
    command = [sys.executable, "-c", TRAINER, PREFIX, str(daemon.socket), *digests]
    killed = subprocess.run(command, cwd=tmp_path, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    for name in digests:
        (tmp_path / name).unlink()
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=60)
        whole = {f"{how}/{name}": digest for how in ("uploaded", "saved") for name, digest in digests.items()}
        assert_whole(daemon, exp, whole)


def test_the_source_is_unlinked_or_renamed_over(daemon: DaemonProcess, tmp_path: Path) -> None:
    expected = {}
    with daemon.experiment().run as exp:
        for seed, (name, size) in enumerate(SIZES.items()):
            for how in ("unlinked", "renamed-over"):
                source = tmp_path / name
                expected[f"{how}/{name}"] = make_file(source, size, seed)
                exp.files(how).upload(source)
                if how == "unlinked":
                    source.unlink()
                else:
                    make_file(tmp_path / "other", size, seed=99)
                    (tmp_path / "other").replace(source)
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


def test_more_files_than_the_buffers_hold_are_unlinked(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Each is read again, because its ctime moved; none may wait for memory that another holds while it waits."""
    expected = {f"{number}.bin": make_file(tmp_path / f"{number}.bin", 12 * MIB, number) for number in range(10)}
    with daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(tmp_path / name)
        for name in expected:
            (tmp_path / name).unlink()
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


def test_one_file_is_uploaded_twice_at_once(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Every hand-off is a version of its own; neither disturbs the other, nor the file itself."""
    source = tmp_path / "twice.bin"
    digest = make_file(source, 20 * MIB)
    before = source.stat()
    with daemon.experiment().run as exp:
        with ThreadPoolExecutor(2) as both:
            done = list(both.map(lambda to: exp.files.upload(source, to=to), ("a.bin", "b.bin")))
        exp.files.flush(timeout=60)
        assert len({result["id"] for result in done}) == 2
        assert_whole(daemon, exp, {"a.bin": digest, "b.bin": digest})
    after = source.stat()
    assert (after.st_ino, after.st_mode, after.st_nlink, after.st_mtime_ns) == (
        before.st_ino, before.st_mode, before.st_nlink, before.st_mtime_ns,
    )  # fmt: skip
