"""Savers that write into a slot: what they write is stored, whatever becomes of the daemon or the disk meanwhile."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, FileResult, MLDashError
from ml_dash.errors import Code
from ml_dash.messages import INLINE_BYTES
from ml_dash.slot_writer import SlotWriter
from tests.harness import DaemonProcess, Folder, eventually
from tests.scenario.conftest import path_in_store

pytestmark = pytest.mark.slow

MIB = 1 << 20
PIECE = 100_000


def content_of(size: int) -> bytes:
    return hashlib.shake_256(b"content").digest(size)


def in_pieces(content: bytes, between: Callable[[int], None] = lambda _: None) -> Callable[[SlotWriter], None]:
    def write(out: SlotWriter) -> None:
        for start in range(0, len(content), PIECE):
            between(start)
            assert out.write(memoryview(content)[start : start + PIECE]) == len(content[start : start + PIECE])

    return write


def save(exp: Experiment, write: Callable[[SlotWriter], None], to: str = "a.bin", **options: Any) -> FileResult:
    return exp.files("here")._stream(to, {}, write, **options)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as process:
        yield process


def assert_stored(daemon: DaemonProcess, result: FileResult, content: bytes) -> None:
    result.wait(30)
    assert result["checksum"] == hashlib.sha256(content).hexdigest()
    assert result["sizeBytes"] == len(content)
    assert path_in_store(daemon, result).read_bytes() == content


@pytest.mark.parametrize("hint", [0, 3 * MIB])
@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, MIB, 20 * MIB + 5])
def test_what_is_written_is_stored_whatever_was_expected(
    service: DaemonProcess, exp: Experiment, size: int, hint: int
) -> None:
    content = content_of(size)
    result = save(exp, in_pieces(content), size_hint=hint)
    assert result["pin"] == ("inline" if size <= INLINE_BYTES else "slot")
    assert_stored(service, result, content)
    eventually(lambda: service.status().counts and all(one.state == "DONE" for one in service.status().counts))


def test_a_serializer_may_go_back_and_leave_gaps(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """Into a slot that had other bytes before: gaps are zeros, as in any file."""
    save(exp, in_pieces(b"x" * 3 * MIB)).wait(30)

    def write(out: Any) -> None:
        out.write(b"a" * 70_000)
        out.seek(5)
        out.write(b"back")
        out.seek(50_000, io.SEEK_CUR)
        out.write(b"on")
        out.seek(MIB)
        out.write(b"after a gap")
        assert out.tell() == MIB + 11
        out.seek(-3, io.SEEK_END)
        out.write(b"end")
        out.truncate(MIB + 20)
        out.truncate(MIB + 5)
        out.seek(0, io.SEEK_END)
        out.write(memoryview(bytes(12)).cast("I"))
        out.flush()

    with (tmp_path / "expected").open("wb") as expected:
        write(expected)
    assert_stored(service, save(exp, write), (tmp_path / "expected").read_bytes())


@pytest.mark.parametrize("size", [INLINE_BYTES, 3 * MIB])
def test_a_serializer_may_read_what_it_wrote(service: DaemonProcess, exp: Experiment, size: int) -> None:
    """Not what another save wrote there before."""
    save(exp, in_pieces(b"x" * 4 * MIB)).wait(30)
    content = content_of(size)

    def write(out: SlotWriter) -> None:
        in_pieces(content)(out)
        assert out.read(10) == b""
        out.seek(7)
        assert out.read(1000) == content[7:1007]
        assert out.tell() == 1007
        out.seek(-5, io.SEEK_END)
        assert out.read() == content[-5:]
        out.seek(size + 100)
        assert out.read(10) == b""

    assert_stored(service, save(exp, write), content)


def test_the_exception_of_a_serializer_passes_and_nothing_is_left(service: DaemonProcess, exp: Experiment) -> None:
    class OurError(Exception):
        pass

    def fail(at: int) -> None:
        if at >= 2 * MIB:
            raise OurError("in the middle")

    for hint in (0, 4 * MIB) * 10:  # more often than a connection may have slots
        with pytest.raises(OurError, match="in the middle"):
            save(exp, in_pieces(content_of(3 * MIB), fail), size_hint=hint)
    assert exp.files().list() == []
    content = content_of(3 * MIB)
    assert_stored(service, save(exp, in_pieces(content)), content)


def test_nothing_is_written_once_it_was_handed_over(service: DaemonProcess, exp: Experiment) -> None:
    """The slot may be another save's by then."""
    kept: list[SlotWriter] = []

    def write(out: SlotWriter) -> None:
        kept.append(out)
        out.write(b"a" * MIB)

    result = save(exp, write)
    with pytest.raises(ValueError, match="closed"):
        kept[0].write(b"b")
    assert_stored(service, result, b"a" * MIB)


