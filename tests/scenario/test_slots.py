"""Slots as a client meets them: what is committed is stored, and of what is not nothing stays."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.disks import pages_in_memory
from tests.doubles.raw_client import RawClient
from tests.harness import PREFIX, DaemonProcess, Folder, assert_whole, eventually, make_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
PLACE = m.Place(**dict(zip(("namespace", "project", "experiment"), PREFIX.split("/"), strict=True)))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as process:
        yield process


def granted(client: RawClient, size: int = MIB, held: tuple[int, ...] = ()) -> m.SlotGranted:
    return client.ask(m.SlotGranted, m.RequestSlot(request=1, size_bytes=size, held=held))


def commit(slot: int, size: int = MIB, to: str = "best.pt") -> m.CommitSlot:
    file = m.Described(place=PLACE, to=to)
    return m.CommitSlot(request=2, key=secrets.token_bytes(16), slot=slot, file=file, size_bytes=size)


def test_what_was_never_committed_goes_with_its_client(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        slot = granted(client)
        (descriptor,) = client.received
        os.pwrite(descriptor, b"half a checkpoint", 0)
        assert daemon.spool() == [f"spool/slots/{slot.slot}"]
    eventually(lambda: daemon.spool() == [])
    with daemon.experiment().run as exp:
        assert_whole(daemon, exp, {})


def test_what_a_killed_daemon_had_granted_is_swept_at_the_next_start(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        granted(client)
        granted(client, 5 * MIB)
        daemon.kill()
        assert len(daemon.spool()) == 2
        daemon.start()
    assert daemon.spool() == []


def test_what_was_committed_is_stored_though_its_client_is_gone(daemon: DaemonProcess, tmp_path: Path) -> None:
    expected = make_file(tmp_path / "best.pt", MIB + 5)
    with RawClient(daemon.socket).greet() as client:
        slot = granted(client, MIB + 5)
        (descriptor,) = client.received
        os.pwrite(descriptor, (tmp_path / "best.pt").read_bytes(), 0)
        client.ask(m.Accepted, commit(slot.slot, MIB + 5))
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=30)
        assert_whole(daemon, exp, {"best.pt": expected})
    eventually(lambda: daemon.spool() == [])


@pytest.mark.parametrize("point", ["accept.pinned", "accept.journaled", "single.before_put", "finish.before_release"])
def test_a_save_outlives_kill_9_of_the_daemon(daemon: DaemonProcess, tmp_path: Path, point: str) -> None:
    expected = make_file(tmp_path / "best.pt", MIB + 5)
    daemon.kill()
    daemon.start(faults=f"{point}=kill")

    def revive() -> None:
        daemon.wait_for_death()
        daemon.start()

    revived = threading.Thread(target=revive)
    revived.start()
    with daemon.experiment().run as exp:
        exp.files.save_blob((tmp_path / "best.pt").read_bytes(), to="best.pt")
        revived.join()
        exp.files.flush(timeout=30)
        assert_whole(daemon, exp, {"best.pt": expected})
    assert daemon.stop() == 0
    assert daemon.spool() == []


def test_a_slot_comes_back_without_its_descriptor_to_who_still_holds_it(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        first = granted(client)
        client.ask(m.Done, m.ReleaseSlot(request=3, slot=first.slot))
        assert granted(client, held=(first.slot,)) == first
        assert len(client.received) == 1
        client.ask(m.Done, m.ReleaseSlot(request=3, slot=first.slot))
        assert granted(client) == first
        mine, again = client.received
        assert os.path.samestat(os.fstat(mine), os.fstat(again))


def test_a_slot_is_its_connections_own(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as owner, RawClient(daemon.socket).greet() as thief:
        slot = granted(owner).slot
        for message in (commit(slot), m.ReleaseSlot(request=2, slot=slot)):
            failed = thief.ask(m.Failed, message)
            assert failed.code == Code.INVALID_ARGUMENT
            assert f"slot {slot}" in failed.message
        assert owner.ask(m.Failed, commit(slot, MIB + 1)).code == Code.INVALID_ARGUMENT
        assert daemon.rows("SELECT id FROM files") == []
        assert owner.ask(m.Accepted, commit(slot, 70_000)).record.size_bytes == 70_000


def test_a_commit_that_is_refused_gives_the_slot_back(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        first = granted(client)
        assert client.ask(m.Failed, commit(first.slot, to="../up.pt")).code == Code.INVALID_PATH
        assert daemon.rows("SELECT id FROM files") == []
        assert granted(client) == first
        client.ask(m.Accepted, commit(first.slot))


def test_too_many_slots_are_refused_and_the_connection_goes_on(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        slots = [granted(client).slot for _ in range(16)]
        failed = client.ask(m.Failed, m.RequestSlot(request=1, size_bytes=5))
        assert failed.code == Code.RETRY_LATER
        client.ask(m.Done, m.ReleaseSlot(request=1, slot=slots[3]))
        assert granted(client).slot == slots[3]
        assert client.ask(m.Failed, m.RequestSlot(request=1, size_bytes=5)).code == Code.RETRY_LATER


def test_a_late_write_reaches_nothing_that_is_stored(daemon: DaemonProcess) -> None:
    """A client that keeps its mapping, against the rules, harms no one: the store has bytes of its own."""
    content = hashlib.shake_256(b"one").digest(20 * MIB)
    with RawClient(daemon.socket).greet() as client, daemon.experiment().run as exp:
        slot = granted(client, len(content))
        with mmap.mmap(client.received[0], slot.capacity_bytes) as mapping:
            mapping[: len(content)] = content
            client.ask(m.Accepted, commit(slot.slot, len(content)))
            exp.files.flush(timeout=60)
            mapping[: len(content)] = bytes(len(content))
            mapping.flush()
        assert_whole(daemon, exp, {"best.pt": hashlib.sha256(content).hexdigest()})


def test_a_late_write_makes_no_mixture(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Written to between two parts, and while the daemon is dead: what is read again is not what was sent."""
    content = hashlib.shake_256(b"one").digest(20 * MIB)
    daemon.kill()
    daemon.start(faults="upload.part_journaled=kill@2")
    with RawClient(daemon.socket).greet() as client:
        slot = granted(client, len(content))
        with mmap.mmap(client.received[0], slot.capacity_bytes) as mapping:
            mapping[: len(content)] = content
            client.ask(m.Accepted, commit(slot.slot, len(content)))
            daemon.wait_for_death()
            mapping[5] ^= 1
        daemon.start()
    with daemon.experiment().run as exp:
        (found,) = exp.files().list()
        with pytest.raises(MLDashError) as ended:
            found.wait(60)
        assert ended.value.code is Code.SOURCE_CHANGED
    assert daemon.store.keys() == daemon.store.open_uploads() == []


