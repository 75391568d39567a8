"""Slots: backed by the disk before they are granted, used again by one connection alone, and gone with it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_dash.errors import Code, MLDashError
from ml_dashd.core.model import MAX_FILE_BYTES, Pin, PinKind
from ml_dashd.edge.room import Room
from ml_dashd.edge.slots import KEEP_FREE, KEEP_HELD, MAX_SLOTS, WARM_FROM_BYTES, SlotFiles
from tests.doubles.disks import pages_in_memory, tmpfs

MIB = 1 << 20
MINE, THEIRS = 1, 2


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[SlotFiles]:
    made = SlotFiles(tmp_path)
    yield made
    made.close()


@pytest.fixture
def names(tmp_path: Path):
    """The spool files that there are."""
    return lambda: sorted(path.name for path in (tmp_path / "slots").iterdir())


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refused(code: Code, call, *arguments) -> MLDashError:
    with pytest.raises(MLDashError) as raised:
        call(*arguments)
    assert raised.value.code is code
    return raised.value


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 20 * MIB + 5])
def test_the_disk_is_reserved_before_a_slot_is_granted(slots: SlotFiles, size: int, tmp_path: Path) -> None:
    slot = slots.grant(MINE, size)
    status = os.fstat(slot.descriptor)
    assert slot.capacity_bytes >= max(size, 1)
    assert slot.capacity_bytes - size < MIB or slot.capacity_bytes == MIB
    assert status.st_size == slot.capacity_bytes
    assert status.st_blocks * 512 >= slot.capacity_bytes
    assert status.st_mode & 0o777 == 0o600
    assert os.path.samestat(status, (tmp_path / "slots" / str(slot.number)).stat())


def test_a_full_disk_is_an_error_when_the_slot_is_asked_for(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 4 * MIB) as disk:
        slots = SlotFiles(disk)
        before = open_descriptors()
        assert "spool" in refused(Code.DISK_FULL, slots.grant, MINE, 5 * MIB).message
        assert list((disk / "slots").iterdir()) == []
        assert open_descriptors() == before
        slots.grant(MINE, 3 * MIB)
        slots.close()


def test_a_full_disk_that_our_own_files_fill_has_room_again_later(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 4 * MIB) as disk:
        slots = SlotFiles(disk)
        slots.grant(MINE, 3 * MIB)
        assert "ml-dash status" in refused(Code.RETRY_LATER, slots.grant, THEIRS, 2 * MIB).hint
        slots.close()


def test_what_is_kept_for_the_next_save_makes_room_for_another(tmp_path: Path) -> None:
    slots = SlotFiles(tmp_path, Room(4 * MIB))
    slot = slots.grant(MINE, 3 * MIB)
    slots.release(slots.commit(MINE, slot.number, MIB).name)
    assert len(list((tmp_path / "slots").iterdir())) == 1
    slots.grant(THEIRS, 3 * MIB)
    assert len(list((tmp_path / "slots").iterdir())) == 1
    refused(Code.RETRY_LATER, slots.grant, MINE, 3 * MIB)
    slots.disconnect(THEIRS)
    slots.grant(MINE, 3 * MIB)
    slots.close()


def test_what_is_more_than_the_quota_never_has_room(tmp_path: Path) -> None:
    slots = SlotFiles(tmp_path, Room(4 * MIB))
    assert "quota" in refused(Code.DISK_FULL, slots.grant, MINE, 5 * MIB).hint
    slots.grant(MINE, 4 * MIB)
    slots.close()


def test_what_no_file_may_have_is_refused_before_the_disk_is_asked(slots: SlotFiles, names) -> None:
    refused(Code.TOO_LARGE, slots.grant, MINE, MAX_FILE_BYTES + 1)
    assert names() == []


def test_a_slot_is_used_again_with_its_pages_once_it_is_released(slots: SlotFiles, names) -> None:
    first = slots.grant(MINE, 5 * MIB)
    os.pwrite(first.descriptor, b"first", 0)
    pin = slots.commit(MINE, first.number, 5)
    assert pin == Pin(PinKind.SLOT, str(first.number))
    second = slots.grant(MINE, 5 * MIB)
    assert second.number != first.number
    slots.release(pin.name)
    third = slots.grant(MINE, 4 * MIB)
    assert third == first
    assert os.fstat(third.descriptor).st_ino == os.fstat(first.descriptor).st_ino
    assert names() == sorted(str(slot.number) for slot in (first, second))


def test_the_smallest_slot_that_fits_is_used_again(slots: SlotFiles) -> None:
    large, small = slots.grant(MINE, 9 * MIB), slots.grant(MINE, 2 * MIB)
    slots.give_back(MINE, large.number)
    slots.give_back(MINE, small.number)
    assert slots.grant(MINE, 3 * MIB) == large
    assert slots.grant(MINE, 2 * MIB) == small


def test_a_slot_that_is_too_small_is_not_used_again(slots: SlotFiles) -> None:
    small = slots.grant(MINE, MIB)
    slots.give_back(MINE, small.number)
    assert slots.grant(MINE, MIB + 1).number != small.number


def test_another_connection_never_gets_a_used_slot(slots: SlotFiles) -> None:
    used = slots.grant(MINE, MIB)
    slots.give_back(MINE, used.number)
    theirs = slots.grant(THEIRS, MIB)
    assert theirs.number != used.number
    assert os.pread(theirs.descriptor, MIB, 0) == bytes(MIB)


def test_only_a_few_free_slots_are_kept(slots: SlotFiles, names) -> None:
    granted = [slots.grant(MINE, MIB) for _ in range(KEEP_FREE + 3)]
    for slot in granted:
        slots.give_back(MINE, slot.number)
    assert len(names()) == KEEP_FREE


def test_a_slot_grows_and_keeps_what_was_written(slots: SlotFiles, names) -> None:
    slot = slots.grant(MINE, MIB)
    os.pwrite(slot.descriptor, b"first", 0)
    grown = slots.grow(MINE, slot.number, 3 * MIB + 1)
    assert (grown.number, grown.capacity_bytes) == (slot.number, 4 * MIB)
    status = os.fstat(slot.descriptor)
    assert status.st_size == 4 * MIB <= status.st_blocks * 512
    assert os.pread(slot.descriptor, 5, 0) == b"first"
    assert slots.grow(MINE, slot.number, 2 * MIB) == grown, "it was large enough"
    slots.release(slots.commit(MINE, slot.number, 4 * MIB).name)
    assert slots.grant(MINE, 4 * MIB) == grown
    assert names() == [str(slot.number)]


def test_a_slot_grows_within_the_quota_only(tmp_path: Path) -> None:
    room = Room(4 * MIB)
    slots = SlotFiles(tmp_path, room)
    slot = slots.grant(MINE, 2 * MIB)
    assert slots.grow(MINE, slot.number, 4 * MIB).capacity_bytes == 4 * MIB
    assert "quota" in refused(Code.DISK_FULL, slots.grow, MINE, slot.number, 5 * MIB).hint
    assert room.used_bytes == 4 * MIB
    slots.give_back(MINE, slot.number)
    small = slots.grant(THEIRS, MIB)
    assert slots.grow(THEIRS, small.number, 2 * MIB).capacity_bytes == 2 * MIB, "what was kept for a save made room"
    refused(Code.RETRY_LATER, slots.grant, MINE, 3 * MIB)
    slots.close()
    assert room.used_bytes == 0


def test_a_slot_that_can_not_grow_is_as_it_was(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 4 * MIB) as disk:
        room = Room()
        slots = SlotFiles(disk, room)
        slot = slots.grant(MINE, 2 * MIB)
        os.pwrite(slot.descriptor, b"first", 0)
        refused(Code.RETRY_LATER, slots.grow, MINE, slot.number, 9 * MIB)
        assert os.fstat(slot.descriptor).st_size == room.used_bytes == 2 * MIB
        assert os.pread(slot.descriptor, 5, 0) == b"first"
        slots.commit(MINE, slot.number, 2 * MIB)
        slots.close()


def test_only_a_slot_that_is_being_written_grows(slots: SlotFiles) -> None:
    slot = slots.grant(MINE, MIB)
    refused(Code.INVALID_ARGUMENT, slots.grow, THEIRS, slot.number, 2 * MIB)
    refused(Code.TOO_LARGE, slots.grow, MINE, slot.number, MAX_FILE_BYTES + 1)
    slots.commit(MINE, slot.number, MIB)
    refused(Code.INVALID_ARGUMENT, slots.grow, MINE, slot.number, 2 * MIB)
    assert os.fstat(slot.descriptor).st_size == MIB


def test_a_slot_is_its_files_until_it_is_released(slots: SlotFiles) -> None:
    """Whoever writes to what is committed asks first: a reader that comes late must not write to another save's."""
    slot = slots.grant(MINE, MIB)
    name = slots.commit(MINE, slot.number, 5, 77).name
    assert slots.commit(MINE, slot.number, 5, 78).name == name, "a request that comes again is the first one's"

    def is_of(file_id: int) -> bool:
        with slots.kept_for(name, file_id) as still:
            return still

    assert [is_of(77), is_of(78)] == [True, False]
    slots.release(name)
    assert [is_of(77), is_of(0)] == [False, True]
    assert slots.grant(MINE, MIB).number == slot.number
    slots.commit(MINE, slot.number, 5, 79)
    assert [is_of(77), is_of(79)] == [False, True]


