"""The daemon's socket: who may use it, and that nothing a client sends harms anybody but itself."""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash import messages as m
from ml_dash.errors import Code
from ml_dash.wire import HEADER, MAX_DESCRIPTORS, VERSION
from tests.doubles.raw_client import RawClient
from tests.harness import DaemonProcess, Folder, eventually

pytestmark = pytest.mark.slow

NOBODY = 65534
PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")
FILE = m.Described(place=PLACE, to="best.pt")
HELLO = m.encode(m.Hello(request=1, min_version=VERSION, max_version=VERSION, client="test"))
STATUS = m.encode(m.Status(request=2))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("socket")
    with DaemonProcess(folder / "daemon", Folder(folder / "store")) as process:
        yield process
        assert "Traceback" not in process.log()


@pytest.fixture(scope="module")
def idle(daemon: DaemonProcess) -> list[str]:
    """What the daemon has open while it has no clients."""
    return descriptors_of(daemon)


@pytest.fixture
def other(daemon: DaemonProcess, idle: list[str]) -> Iterator[RawClient]:
    """A client that minds its own business: it must not notice what the test does, nor may anything stay open."""
    with RawClient(daemon.socket).greet() as client:
        yield client
        assert_served(client)
    eventually(lambda: descriptors_of(daemon) == idle)


def descriptors_of(daemon: DaemonProcess) -> list[str]:
    """The names of what the daemon has open, without the numbers of sockets."""
    assert daemon.process is not None
    opened = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            opened.append(str(entry.readlink()).partition(":[")[0])
    return sorted(opened)


def assert_served(client: RawClient) -> None:
    assert client.ask(m.StatusReport, m.Status(request=99)).request == 99


def upload(**changes: object) -> m.Upload:
    return m.Upload(request=3, key=secrets.token_bytes(16), file=FILE, source="/data/best.pt", **changes)  # type: ignore[arg-type]


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """A file that could be handed over."""
    (tmp_path / "best.pt").write_bytes(b"weights")
    opened = os.open(tmp_path / "best.pt", os.O_RDONLY)
    yield opened
    os.close(opened)


# ---- what breaks the protocol


def frame(kind: int, payload: bytes, descriptors: int = 0, version: int = VERSION, length: int | None = None) -> bytes:
    return HEADER.pack(len(payload) if length is None else length, version, descriptors, kind) + payload


