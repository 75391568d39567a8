"""Full and failing disks: nothing that was acknowledged is lost, nobody crashes, and it goes on when there is room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.doubles.disks import failing_disk, fill, tmpfs
from tests.harness import DaemonProcess, Folder, StoreUnderTest, assert_whole, away, eventually, make_file

KIB, MIB = 1 << 10, 1 << 20
PAGE = 4096

pytestmark = pytest.mark.slow


def content(number: int, size: int) -> bytes:
    return hashlib.shake_256(str(number).encode()).digest(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- the spool's quota


def test_a_save_over_the_quota_waits_until_files_are_stored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with away(tmp_path, f"quota = {8 * MIB}\n") as (daemon, gate), daemon.experiment().run as exp:
        for number in range(2):
            exp.files.save_blob(content(number, 4 * MIB), to=f"{number}.bin")
        with ThreadPoolExecutor(1) as trainer:
            third = trainer.submit(exp.files.save_blob, content(2, 4 * MIB), to="2.bin")
            said = ""
            while "a save has waited" not in said:
                said += capfd.readouterr().err
            assert not third.done()
            assert "spool.quota" in said
            gate.unlink()
            third.result(60)
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, {f"{number}.bin": sha256(content(number, 4 * MIB)) for number in range(3)})


def test_who_would_rather_not_wait_is_told_at_once(tmp_path: Path) -> None:
    with away(tmp_path, f"quota = {8 * MIB}\n") as (daemon, gate), daemon.experiment(on_full="raise").run as exp:
        make_file(tmp_path / "linked.bin", 20 * MIB)
        for number in range(2):
            exp.files.save_blob(content(number, 4 * MIB), to=f"{number}.bin")
        for refused in (
            lambda: exp.files.save_blob(content(2, 4 * MIB), to="2.bin"),
            lambda: exp.files.upload(tmp_path / "linked.bin", snapshot="copy"),
        ):
            with pytest.raises(MLDashError) as raised:
                refused()
            assert raised.value.code in (Code.RETRY_LATER, Code.DISK_FULL)
            assert "quota" in raised.value.hint
        assert exp.files.upload(tmp_path / "linked.bin")["pin"] == "link"  # it takes nothing of the spool
        exp.files.save_text("nor does this", to="note.txt")
        gate.unlink()
        exp.files.flush(timeout=60)
        assert len(daemon.store.keys()) == 4


def test_a_duplicate_of_what_is_on_its_way_counts(tmp_path: Path) -> None:
    """It keeps the bytes when what it was made of is deleted."""
    with away(tmp_path, f"quota = {8 * MIB}\n") as (daemon, gate), daemon.experiment(on_full="raise").run as exp:
        source = exp.files.save_blob(content(0, 3 * MIB), to="0.bin")
        duplicate = exp.files.duplicate(source, "1.bin")
        with pytest.raises(MLDashError, match="quota") as raised:
            exp.files.duplicate(source, "2.bin")
        assert raised.value.code is Code.RETRY_LATER
        exp.files("0.bin").delete()
        eventually(lambda: source.refresh()["state"] == "CANCELLED")
        eventually(lambda: is_taken(exp, content(3, 4 * MIB), "3.bin"))  # its bytes are let go of a moment later
        with pytest.raises(MLDashError, match="quota"):
            exp.files.duplicate(duplicate, "2.bin")
        gate.unlink()
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, {"1.bin": sha256(content(0, 3 * MIB)), "3.bin": sha256(content(3, 4 * MIB))})


def is_taken(exp: Experiment, data: bytes, to: str) -> bool:
    """Saves it, unless the spool has no room now."""
    try:
        exp.files.save_blob(data, to=to)
    except MLDashError as full:
        if full.code is not Code.RETRY_LATER:
            raise
        return False
    return True


def test_what_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    with away(tmp_path, f"quota = {2 * MIB}\n") as (daemon, _), daemon.experiment().run as exp:
        with pytest.raises(MLDashError) as raised:
            exp.files.save_blob(content(0, 3 * MIB), to="a.bin")
        assert raised.value.code is Code.DISK_FULL
        assert "spool.quota" in raised.value.hint


def test_the_quota_counts_what_an_earlier_daemon_left(tmp_path: Path) -> None:
    with away(tmp_path, f"quota = {8 * MIB}\n") as (daemon, gate):
        with daemon.experiment().run as exp:
            for number in range(2):
                exp.files.save_blob(content(number, 4 * MIB), to=f"{number}.bin")
        daemon.kill()
        daemon.start()
        with daemon.experiment(on_full="raise").run as exp:
            with pytest.raises(MLDashError) as raised:
                exp.files.save_blob(content(2, 4 * MIB), to="2.bin")
            assert raised.value.code is Code.RETRY_LATER
            gate.unlink()
            exp.files.flush(timeout=60)
            exp.files.save_blob(content(2, 4 * MIB), to="2.bin").wait(60)


class Refuses(BaseHTTPRequestHandler):
    """An S3 server that takes no object, for good."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"<Error><Code>InvalidRequest</Code><Message>not here</Message></Error>"
        self.send_response(400 if self.command == "PUT" else 204)
        self.send_header("Content-Length", str(len(body) if self.command == "PUT" else 0))
        self.end_headers()
        if self.command == "PUT":
            self.wfile.write(body)

    do_PUT = do_DELETE = answer  # noqa: N815 as http.server asks for them

    def log_message(self, *_: object) -> None:
        return


