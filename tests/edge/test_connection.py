"""Connections, with a service of the test's own: peers that go away, that are slow, that are many."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code
from ml_dash.wire import HEADER, VERSION, Decoder, Frame
from ml_dashd.core.access import Policy
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.socket_server import Access, SocketServer
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Send, Session

PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")
FILE = m.Described(place=PLACE, to="best.pt")
HELLO = m.encode(m.Hello(request=1, min_version=VERSION, max_version=VERSION, client="test"))
WAIT = m.Wait(request=2, until="stored", timeout_ms=60_000)
PUT = m.Put(request=2, key=secrets.token_bytes(16), file=FILE, content=b"", sha256=b"")
UPLOAD = m.Upload(request=2, key=secrets.token_bytes(16), file=FILE, source="/data/best.pt")
FETCH = m.Fetch(request=2, id=5)
PATIENCE_S = 20.0


class Gate:
    """A service whose answers wait until the test lets them; it tells how each request ended."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[m.Message] = asyncio.Queue()
        self.ended: asyncio.Queue[tuple[m.Message, str]] = asyncio.Queue()
        self.gone: asyncio.Queue[int] = asyncio.Queue()
        self.open = asyncio.Event()

    async def handle(
        self, session: Session, message: m.Message, descriptors: Sequence[int], send: Send
    ) -> tuple[m.Message, Sequence[int]]:
        if isinstance(message, m.Hello):
            return m.Done(request=message.request), ()
        self.begun.put_nowait(message)
        how = "cancelled"
        try:
            await self.open.wait()
            how = "answered"
        finally:
            self.ended.put_nowait((message, how))
        return m.Done(request=message.request), ()

    def disconnected(self, session: Session) -> None:
        self.gone.put_nowait(session.number)