def deep(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\x80"


def packed(kind: int, **fields: object) -> bytes:
    return frame(kind, msgpack.packb({"request": 1, **fields}))


NOWHERE = {"namespace": "a", "project": "b", "experiment": "c"}
BROKEN: dict[str, tuple[bytes, int, str]] = {
    # what is sent after Hello, with how many descriptors, and what the answer names
    "a kind that there is not": (frame(99, b"\x80"), 0, "message kind 99 is not known"),
    "a reply": (m.encode(m.Done(request=1)), 0, "message kind 65 is not known"),
    "a payload over its kind's limit": (frame(13, b"", length=64 * 1024 + 1), 0, "at most 65536"),
    "a payload of 4 GiB": (frame(4, b"", length=2**32 - 1), 0, "4294967295 bytes"),
    "another version": (frame(13, b"\x80", version=2), 0, "frame version 2"),
    "no msgpack": (frame(13, b"\xc1\xc1\xc1"), 0, "not one msgpack value"),
    "half a msgpack value": (frame(13, b"\x82\xa1a"), 0, "not one msgpack value"),
    "two msgpack values": (frame(13, b"\x80\x80"), 0, "not one msgpack value"),
    "an empty payload": (frame(13, b""), 0, "not one msgpack value"),
    "no map": (frame(13, b"\x93\x01\x02\x03"), 0, "not a map"),
    "a map within a map within a map …": (frame(3, deep(40)), 0, "deeper than 8"),
    "a map deeper than msgpack goes": (frame(3, deep(4000)), 0, "msgpack"),
    "a field twice": (frame(13, b"\x82\xa7request\x01\xa7request\x02"), 0, "twice"),
    "a field that there is not": (frame(13, msgpack.packb({"request": 1, "x": 1})), 0, "'x'"),
    "a field that is missing": (frame(13, b"\x80"), 0, "lacks"),
    "a field of another type": (frame(13, msgpack.packb({"request": "1"})), 0, "request is str, not int"),
    "a number below 0": (frame(13, msgpack.packb({"request": -1})), 0, "request is -1"),
    "a number over 63 bits": (frame(13, msgpack.packb({"request": 2**63})), 0, "request is 9223372036854775808"),
    "text that is no UTF-8": (frame(13, b"\x81\xa7request\xa1\xff"), 0, "msgpack"),
    "a field whose name is long": (packed(9, ids=[1], **{"x" * 4000: 1}), 0, "fields that are not known"),
    "text over its bound": (packed(8, place=NOWHERE | {"prefix": "x" * 4097}), 0, "length of 4097, at most 4096"),
    "an array over its bound": (packed(9, ids=[7] * 1001), 0, "length of 1001, at most 1000"),
    "an array over every bound": (packed(9, ids=[7] * 1025), 0, "1025 exceeds"),
    "more containers than there may be": (packed(3, x=[[[]] * 1023] * 5), 0, "more than 4096 containers"),
    "a part of a message that lacks a field": (packed(2, place={"namespace": "a"}), 0, "place lacks"),
    "a part of a message with one more": (packed(2, place=NOWHERE | {"y": 1}), 0, "place has fields that"),
    "a number where a part belongs": (packed(2, place=5), 0, "place is int, not a map"),
    "true where a number belongs": (frame(13, msgpack.packb({"request": True})), 0, "request is bool, not int"),
    "nothing where text belongs": (packed(1, min_version=1, max_version=1, client=None), 0, "client is NoneType"),
    "a key that is no text": (frame(13, b"\x81\x01\x01"), 0, "msgpack"),
    "an extension type": (frame(13, b"\x81\xa7request\xd4\x05\x00"), 0, "msgpack"),
    "an upload without a descriptor": (m.encode(upload()), 0, "Upload came with 0 descriptors"),
    "an upload with two": (m.encode(upload(), 2), 2, "Upload came with 2 descriptors"),
    "a descriptor where none belongs": (m.encode(m.Status(request=1), 1), 1, "Status came with 1 descriptors"),
    "fewer descriptors than stated": (m.encode(upload(), 3), 2, "states 3 descriptors, 2 came"),
    "more descriptors than stated": (m.encode(upload(), 1), 2, "1 descriptors that no frame states"),
    "descriptors that nobody states": (m.encode(m.Status(request=1)), 3, "3 descriptors that no frame states"),
    "more descriptors stated than there may be": (m.encode(upload(), 17), 0, "17 descriptors in a frame, at most 16"),
    "more descriptors than there may be": (m.encode(upload(), 1), MAX_DESCRIPTORS + 1, "more than 16 descriptors"),
    "as many descriptors as the kernel takes": (m.encode(upload(), 1), 253, "more than 16 descriptors"),
}  # fmt: skip


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("what", BROKEN)
def test_who_breaks_the_protocol_is_told_and_hung_up_on(daemon: DaemonProcess, descriptor: int, what: str) -> None:
    data, count, named = BROKEN[what]
    with RawClient(daemon.socket).greet() as client:
        client.send(data, [descriptor] * count)
        (failed,) = client.replies()
    assert isinstance(failed, m.Failed)
    assert (failed.code, failed.request) == (Code.PROTOCOL, 0)
    assert named in failed.message
    assert failed.hint
    assert os.fstat(descriptor).st_size == 7


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    "first",
    [STATUS, m.encode(upload(), 1), m.encode(m.RequestSlot(request=1, size_bytes=5))],
    ids=["Status", "Upload", "RequestSlot"],
)
def test_the_first_message_is_hello(daemon: DaemonProcess, descriptor: int, first: bytes) -> None:
    with RawClient(daemon.socket) as client:
        client.send(first, [descriptor] * first[5])
        (failed,) = client.replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.PROTOCOL
    assert "first message is not Hello" in failed.message
    assert daemon.spool() == []
    assert daemon.rows("SELECT id FROM files") == []