def test_a_slot_can_not_be_granted_while_it_is_committed(slots: SlotFiles) -> None:
    committed = slots.grant(MINE, MIB)
    slots.commit(MINE, committed.number, 5)
    slots.give_back(MINE, committed.number)
    assert slots.grant(MINE, MIB).number != committed.number


def test_commit_and_give_back_are_idempotent(slots: SlotFiles, names) -> None:
    slot = slots.grant(MINE, MIB)
    assert slots.commit(MINE, slot.number, 5) == slots.commit(MINE, slot.number, 5)
    slots.release(str(slot.number))
    again = slots.grant(MINE, MIB)
    slots.give_back(MINE, again.number)
    assert names() == [str(again.number)]


def test_too_many_saves_at_once_are_refused_until_one_is_written(slots: SlotFiles, names) -> None:
    granted = [slots.grant(MINE, MIB) for _ in range(MAX_SLOTS)]
    refused(Code.RETRY_LATER, slots.grant, MINE, MIB)
    assert len(names()) == MAX_SLOTS
    slots.grant(THEIRS, MIB)
    slots.commit(MINE, granted[0].number, 5)
    slots.grant(MINE, MIB)
    refused(Code.RETRY_LATER, slots.grant, MINE, MIB)


def test_saves_that_wait_for_the_store_hold_few_descriptors(slots: SlotFiles, names) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    waiting = []
    for _ in range(100):
        number = slots.grant(MINE, MIB).number
        slots.commit(MINE, number, 5)
        waiting.append(number)
    assert len(names()) == len(waiting)
    assert len(list(Path("/proc/self/fd").iterdir())) - before == KEEP_HELD
    for number in waiting:
        slots.release(str(number))
    assert len(names()) == KEEP_FREE