class Peer:
    """A client on the test's own loop."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.connect(str(path))
        self.decoder = Decoder(m.REPLY_LIMITS)
        self.frames: list[Frame] = []

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if descriptors:
            sent = socket.send_fds(self.socket, [data], list(descriptors))
            data = data[sent:]
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def replies(self) -> list[m.Message]:
        """All that comes until the daemon hangs up."""
        loop, replies = asyncio.get_running_loop(), []
        # A peer that closes with something unread in its queue resets the connection, after all that it has said.
        with suppress(ConnectionResetError):
            async with asyncio.timeout(PATIENCE_S):
                while data := await loop.sock_recv(self.socket, 1 << 16):
                    replies += [m.decode(frame, m.REPLIES) for frame in self.decoder.feed(data)]
        return replies

    async def reply(self) -> m.Message:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while not self.frames:
                self.frames = self.decoder.feed(await loop.sock_recv(self.socket, 1 << 16))
        return m.decode(self.frames.pop(0), m.REPLIES)


class Rig:
    def __init__(self, path: Path, **changes: Any) -> None:
        self.path = path
        self.service = Gate()
        self.budget = changes.pop("budget", None)
        access = {"policy": Policy(os.geteuid()), "mode": 0o600, "max_connections": 8, "peer_timeout_s": 60.0} | changes
        self.server = SocketServer(path, self.service, SystemClock(), Access(**access), budget=self.budget)
        self.peers: list[Peer] = []

    def peer(self) -> Peer:
        self.peers.append(Peer(self.path))
        return self.peers[-1]

    async def greeted(self) -> Peer:
        peer = self.peer()
        await peer.send(HELLO)
        assert isinstance(await peer.reply(), m.Done)
        return peer

    async def asking(self, message: m.Message) -> Peer:
        """Somebody whose request is being answered."""
        peer = await self.greeted()
        descriptors = [os.open("/dev/null", os.O_RDWR)] if message.descriptors.start else []
        await peer.send(m.encode(message, len(descriptors)), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        assert await soon(self.service.begun.get()) == message
        return peer


async def soon(what: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await what


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not so():  # noqa: ASYNC110 nobody tells
            await asyncio.sleep(0.005)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Any]:
    rigs: list[Rig] = []
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def made(**changes: Any) -> Rig:
        rigs.append(Rig(tmp_path / f"socket-{len(rigs)}", **changes))
        rigs[-1].server.start()
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.service.open.set()
        for peer in rig.peers:
            peer.socket.close()
        await rig.server.stop()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# ---- who goes away


@pytest.mark.parametrize("message", [WAIT, FETCH], ids=["Wait", "Fetch"])
async def test_what_only_waits_ends_with_its_peer(make: Any, message: m.Message) -> None:
    rig = make()
    peer = await rig.asking(message)
    peer.socket.close()
    assert await soon(rig.service.ended.get()) == (message, "cancelled")
    await soon(rig.service.gone.get())
    await until(lambda: rig.server.connections == 0)


@pytest.mark.parametrize("message", [PUT, UPLOAD], ids=["Put", "Upload"])
async def test_a_hand_off_goes_on_without_its_peer(make: Any, message: m.Message) -> None:
    rig = make()
    peer = await rig.asking(message)
    peer.socket.close()
    await (await rig.asking(WAIT)).send(b"")  # the loop has had its turns
    assert rig.service.ended.empty()
    rig.service.open.set()
    assert await soon(rig.service.ended.get()) == (message, "answered")


async def test_who_only_has_nothing_more_to_say_still_waits(make: Any) -> None:
    rig = make()
    peer = await rig.asking(WAIT)
    peer.socket.shutdown(socket.SHUT_WR)
    await rig.asking(PUT)
    assert rig.service.ended.empty()
    rig.service.open.set()
    assert await peer.replies() == [m.Done(request=2)]


async def test_a_wait_that_was_sent_ahead_is_not_begun_for_nobody(make: Any) -> None:
    rig = make()
    peer = await rig.asking(PUT)
    await peer.send(m.encode(WAIT) * 100)
    peer.socket.close()
    await rig.asking(WAIT)
    rig.service.open.set()
    await soon(rig.service.gone.get())
    assert rig.service.begun.empty()


async def test_a_stop_ends_who_waits(make: Any) -> None:
    rig = make()
    await rig.asking(WAIT)
    await rig.server.stop()
    assert await soon(rig.service.ended.get()) == (WAIT, "cancelled")


# ---- who is slow


async def test_who_says_nothing_is_hung_up_on(make: Any) -> None:
    rig = make(peer_timeout_s=0.1)
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert (failed.code, failed.request) == (Code.PROTOCOL, 0)
    assert failed.message == "Hello did not come within 0.1 s"


@pytest.mark.parametrize("said", [b"", HELLO], ids=["Hello", "a request"])
async def test_who_sends_a_byte_now_and_then_is_hung_up_on(make: Any, said: bytes) -> None:
    """Progress is not enough: the frame has its time as a whole."""
    rig = make(peer_timeout_s=0.3)
    peer = rig.peer()
    await peer.send(said)
    endless = HEADER.pack(60_000, VERSION, 0, m.Hello.kind) + b"\x81\xa6client"

    async def dribble() -> None:
        for byte in endless * 1000:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.01)

    dribbling = asyncio.create_task(dribble())
    *_, failed = await peer.replies()
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)
    assert isinstance(failed, m.Failed)
    assert failed.message == "the rest of a frame did not come within 0.3 s"


async def test_who_has_said_hello_may_be_silent_for_ever(make: Any) -> None:
    rig = make(peer_timeout_s=0.1)
    peer = await rig.greeted()
    await rig.peer().replies()  # until another's time is up
    await peer.send(m.encode(PUT))
    assert await soon(rig.service.begun.get()) == PUT


async def test_each_frame_has_its_time_anew(make: Any) -> None:
    """The rest of one, and the start of the next, come together."""
    rig = make(peer_timeout_s=0.5)
    rig.service.open.set()
    peer = await rig.greeted()
    data = m.encode(PUT)
    await peer.send(data[:9])
    for _ in range(8):
        await asyncio.sleep(0.1)
        await peer.send(data[9:] + data[:9])
        assert isinstance(await peer.reply(), m.Done)


async def test_time_does_not_run_while_we_do_not_listen(make: Any) -> None:
    """A peer whose requests pile up, the last of them begun, waits for us."""
    rig = make(peer_timeout_s=0.5)
    peer = await rig.asking(PUT)
    whole = m.encode(WAIT)
    ahead = 150_000 // len(whole)
    await peer.send(whole * ahead + whole[:-1])
    for _ in range(2):
        await rig.peer().replies()  # until others' time is up
    rig.service.open.set()
    for _ in range(1 + ahead):
        assert isinstance(await peer.reply(), m.Done)
    await peer.send(whole[-1:])
    assert isinstance(await peer.reply(), m.Done)


async def test_who_takes_no_reply_is_dropped(make: Any) -> None:
    rig = make(peer_timeout_s=0.2)
    rig.service.open.set()
    peer = await rig.greeted()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sending = asyncio.create_task(peer.send(m.encode(PUT) * 100_000))
    await soon(rig.service.gone.get())
    await until(lambda: rig.server.connections == 0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


# ---- who is many


async def test_nobody_gets_more_connections_than_are_left(make: Any) -> None:
    rig = make(policy=Policy(os.geteuid(), frozenset({os.geteuid() + 1})))
    kept = [await rig.greeted() for _ in range(4)]
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    assert "4 connections are open, 4 of them of uid" in failed.message
    kept[0].socket.close()
    await soon(rig.service.gone.get())
    await rig.greeted()


async def test_who_shares_with_nobody_gets_all_connections(make: Any) -> None:
    rig = make()
    for _ in range(8):
        await rig.greeted()
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER


async def test_without_descriptors_to_give_away_nobody_is_let_in(make: Any) -> None:
    budget, held = DescriptorBudget(), [10**9]
    budget.count(lambda: held[0])
    rig = make(budget=budget)
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    held[0] = 0
    await rig.greeted()


async def test_descriptors_that_do_not_fit_the_budget_are_not_kept(make: Any) -> None:
    budget, held = DescriptorBudget(), [0]
    budget.count(lambda: held[0])
    rig = make(budget=budget)
    other, peer = await rig.greeted(), await rig.greeted()
    held[0] = 10**9
    await peer.send(m.encode(UPLOAD, 1)[:10], [0])
    (failed,) = await peer.replies()
    assert isinstance(failed, m.Failed)
    assert (failed.code, failed.request) == (Code.RETRY_LATER, 0)
    held[0] = 0
    await until(lambda: budget._holders[1]() == 1)
    await other.send(m.encode(PUT))
    assert await soon(rig.service.begun.get()) == PUT


async def test_nobody_has_more_descriptors_waiting_than_are_left(make: Any) -> None:
    """Whoever sends half frames leaves others room for whole ones."""
    budget, held = DescriptorBudget(), [0]
    rig = make(policy=Policy(os.geteuid(), frozenset({os.geteuid() + 1})), budget=budget)
    budget.count(lambda: held[0])
    first, second = await rig.greeted(), await rig.greeted()
    held[0] = budget.left() - 40
    await first.send(m.encode(UPLOAD, 16)[:10], [0] * 16)
    await until(lambda: rig.server._received.total() == 16)
    await second.send(m.encode(UPLOAD, 16)[:10], [0] * 16)
    (failed,) = await second.replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    assert rig.server.count(os.geteuid() + 1, 10)
    assert rig.server.count(os.geteuid() + 1, -10)


async def test_descriptors_count_until_they_are_closed(make: Any) -> None:
    budget = DescriptorBudget()
    rig = make(budget=budget)
    counted = budget._holders[0]
    peer = await rig.asking(UPLOAD)
    assert counted() == 2
    await peer.send(m.encode(UPLOAD, 16)[:20], [0] * 16)
    await until(lambda: counted() == 18)
    rig.service.open.set()
    await peer.reply()
    assert counted() == 17
    peer.socket.close()
    await soon(rig.service.gone.get())
    assert rig.server._received.total() == 0


async def test_the_log_is_not_filled_by_peers(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ml_dashd.socket")
    rig = make(policy=Policy(os.geteuid() + 1))
    for _ in range(50):
        assert len(await rig.peer().replies()) == 1
    assert [record.msg.split()[0] for record in caplog.records] == ["connection_refused"]
    rig.server._said[("connection_refused", os.geteuid())] = (-1000.0, 49)
    await rig.peer().replies()
    assert vars(caplog.records[-1])["spared"] == 49


class FastClock(SystemClock):
    """Sleeps take no time, and move the clock, until it is late."""

    def __init__(self) -> None:
        self.now = 0.0
        self.late = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= 150:
            self.late.set()
        await asyncio.sleep(0)


async def test_a_failing_accept_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FastClock()
    with socket.socket(socket.AF_UNIX) as deaf:  # nobody can be accepted at a socket that does not listen
        deaf.bind(str(tmp_path / "socket"))
        server = SocketServer(
            tmp_path / "socket", Gate(), clock, Access(Policy(os.geteuid()), 0o600, 8, 60.0), passed=deaf
        )
        server.start()
        async with asyncio.timeout(PATIENCE_S):
            await clock.late.wait()
        await server.stop()
    said = [vars(record)["spared"] for record in caplog.records]
    assert {record.msg for record in caplog.records} == {"accept_failed"}
    assert said[0] == 0
    assert len(said) == 3
    assert all(590 < spared < 610 for spared in said[1:])  # ten a second


async def test_who_the_log_has_heard_of_is_forgotten_some_day(make: Any) -> None:
    rig = make()
    for uid in range(5000):
        assert rig.server.worth_a_line("connection_refused", uid) == 0
    assert rig.server.worth_a_line("connection_refused", 4999) is None
    assert len(rig.server._said) <= 2000