@pytest.mark.usefixtures("other")
def test_a_client_of_another_version_is_told_which(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        failed = client.ask(m.Failed, m.Hello(request=7, min_version=2, max_version=9, client="newer"))
    assert (failed.code, failed.request) == (Code.UNSUPPORTED_VERSION, 7)
    assert "2 to 9" in failed.message
    assert failed.hint


@pytest.mark.usefixtures("other")
def test_what_was_asked_before_the_break_is_answered(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket).greet() as client:
        client.send(m.encode(m.Status(request=5)))
        first = client.reply()
        client.send(m.encode(m.Status(request=6)) + frame(99, b"\x80"))
        assert isinstance(first, m.StatusReport)
        *_, last = client.replies()
    assert isinstance(last, m.Failed)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("where", [1, HEADER.size, HEADER.size + 1, -1])
def test_a_frame_that_is_never_finished_is_forgotten(daemon: DaemonProcess, descriptor: int, where: int) -> None:
    """Its descriptors too."""
    with RawClient(daemon.socket).greet() as client:
        client.send(m.encode(upload(), 1)[:where], [descriptor])
        client.finish()
        assert client.replies() == []


@pytest.mark.usefixtures("other")
def test_a_frame_may_come_byte_by_byte(daemon: DaemonProcess, tmp_path: Path) -> None:
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    with RawClient(daemon.socket) as client:
        for place in range(len(HELLO)):
            client.send(HELLO[place : place + 1])
        assert isinstance(client.reply(), m.Welcome)
        data = m.encode(m.Fetch(request=4, id=12345), 1)
        client.send(data[:1], [target])
        for place in range(1, len(data)):
            client.send(data[place : place + 1])
        failed = client.reply()
    os.close(target)
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.UNKNOWN_FILE


@pytest.mark.usefixtures("other")
def test_many_requests_in_one_write_are_answered_in_their_order(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.send(HELLO + b"".join(m.encode(m.Status(request=number)) for number in range(2, 102)))
        assert [client.reply().request for _ in range(101)] == list(range(1, 102))  # type: ignore[union-attr]


@pytest.mark.usefixtures("other")
def test_who_asks_and_does_not_read_blocks_only_itself(daemon: DaemonProcess, other: RawClient) -> None:
    """Its writes block once the daemon no longer reads from it: memory stays flat."""
    with RawClient(daemon.socket).greet() as client:
        client._socket.settimeout(0)
        requests = b"".join(m.encode(m.Status(request=number)) for number in range(1000))
        sent = 0
        while sent < 200 << 20:
            try:
                sent += client._socket.send(requests)
            except BlockingIOError:
                before = sent
                assert_served(other)  # the daemon has had its turn, and did not read on
                with suppress(BlockingIOError):
                    sent += client._socket.send(requests)
                if sent == before:
                    break
        assert sent < 16 << 20
        assert_served(other)


@pytest.mark.usefixtures("other")
def test_who_vanishes_while_it_is_answered_harms_nobody(daemon: DaemonProcess) -> None:
    for _ in range(50):
        with RawClient(daemon.socket) as client:
            client.send(HELLO + STATUS * 50)


VALUES = (
    st.none() | st.integers(-5, 300) | st.just(2**63) | st.binary(max_size=20) | st.lists(st.integers(0, 9), max_size=3)
)
NUMBERS = st.sampled_from([0, 1, 2, 999, 2**62, 2**63 - 1])
TEXTS = st.text(max_size=5) | st.sampled_from(
    ["..", "/etc/passwd", "a/b", "**", "[", "x\n7", "stored", "hashed", "disk"]
)
PLACES = st.builds(m.Place, namespace=TEXTS, project=TEXTS, experiment=TEXTS, prefix=TEXTS) | st.just(PLACE)
DESCRIBED = st.just(FILE) | st.builds(
    m.Described, place=PLACES, to=TEXTS, description=TEXTS, metadata=st.sampled_from([None, "{}", "[", "[1]"]),
    tags=st.lists(TEXTS, max_size=2).map(tuple),
)  # fmt: skip
KEYS = st.binary(max_size=16)
IDS = st.lists(NUMBERS, max_size=5).map(tuple)
JSON = st.sampled_from(["{}", "[", "[1]", '{"a": 1, "a.b": 2}', '{"a": "\\ud800"}', '["a", "b", "c", 1]', '{"": 1}'])
ROWS = st.lists(st.builds(m.NewRow, metric=TEXTS, data=JSON), max_size=3).map(tuple)
SOUND = st.one_of(
    st.builds(m.OpenExperiment, request=NUMBERS, place=PLACES, readme=TEXTS, metadata=JSON, host=TEXTS),
    st.builds(m.EndRun, request=NUMBERS, place=PLACES, status=TEXTS | st.just("FAILED"), error=TEXTS),
    st.builds(m.SetParams, request=NUMBERS, place=PLACES, values=JSON),
    st.builds(m.LogRows, request=NUMBERS, place=PLACES, writer=NUMBERS, number=NUMBERS, rows=ROWS, durability=TEXTS),
    st.builds(
        m.ListExperiments,
        request=NUMBERS,
        prefix=TEXTS,
        cursor=JSON,
        page_size=NUMBERS,
        details=st.booleans(),
        seen_rows=NUMBERS,
        timeout_ms=st.integers(0, 20),
    ),
    st.builds(m.ReadRows, request=NUMBERS, place=PLACES, metric=TEXTS, start=NUMBERS, count=NUMBERS),
    st.builds(m.Upload, request=NUMBERS, key=KEYS, file=DESCRIBED, source=TEXTS, durability=TEXTS, snapshot=TEXTS),
    st.builds(m.Put, request=NUMBERS, key=KEYS, file=DESCRIBED, content=KEYS, sha256=KEYS),
    st.builds(m.RequestSlot, request=NUMBERS, size_bytes=NUMBERS, held=IDS),
    st.builds(m.CommitSlot, request=NUMBERS, key=KEYS, slot=NUMBERS, file=DESCRIBED, size_bytes=NUMBERS),
    st.builds(m.ReleaseSlot, request=NUMBERS, slot=NUMBERS),
    st.builds(
        m.List, request=NUMBERS, place=PLACES, pattern=TEXTS, latest=st.booleans(), cursor=TEXTS, page_size=NUMBERS
    ),
    st.builds(m.Get, request=NUMBERS, ids=IDS),
    st.builds(m.Wait, request=NUMBERS, until=TEXTS, timeout_ms=st.integers(0, 20), ids=IDS, place=st.none() | PLACES),
    st.builds(m.Delete, request=NUMBERS, ids=IDS),
    st.builds(m.Fetch, request=NUMBERS, id=NUMBERS),
)
"""What keeps to the protocol, whatever it says."""
FRAMES = st.one_of(
    st.binary(max_size=64),
    st.builds(
        frame,
        st.sampled_from([*m.REQUESTS, 0, 14, 64, 65535]),
        st.binary(max_size=64)
        | st.dictionaries(
            st.sampled_from(["request", "key", "file", "id", "ids", "size_bytes", "slot", "place", "until"]),
            VALUES,
            max_size=5,
        ).map(msgpack.packb),
        st.integers(0, 3),
        st.sampled_from([VERSION, VERSION, VERSION, 0, 2]),
    ),
    st.sampled_from([HELLO, STATUS, m.encode(m.RequestSlot(request=1, size_bytes=5))]),
)


@pytest.mark.parametrize("sound", [False, True], ids=["anything", "what keeps to the protocol"])
def test_whatever_is_sent_others_are_served_and_nothing_stays_open(
    tmp_path: Path, descriptor: int, sound: bool
) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        send_whatever(daemon, descriptor, sound=sound)
        assert "Traceback" not in daemon.log()


def send_whatever(daemon: DaemonProcess, descriptor: int, *, sound: bool) -> None:
    idle = descriptors_of(daemon)
    whole = SOUND.map(lambda said: (m.encode(said, said.descriptors.start), said.descriptors.start))
    frames = whole if sound else st.tuples(FRAMES, st.integers(0, 3))

    @settings(max_examples=150, deadline=None)
    @given(st.lists(frames, max_size=5), st.booleans())
    def send(sent: list[tuple[bytes, int]], greeted: bool) -> None:
        with RawClient(daemon.socket) as client:
            if greeted or sound:
                client.send(HELLO)
            for data, count in sent:
                if data:
                    client.send(data, [descriptor] * count)
            client.finish()
            for reply in client.replies():
                assert getattr(reply, "code", None) != Code.INTERNAL, reply
        with RawClient(daemon.socket).greet() as after:
            assert_served(after)
        eventually(lambda: descriptors_of(daemon) == idle)

    send()  # the first turn warms what is made when it is needed
    threads, memory = threads_of(daemon), memory_of(daemon)
    send()
    assert threads_of(daemon) == threads
    assert memory_of(daemon) - memory < 4 << 20
    eventually(lambda: daemon.spool() == [])


def threads_of(daemon: DaemonProcess) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))