@pytest.mark.parametrize("call", ["commit", "give_back"])
def test_a_slot_of_another_connection_is_refused(slots: SlotFiles, call: str, names) -> None:
    theirs = slots.grant(THEIRS, MIB)
    size = (5,) if call == "commit" else ()
    failure = refused(Code.INVALID_ARGUMENT, getattr(slots, call), MINE, theirs.number, *size)
    assert f"slot {theirs.number}" in failure.message
    assert slots.commit(THEIRS, theirs.number, 5).name == str(theirs.number)


@pytest.mark.parametrize("call", ["commit", "give_back"])
def test_a_slot_that_is_not_granted_is_refused(slots: SlotFiles, call: str) -> None:
    size = (5,) if call == "commit" else ()
    refused(Code.INVALID_ARGUMENT, getattr(slots, call), MINE, 999, *size)
    slot = slots.grant(MINE, MIB)
    slots.give_back(MINE, slot.number)
    refused(Code.INVALID_ARGUMENT, getattr(slots, call), MINE, slot.number, *size)


def test_more_than_a_slot_holds_is_refused_and_changes_nothing(slots: SlotFiles) -> None:
    slot = slots.grant(MINE, MIB)
    failure = refused(Code.INVALID_ARGUMENT, slots.commit, MINE, slot.number, MIB + 1)
    assert str(MIB) in failure.message
    slots.give_back(MINE, slot.number)
    assert slots.grant(MINE, MIB) == slot


def test_a_connection_takes_its_slots_with_it(slots: SlotFiles, names) -> None:
    before = open_descriptors()
    for number in (0, 1):
        slots.give_back(MINE, slots.grant(MINE, MIB).number)
        slots.grant(MINE, (number + 2) * MIB)
    theirs = slots.grant(THEIRS, MIB)
    slots.disconnect(MINE)
    assert names() == [str(theirs.number)]
    slots.disconnect(THEIRS)
    slots.disconnect(THEIRS)
    assert names() == []
    assert open_descriptors() == before


def test_a_committed_slot_outlives_its_connection_until_it_is_released(slots: SlotFiles, tmp_path: Path, names) -> None:
    before = open_descriptors()
    slot = slots.grant(MINE, MIB)
    os.pwrite(slot.descriptor, b"content", 0)
    pin = slots.commit(MINE, slot.number, 7)
    slots.disconnect(MINE)
    assert names() == [pin.name]
    assert (tmp_path / "slots" / pin.name).read_bytes()[:7] == b"content"
    slots.release(pin.name)
    assert names() == []
    slots.release(pin.name)
    assert open_descriptors() == before


