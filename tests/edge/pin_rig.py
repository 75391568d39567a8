"""A spool, and files that are handed over to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import FileRecord, Job, Protection
from ml_dashd.edge import cloning
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.file_leases import FileLeases
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.room import Room
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.system import ignore_lease_signals
from ml_dashd.edge.witness import Witness

MIB = 1 << 20
SIZE = 3 * MIB + 5


@dataclass
class Spool:
    """A spool, and hand-offs to it as the flow makes them."""

    folder: Path
    pools: tuple[Path, ...] = ()
    contents: dict[int, bytes] = field(default_factory=dict)
    numbers: int = 0
    budget: DescriptorBudget | None = None
    witness: Witness = field(default_factory=Witness)
    room: Room | None = None

    def __post_init__(self) -> None:
        self.slots = SlotFiles(self.folder, budget=self.budget)
        self.pins = SpoolPins(
            [self.folder, *self.pools], self.slots, NoFaults(), self.room, budget=self.budget, witness=self.witness
        )

    def take(self, path: Path, protection: Protection = Protection.RESTART, flags: int = os.O_RDONLY) -> Job:
        descriptor = os.open(path, flags)
        try:
            return self.take_descriptor(descriptor, str(path), protection)
        finally:
            os.close(descriptor)

    def take_descriptor(
        self, descriptor: int, source: str = "/source", protection: Protection = Protection.RESTART
    ) -> Job:
        self.numbers += 1
        kept, content, size = self.pins.take(descriptor, self.numbers, source, protection)
        if content is not None:
            self.contents[self.numbers] = content
        return Job(FileRecord(self.numbers, 0, "a", "b", "c", "", Path(source).name, size, "", 0, 0), kept)

    def read(self, job: Job) -> bytes:
        """The bytes that would be sent, in two reads."""
        source = self.pins.open(job, self.contents.get(job.id, b""))
        sha256 = hashlib.sha256()
        try:
            got = bytearray(source.size_bytes)
            half = source.size_bytes // 2
            source.read(0, memoryview(got)[:half], (sha256,))
            source.read(half, memoryview(got)[half:], (sha256,))
        finally:
            source.close()
        assert sha256.digest() == hashlib.sha256(got).digest()
        return bytes(got)

    def untouched(self, job: Job) -> bool:
        source = self.pins.open(job, self.contents.get(job.id, b""))
        try:
            return source.check()
        finally:
            source.close()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    """On a file system without reflinks, whatever the machine's is: the request is made one that no kernel knows."""
    monkeypatch.setattr(cloning, "FICLONE", 0)
    made = Spool(tmp_path / "spool")
    yield made
    made.pins.close()
    made.slots.close()


def leasing(most: int = 16, small: int = 0) -> Witness:
    """A witness that keeps leases. The tests ask for themselves whether somebody waits."""
    ignore_lease_signals()
    return Witness(leases=FileLeases(DescriptorBudget(), most), small=small)


@contextmanager
def later_spool(folder: Path, witness: Witness, room: Room | None = None) -> Iterator[Spool]:
    """Another one, or the same with its next daemon."""
    made = Spool(folder, witness=witness, room=room)
    yield made
    made.pins.close()
    made.slots.close()


def leases(path: Path) -> list[str]:
    """What the kernel says of leases on a file: ACTIVE, or BREAKING while somebody asks for it."""
    status = path.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"

    def told() -> list[str]:
        rows = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        return [row[2] for row in rows if row[1] == "LEASE" and row[5] == place]

    seen = told()
    while seen != (again := told()):  # longer than a page it is read by numbers: a lock that comes shows another twice
        seen = again
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "data" / "best.pt")


def written(path: Path, size: int = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(size))
    return path


def content(size: int = SIZE) -> bytes:
    return hashlib.shake_256(b"content").digest(size)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refused(code: Code, call: Callable[[], object]) -> MLDashError:
    with pytest.raises(MLDashError) as raised:
        call()
    assert raised.value.code is code
    return raised.value