def memory_of(daemon: DaemonProcess) -> int:
    """Bytes that are resident."""
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


# ---- descriptors that are no file to keep


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: os.open(path, os.O_PATH), Code.NOT_READABLE),
        (lambda path: os.open(path, os.O_WRONLY), Code.NOT_READABLE),
        (lambda path: os.open(path.parent, os.O_RDONLY), Code.NOT_A_FILE),
        (lambda path: os.open(path.parent, os.O_PATH), Code.NOT_A_FILE),
        (lambda path: os.open(named_pipe(path), os.O_RDONLY | os.O_NONBLOCK), Code.NOT_A_FILE),
        (lambda _: read_end(), Code.NOT_A_FILE),
        (lambda _: socket.socket(socket.AF_UNIX).detach(), Code.NOT_A_FILE),
        (lambda _: os.open("/dev/null", os.O_RDONLY), Code.NOT_A_FILE),
        (lambda _: os.open("/dev/zero", os.O_RDONLY), Code.NOT_A_FILE),
        (lambda _: os.eventfd(0), Code.NOT_A_FILE),
    ],
    ids=[
        "opened with O_PATH", "opened for writing alone", "a folder", "a folder opened with O_PATH", "a named pipe",
        "a pipe", "a socket", "/dev/null", "/dev/zero", "an eventfd",
    ],
)  # fmt: skip
def test_a_descriptor_that_is_no_readable_file_is_refused_by_name(
    daemon: DaemonProcess, tmp_path: Path, make: Callable[[Path], int], code: Code
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights" * 100)
    descriptor = make(tmp_path / "best.pt")
    with RawClient(daemon.socket).greet() as client:
        failed = client.ask(m.Failed, upload(), [descriptor])
        assert (failed.code, failed.request) == (code, 3)
        assert "/data/best.pt" in failed.message
        assert failed.hint
        assert_served(client)
    os.close(descriptor)
    assert daemon.rows("SELECT id FROM files") == []
    assert daemon.spool() == []


def read_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def named_pipe(beside: Path) -> Path:
    path = beside.with_name("pipe")
    os.mkfifo(path)
    return path


# ---- how many


def test_one_connection_too_many_is_told_to_come_later(tmp_path: Path) -> None:
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), daemon_settings="max_connections = 3") as daemon,
        ExitStack() as opened,
    ):
        clients = [opened.enter_context(RawClient(daemon.socket)).greet() for _ in range(3)]
        with RawClient(daemon.socket) as late:
            (failed,) = late.replies()
            assert isinstance(failed, m.Failed)
            assert failed.code == Code.RETRY_LATER
            assert "3 connections" in failed.message
        for client in clients:
            assert_served(client)
        clients[0].close()

        def served() -> bool:
            with RawClient(daemon.socket) as again:
                again.send(HELLO)
                return isinstance(again.reply(), m.Welcome)

        eventually(served)