class Refusing(StoreUnderTest):
    url = "s3://bucket/key"
    credentials: ClassVar[dict[str, str]] = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        yield Refusing(server.server_address[1])
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("restarted", [False, True])
def test_who_is_refused_is_told_what_failed_files_hold(tmp_path: Path, refusing: Refusing, restarted: bool) -> None:
    """They keep their bytes, to be tried again; whoever deletes them has the room."""
    settings = f'region = "us-east-1"\nchecksum = "md5"\n[spool]\nquota = {8 * MIB}\n'
    with (
        DaemonProcess(tmp_path / "daemon", refusing, settings=settings) as daemon,
        daemon.experiment(on_full="raise").run as exp,
    ):
        failed = exp.files.save_blob(content(0, 6 * MIB), to="failed.bin")
        with pytest.raises(MLDashError) as ended:
            failed.wait(60)
        assert ended.value.code is Code.STORE_REFUSED
        if restarted:
            daemon.kill()
            daemon.start()
        with pytest.raises(MLDashError) as refused:
            exp.files.save_blob(content(1, 4 * MIB), to="b.bin")
        assert refused.value.code is Code.RETRY_LATER
        assert f"{6 * MIB} of them for files that failed" in refused.value.message
        assert "`ml-dash rm --id ID` frees what they hold" in refused.value.hint
        assert failed["id"] in str(daemon.status().failed[0].id)
        exp.files(file_id=failed["id"]).delete()
        eventually(lambda: attempt(lambda: exp.files.save_blob(content(1, 4 * MIB), to="b.bin")) is None)
        with pytest.raises(MLDashError) as refused:  # what was freed is not said to be held
            exp.files.save_blob(content(1, 6 * MIB), to="c.bin")
        assert f"{6 * MIB} of them" not in refused.value.message


@pytest.mark.parametrize("on_full", ["", "Wait", 5])
def test_a_policy_that_there_is_not(tmp_path: Path, on_full: Any) -> None:
    with pytest.raises(MLDashError) as raised:
        Experiment("a/b/c", socket=tmp_path / "socket", on_full=on_full)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert "'wait'" in raised.value.hint


# ---- a full disk


@contextmanager
def small(tmp_path: Path, size: int = 40 * MIB) -> Iterator[DaemonProcess]:
    """A daemon whose journal, catalog and spool are on a small disk; its store is on another."""
    with (
        tmpfs(tmp_path / "disk", size) as disk,
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), state=disk / "state") as daemon,
    ):
        yield daemon


def attempt(hand_over: Callable[[], object]) -> MLDashError | None:
    """Why it was refused; None where it was acknowledged."""
    try:
        hand_over()
    except MLDashError as refused:
        return refused
    return None