def test_it_has_no_descriptor_that_would_lead_past_it(exp: Experiment) -> None:
    def write(out: SlotWriter) -> None:
        with pytest.raises(io.UnsupportedOperation):
            out.fileno()

    save(exp, write)


@pytest.mark.parametrize("hint", [0, 4 * MIB])
@pytest.mark.parametrize("size", [INLINE_BYTES, 3 * MIB, 20 * MIB])
def test_a_daemon_that_is_killed_while_it_is_written_costs_nothing(daemon: DaemonProcess, hint: int, size: int) -> None:
    content = content_of(size)

    def restart(at: int) -> None:
        if at == size // PIECE // 2 * PIECE:
            daemon.kill()
            daemon.start()

    with daemon.experiment().run as exp:
        save(exp, in_pieces(content_of(MIB)), to="before.bin").wait(30)
        assert_stored(daemon, save(exp, in_pieces(content, restart), size_hint=hint), content)
        assert len(exp.files().list("**/a.bin")) == 1


@pytest.mark.parametrize("point", ["accept.pinned", "accept.journaled"])
def test_a_daemon_that_is_killed_at_the_commit_costs_nothing(daemon: DaemonProcess, point: str) -> None:
    content = content_of(5 * MIB)
    daemon.kill()
    daemon.start(faults=f"{point}=kill")

    def revive() -> None:
        daemon.wait_for_death()
        daemon.start()

    revived = threading.Thread(target=revive)
    revived.start()
    with daemon.experiment().run as exp:
        result = save(exp, in_pieces(content))
        revived.join()
        assert_stored(daemon, result, content)
        assert len(exp.files().list()) == 1
    assert daemon.stop() == 0
    assert daemon.spool() == []


def test_a_daemon_that_does_not_come_back_is_an_error_that_says_so(daemon: DaemonProcess, monkeypatch) -> None:
    for module in ("persistence", "connection"):
        monkeypatch.setattr(f"ml_dash.{module}.RECONNECT_S", 0.5)
    with daemon.experiment(wait=False, exit_wait=0.5).run as exp:
        exp.files().list()
        with pytest.raises(MLDashError) as raised:
            save(exp, in_pieces(content_of(3 * MIB), lambda at: daemon.kill() if at == PIECE * 12 else None))
    assert raised.value.code is Code.DAEMON_UNAVAILABLE


def test_where_the_spool_has_no_room_to_grow_it_goes_on_and_waits_for_it(tmp_path: Path) -> None:
    """What can't grow is written in memory; the save waits for room once nothing of it is in the spool."""
    with (
        DaemonProcess(
            tmp_path / "daemon", Folder(tmp_path / "store"), settings=f"[spool]\nquota = {8 * MIB}\n"
        ) as daemon,
        daemon.experiment(on_full="wait").run as exp,
    ):
        gate = tmp_path / "store" / "gate"
        blocked = daemon.experiment("gate/cv/held").run
        gate.touch()
        with blocked as other:
            other.files().save_blob(content_of(4 * MIB), to="held.bin")
            content = content_of(6 * MIB)
            met = threading.Event()
            saved: list[FileResult] = []
            write = in_pieces(content, lambda at: met.set() if at > 5 * MIB else None)
            thread = threading.Thread(target=lambda: saved.append(save(exp, write)))
            thread.start()
            assert met.wait(30), "a serializer is never stopped in the middle"
            assert saved == []
            gate.unlink()
            thread.join(30)
        assert_stored(daemon, saved[0], content)


def test_without_patience_no_room_is_an_error_after_the_serializer(tmp_path: Path) -> None:
    with (
        DaemonProcess(
            tmp_path / "daemon", Folder(tmp_path / "store"), settings=f"[spool]\nquota = {4 * MIB}\n"
        ) as daemon,
        daemon.experiment(on_full="raise").run as exp,
    ):
        with pytest.raises(MLDashError) as raised:
            save(exp, in_pieces(content_of(6 * MIB)))
        assert raised.value.code is Code.DISK_FULL
        content = content_of(3 * MIB)
        assert_stored(daemon, save(exp, in_pieces(content)), content)


def test_threads_write_at_once_and_each_gets_its_own(service: DaemonProcess, exp: Experiment) -> None:
    together = threading.Barrier(6)
    saved: dict[int, FileResult] = {}

    def work(number: int) -> None:
        content = bytes([number]) * (number + 1) * MIB
        saved[number] = save(exp, in_pieces(content, lambda at: None if at else together.wait(20)), to=f"{number}.bin")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number, result in saved.items():
        assert_stored(service, result, bytes([number]) * (number + 1) * MIB)
    assert len(saved) == 6