def test_a_stop_keeps_what_is_committed_and_nothing_else(slots: SlotFiles, names) -> None:
    before = open_descriptors()
    kept, granted, free = (slots.grant(MINE, MIB) for _ in range(3))
    slots.commit(MINE, kept.number, 5)
    slots.give_back(MINE, free.number)
    assert granted.number
    slots.close()
    assert names() == [str(kept.number)]
    assert open_descriptors() == before


def test_no_slot_of_the_next_daemon_has_a_name_that_was_used(slots: SlotFiles, tmp_path: Path, names) -> None:
    """What the journal still says of an earlier slot must never reach another's."""
    kept, gone = slots.grant(MINE, MIB), slots.grant(MINE, MIB)
    slots.commit(MINE, gone.number, 7)
    slots.commit(MINE, kept.number, 7)
    slots.release(str(gone.number))
    slots.close()
    (tmp_path / "slots" / str(gone.number)).unlink(missing_ok=True)
    later = SlotFiles(tmp_path)
    fresh = [later.grant(MINE, MIB).number for _ in range(MAX_SLOTS)]
    assert not {gone.number, kept.number} & set(fresh)
    later.release(str(gone.number))
    later.release(str(kept.number))
    assert names() == sorted(map(str, fresh))
    later.close()


def test_threads_get_different_slots(slots: SlotFiles, names) -> None:
    """Grants come from the pool's threads at once."""
    together = threading.Barrier(8)

    def grant(connection: int) -> list[int]:
        together.wait(10)
        return [slots.grant(connection, MIB).number for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for found in pool.map(grant, range(8)) for number in found]
    assert len(set(numbers)) == 80
    assert names() == sorted(map(str, numbers))


def test_a_slot_that_is_shared_is_not_written_to_again(tmp_path: Path) -> None:
    """A duplicate of what is on its way: its bytes stay, whatever becomes of the slot."""
    slots = SlotFiles(tmp_path)
    first = slots.grant(1, 100)
    os.pwrite(first.descriptor, b"weights", 0)
    pin = slots.commit(1, first.number, 7)
    other = slots.share(pin.name)
    again = slots.share(pin.name)
    slots.release(pin.name)
    second = slots.grant(1, 100)
    assert second.number not in (first.number, int(other), int(again))
    os.pwrite(second.descriptor, b"another", 0)
    assert (tmp_path / "slots" / other).read_bytes()[:7] == b"weights"
    slots.release(other)
    assert (tmp_path / "slots" / again).read_bytes()[:7] == b"weights"
    slots.release(again)
    assert {path.name for path in (tmp_path / "slots").iterdir()} == {str(second.number)}
    with pytest.raises(MLDashError) as lost:
        slots.share(pin.name)
    assert lost.value.code is Code.SOURCE_LOST


