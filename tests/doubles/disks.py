"""File systems of a test's own. Mounting takes root; where it is not allowed, or a tool is missing, the test skips."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGE_BYTES = 320 << 20
"""The least that mkfs.xfs takes is 300 MiB; the image is sparse."""


@contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of that size, in memory."""
    folder.mkdir()
    with _mounted(["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], folder):
        yield folder


@contextmanager
def with_reflinks(folder: Path) -> Iterator[Path]:
    """An XFS or Btrfs disk, in an image."""
    made = next((name for name in ("xfs", "btrfs") if shutil.which(f"mkfs.{name}")), None)
    if made is None:
        pytest.skip("neither mkfs.xfs nor mkfs.btrfs is installed")
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([f"mkfs.{made}", "-q", str(image)], check=True, capture_output=True)
    folder.mkdir()
    with _mounted(["-o", "loop", str(image), str(folder)], folder):
        yield folder


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