def attempts(exp: Experiment, source: Path, number: int) -> dict[str, str]:
    """Hands over one of each kind; returns what was acknowledged. What was refused has a code and a hint."""
    taken = {}
    small_one, large_one = content(number, 60 * KIB), content(number, 2 * MIB)
    for name, data, hand_over in (
        ("inline", small_one, lambda to: exp.files.save_blob(small_one, to=to)),
        ("slot", large_one, lambda to: exp.files.save_blob(large_one, to=to)),
        ("held", source.read_bytes(), lambda to: exp.files.upload(source, to=to)),
        ("copy", source.read_bytes(), lambda to: exp.files.upload(source, to=to, snapshot="copy")),
    ):
        refused = attempt(partial(hand_over, f"{number}/{name}"))
        if refused is None:
            taken[f"{number}/{name}"] = sha256(data)
        else:
            assert refused.code in (Code.DISK_FULL, Code.RETRY_LATER), refused
            assert refused.hint
    return taken


def test_whatever_room_is_left_nothing_is_lost(tmp_path: Path, full_size: bool) -> None:
    """Each time, the disk has so many pages left when files are handed over, stored and listed."""
    make_file(tmp_path / "source.bin", 100 * KIB)
    expected: dict[str, str] = {}
    steps = range(0, 400, 2) if full_size else (0, 1, 2, 3, 5, 8, 13, 21, 34, 80, 200, 600)
    with small(tmp_path) as daemon, daemon.experiment(on_full="raise").run as exp:
        refused = 0
        for number, pages in enumerate(steps):
            filler = fill(daemon.state.parent, pages * PAGE)
            taken = attempts(exp, tmp_path / "source.bin", number)
            refused += 4 - len(taken)
            expected |= taken
            exp.files.flush(timeout=60)  # what was taken goes its way, room or not
            filler.unlink()
            eventually(lambda: daemon.status().error_code is None)
        assert refused
        taken = attempts(exp, tmp_path / "source.bin", 1000)
        assert len(taken) == 4, "there is room again"
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected | taken)
    assert "Traceback" not in daemon.log()


def test_a_journal_without_room_says_so_and_goes_on_by_itself(tmp_path: Path) -> None:
    """Its own disk is filled while it grows: hand-offs are refused, files still come to their end."""
    with small(tmp_path) as daemon, daemon.experiment(on_full="raise").run as exp:
        gate = tmp_path / "store" / ".ml-dash-tmp"
        gate.touch()
        filler = fill(daemon.state.parent)
        taken = {}
        refused = None
        while refused is None:
            data = content(len(taken), 64 * KIB)
            refused = attempt(partial(exp.files.save_blob, data, to=f"{len(taken)}.bin"))
            if refused is None:
                taken[f"{len(taken)}.bin"] = sha256(data)
            assert len(taken) < 1000
        assert refused.code is Code.DISK_FULL
        assert "journal" in refused.message
        gate.unlink()
        exp.files.flush(timeout=60)
        filler.unlink()
        exp.files.save_text("there is room again", to="last.txt")
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, taken | {"last.txt": sha256(b"there is room again")})


def test_a_save_of_which_the_disk_has_no_room_for_a_copy_is_stored(tmp_path: Path) -> None:
    """Its slot becomes the object, though the trainer goes on; what it saves next gets another one."""
    with tmpfs(tmp_path / "disk", 118 * MIB) as disk:
        daemon = DaemonProcess(tmp_path / "daemon", Folder(disk / "store"), state=disk / "state")
        with daemon, daemon.experiment().run as exp:
            result = exp.files.save_blob(content(0, 60 * MIB), to="a.bin")
            result.wait(60)
            exp.files.save_blob(content(1, 2 * MIB), to="b.bin").wait(60)
            expected = {"a.bin": sha256(content(0, 60 * MIB)), "b.bin": sha256(content(1, 2 * MIB))}
            assert_whole(daemon, exp, expected)


