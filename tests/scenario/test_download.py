"""Downloads: what breaks is fetched again and no more, what is damaged is found, and nothing half is ever there."""

from __future__ import annotations

import errno
import gc
import os
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError, StorageError
from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.counting_proxy import CountingProxy
from tests.doubles.disks import tmpfs, with_reflinks
from tests.doubles.raw_client import RawClient
from tests.harness import (
    Bucket,
    DaemonProcess,
    Folder,
    StoreUnderTest,
    assert_whole,
    eventually,
    file_sha256,
    make_file,
)
from tests.scenario.conftest import path_in_store
from tests.servers.s3server import S3Server

MIB = 1 << 20
RANGE = 5 * MIB
SETTINGS = f"part_size = {RANGE}\n"
SIZE = 12 * RANGE + 12_345
AT_ONCE = 4 * RANGE
"""What is on its way at once, of one file."""
HEADS = MIB
"""More than all other answers of a download take."""

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(swift: S3Server) -> Iterator[CountingProxy]:
    with CountingProxy(swift.endpoint) as between:
        yield between


@pytest.fixture
def far(swift: S3Server, proxy: CountingProxy, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon whose store is behind the proxy."""
    daemon = DaemonProcess(tmp_path / "daemon", Bucket(swift, proxy.endpoint), SETTINGS, "drain_timeout = 0")
    with daemon:
        yield daemon


def stored(exp: Experiment, folder: Path, size: int = SIZE) -> str:
    """A file in the store alone; its SHA-256."""
    digest = make_file(folder / "source", size)
    exp.files.upload(folder / "source", to="a.bin").wait(120)
    (folder / "source").unlink()
    return digest


class Watched:
    """What `fetch` tells of its files: their names as they begin, and how often it was told of one on its way."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.told: list[int] = []

    def __call__(self, file: Any, done: int, total: int) -> None:
        if file["filename"] not in self.begun:
            self.begun.append(file["filename"])
        self.told.append(done)

    def wait_for_more(self, count: int) -> None:
        """Until it was told so many times more: the daemon speaks every fifth of a second."""
        enough = len(self.told) + count
        eventually(lambda: len(self.told) >= enough)


@contextmanager
def downloading(
    exp: Experiment, proxy: CountingProxy, to: Path, watch: Watched, pattern: str = "a.bin"
) -> Iterator[Future[list[str]]]:
    with ThreadPoolExecutor(1) as caller:
        try:
            yield caller.submit(lambda: [got.path for got in exp.files().fetch(pattern, to=to, watch=watch)])
        finally:
            proxy.go_on()


def refused(call: Callable[[], Any]) -> MLDashError:
    with pytest.raises(MLDashError) as raised:
        call()
    assert raised.value.hint
    return raised.value


# ---- what is fetched


@pytest.mark.parametrize("size", [0, 1, RANGE - 1, RANGE, RANGE + 1, 5 * RANGE + 777])
def test_each_byte_is_fetched_once(far: DaemonProcess, proxy: CountingProxy, tmp_path: Path, size: int) -> None:
    with far.experiment().run as exp:
        digest = stored(exp, tmp_path, size)
        before = proxy.returned
        assert exp.files("a.bin").download(to=tmp_path / "back") == str(tmp_path / "back")
    assert file_sha256(tmp_path / "back") == digest
    assert size <= proxy.returned - before <= size + 4096 * (1 + size // RANGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "daemon"]


def test_a_lost_connection_costs_one_range(far: DaemonProcess, proxy: CountingProxy, tmp_path: Path) -> None:
    with far.experiment().run as exp:
        digest, watch = stored(exp, tmp_path), Watched()
        before = proxy.returned
        proxy.stall_after(SIZE // 2)
        with downloading(exp, proxy, tmp_path / "back", watch) as got:
            proxy.wait_for_stall()
            proxy.cut()
            proxy.go_on()
            assert got.result(60) == [str(tmp_path / "back")]
    assert file_sha256(tmp_path / "back") == digest
    assert SIZE < proxy.returned - before <= SIZE + RANGE + HEADS


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM"])
def test_a_restart_of_the_daemon_costs_what_was_on_its_way(
    far: DaemonProcess, proxy: CountingProxy, tmp_path: Path, how: str
) -> None:
    with far.experiment().run as exp:
        digest, watch = stored(exp, tmp_path), Watched()
        before = proxy.returned
        proxy.stall_after(SIZE - 2 * RANGE)
        with downloading(exp, proxy, tmp_path / "back", watch) as got:
            proxy.wait_for_stall()
            watch.wait_for_more(3)
            if how == "kill -9":
                far.kill()
            else:
                assert far.stop() == 0
            proxy.go_on()
            far.start()
            assert got.result(60) == [str(tmp_path / "back")]
    assert file_sha256(tmp_path / "back") == digest
    assert SIZE < proxy.returned - before <= SIZE + AT_ONCE + HEADS


def test_a_network_that_is_down_for_a_while_is_waited_for(
    far: DaemonProcess, proxy: CountingProxy, swift: S3Server, tmp_path: Path
) -> None:
    """Connections are refused meanwhile: one that had answered before is not given up at once."""
    port = int(proxy.endpoint.rpartition(":")[2])
    with far.experiment().run as exp:
        digest, watch = stored(exp, tmp_path), Watched()
        before = proxy.returned
        proxy.stall_after(SIZE // 2)
        with downloading(exp, proxy, tmp_path / "back", watch) as got:
            proxy.wait_for_stall()
            proxy.__exit__()
            watch.wait_for_more(8)
            assert not got.done()
            with CountingProxy(swift.endpoint, port) as mended:
                assert got.result(120) == [str(tmp_path / "back")]
    assert file_sha256(tmp_path / "back") == digest
    assert mended.returned <= SIZE - (proxy.returned - before) + AT_ONCE + HEADS


def test_a_store_that_does_not_answer_is_said_at_once(far: DaemonProcess, proxy: CountingProxy, tmp_path: Path) -> None:
    with far.experiment().run as exp:
        stored(exp, tmp_path)
        proxy.__exit__()
        (tmp_path / "back").write_text("mine")
        failed = refused(lambda: exp.files("a.bin").download(to=tmp_path / "back"))
    assert failed.code is Code.STORE_UNREACHABLE
    assert (tmp_path / "back").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "daemon"]


# ---- what is damaged


def test_a_bit_that_flips_on_the_way_is_found_and_all_is_read_again(
    far: DaemonProcess, proxy: CountingProxy, tmp_path: Path
) -> None:
    with far.experiment().run as exp:
        digest = stored(exp, tmp_path)
        before = proxy.returned
        proxy.flip_after(SIZE // 2)
        exp.files("a.bin").download(to=tmp_path / "back")
    assert file_sha256(tmp_path / "back") == digest
    assert proxy.returned - before > 2 * SIZE


@pytest.mark.parametrize("damage", ["another bit", "a byte less", "emptied"])
def test_what_is_damaged_in_the_bucket_is_no_download(swift: S3Server, tmp_path: Path, damage: str) -> None:
    bucket = Bucket(swift)
    with (
        DaemonProcess(tmp_path / "daemon", bucket, SETTINGS) as daemon,
        daemon.experiment().run as exp,
        closing(swift.client()) as s3,
    ):
        stored(exp, tmp_path, 2 * RANGE)
        (key,) = bucket.keys()
        content = s3.get_object(Bucket=bucket.bucket, Key=key)["Body"].read()
        changed = {"another bit": content[:-1] + bytes([content[-1] ^ 1]), "a byte less": content[:-1], "emptied": b""}
        s3.put_object(Bucket=bucket.bucket, Key=key, Body=changed[damage])
        (tmp_path / "back").write_text("mine")
        failed = refused(lambda: exp.files("a.bin").download(to=tmp_path / "back"))
    assert failed.code is Code.CHECKSUM_MISMATCH
    assert isinstance(failed, StorageError)
    assert "a.bin" in failed.message
    assert (tmp_path / "back").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "daemon"]


def test_what_is_said_to_be_there_is_proved(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    """A client that says it has what it has not gets the whole file all the same."""
    digest = make_file(tmp_path / "source", 40 * MIB)
    record = exp.files.upload(tmp_path / "source").wait(60)
    target = tmp_path / "back"
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, 40 * MIB)
    fetch = m.Fetch(request=1, id=int(record["id"]), have=(0, 16 * MIB, 20 * MIB, 40 * MIB))
    with RawClient(service.socket) as client:
        client.greet().send(m.encode(fetch, 1), [descriptor])
        while isinstance(answer := client.reply(), m.Progress):
            pass
    os.close(descriptor)
    assert isinstance(answer, m.Fetched)
    assert (answer.size_bytes, answer.sha256) == (40 * MIB, digest)
    assert file_sha256(target) == digest


@pytest.mark.parametrize(
    ("have", "flags"),
    [((1,), os.O_RDWR), ((5, 2), os.O_RDWR), ((0, 2, 2, 4), os.O_RDWR), ((), os.O_WRONLY), ((), os.O_RDONLY),
     ((), os.O_RDWR | os.O_APPEND)],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(
    service: DaemonProcess, exp: Experiment, tmp_path: Path, have: tuple[int, ...], flags: int
) -> None:
    record = exp.files.save_text("hello", to="a.txt").wait(60)
    (tmp_path / "back").write_text("mine")
    descriptor = os.open(tmp_path / "back", flags)
    with RawClient(service.socket) as client:
        answer = client.greet().ask(m.Failed, m.Fetch(request=1, id=int(record["id"]), have=have), [descriptor])
    os.close(descriptor)
    assert answer.code == Code.INVALID_ARGUMENT
    assert (tmp_path / "back").read_text() == "mine"


def test_without_any_checksum_an_object_is_read_back(swift: S3Server, tmp_path: Path) -> None:
    """A server that verifies nothing: what is listed has been read there."""
    bucket = Bucket(swift)
    settings = f'{SETTINGS}checksum = "none"\n'
    with DaemonProcess(tmp_path / "daemon", bucket, settings) as daemon, daemon.experiment().run as exp:
        expected = {f"{size}.bin": make_file(tmp_path / f"{size}.bin", size) for size in (0, 70_000, 3 * RANGE + 1)}
        for name in expected:
            exp.files.upload(tmp_path / name)
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


# ---- several at once


def test_files_of_a_glob_come_at_once_and_in_order(far: DaemonProcess, proxy: CountingProxy, tmp_path: Path) -> None:
    contents = {f"{number // 4}/{number}.bin": secrets.token_bytes(1 + 1000 * number) for number in range(20)}
    with far.experiment().run as exp:
        for path, content in contents.items():
            exp.files("m").save_blob(content, to=path)
        exp.files.flush(60)
        listed = [f"{record['path']}/{record['filename']}" for record in exp.files("m").list(latest=True)]
        watch = Watched()
        proxy.stall()
        with downloading(exp, proxy, tmp_path / "out", watch, "m/**") as got:
            eventually(lambda: len(watch.begun) == 4)
            assert not got.done()
            proxy.go_on()
            assert got.result(60) == [f"{tmp_path}/out{path}" for path in listed]
    for path, content in contents.items():
        assert (tmp_path / "out" / "m" / path).read_bytes() == content
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == len(contents)


def test_what_comes_before_a_damaged_file_is_there(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    records = [exp.files.save_text(f"text {number}", to=f"{number}.txt") for number in range(9)]
    exp.files.flush(60)
    path_in_store(service, records[5]).write_text("tEXT 5")
    got = []

    def fetch() -> None:
        for fetched in exp.files().fetch("*", to=tmp_path / "out"):
            got.append(Path(fetched.path).name)
            assert Path(fetched.path).read_text() == f"text {got[-1][0]}"

    failed = refused(fetch)
    assert failed.code is Code.CHECKSUM_MISMATCH
    assert "5.txt" in failed.message
    assert got == [f"{number}.txt" for number in range(5)]
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert set(got) <= there
    assert "5.txt" not in there
    assert not [name for name in there if name.startswith(".")]


def test_a_loop_that_is_left_leaves_nothing_half(exp: Experiment, tmp_path: Path) -> None:
    for number in range(9):
        exp.files.save_text(f"text {number}", to=f"{number}.txt")
    exp.files.flush(60)
    gc.collect()  # what other tests have left
    before = len(list(Path("/proc/self/fd").iterdir()))
    fetching = exp.files().fetch("*", to=tmp_path / "out")
    next(fetching)
    fetching.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for path in (tmp_path / "out").iterdir():
        assert path.read_text() == f"text {path.name[0]}"


# ---- the destination


@pytest.fixture(params=["unnamed", "named"])
def unnamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the destination's file system has files without a name."""
    if request.param == "named":
        opening = os.open

        def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return opening(path, flags, *more, **named)

        monkeypatch.setattr(os, "open", opened)
    return request.param == "unnamed"


def test_a_full_disk_leaves_what_was_there(
    service: DaemonProcess, exp: Experiment, tmp_path: Path, unnamed: bool
) -> None:
    content = secrets.token_bytes(6 * MIB)
    exp.files.save_blob(content, to="a.bin").wait(60)
    with tmpfs(tmp_path / "small", 4 * MIB) as small:
        (small / "a.bin").write_text("mine")
        failed = refused(lambda: exp.files("a.bin").download(to=small / "a.bin"))
        assert failed.code is Code.DISK_FULL
        assert [path.name for path in small.iterdir()] == ["a.bin"]
        assert (small / "a.bin").read_text() == "mine"
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        assert free >= 3 * MIB


def test_a_file_is_replaced_whole_and_keeps_its_other_names(exp: Experiment, tmp_path: Path, unnamed: bool) -> None:
    exp.files.save_text("new", to="a.txt").wait(60)
    target = tmp_path / "a.txt"
    target.write_text("a longer text")
    os.link(target, tmp_path / "kept.txt")
    for _ in range(2):
        exp.files("a.txt").download(to=target)
        assert target.read_text() == "new"
    assert (tmp_path / "kept.txt").read_text() == "a longer text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "kept.txt"]


def test_a_folder_in_its_place_is_left_alone(exp: Experiment, tmp_path: Path, unnamed: bool) -> None:
    exp.files("m").save_text("new", to="a.txt").wait(60)
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        exp.files("m").download("*", to=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    assert list((tmp_path / "out" / "a.txt").iterdir()) == []


def test_what_is_in_the_way_is_named(exp: Experiment, tmp_path: Path) -> None:
    """As an error of ours, which an `except` for Python's own catches, too; a file in the way stays as it was."""
    exp.files("m").save_text("new", to="a.txt").wait(60)
    (tmp_path / "plain").write_text("mine")
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    plain = f"{tmp_path / 'plain'} is no folder, and a file should go below it"
    for to, code, kind, said in (
        ("out", Code.IS_A_FOLDER, IsADirectoryError, f"{tmp_path / 'out' / 'a.txt'} is a folder"),
        ("plain/", Code.NOT_A_FOLDER, FileExistsError, plain),
        ("plain/a.txt", Code.NOT_A_FOLDER, FileExistsError, plain),
        ("plain/deep/a.txt", Code.NOT_A_FOLDER, NotADirectoryError, plain),
    ):
        with pytest.raises(kind, match=re.escape(said)) as raised:
            exp.files("m/a.txt").download(to=f"{tmp_path}/{to}")
        failure = raised.value
        assert isinstance(failure, MLDashError)
        assert (failure.code, bool(failure.hint)) == (code, True)
    assert (tmp_path / "plain").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "out", "plain"]


def test_while_it_comes_it_has_no_name(service: DaemonProcess, exp: Experiment, tmp_path: Path, unnamed: bool) -> None:
    exp.files.save_text("hello", to="a.txt").wait(60)
    seen: list[list[str]] = []

    def watch(file: Any, done: int, total: int) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])

    for fetched in exp.files().fetch("a.txt", to=tmp_path / "b.txt", watch=watch):
        assert fetched.path == str(tmp_path / "b.txt")
    at_the_start, at_the_end = seen[0], seen[-1]
    assert at_the_end == ["b.txt"]
    if unnamed:
        assert at_the_start == []
    else:
        (name,) = at_the_start
        assert name.startswith(".ml-dash-")


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_folder_that_can_shares_its_blocks(tmp_path: Path, damaged: bool) -> None:
    """Nothing is written, and every byte is read all the same."""
    with (
        with_reflinks(tmp_path / "disk") as disk,
        DaemonProcess(tmp_path / "daemon", Folder(disk / "store")) as daemon,
        daemon.experiment().run as exp,
    ):
        digest = make_file(tmp_path / "source", 64 * MIB + 5)
        record = exp.files.upload(tmp_path / "source", to="a.bin").wait(60)
        if damaged:
            with path_in_store(daemon, record).open("r+b") as file:
                file.seek(40 * MIB)
                file.write(b"x")
        os.sync()
        before = os.statvfs(disk)
        if damaged:
            assert refused(lambda: exp.files("a.bin").download(to=disk / "back")).code is Code.CHECKSUM_MISMATCH
            assert [path.name for path in disk.iterdir()] == ["store"]
        else:
            exp.files("a.bin").download(to=disk / "back")
            os.sync()
            after = os.statvfs(disk)
            assert (before.f_bfree - after.f_bfree) * before.f_frsize < 4 * MIB
            assert file_sha256(disk / "back") == digest
            with path_in_store(daemon, record).open("r+b") as file:
                file.write(b"another content")
            assert file_sha256(disk / "back") == digest


# ---- memory


@pytest.fixture(params=["local", "swift"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    return Folder(tmp_path / "store") if request.param == "local" else Bucket(request.getfixturevalue("swift"))


def test_memory_is_bounded_whatever_the_size(place: StoreUnderTest, tmp_path: Path) -> None:
    """256 MiB, three times at once, in a daemon that has 32 MiB for buffers: unbounded, they would take 192."""
    daemon = DaemonProcess(tmp_path / "daemon", place, f"[limits]\nmemory = {32 * MIB}\n")
    with daemon, daemon.experiment().run as exp:
        digest = stored(exp, tmp_path, 256 * MIB)
        assert daemon.process is not None
        status = Path(f"/proc/{daemon.process.pid}/status")
        (status.parent / "clear_refs").write_text("5")  # the peak is from here on
        before = peak(status)
        with ThreadPoolExecutor(3) as callers:
            back = [tmp_path / f"{number}.back" for number in range(3)]
            list(callers.map(lambda path: exp.files("a.bin").download(to=path), back))
        assert {file_sha256(path) for path in back} == {digest}
        assert peak(status) - before < 32 * MIB
    for path in back:
        path.unlink()


def peak(status: Path) -> int:
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