def test_a_branch_is_a_connection_of_its_own(daemon: DaemonProcess, other: RawClient, descriptor: int) -> None:
    """It begins with Hello, has nothing of the one that it came through, and outlives it."""
    with RawClient(daemon.socket).greet() as first:
        slot = first.ask(m.SlotGranted, m.RequestSlot(request=2, size_bytes=100)).slot
        with first.branch() as branch:
            first.close()
            (hello,) = ask_first(branch, m.Status(request=2))
            assert isinstance(hello, m.Failed)
            assert "the first message is not Hello" in hello.message
    with RawClient(daemon.socket).greet() as first, first.branch() as branch:
        first.close()
        commit = m.CommitSlot(request=2, key=secrets.token_bytes(16), slot=slot, file=FILE, size_bytes=1)
        assert branch.greet().ask(m.Failed, commit).code == Code.INVALID_ARGUMENT
        assert branch.ask(m.Accepted, upload(), [descriptor]).record.size_bytes == 7
        with branch.branch() as another:
            assert_served(another.greet())


def ask_first(client: RawClient, message: m.Message) -> list[m.Message]:
    client.send(m.encode(message))
    return client.replies()


def test_a_branch_counts_as_a_connection(tmp_path: Path) -> None:
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), daemon_settings="max_connections = 2") as daemon,
        RawClient(daemon.socket).greet() as client,
    ):
        with client.branch():
            refused = client.ask(m.Failed, m.Branch(request=9))
            assert (refused.request, refused.code) == (9, Code.RETRY_LATER)
            assert "2 connections" in refused.message
            assert_served(client)

        def branches() -> bool:
            client.send(m.encode(m.Branch(request=9)))
            return isinstance(client.reply(), m.Branched)

        eventually(branches)


