"""What the daemon leaves to others: turns at CPU and disk, and the page cache. All of it is in `status`."""

from __future__ import annotations

import ctypes
import os
import platform
from collections import Counter
from pathlib import Path

import pytest

from ml_dashd.edge import politeness
from ml_dashd.edge.politeness import IO_CLASSES, Reader
from tests.doubles.disks import pages_in_memory
from tests.harness import DaemonProcess, Folder, assert_whole, eventually, make_file
from tests.scenario.shell import Shell

MIB = 1 << 20
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}.get(platform.machine())

pytestmark = pytest.mark.slow


def priorities(process: int) -> Counter[tuple[int, int]]:
    """How many threads have which niceness, and which I/O priority."""
    if IOPRIO_GET is None:
        pytest.skip("the number of ioprio_get is not known here")
    libc, found = ctypes.CDLL(None), Counter[tuple[int, int]]()
    for task in Path(f"/proc/{process}/task").iterdir():
        nice = int((task / "stat").read_text().rpartition(")")[2].split()[16])
        found[nice, libc.syscall(IOPRIO_GET, 1, int(task.name))] += 1
    return found


@pytest.mark.parametrize(
    ("settings", "nice", "io_class", "said"),
    [
        ("", 10, "low", "4 threads, nice 10, I/O low, files from 67.1 MB on past the page cache, no cap on bandwidth"),
        (
            '[limits]\nnice = 3\nio_class = "idle"\nthreads = 5\nuncached_from = 0\nbandwidth = 1048576\n',
            3,
            "idle",
            "5 threads, nice 3, I/O idle, cached, at most 1.0 MB/s",
        ),
    ],
    ids=["by default", "as set"],
)
def test_threads_step_back_as_far_as_the_settings_say(
    tmp_path: Path, settings: str, nice: int, io_class: str, said: str
) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
        assert daemon.process is not None
        with daemon.experiment().run as exp:  # every thread has begun by then
            exp.files.save_text("x", to="a.txt").wait(30)
        here, found = os.getpriority(os.PRIO_PROCESS, 0), priorities(daemon.process.pid)
        background = found[min(19, here + nice), IO_CLASSES[io_class]]
        assert background >= 4 + 4 + 1, found  # work, disk, warm
        assert any(of == here for of, _ in found), "whoever answers hand-offs has not stepped back"
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        assert f"polite   {said}" in shell("status").out.splitlines()
        limits = shell.json("status")["limits"]
        assert (limits["nice"], limits["ioClass"]) == (nice, io_class)
        assert limits.keys() == {"threads", "nice", "ioClass", "uncachedFrom", "bandwidth"}


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def leaves_no_pages(path: Path) -> bool:
    """Whether kernel and file system can read past the page cache."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, politeness.RWF_DONTCACHE) == 1
        except OSError:
            return False


def is_warm(path: Path) -> bool:
    """Whether all of it is in memory once it was read; what was being written when it was evicted may still go."""
    path.read_bytes()
    there, of = pages_in_memory(path)
    return there == of


def test_what_goes_up_leaves_the_page_cache_as_it_was(tmp_path: Path) -> None:
    """Pages that were in memory, such as those that the trainer reads next, stay there."""
    settings = f"[limits]\nuncached_from = {8 * MIB}\n[spool]\ncopy_below = 0\n"
    names = {"cold.bin": 20 * MIB, "warm.bin": 20 * MIB, "small.bin": 4 * MIB}
    expected = {name: make_file(tmp_path / name, size, seed=size) for name, size in names.items()}
    if not leaves_no_pages(tmp_path / "cold.bin"):
        pytest.skip("this kernel, or file system, has no RWF_DONTCACHE")
    for name in names:
        evict(tmp_path / name)
    eventually(lambda: is_warm(tmp_path / "warm.bin"))
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon,
        daemon.experiment().run as exp,
    ):
        for name in names:
            exp.files.upload(tmp_path / name).wait(60)
        assert_whole(daemon, exp, expected)
    there, of = pages_in_memory(tmp_path / "cold.bin")
    assert there < of / 4
    assert pages_in_memory(tmp_path / "warm.bin")[0] > 0.95 * of  # a full machine takes some by itself
    assert pages_in_memory(tmp_path / "small.bin")[0] > 512


def test_a_kernel_without_such_reads_reads_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that none knows is refused as RWF_DONTCACHE is by older ones."""
    monkeypatch.setattr(politeness, "RWF_DONTCACHE", 1 << 30)
    make_file(tmp_path / "a.bin", MIB)
    with (tmp_path / "a.bin").open("rb") as file:
        got = bytearray(MIB)
        assert Reader(file.fileno(), uncached=True).into(memoryview(got), 0) == MIB
        assert got == (tmp_path / "a.bin").read_bytes()
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(OSError, match="Illegal seek"):
        Reader(reading, uncached=False).into(memoryview(bytearray(1)), 0)
    os.close(reading)
