"""A folder as a store, on a disk that refuses a sync: it says so once, and would then say that all is well."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.checksum import Digest, digest
from ml_dashd.core.model import Algorithm, Target
from ml_dashd.core.plan import Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge import cloning, local_store
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.threads import Pool
from ml_dashd.ports import Faults

BODY = b"weights" * 1000
TARGET = Target("ns/project/exp/files/a/7/model.pt", 7, len(BODY), "application/octet-stream")


class Dies:
    """A process that ends once the object has its name."""

    def at(self, point: str) -> None:
        if point == "local.after_rename":
            raise KeyboardInterrupt


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(2, "store")
    yield pool
    pool.close()


@pytest.fixture
def refuse_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The next sync of that name fails; those after it succeed, as the kernel's do."""

    def ask(name: str) -> None:
        real = getattr(local_store, name)
        left = [1]

        def sync(what: Any) -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(what)

        monkeypatch.setattr(local_store, name, sync)

    return ask


async def sent(store: LocalStore) -> tuple[str, Digest]:
    """An upload with its one part in it."""
    await store.prepare()
    upload_id = await store.begin(TARGET)
    whole = digest(memoryview(BODY), Algorithm.CRC64NVME)
    await store.send_part(TARGET, upload_id, Part(1, 0, len(BODY)), memoryview(BODY), whole)
    return upload_id, whole


def made(root: Path, threads: Pool, faults: Faults | None = None) -> LocalStore:
    return LocalStore(root, threads, faults or NoFaults())


async def test_parts_that_the_disk_could_not_keep_are_never_completed(
    tmp_path: Path, threads: Pool, refuse_once: Callable[[str], None]
) -> None:
    store = made(tmp_path, threads)
    upload_id, whole = await sent(store)
    refuse_once("sync_content")
    with pytest.raises(StoreError) as refused:
        await store.complete(TARGET, upload_id, [], whole)
    assert refused.value.fault is Fault.CORRUPT  # after which the flow begins another upload
    assert await store.head(TARGET.key) is None
    await store.abort(TARGET, upload_id)
    upload_id, whole = await sent(store)
    await store.complete(TARGET, upload_id, [], whole)
    assert (tmp_path / TARGET.key).read_bytes() == BODY


@pytest.mark.parametrize("how", ["put", "complete"])
async def test_an_object_whose_name_the_disk_could_not_keep_is_not_there(
    how: str, tmp_path: Path, threads: Pool, refuse_once: Callable[[str], None]
) -> None:
    store = made(tmp_path, threads)
    upload_id, whole = await sent(store)
    refuse_once("sync_folder")
    store_it = {
        "put": lambda: store.put(TARGET, memoryview(BODY), whole),
        "complete": lambda: store.complete(TARGET, upload_id, [], whole),
    }[how]
    with pytest.raises(StoreError):
        await store_it()
    assert await store.head(TARGET.key) is None
    await store.put(TARGET, memoryview(BODY), whole)
    assert (tmp_path / TARGET.key).read_bytes() == BODY


async def test_an_object_is_stated_once_its_name_is_on_stable_storage(
    tmp_path: Path, threads: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon died when it had its name: that may still be lost with the machine."""
    dying = made(tmp_path, threads, Dies())
    upload_id, whole = await sent(dying)
    with pytest.raises(KeyboardInterrupt):
        await dying.complete(TARGET, upload_id, [], whole)
    synced: list[Path] = []
    monkeypatch.setattr(local_store, "sync_folder", synced.append)
    stated = await made(tmp_path, threads).head(TARGET.key)
    assert stated is not None
    folders = (tmp_path / TARGET.key).parents
    assert {folder for folder in folders if folder.is_relative_to(tmp_path)} <= set(synced)


async def test_a_copy_gives_way_to_others_of_its_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of 100 GB takes minutes where blocks can't be shared: reads and a stop come in between."""
    monkeypatch.setattr(cloning, "COPY_STEP", 1000)
    monkeypatch.setattr(local_store, "share_blocks", lambda *_: False)
    pool = Pool(1, "one")
    store = LocalStore(tmp_path / "store", pool, NoFaults())
    await store.prepare()
    await store.put(TARGET, memoryview(BODY), digest(memoryview(BODY), Algorithm.CRC64NVME))
    turns, copied = 0, replace(TARGET, key="ns/project/exp/files/b/8/model.pt", file_id=8)
    copying = asyncio.create_task(store.copy(TARGET.key, copied))
    while not copying.done():
        await pool.run(lambda: None)
        turns += 1
    await copying
    assert turns > len(BODY) // 2000, "it kept its thread to itself"
    assert (tmp_path / "store" / copied.key).read_bytes() == BODY
    assert (await store.head(copied.key)) is not None

    copying = asyncio.create_task(store.copy(TARGET.key, copied))
    while not opened_below(tmp_path):
        await pool.run(lambda: None)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert opened_below(tmp_path) == [], "nothing stays open"
    pool.close()


def opened_below(folder: Path) -> list[str]:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(f"{folder}/")]