@pytest.mark.parametrize("where", [0, 18 * MIB], ids=["what was read", "what is read next"])
def test_a_late_write_while_it_is_sent_makes_no_mixture(daemon: DaemonProcess, where: int) -> None:
    """Its pages are still dirty, so no time moves: the slot is read once more before its object is made."""
    content = hashlib.shake_256(b"one").digest(20 * MIB)
    daemon.kill()
    daemon.start(faults="upload.before_part=hang,settle.before_sync=hang@9")
    with RawClient(daemon.socket).greet() as client:
        slot = granted(client, len(content))
        with mmap.mmap(client.received[0], slot.capacity_bytes) as mapping:
            mapping[: len(content)] = content
            client.ask(m.Accepted, commit(slot.slot, len(content)))
            daemon.wait_until_hung()
            mapping[where] ^= 1
        daemon.resume()
        with daemon.experiment().run as exp:
            (found,) = exp.files().list()
            with suppress(MLDashError):
                found.wait(60)
            found.refresh()
            if found["state"] == "DONE":
                assert where > 0, "the object is of the content before the write, and the slot is not"
                changed = bytearray(content)
                changed[where] ^= 1
                assert found["checksum"] == hashlib.sha256(changed).hexdigest()
            else:
                assert daemon.rows("SELECT error_code FROM files") == [("SOURCE_CHANGED",)]
                eventually(lambda: daemon.store.keys() == daemon.store.open_uploads() == [])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_slot_that_a_failed_file_has_let_go_is_not_its_own_any_more(daemon: DaemonProcess, restarted: bool) -> None:
    """The next save is in the same slot: neither a deletion nor a duplicate of what failed gets at that one."""
    assert isinstance(daemon.store, Folder)
    gate = daemon.store.root / PREFIX / "files"
    gate.parent.mkdir(parents=True)
    gate.touch()  # nothing is stored
    first, second, third = (hashlib.shake_256(bytes([number])).digest(MIB) for number in range(3))
    with daemon.experiment().run as exp, RawClient(daemon.socket).greet() as client:
        slot = granted(client).slot
        os.pwrite(client.received[0], first, 0)
        failing = client.ask(m.Accepted, commit(slot, to="failing")).record.id
        client.ask(m.Waited, m.Wait(request=1, until="hashed", timeout_ms=30_000, ids=(failing,)))
        eventually(lambda: daemon.rows("SELECT id FROM files WHERE attempt > 0"))  # and refused
        os.pwrite(client.received[0], second, 0)  # against the rules
        gate.unlink()
        client.ask(m.Retried, m.Retry(request=1, ids=(failing,)))
        eventually(lambda: daemon.rows("SELECT state FROM files") == [("FAILED",)])
        gate.touch()
        eventually(lambda: granted(client, held=(slot,)).slot == slot)
        os.pwrite(client.received[0], second, 0)
        client.ask(m.Accepted, commit(slot, to="second"))
        if restarted:
            daemon.kill()
            daemon.start()
        with pytest.raises(MLDashError) as refused:
            exp.files.duplicate(failing, "copy")
        assert refused.value.code is Code.SOURCE_CHANGED
        exp.files(file_id=failing).delete()
        eventually(lambda: "file_cancelled" in daemon.log())
        if not restarted:
            other = granted(client, held=(slot,))
            os.pwrite(client.received[-1], third, 0)
            client.ask(m.Accepted, commit(other.slot, to="third"))
        gate.unlink()
        exp.files.flush(60)
        expected = {"second": hashlib.sha256(second).hexdigest()}
        assert_whole(daemon, exp, expected if restarted else expected | {"third": hashlib.sha256(third).hexdigest()})


