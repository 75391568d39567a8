"""File systems of a test's own. Mounting takes root; where it is not allowed, or a tool is missing, the test skips."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

IMAGE_BYTES = 320 << 20
"""The least that mkfs.xfs takes is 300 MiB; the image is sparse."""
CACHE = Path(__file__).parents[2] / ".cache" / "debian"
XFS = ("xfsprogs", "libinih1", "liburcu8")
"""mkfs.xfs, and what it needs that a minimal Debian lacks."""


@contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of that size, in memory."""
    folder.mkdir()
    with _mounted(["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], folder):
        yield folder


class Unplugged:
    """A disk that can be mounted at a folder, and not be, as often as it takes: a bind mount. Ends without it."""

    def __init__(self, disk: Path, at: Path) -> None:
        self._arguments = ["--bind", str(disk), str(at)]
        self._at = at
        disk.mkdir(exist_ok=True)
        at.mkdir(exist_ok=True)
        self._mount: AbstractContextManager[None] | None = None

    def mount(self) -> None:
        """Skips the test where that is not allowed."""
        self._mount = _mounted(self._arguments, self._at)
        self._mount.__enter__()

    def umount(self) -> None:
        """Whatever is open there. Idempotent."""
        mounted, self._mount = self._mount, None
        if mounted is not None:
            mounted.__exit__(None, None, None)


@contextmanager
def with_reflinks(folder: Path) -> Iterator[Path]:
    """An XFS disk, in an image."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    tool, environment = _mkfs_xfs()
    subprocess.run([tool, "-q", str(image)], check=True, capture_output=True, env=environment)
    folder.mkdir()
    with _mounted(["-o", "loop", str(image), str(folder)], folder):
        yield folder


@contextmanager
def ext4(folder: Path, size_bytes: int = IMAGE_BYTES) -> Iterator[Path]:
    """An ext4 disk, in an image."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    folder.mkdir()
    with _mounted(["-o", "loop", str(image), str(folder)], folder):
        yield folder


@contextmanager
def failing_disk(folder: Path, size_bytes: int = 128 << 20) -> Iterator[tuple[Path, Path]]:
    """An ext4 disk, and the folder that it lies on: fill that one, and the disk's writes fail, so its syncs do, too."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    beneath = folder.with_name(f"{folder.name}-beneath")
    with tmpfs(beneath, size_bytes // 2):
        image = beneath / "image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True, capture_output=True)
        folder.mkdir()
        with _mounted(["-o", "loop,errors=continue", str(image), str(folder)], folder):
            yield folder, beneath


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Takes all of a disk's room but so much; remove the file that is returned to give it back."""
    path = folder / "filler"
    with path.open("ab") as file:
        for step in (1 << 20, 4096):
            with suppress(OSError):
                while (status := os.statvfs(folder)).f_bavail * status.f_frsize >= leave_bytes + step:
                    os.posix_fallocate(file.fileno(), path.stat().st_size, step)
    return path


def _mkfs_xfs() -> tuple[str, dict[str, str]]:
    """The tool, and an environment in which it runs. Unpacked into the cache where it is not installed."""
    if installed := shutil.which("mkfs.xfs"):
        return installed, dict(os.environ)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("mkfs.xfs is not installed, and there is no apt-get to bring it")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tool = CACHE / "root" / "sbin" / "mkfs.xfs"
        if not tool.exists():
            _unpack(XFS)
    libraries = ":".join(str(path) for path in (CACHE / "root").glob("usr/lib/*-linux-gnu"))
    return str(tool), os.environ | {"LD_LIBRARY_PATH": libraries}


def _unpack(packages: tuple[str, ...]) -> None:
    fetched = subprocess.run(["apt-get", "download", *packages], cwd=CACHE, capture_output=True, text=True, check=False)
    if fetched.returncode:
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        fetched = subprocess.run(
            ["apt-get", "download", *packages], cwd=CACHE, capture_output=True, text=True, check=False
        )
    if fetched.returncode:
        pytest.skip(f"apt-get download: {fetched.stderr.strip()[-200:]}")
    unpacked = CACHE / "unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)
    for package in CACHE.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True, capture_output=True)
    shutil.rmtree(CACHE / "root", ignore_errors=True)
    unpacked.rename(CACHE / "root")  # whole, or not there


@contextmanager
def _mounted(arguments: list[str], folder: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        # Lazy: what a failed test has left open there keeps the disk, but not its place among other tests' folders.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def pages_in_memory(path: Path) -> tuple[int, int]:
    """How many pages of a file are in memory, and of how many."""
    if not path.stat().st_size:
        return 0, 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        count = len(mapping) // mmap.PAGESIZE
        there = (ctypes.c_ubyte * count)()
        start = ctypes.c_char.from_buffer(mapping)
        assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapping)), there) == 0
        del start
    return sum(page & 1 for page in there), count
