"""Several sources pinned in one go: all or none, without a copy of what could be kept as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ml_dash.errors import Code, MLDashError, error
from ml_dashd.core.model import Pin, PinKind, Protection
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.pinning import Opened, Pinning
from ml_dashd.ports import Pins


class Spool:
    """Notes what is pinned how. Has so many descriptors, and room for so many copies; some can't be pinned."""

    def __init__(self, descriptors: int = 100, copies: int = 100, bad: int = -1) -> None:
        self._descriptors = descriptors
        self._copies = copies
        self._bad = bad
        self.kept: dict[int, PinKind] = {}
        self.linked = {2}

    def take(self, descriptor: int, file_id: int, source: str, protection: Protection) -> tuple[Pin, None, int]:
        kind = PinKind.COPY if protection is Protection.COPY else PinKind.FD
        if file_id in self.linked and protection is not Protection.COPY:
            kind = PinKind.LINK
        if file_id == self._bad:
            raise error(Code.NOT_A_FILE, f"{source} is a folder")
        room = {PinKind.FD: self._descriptors, PinKind.COPY: self._copies}.get(kind, 1)
        if not room - [*self.kept.values()].count(kind):
            raise error(Code.RETRY_LATER if kind is PinKind.FD else Code.DISK_FULL, "there is no room")
        self.kept[file_id] = kind
        return Pin(kind, str(file_id)), None, 5

    def release(self, pin: Pin, file_id: int) -> None:
        assert self.kept.pop(file_id) is pin.kind


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(2, "pinning")
    yield pool
    pool.close()


async def take(spool: Spool, threads: Pool, files: int, protection: Protection = Protection.RESTART) -> list[Any]:
    pinning = Pinning(cast("Pins", spool), threads, threads)
    return await pinning.take_all(
        os.getuid(), [Opened(0, number, f"{number}.bin") for number in range(files)], protection
    )


async def test_only_what_no_descriptor_is_left_for_is_copied(threads: Pool) -> None:
    """What comes after it is pinned as it would be alone, and all are told in their order."""
    spool = Spool(descriptors=2)
    taken = await take(spool, threads, 4)
    assert [pin.name for pin, _, _ in taken] == ["0", "1", "2", "3"]
    assert spool.kept == {0: PinKind.FD, 1: PinKind.FD, 2: PinKind.LINK, 3: PinKind.COPY}
    spool = Spool(descriptors=1)
    await take(spool, threads, 4)
    assert spool.kept == {0: PinKind.FD, 1: PinKind.COPY, 2: PinKind.LINK, 3: PinKind.COPY}


@pytest.mark.parametrize("descriptors", [100, 1])
@pytest.mark.parametrize("bad", [0, 2, 3])
@pytest.mark.parametrize("protection", Protection)
async def test_one_that_can_not_be_pinned_leaves_none(
    threads: Pool, descriptors: int, bad: int, protection: Protection
) -> None:
    spool = Spool(descriptors, bad=bad)
    with pytest.raises(MLDashError, match=rf"{bad}.bin is a folder"):
        await take(spool, threads, 4, protection)
    assert spool.kept == {}


async def test_several_without_room_are_told_to_come_one_by_one(threads: Pool) -> None:
    spool = Spool(descriptors=1, copies=1)
    with pytest.raises(MLDashError, match="4 files find no room together: there is no room") as refused:
        await take(spool, threads, 4)
    assert refused.value.code is Code.TOO_LARGE
    assert spool.kept == {}
    spool = Spool(descriptors=0, copies=0)
    with pytest.raises(MLDashError, match=r"^there is no room") as refused:
        await take(spool, threads, 1)
    assert refused.value.code is Code.DISK_FULL


async def test_a_defect_leaves_none(threads: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    take_one = spool.take

    def fails(descriptor: int, file_id: int, source: str, protection: Protection) -> tuple[Pin, None, int]:
        if file_id == 3:
            raise OSError("the disk is gone")
        return take_one(descriptor, file_id, source, protection)

    monkeypatch.setattr(spool, "take", fails)
    with pytest.raises(OSError, match="gone"):
        await take(spool, threads, 4)
    assert spool.kept == {}