def test_a_daemon_starts_on_a_full_disk_and_finishes_what_it_has(tmp_path: Path) -> None:
    with small(tmp_path) as daemon:
        gate = tmp_path / "store" / ".ml-dash-tmp"
        gate.touch()
        with daemon.experiment().run as exp:
            exp.files.save_blob(content(0, 2 * MIB), to="a.bin")
            exp.files.save_text("b", to="b.txt")
        daemon.kill()
        filler = fill(daemon.state.parent)
        gate.unlink()
        daemon.start()
        with daemon.experiment().run as exp:
            exp.files.flush(timeout=60)
            filler.unlink()
            assert_whole(daemon, exp, {"a.bin": sha256(content(0, 2 * MIB)), "b.txt": sha256(b"b")})


def until_refused(calls: Iterable[Callable[[], object]]) -> int:
    """How many went well before one was refused for want of room."""
    for number, call in enumerate(calls):
        if (refused := attempt(call)) is not None:
            assert refused.code is Code.DISK_FULL
            return number
    raise AssertionError("none was refused")


def test_words_do_not_take_what_is_set_aside_for_files_to_come_to_their_end(tmp_path: Path) -> None:
    """An update is refused where a hand-off would be, on its way or stored, and may be made later."""
    words = {"text": "x" * 250_000}
    with small(tmp_path, 80 * MIB) as daemon, daemon.experiment(on_full="raise").run as exp:
        stored = [exp.files("stored").save_text(str(number), to=f"{number}.txt") for number in range(80)]
        exp.files.flush(timeout=60)
        gate = tmp_path / "store" / ".ml-dash-tmp"
        gate.rmdir()
        gate.touch()
        first = exp.files.save_text("0", to="first.txt")
        filler = fill(daemon.state.parent)
        taken = until_refused(partial(exp.files(file_id=one["id"], metadata=words).update) for one in stored)
        assert stored[taken].refresh()["metadata"] is None
        data = content(0, 60 * KIB)
        until_refused(partial(exp.files("moving").save_blob, data, to=f"{number}.bin") for number in range(1000))
        until_refused([partial(exp.files(file_id=first["id"], metadata=words).update)])
        gate.unlink()
        exp.files.flush(timeout=60)
        assert {one["state"] for one in exp.files.list()} == {"DONE"}
        filler.unlink()
        eventually(lambda: daemon.status().error_code is None)
        for one in (stored[taken], first):
            assert exp.files(file_id=one["id"], metadata=words).update()["metadata"] == words
        for one in exp.files("moving").list():
            assert daemon.store.sha256(daemon.store.key_of(one)) == sha256(data)
    assert "Traceback" not in daemon.log()


def test_parameters_and_rows_without_room_are_shown_and_refuse_no_file(tmp_path: Path) -> None:
    """Their database is on a full disk, beside the catalog, which has its reserve: files go their way."""
    with tmpfs(tmp_path / "disk", 40 * MIB) as disk:
        settings = f'[catalog]\nurl = "sqlite://{disk}/catalog.sqlite"\n'
        daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings=settings)
        with daemon, daemon.experiment().run as exp:
            filler = fill(disk)
            refused, logged = None, 0
            while refused is None:
                refused = attempt(partial(exp.metrics("train").log, note="x" * 60_000))
                logged += refused is None
                assert logged < 1000
            assert refused.code is Code.DISK_FULL
            for number in range(
                1000
            ):  # runs begin, in the end by what is set aside: it depends on how the log is folded
                with daemon.experiment(f"alice/cv/other{number}", readme="x" * 60_000).run:
                    report = daemon.status()
                if report.error_code is not None:
                    break
            assert (report.error_code, bool(report.error_hint)) == ("DISK_FULL", True)
            assert "catalog-runs.sqlite is full" in str(report.error_message)
            assert attempt(partial(exp.params.set, note="x" * 60_000)) is not None
            exp.files.save_text("taken all the same", to="a.txt").wait(60)
            assert_whole(daemon, exp, {"a.txt": sha256(b"taken all the same")})
            assert exp.metrics("train").read(limit=1)["total"] == logged
            filler.unlink()
            eventually(lambda: daemon.status().error_code is None)
            exp.metrics("train").log(loss=0.25)
            exp.params.set(lr=0.1)
            assert exp.metrics("train").read(limit=1)["total"] == logged + 1
        assert "Traceback" not in daemon.log()


