"""A store that is a folder: {namespace}/{project}/{experiment}/files/{prefix}/{id}/{filename} below a root.

An object appears under its name only when it is whole and on stable storage: temporary name, fdatasync, rename, fsync
of the folders. A sync that the disk refused is never tried again, because it would then succeed: the bytes are written
anew. The temporary name is the file's id, so a name of 255 bytes works. What `head` states it reads from the bytes on
disk, unless it is asked for a glance.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ml_dashd.core import about, names
from ml_dashd.core.checksum import Digest, encode_crc
from ml_dashd.core.model import MAX_FILE_BYTES, Algorithm, Evidence, FileRecord, OpenUpload, SentPart, Stored, Target
from ml_dashd.core.plan import PART_BYTES, Part
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.cloning import share_blocks
from ml_dashd.edge.local_listing import PUT, objects_below, uploads_in
from ml_dashd.edge.object_files import (
    about_of,
    copy_next,
    copy_range,
    open_new,
    read_into,
    take_blocks,
    take_name,
    write_all,
)
from ml_dashd.edge.source import crc64_of_range
from ml_dashd.edge.system import sync_content, sync_folder
from ml_dashd.ports import Faults, NotMountedError, Offer, Threads

T = TypeVar("T")

TEMPORARY = ".ml-dash-tmp"
"""Beside the namespaces, on their file system; no user's name can be this (core/names.py)."""
SCRATCH = ".ml-dash-probe"
"""Beside it: what is made only to see whether it can be."""
LIST_PAGE = 1000
KEEP_SYNCED = 4096
"""Folders known to be synced: to sync one again costs a moment, to remember every experiment's costs memory."""