def test_no_byte_of_a_save_is_seen_by_another_connection(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as mine, RawClient(daemon.socket).greet() as theirs:
        slot = granted(mine, 5 * MIB)
        os.pwrite(mine.received[0], b"secret" * 1000, 0)
        mine.ask(m.Done, m.ReleaseSlot(request=3, slot=slot.slot))
        for _ in range(3):
            other = granted(theirs, 5 * MIB)
            assert not any(os.pread(theirs.received[-1], other.capacity_bytes, 0))
    with RawClient(daemon.socket).greet() as later:
        other = granted(later, 5 * MIB)
        assert not any(os.pread(later.received[-1], other.capacity_bytes, 0))


def test_a_save_that_comes_before_the_last_is_stored_finds_a_slot_that_is_ready(daemon: DaemonProcess) -> None:
    """Its pages are there already; nothing of it is left when the client goes."""
    assert isinstance(daemon.store, Folder)
    gate = daemon.store.root / PREFIX / "files"
    gate.parent.mkdir(parents=True)
    gate.touch()  # nothing is stored
    with daemon.experiment().run as exp, RawClient(daemon.socket).greet() as client:
        first = granted(client, 9 * MIB)
        content = hashlib.shake_256(b"one").digest(9 * MIB)
        os.pwrite(client.received[0], content, 0)
        client.ask(m.Accepted, commit(first.slot, 9 * MIB))
        eventually(lambda: len(daemon.spool()) == 2)
        (ready,) = set(daemon.spool()) - {f"spool/slots/{first.slot}"}
        eventually(lambda: pages_in_memory(daemon.state / ready)[0] > 0)
        second = granted(client, 9 * MIB)
        assert f"spool/slots/{second.slot}" == ready
        os.pwrite(client.received[-1], content, 0)
        client.ask(m.Accepted, commit(second.slot, 9 * MIB, to="next.pt"))
        gate.unlink()
        exp.files.flush(60)
        checksum = hashlib.sha256(content).hexdigest()
        assert_whole(daemon, exp, {"best.pt": checksum, "next.pt": checksum})
    eventually(lambda: daemon.spool() == [])