def test_a_full_store_is_shown_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "store", 40 * MIB) as root,
        DaemonProcess(tmp_path / "daemon", Folder(root)) as daemon,
        daemon.experiment().run as exp,
    ):
        filler = fill(root, MIB)
        expected = {
            "parts.bin": make_file(tmp_path / "parts.bin", 20 * MIB),
            "whole.bin": make_file(tmp_path / "whole.bin", 3 * MIB, seed=1),
        }
        for name in expected:
            exp.files.upload(tmp_path / name)
        eventually(lambda: {one.error_code for one in daemon.status().blocked} == {"STORE_FULL"})
        exp.files.save_text("small", to="small.txt")
        filler.unlink()
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected | {"small.txt": sha256(b"small")})


def test_a_download_to_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "here", 4 * MIB) as here,
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon,
        daemon.experiment().run as exp,
    ):
        exp.files.save_blob(content(0, 6 * MIB), to="a.bin").wait(60)
        with pytest.raises(MLDashError) as raised:
            exp.files.download("a.bin", to=here / "a.bin")
        assert raised.value.code is Code.DISK_FULL
        assert list(here.iterdir()) == []


# ---- a failing disk


def test_after_a_sync_that_failed_nothing_is_taken_until_a_restart(tmp_path: Path) -> None:
    """The disk under the daemon's own refuses writes: what was acknowledged before is whole after the restart."""
    with failing_disk(tmp_path / "disk") as (disk, beneath):
        daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), state=disk / "state")
        with daemon:
            with daemon.experiment().run as exp:
                exp.files.save_blob(content(0, 60 * KIB), to="before.bin").wait(60)
                gate = tmp_path / "store" / ".ml-dash-tmp"
                gate.rmdir()
                gate.touch()  # what is taken stays, and takes ever new blocks
                filler = fill(beneath)
                refusals = (
                    attempt(partial(exp.files.save_blob, content(number, 64 * KIB), to=f"{number}.bin"))
                    for number in range(1000)
                )
                refused = next(refusal for refusal in refusals if refusal is not None)
                assert refused.code is Code.DISK_FAILED
                again = attempt(partial(exp.files.save_text, "x", to="x.txt"))
                assert again is not None
                assert again.code is Code.DISK_FAILED
                report = daemon.status()
                assert report.error_code == "DISK_FAILED"
                assert report.error_hint
                assert "read_only" in daemon.log()
                assert "before.bin" in [each["filename"] for each in exp.files.list()]
                filler.unlink()
                # No sync is trusted again, though the disk works now.
                assert attempt(partial(exp.files.save_text, "y", to="y.txt")) is not None
            daemon.kill()
            gate.unlink()
            daemon.start()
            with daemon.experiment().run as exp:
                exp.files.save_text("z", to="z.txt").wait(60)
                exp.files.flush(timeout=60)
                for record in exp.files.list():
                    assert daemon.store.sha256(daemon.store.key_of(record)) == record["checksum"]


def test_a_file_that_the_disk_could_not_keep_is_given_up(tmp_path: Path) -> None:
    """The kernel may show its pages for a while and other bytes afterwards: nothing is sent of that."""
    store = Folder(tmp_path / "store")
    daemon = DaemonProcess(tmp_path / "daemon", store)
    try:
        daemon.start(faults="settle.before_sync=error")
        with daemon.experiment().run as exp:
            (store.root / ".ml-dash-tmp").touch()
            result = exp.files.save_blob(content(0, 3 * MIB), to="a.bin")
            assert result["ack"] == "memory"
            ended = attempt(lambda: result.wait(60))
            assert ended is not None
            assert ended.code is Code.DISK_FAILED
            refused = attempt(lambda: exp.files.save_text("x", to="x.txt"))
            assert refused is not None
            assert refused.code is Code.DISK_FAILED
            assert "restart" in refused.hint
            assert daemon.status().error_code == "DISK_FAILED"
        assert store.keys() == []
    finally:
        daemon.kill()