class LocalStore:
    """The port `Store` on a folder. `mode` is that of the files; folders get the matching search bits.

    `url` is what the folder is called where `root` is only a way to it; `throttle` caps what is written; `check` raises
    NotMountedError where another folder is in its place.
    """

    def __init__(
        self,
        root: Path,
        threads: Threads,
        faults: Faults,
        mode: int = 0o640,
        url: str = "",
        single_bytes: int = PART_BYTES,
        *,
        throttle: Throttle | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = url or root.as_uri()
        self.single_bytes = single_bytes
        self.copy_bytes = MAX_FILE_BYTES
        self._root = root
        self._threads = threads
        self._faults = faults
        self._mode = mode
        self._throttle = throttle or Throttle()
        self._check = check
        self._folder_mode = mode | (mode & 0o444) >> 2
        self._synced: set[Path] = set()
        """Folders above the ids' own whose entries are on stable storage."""

    async def prepare(self, known: Algorithm | None = None) -> Algorithm:
        await self._run(lambda: self._temporary("").mkdir(parents=True, exist_ok=True, mode=0o700))
        return Algorithm.CRC64NVME

    def key(self, record: FileRecord) -> str:
        return names.local_key(record)

    def scratch(self, number: int) -> str:
        return f"{SCRATCH}/{number}/probe"

    async def put(self, target: Target, body: memoryview, digest: Digest) -> Evidence:
        def work(piece: memoryview, start: int) -> None:
            path = self._new(f"{target.file_id}{PUT}")
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC) if start else open_new(path, self._mode, target)
            try:
                write_all(descriptor, piece, start)
                if start + len(piece) < len(body):
                    return
                sync_content(descriptor)
            finally:
                os.close(descriptor)
            self._publish(path, target.key)

        async for piece, start in self._pieces(body):
            await self._run(partial(work, piece, start))
        return Evidence(len(body), "", digest.proof, target.file_id)

    async def copy(self, source: str, target: Target) -> None:
        """A step at a time: no thread is held for all of it, and a stop waits for one step."""
        size, name = target.size_bytes, f"{target.file_id}{PUT}"
        opened: list[int] = []

        def begin() -> bool:
            opened.append(self._open_object(source))
            opened.append(open_new(self._new(name), self._mode, target))
            return share_blocks(opened[0], opened[1])

        def end() -> None:
            for descriptor in opened:
                os.close(descriptor)

        try:
            done = size if await self._run(begin) else 0
            while done < size:
                done += await self._run(partial(copy_next, opened[0], opened[1], size, done, source))
            await self._run(partial(sync_content, opened[1]))
        finally:
            await self._threads.run(end)
        await self._run(lambda: self._publish(self._temporary(name), target.key))

    async def copy_part(self, source: str, target: Target, upload_id: str, part: Part) -> None:
        def work() -> None:
            original = self._open_object(source)
            try:
                descriptor = self._open_upload(upload_id)
                try:
                    copy_range(original, descriptor, part, source)
                finally:
                    os.close(descriptor)
            finally:
                os.close(original)

        await self._run(work)

    async def begin(self, target: Target) -> str:
        def work() -> str:
            upload_id = str(target.file_id)
            os.close(open_new(self._new(upload_id), self._mode, target))
            return upload_id

        return await self._run(work)

    async def send_part(self, target: Target, upload_id: str, part: Part, body: memoryview, digest: Digest) -> SentPart:
        def work(piece: memoryview, start: int) -> None:
            descriptor = self._open_upload(upload_id)
            try:
                if not _is_adopted(descriptor):
                    write_all(descriptor, piece, part.offset + start)
            finally:
                os.close(descriptor)

        async for piece, start in self._pieces(body):
            await self._run(partial(work, piece, start))
        return SentPart(part.number, len(body), "", digest.proof, digest.crc64nvme)

    async def _pieces(self, body: memoryview) -> AsyncIterator[tuple[memoryview, int]]:
        """A body whole; under a cap in slices, each as soon as it may go: no thread waits for it."""
        step = self._throttle.slice_bytes if self._throttle.capped else max(1, len(body))
        for start in range(0, max(1, len(body)), step):
            piece = body[start : start + step]
            await self._throttle.take(len(piece))
            yield piece, start

    async def device(self) -> int | None:
        return await self._run(lambda: self._new("").stat().st_dev)

    async def adopt(self, target: Target, upload_id: str, offer: Offer) -> bool:
        def work() -> bool:
            begun = self._open_upload(upload_id)
            try:
                if os.path.samestat(os.fstat(begun), os.fstat(offer.descriptor)):
                    return True
                itself = offer.itself and self._take_itself(offer.descriptor, begun, upload_id, target.size_bytes)
                return itself or take_blocks(offer.descriptor, begun, target.size_bytes)
            finally:
                os.close(begun)

        return await self._run(work)

    def _take_itself(self, descriptor: int, begun: int, upload_id: str, size_bytes: int) -> bool:
        self._faults.at("local.before_adopt")
        aside = self._temporary(f"{upload_id}{PUT}")
        if not take_name(descriptor, aside, begun, size_bytes):
            return False
        self._faults.at("local.linked")
        aside.rename(self._temporary(upload_id))
        self._faults.at("local.adopted")
        return True

    async def list_parts(self, target: Target, upload_id: str, part_size: int) -> list[SentPart]:
        def work() -> list[SentPart]:
            descriptor = self._open_upload(upload_id)
            try:
                size = os.fstat(descriptor).st_size
                ranges = [(start, min(part_size, size - start)) for start in range(0, size, part_size)]
                return [
                    SentPart(number, length, "", encode_crc(crc64_of_range(descriptor, start, length), 8))
                    for number, (start, length) in enumerate(ranges, start=1)
                ]
            finally:
                os.close(descriptor)

        return await self._run(work)

    async def complete(self, target: Target, upload_id: str, parts: Sequence[SentPart], whole: Digest) -> None:
        def work() -> None:
            descriptor = self._open_upload(upload_id)
            try:
                if os.fstat(descriptor).st_size != whole.size_bytes:
                    raise StoreError(Fault.GONE, f"the temporary file of {target.key} has another size")
                _sync_parts(descriptor, target.key)
            finally:
                os.close(descriptor)
            self._temporary(f"{upload_id}{PUT}").unlink(missing_ok=True)  # of an adoption that was killed halfway
            self._publish(self._temporary(upload_id), target.key)

        await self._run(work)

    async def abort(self, target: Target, upload_id: str) -> None:
        def work() -> None:
            for name in (upload_id, f"{upload_id}{PUT}"):
                self._temporary(name).unlink(missing_ok=True)

        await self._run(work)

    async def head(self, key: str, *, glance: bool = False) -> Evidence | None:
        def work() -> Evidence | None:
            try:
                descriptor = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                size = os.fstat(descriptor).st_size
                checksum = None if glance else encode_crc(crc64_of_range(descriptor, 0, size), 8)
                said = about_of(descriptor)
            finally:
                os.close(descriptor)
            if not glance:  # a daemon that died in between has left them to chance
                self._sync_names(self._root / key)
            return Evidence(size, "", checksum, int(Path(key).parent.name), about.read(said))

        return await self._run(work)

    async def read(self, key: str, offset: int, into: memoryview, arrived: Callable[[int], None]) -> None:
        def work() -> None:
            descriptor = self._open_object(key)
            try:
                read_into(descriptor, into, offset, key)
            finally:
                os.close(descriptor)

        await self._run(work)
        arrived(len(into))

    async def share(self, key: str, descriptor: int) -> bool:
        def work() -> bool:
            with suppress(OSError), (self._root / key).open("rb") as object_:
                return share_blocks(object_.fileno(), descriptor)
            return False

        return await self._run(work)

    async def delete(self, key: str) -> None:
        def work() -> None:
            path = self._root / key
            self._temporary(f"{path.parent.name}{PUT}").unlink(missing_ok=True)
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            with suppress(OSError):  # the id's own folder; another's stays because it is not empty
                path.parent.rmdir()
                if key.startswith(SCRATCH):
                    path.parent.parent.rmdir()

        await self._run(work)

    async def uploads(self, key: str) -> AsyncIterator[OpenUpload]:
        name = Path(key).parent.name
        if await self._run(self._temporary(name).exists):
            yield OpenUpload(key, name)

    def objects(self, after: str = "") -> AsyncIterator[Sequence[Stored]]:
        return self._pages(objects_below(self._root, after))

    def open_uploads(self) -> AsyncIterator[Sequence[OpenUpload]]:
        return self._pages(uploads_in(self._root, TEMPORARY))

    async def _pages(self, found: Iterator[T]) -> AsyncIterator[Sequence[T]]:
        while page := await self._run(lambda: list(islice(found, LIST_PAGE))):
            yield page

    def place(self, key: str, depth: int) -> tuple[str, str, str, str, str] | None:
        return names.place_of(key, "", depth)

    async def close(self) -> None:
        return

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await self._threads.run(self._in_place, work)
        except OSError as failure:
            raise _sorted(failure) from failure

    def _in_place(self, work: Callable[[], T]) -> T:
        """What is done, or found, counts only if the folder was the store's before and after."""
        self._check()
        try:
            return work()
        finally:
            self._check()

    def _temporary(self, name: str) -> Path:
        return self._root / TEMPORARY / name

    def _new(self, name: str) -> Path:
        """A temporary name that can be made: somebody may have tidied the folder away."""
        self._temporary("").mkdir(exist_ok=True, mode=0o700)
        return self._temporary(name)

    def _open_object(self, key: str) -> int:
        try:
            return os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(Fault.MISSING, f"{key} is not in {self.url}") from None

    def _open_upload(self, upload_id: str) -> int:
        try:
            return os.open(self._temporary(upload_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreError(Fault.GONE, f"there is no temporary file {upload_id}") from None

    def _publish(self, temporary: Path, key: str) -> None:
        """Gives a finished file its name. Where that may be lost with the machine, it is taken back."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True, mode=self._folder_mode)
        self._faults.at("local.before_rename")
        temporary.rename(path)
        self._faults.at("local.after_rename")
        try:
            self._sync_names(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _sync_names(self, path: Path) -> None:
        """Brings every folder entry on the way to an object to stable storage."""
        sync_folder(path.parent)
        sync_folder(path.parent.parent)
        for folder in path.parent.parent.parents:
            if folder in self._synced or not folder.is_relative_to(self._root):
                break
            sync_folder(folder)
            if len(self._synced) >= KEEP_SYNCED:
                self._synced.clear()
            self._synced.add(folder)


def _is_adopted(descriptor: int) -> bool:
    """Whether an upload is a source's own file, which has its name in the spool until the object is in the catalog."""
    return os.fstat(descriptor).st_nlink > 1


def _sync_parts(descriptor: int, key: str) -> None:
    """Any refusal spoils them all: the kernel may have dropped pages of any part."""
    try:
        sync_content(descriptor)
    except OSError as failure:
        raise StoreError(Fault.CORRUPT, f"the store's disk did not keep the parts of {key}: {failure}") from failure


def _sorted(failure: OSError) -> StoreError:
    """A file system's error as a store's fault."""
    if isinstance(failure, NotMountedError):
        return StoreError(Fault.NOT_MOUNTED, str(failure))
    if failure.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(Fault.DENIED, f"the store's folder: {failure}")
    if failure.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreError(Fault.NO_BUCKET, f"the store's folder: {failure}")
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(Fault.FULL, f"the store's folder: {failure}")
    return StoreError(Fault.TRANSIENT, f"the store's folder: {failure}")