def test_a_slot_that_can_not_be_shared_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where files have but one name: it is told to try again, and once it is stored nothing is shared any more."""
    room = Room(8 * MIB)
    slots = SlotFiles(tmp_path, room)
    pin = slots.commit(1, slots.grant(1, 100).number, 7)
    taken = room.used_bytes
    for refusal, code in ((errno.EPERM, Code.RETRY_LATER), (errno.ENOSPC, Code.DISK_FULL)):

        def refuse(*_: object, number: int = refusal) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(MLDashError) as refused:
            slots.share(pin.name)
        assert refused.value.code is code
    assert room.used_bytes == taken


# ---- slots that wait for a save


def saved(slots: SlotFiles, connection: int, size: int) -> int:
    """What a save is to the slots until its content is stored."""
    number = slots.grant(connection, size).number
    slots.commit(connection, number, size)
    return number


def test_the_next_slot_is_ready_before_the_last_one_is_stored(slots: SlotFiles, names, tmp_path: Path) -> None:
    first = saved(slots, MINE, 20 * MIB)
    slots.prepare(MINE, 20 * MIB)
    slots.prepare(MINE, 20 * MIB)
    (ready,) = set(names()) - {str(first)}
    assert pages_in_memory(tmp_path / "slots" / ready) == (20 * 256, 20 * 256)
    second = slots.grant(MINE, 20 * MIB)
    assert str(second.number) == ready
    assert os.fstat(second.descriptor).st_blocks * 512 >= second.capacity_bytes
    slots.release(str(first))
    assert slots.grant(MINE, 20 * MIB).number == first


def test_what_is_ready_is_its_connections_own_and_goes_with_it(slots: SlotFiles, names) -> None:
    before = open_descriptors()
    first = saved(slots, MINE, 5 * MIB)
    slots.prepare(MINE, 5 * MIB)
    (ready,) = set(names()) - {str(first)}
    assert str(slots.grant(THEIRS, 5 * MIB).number) != ready
    slots.disconnect(MINE)
    slots.disconnect(THEIRS)
    assert names() == [str(first)]
    slots.prepare(MINE, 5 * MIB)
    assert names() == [str(first)], "it has hung up"
    assert open_descriptors() == before


def test_nothing_is_made_ready_that_a_save_would_miss(tmp_path: Path) -> None:
    """The last half of the quota is for saves; of memory a half is for others; small slots cost nothing when fresh."""
    available = 100 * MIB
    room = Room(20 * MIB)
    slots = SlotFiles(tmp_path, room, warm_bytes=30 * MIB, memory=lambda: available)

    def is_made_ready(size: int) -> bool:
        held = room.used_bytes
        slots.prepare(MINE, size)
        return room.used_bytes > held

    saved(slots, MINE, MIB)
    assert not is_made_ready(WARM_FROM_BYTES - MIB)
    assert not is_made_ready(10 * MIB), "more than half of the quota"
    available = 15 * MIB
    assert not is_made_ready(8 * MIB), "more than half of the memory"
    available = 16 * MIB
    assert is_made_ready(8 * MIB)
    assert not is_made_ready(5 * MIB), "there is one that is larger"
    saved(slots, THEIRS, 12 * MIB)
    assert room.used_bytes == 13 * MIB, "a save takes the room of what was ready"
    slots.close()


def test_a_disk_that_is_nearly_full_keeps_its_space(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 30 * MIB) as disk:
        slots = SlotFiles(disk)
        saved(slots, MINE, 5 * MIB)
        slots.prepare(MINE, 7 * MIB)
        assert len(list((disk / "slots").iterdir())) == 1
        slots.prepare(MINE, 6 * MIB)
        assert len(list((disk / "slots").iterdir())) == 2
        slots.disconnect(MINE)
        slots.close()


def test_what_waits_goes_where_memory_runs_short(tmp_path: Path) -> None:
    available = 100 * MIB
    room = Room()
    slots = SlotFiles(tmp_path, room, memory=lambda: available)
    first, second = saved(slots, MINE, 8 * MIB), saved(slots, MINE, 5 * MIB)
    slots.release(str(first))
    slots.release(str(second))
    slots.trim()
    assert room.used_bytes == 13 * MIB
    available = 20 * MIB
    slots.trim()
    assert room.used_bytes == 5 * MIB, "the largest goes first"
    third = saved(slots, MINE, 8 * MIB)
    slots.release(str(third))
    assert room.used_bytes == 5 * MIB
    slots.close()


def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    room = Room()
    slots = SlotFiles(tmp_path, room, warm_bytes=0)
    slots.release(str(saved(slots, MINE, 8 * MIB)))
    slots.prepare(MINE, 8 * MIB)
    assert room.used_bytes == 0
    slots.close()


@pytest.mark.parametrize("ends", [False, True], ids=["another save needs its room", "its connection ends"])
def test_a_slot_that_is_being_made_ready_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    room = Room(64 * MIB)
    slots = SlotFiles(tmp_path, room)
    before = open_descriptors()
    slots.give_back(MINE, slots.grant(MINE, MIB).number)
    read, offsets = os.preadv, []

    def interrupted(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        offsets.append(offset)
        if offset == 8 * MIB:
            slots.disconnect(MINE) if ends else slots.grant(THEIRS, 60 * MIB)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", interrupted)
    slots.prepare(MINE, 16 * MIB)
    assert offsets[-1] == 8 * MIB
    assert room.used_bytes == (0 if ends else 60 * MIB)
    slots.close()
    assert open_descriptors() == before


def test_a_slot_that_is_being_made_ready_is_granted_as_it_is(slots: SlotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    slots.give_back(MINE, slots.grant(MINE, MIB).number)
    read, got = os.preadv, []

    def interrupted(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        got.append(slots.grant(MINE, 16 * MIB))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", interrupted)
    slots.prepare(MINE, 16 * MIB)
    (slot,) = got
    assert slots.grant(MINE, 16 * MIB) != slot
    assert slots.commit(MINE, slot.number, 16 * MIB).name == str(slot.number)
