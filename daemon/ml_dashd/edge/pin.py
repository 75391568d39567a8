"""Pins: how a source is kept once it is handed over, and how it is read again.

The client passes an open descriptor, so the kernel has already checked its rights. What a pin protects against is in
DURABILITY.md. The content, name and mode of a user's own file are never changed; only the spool is.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error
from ml_dash.messages import INLINE_BYTES
from ml_dashd.core.model import MAX_FILE_BYTES, Fingerprint, Job, Pin, PinKind, Protection
from ml_dashd.core.states import State
from ml_dashd.core.witness import Verdict
from ml_dashd.edge.cloning import changed, link, reflink
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.file_leases import FileLeases, has_writers
from ml_dashd.edge.fingerprints import SETTLED_MS, fingerprint, fingerprint_of, look, read_small, rebased, retimed
from ml_dashd.edge.handed import check, known_of, path_of
from ml_dashd.edge.held import HeldSources
from ml_dashd.edge.room import Room, bytes_of
from ml_dashd.edge.slot_archives import SlotArchives
from ml_dashd.edge.slots import SLOT_FOLDER, SlotFiles
from ml_dashd.edge.source import FileSource, InlineSource, lost
from ml_dashd.edge.spool_copies import SpoolCopies
from ml_dashd.edge.system import asking_for_a_sync, sync_content, sync_folder
from ml_dashd.edge.systemd import Systemd
from ml_dashd.edge.witness import Ask, Witness
from ml_dashd.ports import Faults, Offer, Source

_OURS = re.compile(r"[0-9]+(\.copy|\.lease)?")
"""The names that pins have in the spool: a file's id, and what was copied of it in the background, or for a writer who
waited."""


class SpoolPins:
    """The port `Pins`. `pools` are spool folders, the first of them the default, at most one a file system.

    `keeper` is where held descriptors outlive this process, if there is such a place. Sources of `uncached_from` bytes
    and more leave the page cache alone, 0 for none; slots stay in memory for the next save.
    """

    def __init__(
        self,
        pools: Sequence[Path],
        slots: SlotFiles,
        faults: Faults,
        room: Room | None = None,
        keeper: Systemd | None = None,
        budget: DescriptorBudget | None = None,
        *,
        witness: Witness | None = None,
        uncached_from: int = 0,
    ) -> None:
        self._uncached_from = uncached_from
        self._pools = list(pools)
        budget = budget or DescriptorBudget()
        self._held = HeldSources(budget, keeper or Systemd({}))
        self._leases = FileLeases(budget)
        self._witness = witness or Witness(most=0)
        self._slots = slots
        self._room = room or Room()
        self._copies = SpoolCopies(self._pools[0], self._room)
        self._faults = faults
        self._no_reflink: set[int] = set()
        self._archives = SlotArchives(slots, faults)
        for pool in self._pools:
            pool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._by_device = {pool.stat().st_dev: pool for pool in reversed(self._pools)}

    # ---- hand-off

    def take(self, descriptor: int, file_id: int, source: str, protection: Protection) -> tuple[Pin, bytes | None, int]:
        check(descriptor, source, copied=protection is Protection.COPY)
        self._refuse_own(descriptor, source)
        return self._take(descriptor, file_id, source, protection)

    def is_quick(self, descriptor: int) -> bool:
        known = known_of(descriptor)
        if known is None or known[0] not in self._by_device:
            return False
        device, size_bytes = known
        return size_bytes <= INLINE_BYTES or device in self._no_reflink  # sharing blocks would write out the source

    def adopt(self, job: Job, file_id: int) -> tuple[Pin, bytes | None, int]:
        if job.pin.kind is PinKind.SLOT:
            return Pin(PinKind.SLOT, self._slots.share(job.pin.name)), None, job.record.size_bytes
        with self._opened(job) as descriptor:
            if self._changed(job, descriptor):
                raise changed(job.pin.source)
            if job.pin.kind is PinKind.COPY:  # not as a user's file: its times move when a store takes it, too
                name = self._copies.share(descriptor, str(file_id), job)
                mark = self._mark(-1, PinKind.COPY, name)
                return replace(job.pin, name=name, fingerprint=mark), None, job.record.size_bytes
            return self._take(descriptor, file_id, job.pin.source, Protection.RESTART)

    def _take(
        self, descriptor: int, file_id: int, source: str, protection: Protection
    ) -> tuple[Pin, bytes | None, int]:
        status = os.fstat(descriptor)
        if status.st_size <= INLINE_BYTES:
            content = read_small(descriptor, source)
            return Pin(PinKind.INLINE, source=source), content, len(content)
        self._faults.at("pin.before")
        kind, name = self._keep(descriptor, file_id, status.st_dev, source, protection)
        self._faults.at("pin.after")
        try:
            if kind in (PinKind.LINK, PinKind.FD):
                self._witness.watch(file_id, descriptor)
            mark = self._mark(descriptor, kind, name)
            if mark.size_bytes > MAX_FILE_BYTES:
                raise error(Code.TOO_LARGE, f"{source} has {mark.size_bytes} bytes")
        except (OSError, MLDashError):
            self.release(Pin(kind, name), file_id)
            raise
        return Pin(kind, name, source, mark), None, mark.size_bytes

    def _refuse_own(self, descriptor: int, source: str) -> None:
        """A slot is committed, not handed over: it would be granted and written to again while it is kept."""
        path = path_of(descriptor).removesuffix(" (deleted)")
        if not _OURS.fullmatch(path.rpartition("/")[2]):
            return
        if path.startswith(tuple(f"{pool.resolve()}/" for pool in self._pools)):  # they may have moved, with their root
            hint = "commit the slot, or pass a plain file"
            raise error(Code.NOT_A_FILE, f"{source} lies in the daemon's own spool", hint)

    def _keep(
        self, descriptor: int, file_id: int, device: int, source: str, protection: Protection
    ) -> tuple[PinKind, str]:
        """Makes the quickest pin that protects so far, as this file system and this file's owner allow."""
        pool = self._by_device.get(device)
        if pool is not None:
            name = self._name(pool, file_id)
            path = str(pool / str(file_id))
            if self._reflink(descriptor, path, device):
                return PinKind.REFLINK, name
            if protection is not Protection.COPY and link(descriptor, path):
                return PinKind.LINK, name
        if protection is not Protection.RESTART:
            with self._witness.during(file_id, descriptor) as ask:
                return PinKind.COPY, self._copies.make(descriptor, str(file_id), source, ask)
        self._held.hold(file_id, descriptor, source)
        return PinKind.FD, ""

    def _reflink(self, descriptor: int, path: str, device: int) -> bool:
        """Shares the source's blocks. A file system that can't is asked once: each try makes and removes a file."""
        if device in self._no_reflink:
            return False
        refusal = reflink(descriptor, path)
        if refusal == errno.EOPNOTSUPP:
            self._no_reflink.add(device)
        return refusal is None

    def _name(self, pool: Path, file_id: int) -> str:
        """A pin's name in the journal. In the default pool it is relative, so that the state folder can be moved."""
        return str(file_id) if pool is self._pools[0] else str(pool / str(file_id))

    def lease(self, job: Job) -> str | None:
        try:
            with self._opened(job) as descriptor:
                self._copies.look_for_room(f"{job.id}.lease", job.record.size_bytes)
                if (refusal := self._leases.take(descriptor, job.id)) is None:
                    if not self._changed(job, descriptor):
                        self._witness.unlease(job.id)  # one lease is enough for a writer to wait
                        return None
                    self._leases.let_go(job.id)
                    refusal = "it was written to since it was handed over"
                return refusal
        except (OSError, MLDashError) as failure:
            return str(failure)

    def leased(self, file_id: int) -> bool:
        return self._leases.holds(file_id)

    def wanted(self) -> list[int]:
        return self._leases.asked_for()

    def unlease(self, file_id: int) -> None:
        self._leases.let_go(file_id)

    def give_way(self) -> bool:
        return self._witness.give_way()

    def lease_touched(self, *, last: bool = False) -> None:
        self._witness.lease_touched(last=last)

    def done_reading(self, file_id: int) -> None:
        self._witness.unlease(file_id)

    def touched(self) -> list[int]:
        return self._witness.touched()

    def retimed(self, job: Job, now_ms: int) -> Fingerprint | None:
        was = job.pin.fingerprint
        if was is None or job.pin.kind not in (PinKind.LINK, PinKind.FD):
            return None
        with self._opened(job) as descriptor:
            self._witness.lease_again(job.id, descriptor)
            now = fingerprint(descriptor)
            if now_ms - now.ctime_ns // 1_000_000 >= SETTLED_MS:
                return now if retimed(was, now, self._ask(job, descriptor)) else None
            self._witness.remind(job.id)
            return None

    def copy(self, job: Job, in_time: Callable[[], bool] | None = None) -> Pin:
        with self._opened(job) as source:
            if self._changed(job, source):
                raise changed(job.pin.source)
            self._copies.leave_room(job.record.size_bytes)
            name = f"{job.id}.copy" if in_time is None else f"{job.id}.lease"
            self._copies.make(source, name, job.pin.source, self._ask(job, source), spare=True, in_time=in_time)
            pin = Pin(PinKind.COPY, name, job.pin.source)
            kept = in_time is None or self._leases.stands(job.id)
            if not kept or self._changed(job, source):
                self.release(pin, job.id)
                raise changed(job.pin.source)
        return replace(pin, fingerprint=self._mark(-1, pin.kind, name))

    def _changed(self, job: Job, descriptor: int) -> bool:
        """Whether a linked or held source was written to since it was handed over, or may have been."""
        if job.pin.fingerprint is None:
            raise error(Code.SOURCE_LOST, f"{job.pin.source} has no fingerprint")
        return look(descriptor, job.pin.fingerprint, self._ask(job, descriptor)) is Verdict.CHANGED

    def _ask(self, job: Job, descriptor: int) -> Ask:
        return lambda: self._witness.account(job.id, descriptor, leased=self._leases.stands(job.id))

    def _mark(self, descriptor: int, kind: PinKind, name: str) -> Fingerprint:
        """The baseline: taken after the link, which moves ctime; of our own copy where there is one."""
        if kind in (PinKind.LINK, PinKind.FD):
            return fingerprint(descriptor)
        return fingerprint_of(self._path(Pin(kind, name)))

    # ---- afterwards

    def sealing(self, job: Job) -> Iterator[bool]:
        yield from self._archives.seal(job, self._path(job.pin))

    def open(self, job: Job, content: bytes) -> Source:
        if job.pin.kind is PinKind.INLINE:
            return InlineSource(content)
        self._room.note(self._path(job.pin), failed=job.state is State.FAILED)
        large = 0 < self._uncached_from <= job.record.size_bytes
        descriptor = self._open(job)
        uncached = large and job.pin.kind is not PinKind.SLOT
        source = FileSource(descriptor, job, self._ask(job, descriptor), uncached=uncached)
        try:
            source.check()
            if job.pin.kind is PinKind.SLOT:
                with self._archives.still_its_own(job):
                    return source
        except MLDashError:
            source.close()
            raise
        return source

    def offer(self, job: Job, device: int) -> Offer | None:
        descriptor = self._open(job)
        try:
            slot = job.pin.kind is PinKind.SLOT
            if os.fstat(descriptor).st_dev != device or (slot and not self._slots.give_up(job.pin.name)):
                os.close(descriptor)
                return None
            # Who has it open to write, as a slot's client may, could do so when it is an object. Nobody comes later.
            ours = job.pin.kind in (PinKind.SLOT, PinKind.COPY, PinKind.REFLINK)
            return Offer(descriptor, itself=ours and not has_writers(descriptor))
        except OSError:
            os.close(descriptor)
            raise

    def sync(self, pin: Pin, file_id: int) -> None:
        if pin.kind is PinKind.INLINE:
            return
        if pin.kind is PinKind.FD:
            if (held := self._held.dup(file_id)) is not None:
                self._sync(held)
            return
        try:
            descriptor = os.open(self._path(pin), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # released meanwhile: it is stored
        self._sync(descriptor)

    def _sync(self, descriptor: int) -> None:
        """Syncs a source and closes its descriptor."""
        try:
            with asking_for_a_sync():
                self._faults.at("settle.before_sync")
            sync_content(descriptor)
        finally:
            os.close(descriptor)

    def sync_folders(self, pins: Sequence[Pin]) -> None:
        for folder in {Path(self._path(pin)).parent for pin in pins if pin.name}:
            sync_folder(folder)

    def release(self, pin: Pin, file_id: int) -> None:
        if pin.kind in (PinKind.LINK, PinKind.FD):
            self._leases.let_go(file_id)
            self._witness.let_go(file_id)
        if pin.kind is PinKind.SLOT:
            self._room.note(self._path(pin), failed=False)  # it may be kept, for the next save
            self._slots.release(pin.name)
            self._archives.forget(file_id)
        elif pin.kind is PinKind.FD:
            self._held.let_go(file_id)
        elif pin.name:
            self._unlink(self._path(pin))

    def pass_on(self, file_id: int, to_id: int) -> None:
        self._held.pass_on(file_id, to_id)
        self._witness.let_go(file_id)

    def note_failed(self, pin: Pin, file_id: int) -> None:
        self._room.note(self._path(pin), failed=True)
        self._witness.unlease(file_id)

    def sweep(self, jobs: Sequence[Job]) -> int:
        self._held.take_back({job.id: job.pin.fingerprint for job in jobs if job.pin.kind is PinKind.FD})
        needed = {self._path(job.pin) for job in jobs if job.pin.name}
        folders = [*self._pools, self._pools[0] / SLOT_FOLDER]
        strays = [
            entry.path
            for folder in folders
            for entry in os.scandir(folder)
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and entry.path not in needed
        ]
        for stray in strays:
            Path(stray).unlink(missing_ok=True)
        for job in jobs:
            if job.pin.kind in (PinKind.COPY, PinKind.SLOT):  # it counts against the quota
                self._room.inherit(self._path(job.pin), failed=job.state is State.FAILED)
            elif job.pin.kind is PinKind.LINK and job.state in (State.QUEUED, State.SENDING):
                self._watch_again(job)
        return len(strays)

    def _watch_again(self, job: Job) -> None:
        """As from its hand-off on, where no time moved. What was held could keep the start waiting: see hold_again."""
        with suppress(OSError, MLDashError), self._opened(job) as descriptor:
            self._watch_as_it_was(job, descriptor)

    def hold_again(self, job: Job) -> None:
        with suppress(OSError, MLDashError), self._opened(job) as descriptor:
            if not self._held.holds(job.id):
                self._held.hold(job.id, descriptor, job.pin.source)
            self._watch_as_it_was(job, descriptor)

    def _watch_as_it_was(self, job: Job, descriptor: int) -> None:
        self._witness.watch(job.id, descriptor)
        if fingerprint(descriptor) != job.pin.fingerprint:
            self._witness.let_go(job.id)

    def rebase(self, job: Job) -> Pin | None:
        return rebased(self._path(job.pin), job.pin) if job.pin.name else None

    def spool_bytes(self) -> int:
        return bytes_of([*self._pools, self._pools[0] / SLOT_FOLDER])

    def close(self) -> None:
        """Closes what is held."""
        self._leases.close()
        self._witness.close()
        self._held.close()

    def _unlink(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)
        self._room.give_back(path)

    def _path(self, pin: Pin) -> str:
        folder = self._pools[0] / SLOT_FOLDER if pin.kind is PinKind.SLOT else self._pools[0]
        return str(folder / pin.name)

    @contextmanager
    def _opened(self, job: Job) -> Iterator[int]:
        descriptor = self._open(job)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, job: Job) -> int:
        if job.pin.kind is PinKind.FD:
            return self._held.open(job)
        try:
            return os.open(self._path(job.pin), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise lost(job) from None