def test_a_daemon_out_of_descriptors_answers_again_once_there_are_some(tmp_path: Path, descriptor: int) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        assert daemon.process is not None
        pid = daemon.process.pid
        before = prlimit(pid, RLIMIT_NOFILE)
        with RawClient(daemon.socket).greet() as first:
            prlimit(pid, RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), before[1]))
            with RawClient(daemon.socket) as waits:
                waits.send(HELLO)
                first.send(m.encode(upload(), 1), [descriptor])
                (failed,) = first.replies()
                assert isinstance(failed, m.Failed)
                assert failed.code == Code.RETRY_LATER
                assert "no room for the descriptors" in failed.message
                prlimit(pid, RLIMIT_NOFILE, before)
                assert isinstance(waits.reply(), m.Welcome)
                assert waits.ask(m.Accepted, upload(), [descriptor]).record.size_bytes == 7


# ---- who


AS_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect("socket")
except PermissionError:
    sys.exit(13)
try:
    peer.sendall(bytes.fromhex(sys.argv[1]))
except BrokenPipeError:
    pass  # refused, and hung up on, already
sys.stdout.buffer.write(peer.recv(65536))
"""


def said_to_nobody(daemon: DaemonProcess) -> m.Message | None:
    """The answer to a Hello of another uid; None where the kernel keeps it from the socket."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    daemon.folder.chmod(0o755)
    command = [sys.executable, "-c", AS_NOBODY, HELLO.hex()]
    done = subprocess.run(command, cwd=daemon.folder, capture_output=True, check=False, timeout=30)
    if done.returncode == 13:
        return None
    assert done.returncode == 0, done.stderr
    (answer,) = m.wire.Decoder(m.REPLY_LIMITS).feed(done.stdout)
    return m.decode(answer, m.REPLIES)


def test_by_default_the_socket_is_its_owners(daemon: DaemonProcess) -> None:
    status = daemon.socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    assert said_to_nobody(daemon) is None


@pytest.mark.parametrize("mode", ["0660", "0666"])
def test_another_uid_is_refused_whatever_the_sockets_mode(tmp_path: Path, mode: str) -> None:
    settings = f'[access]\nsocket_mode = "{mode}"\n'
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
        assert daemon.socket.stat().st_mode & 0o777 == int(mode, 8)
        failed = said_to_nobody(daemon)
        if mode == "0660":
            assert failed is None
            return
        assert isinstance(failed, m.Failed)
        assert failed.code == Code.ACCESS_DENIED
        assert f"uid {NOBODY}" in failed.message
        with RawClient(daemon.socket).greet() as client:
            assert_served(client)


