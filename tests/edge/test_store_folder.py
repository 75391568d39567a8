"""The mark by which the folder of a store is known again, and who makes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from ml_dash.errors import Code
from ml_dashd.core.model import Trouble
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.store_folder import MARKER, StoreFolder
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.edge.tree import FolderTree
from ml_dashd.flow.mount import Mount
from ml_dashd.ports import Catalog, Journal, JournalError, NotMountedError

URL = "file:///mnt/big"


@dataclass
class Noted:
    """A journal's settings, and a catalog that lists so many files, or does not answer."""

    settings: dict[str, str]
    listed: int | None = 0

    @property
    def inventory(self) -> Noted:
        return self

    async def records(self, after: str, limit: int) -> list[int]:
        if self.listed is None:
            raise JournalError("no primary")
        return [*range(self.listed)][:limit]

    async def setting(self, name: str) -> str | None:
        return self.settings.get(name)

    async def set_setting(self, name: str, value: str) -> None:
        self.settings[name] = value


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(1, "folder")
    yield pool
    pool.close()


def mount_of(folder: StoreFolder | None, noted: Noted, threads: Pool) -> Mount:
    journal, catalog = cast("Journal", noted), cast("Catalog", noted)
    return Mount(folder=folder, url=URL, journal=journal, catalog=catalog, threads=threads, clock=SystemClock())


async def look(root: Path, noted: Noted, threads: Pool) -> Trouble | None:
    """What a daemon says of the folder that has just been started."""
    folder = StoreFolder(root)
    with pytest.raises(NotMountedError, match="was not looked at yet"):
        folder.check()
    mount = mount_of(folder, noted, threads)
    await mount._look(folder)
    return mount.trouble()


def put(root: Path, key: str = "alice/cv/a/files/7/a.txt") -> None:
    (root / key).parent.mkdir(parents=True)
    (root / key).write_text("x")


def test_the_first_of_many_is_heard(tmp_path: Path) -> None:
    """Daemons that start at the same time on a folder of all agree on it."""
    with ThreadPoolExecutor(8) as daemons:
        said = set(daemons.map(lambda _: StoreFolder(tmp_path / "store").mark(), range(64)))
    assert len(said) == 1
    assert [path.name for path in (tmp_path / "store").iterdir()] == [MARKER]
    for daemon in (StoreFolder(tmp_path / "store") for _ in range(2)):
        daemon.expect(*said)
        daemon.check()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(*_: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", link)
    said = StoreFolder(tmp_path).mark()
    assert (said, StoreFolder(tmp_path).mark()) == ((tmp_path / MARKER).read_text().strip(), said)
    assert len(said) == 32


def test_a_disk_without_room_gets_no_half_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="no room"):
        StoreFolder(tmp_path).mark()
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_is_marked_at_its_first_use_and_asked_for_from_then_on(tmp_path: Path, threads: Pool) -> None:
    noted, root = Noted({}), tmp_path / "big"
    assert await look(root, noted, threads) is None
    (root / MARKER).rename(tmp_path / "aside")
    found = await look(root, noted, threads)
    assert found is not None
    assert found.code is Code.STORE_NOT_MOUNTED
    assert str(root) in found.message
    assert "mount the disk" in found.hint
    assert list(root.iterdir()) == []
    (tmp_path / "aside").rename(root / MARKER)
    assert await look(root, noted, threads) is None


async def test_a_folder_of_an_earlier_release(tmp_path: Path, threads: Pool) -> None:
    """It has files: it is the one, whatever the catalog says, or does not."""
    put(tmp_path)
    for listed in (None, 1, 0):
        assert await look(tmp_path, Noted({}, listed), threads) is None
        (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("listed", [1, None])
async def test_a_new_daemon_does_not_take_an_empty_folder_for_that_of_listed_files(
    tmp_path: Path, threads: Pool, listed: int | None, there: bool
) -> None:
    """A node that joins a fleet, or the first start of this release, and the disk is not mounted."""
    root, noted = tmp_path / "big", Noted({}, listed)
    if there:
        root.mkdir()
    found = await look(root, noted, threads)
    assert found is not None
    assert found.code is Code.STORE_NOT_MOUNTED
    assert ("no primary" in found.message) is (listed is None)
    assert (noted.settings, root.exists()) == ({}, there)
    put(root)
    assert await look(root, noted, threads) is None


async def test_another_store_s_folder_until_an_operator_says_that_it_takes_its_place(
    tmp_path: Path, threads: Pool
) -> None:
    noted = Noted({})
    (tmp_path / "old").mkdir()
    assert await look(tmp_path / "old", noted, threads) is None
    StoreFolder(tmp_path / "new").mark()
    found = await look(tmp_path / "new", noted, threads)
    assert found is not None
    assert "another store's folder" in found.message
    (tmp_path / "new" / MARKER).write_text("")
    assert await look(tmp_path / "new", noted, threads) is None
    assert (tmp_path / "new" / MARKER).read_text() == (tmp_path / "old" / MARKER).read_text()


async def test_what_an_operator_has_made_is_filled_in_by_a_new_daemon(tmp_path: Path, threads: Pool) -> None:
    (tmp_path / MARKER).touch()
    assert await look(tmp_path, Noted({}, 1), threads) is None
    assert len((tmp_path / MARKER).read_text().strip()) == 32


async def test_what_the_disk_refuses_is_told_by_what_it_is(
    tmp_path: Path, threads: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the first use: files are blocked for that, and go on when there is room."""
    folder, noted = StoreFolder(tmp_path), Noted({})
    mount = mount_of(folder, noted, threads)
    store = LocalStore(tmp_path, threads, NoFaults(), check=folder.check)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        await mount._look(folder)
    assert mount.trouble() is None
    with pytest.raises(StoreError, match="no room") as refused:
        await store.prepare()
    assert refused.value.fault is Fault.FULL
    await mount._look(folder)
    await store.prepare()


async def test_nothing_is_done_or_said_of_another_folder(tmp_path: Path, threads: Pool) -> None:
    """Neither when the disk has gone before, nor when it goes in the middle of a call."""
    root = tmp_path / "big"
    folder = StoreFolder(root)
    folder.expect(folder.mark())
    put(root)
    store = LocalStore(root, threads, NoFaults(), check=folder.check)
    tree = FolderTree(root, check=folder.check)
    pages = store.objects()
    root.rename(tmp_path / "aside")
    root.mkdir()
    for asked in (store.head("alice/cv/a/files/7/a.txt"), store.delete("alice/cv/a/files/7/a.txt"), anext(pages)):
        with pytest.raises(StoreError) as refused:
            await asked
        assert refused.value.fault is Fault.NOT_MOUNTED
    for look_there in (lambda: tree.note("alice/cv/a", "experiment.json", "{}"), lambda: tree.metrics("alice/cv/a")):
        with pytest.raises(NotMountedError):
            look_there()
    assert list(root.iterdir()) == []
    root.rmdir()
    (tmp_path / "aside").rename(root)
    assert await store.head("alice/cv/a/files/7/a.txt") is not None

    with pytest.raises(StoreError) as refused:
        await store._run(lambda: root.rename(tmp_path / "aside"))
    assert refused.value.fault is Fault.NOT_MOUNTED


async def test_a_bucket_has_no_folder(threads: Pool) -> None:
    mount = mount_of(None, Noted({}), threads)
    await mount.run()
    await mount.looked()
    assert mount.trouble() is None
