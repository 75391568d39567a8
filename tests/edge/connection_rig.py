"""A server whose service is a test's own, and peers that say what the test wants."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_dash import messages as m
from ml_dash.errors import MLDashError
from ml_dash.wire import VERSION, Decoder, Frame
from ml_dashd.core.access import Policy
from ml_dashd.edge.socket_server import Access, SocketServer
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Line, Session

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
        self.early: m.Message | None = None
        """Sent by another thread before anything is waited for."""
        self.refusal: MLDashError | None = None
        """How requests end once they may."""

    async def handle(
        self, session: Session, message: m.Message, descriptors: Sequence[int], line: Line
    ) -> tuple[m.Message, Sequence[int]]:
        if isinstance(message, m.Hello):
            return m.Done(request=message.request), ()
        if self.early is not None:
            await asyncio.to_thread(line.early(self.early))
        self.begun.put_nowait(message)
        how = "cancelled"
        try:
            await self.open.wait()
            how = "answered"
        finally:
            self.ended.put_nowait((message, how))
        if self.refusal is not None:
            raise self.refusal
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