def test_a_uid_that_the_settings_name_is_welcome(tmp_path: Path) -> None:
    settings = f'[access]\nuids = [{NOBODY}]\nsocket_mode = "0666"\n'
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), settings) as daemon:
        assert isinstance(said_to_nobody(daemon), m.Welcome)
        with RawClient(daemon.socket).greet() as client:
            assert_served(client)


# ---- the socket's file


@pytest.mark.parametrize(("mode", "folder_mode"), [("0600", 0o700), ("0660", 0o710), ("0666", 0o711)])
def test_the_folder_that_it_makes_lets_those_through_whom_the_socket_lets_in(
    tmp_path: Path, mode: str, folder_mode: int
) -> None:
    """Beside it is the socket of HTTP, which is the daemon's own user's."""
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), f'[access]\nsocket_mode = "{mode}"\n')
    daemon.socket = tmp_path / "run" / "ml-dashd.sock"
    with daemon:
        assert daemon.socket.parent.stat().st_mode & 0o777 == folder_mode
        assert (daemon.socket.parent / "http.sock").stat().st_mode & 0o777 == 0o600


def test_a_socket_file_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        daemon.kill()
        assert daemon.socket.exists()
        daemon.start()
        with RawClient(daemon.socket).greet() as client:
            assert_served(client)
        assert daemon.stop() == 0
        assert not daemon.socket.exists()


def test_a_path_longer_than_the_kernel_takes_is_no_matter(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a folder with a long name"] * 5)
    with DaemonProcess(folder, Folder(tmp_path / "store")) as daemon:
        assert len(str(daemon.socket)) > 108
        with RawClient(daemon.socket).greet() as client:
            assert_served(client)
        assert daemon.socket.stat().st_mode & 0o777 == 0o600
        assert daemon.stop() == 0
        assert not daemon.socket.exists()


def refused_to_start(daemon: DaemonProcess) -> str:
    """The one line with which a daemon gives up, its exit status being 2."""
    try:
        daemon.start()
    except RuntimeError as failure:
        assert daemon.process is not None
        assert daemon.process.returncode == 2
        said = str(failure).removeprefix("the daemon did not start: ")
        assert daemon.log() == f"{said}\n"
        return said
    finally:
        daemon.kill()
    raise AssertionError("it started")


def test_a_second_daemon_on_the_same_state_is_refused(daemon: DaemonProcess, other: RawClient, tmp_path: Path) -> None:
    second = DaemonProcess(tmp_path / "second", daemon.store)
    second.state = daemon.state
    said = refused_to_start(second)
    assert str(daemon.state) in said
    assert "another ml-dashd serves" in said
    assert "state_dir" in said
    assert not second.socket.exists()


def test_a_state_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    daemon.state.mkdir()
    with closing(sqlite3.connect(daemon.state / "journal.sqlite")) as connection, connection:
        connection.execute("PRAGMA user_version = 99")
    said = refused_to_start(daemon)
    assert f"{daemon.state / 'journal.sqlite'} was made by a newer release" in said


def test_a_second_daemon_on_the_same_socket_is_refused(daemon: DaemonProcess, other: RawClient, tmp_path: Path) -> None:
    """It would take the first one's clients away, and the socket file at its end."""
    second = DaemonProcess(tmp_path / "second", daemon.store)
    second.socket = daemon.socket
    said = refused_to_start(second)
    assert str(daemon.socket) in said
    with RawClient(daemon.socket).greet() as client:
        assert client.ask(m.StatusReport, m.Status(request=1)).state_dir == str(daemon.state)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    daemon.socket.write_text("somebody's notes")
    said = refused_to_start(daemon)
    assert str(daemon.socket) in said
    assert daemon.socket.read_text() == "somebody's notes"
