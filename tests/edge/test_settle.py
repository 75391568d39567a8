"""Sources that come together share the sync of their folder, and none is said to be on disk before it is."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import Pin, Protection
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.health import Health
from ml_dashd.flow.settle import Settle
from ml_dashd.ports import Catalog, Journal, Runs, SyncRefusedError


class Watched(SpoolPins):
    """Real pins, which note what was done in which order."""

    def __init__(self, folder: Path) -> None:
        super().__init__([folder], SlotFiles(folder), NoFaults())
        self.seen: list[str] = []
        self.failure: OSError | None = None

    def sync(self, pin: Pin, file_id: int) -> None:
        super().sync(pin, file_id)
        self.seen.append(pin.name)

    def sync_folders(self, pins: Sequence[Pin]) -> None:
        if self.failure is not None:
            raise self.failure
        super().sync_folders(pins)
        self.seen.append("folder")


@pytest.fixture
def pins(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "spool")


@pytest.fixture
def disk() -> Iterator[Pool]:
    pool = Pool(4, "disk")
    yield pool
    pool.close()


def take(pins: Watched, folder: Path, number: int) -> Pin:
    source = folder / f"{number}.bin"
    source.write_bytes(b"x" * 100_000)
    with source.open("rb") as file:
        pin, _, _ = pins.take(file.fileno(), number, str(source), Protection.REBOOT)
    return pin


class Well:
    """A journal, a catalog or its experiments, of which only the health is asked."""

    def trouble(self) -> None:
        return None


def settling(pins: Watched, disk: Pool) -> Settle:
    return Settle(
        pins, disk, Health(cast("Journal", Well()), cast("Catalog", Well()), cast("Runs", Well())), NoFaults()
    )


async def test_many_share_few_syncs_and_each_is_covered(pins: Watched, disk: Pool, tmp_path: Path) -> None:
    settle = settling(pins, disk)
    taken = [take(pins, tmp_path, number) for number in range(1, 41)]

    async def one(number: int, pin: Pin) -> None:
        await settle.settle(pin, number)
        assert "folder" in pins.seen[pins.seen.index(pin.name) :], "no sync of the folder came after its own"

    await asyncio.gather(*(one(number, pin) for number, pin in enumerate(taken, start=1)))
    assert pins.seen.count("folder") < len(taken)


async def test_a_folder_that_failed_is_not_trusted_again(pins: Watched, disk: Pool, tmp_path: Path) -> None:
    """The kernel states such an error once; the next sync would say that all is well."""
    settle = settling(pins, disk)
    first, second = take(pins, tmp_path, 1), take(pins, tmp_path, 2)
    pins.failure = SyncRefusedError(errno.EIO, "the disk")
    ended = await asyncio.gather(settle.settle(first, 1), settle.settle(second, 2), return_exceptions=True)
    assert [getattr(failure, "code", None) for failure in ended] == [Code.DISK_FAILED, Code.DISK_FAILED]
    pins.failure = None
    with pytest.raises(MLDashError) as refused:
        await settle.settle(first, 1)
    assert refused.value.code is Code.DISK_FAILED
    assert "the disk" in refused.value.message


@pytest.mark.parametrize("what", ["content", "folder"])
async def test_a_disk_that_could_not_be_asked_is_trusted(pins: Watched, disk: Pool, tmp_path: Path, what: str) -> None:
    """What is short, such as descriptors, comes back: only what the disk says of a sync counts against it."""
    settle = settling(pins, disk)
    pin = take(pins, tmp_path, 1)
    pool = tmp_path / "spool"
    aside = (pool / pin.name, tmp_path / "aside") if what == "content" else (pool, tmp_path / "aside")
    aside[0].rename(aside[1])
    if what == "content":
        (pool / pin.name).symlink_to(pool / pin.name)  # ELOOP
    with pytest.raises(OSError, match="symbolic links" if what == "content" else "No such file"):
        await settle.settle(pin, 1)
    if what == "content":
        (pool / pin.name).unlink()
    aside[1].rename(aside[0])
    await settle.settle(pin, 1)
    assert pins.seen[-2:] == [pin.name, "folder"]


async def test_one_who_gives_up_takes_nobody_along(pins: Watched, disk: Pool, tmp_path: Path) -> None:
    settle = settling(pins, disk)
    given_up = asyncio.create_task(settle.settle(take(pins, tmp_path, 1), 1))
    other = asyncio.create_task(settle.settle(take(pins, tmp_path, 2), 2))
    await asyncio.sleep(0)
    given_up.cancel()
    await other
    with pytest.raises(asyncio.CancelledError):
        await given_up
