"""An HTTP proxy on loopback, in front of an S3 server, that plays a script of faults (faults.py)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tests.doubles import faults as f
from tests.doubles.loop_thread import LoopThread

PIECE = 1 << 16
HEAD_END = b"\r\n\r\n"
LEAST_WINDOW, SLOW_WINDOW = 1 << 12, 1 << 18
"""Bytes that the kernel takes in before they are read: next to none, or so many that a slow line is not slower yet."""
BODILESS = (204, 304)


class EndedError(Exception):
    """The client's connection is over."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers of a message, as they came, and what they say."""

    raw: bytes
    first: list[str]
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))


@dataclass(slots=True, eq=False)
class Peer:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> Head:
        raw = await self.reader.readuntil(HEAD_END)
        first, *lines = raw.decode("latin-1").strip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        return Head(raw, first.split(" ", 2), {name.lower(): value.strip() for name, _, value in fields})

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pieces(self, length: int) -> AsyncIterator[bytes]:
        while length:
            piece = await self.reader.read(min(length, PIECE))
            if not piece:
                raise ConnectionError("it ended in a body")
            length -= len(piece)
            yield piece

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST, whatever is on its way."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def narrow(self, window: int) -> None:
        """Lets the kernel take in no more than that of what is not read."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)


class FaultProxy:
    """Passes everything to the server but what the script says of."""

    def __init__(self, endpoint: str, script: f.Script) -> None:
        parts = urlsplit(endpoint)
        self._server = (parts.hostname, parts.port)
        self._player = f.Player(script)
        self._idle: set[Peer] = set()
        self.ended = asyncio.Event()
        self.came: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """The operations that clients have asked for."""
        self.late: dict[str, asyncio.Event] = {}
        """The operations that what is late goes ahead of, once they are asked for."""
        self._next_piece_s = 0.0

    def __enter__(self) -> Self:
        self._thread = LoopThread("fault proxy")
        self.endpoint = f"http://127.0.0.1:{self._thread.run(self._start())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._end())
        self._thread.close()

    @property
    def injected(self) -> Counter[tuple[str, str]]:
        """How often each action was done to each operation."""
        return self._player.injected

    def end_idle(self) -> None:
        """Ends the connections on which nothing is under way, as a server does after a while."""

        async def end() -> None:
            for peer in self._idle:
                peer.close()

        self._thread.run(end())

    async def _start(self) -> int:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=PIECE)
        return int(self._listener.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        self._listener.close()
        self.ended.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Peer(reader, writer)
        with suppress(EndedError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                self._idle.add(client)
                try:
                    head = await client.head()
                finally:
                    self._idle.discard(client)
                await Exchange(self, client, head).run()
        client.close()

    # ---- for an exchange

    @property
    def player(self) -> f.Player:
        return self._player

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_connection(*self._server, limit=PIECE))

    async def turn(self, size: int, bytes_per_s: int) -> None:
        """Waits until so many bytes may pass: all connections share the rate."""
        now = asyncio.get_running_loop().time()
        self._next_piece_s = max(self._next_piece_s, now) + size / bytes_per_s
        await asyncio.sleep(self._next_piece_s - now)


class Exchange:
    """One request and its answer."""

    def __init__(self, proxy: FaultProxy, client: Peer, head: Head) -> None:
        self._proxy = proxy
        self._client = client
        self._head = head
        self._chance = proxy.player.chance

    async def run(self) -> None:
        """Raises EndedError where the connection ends with it."""
        method, target, _ = self._head.first
        operation = f.operation_of(method, target)
        self._proxy.came[operation].set()
        if (delivered := self._proxy.late.get(operation)) is not None:
            await delivered.wait()
        action = self._proxy.player.action(operation, self._head.length)
        if self._head.headers.get("expect", "").lower() == "100-continue" and not isinstance(action, f.NoContinue):
            await self._client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        match action:
            case f.Refuse(status, code):
                await self._answer(status, code)
            case f.ErrorIn200(code):
                await self._answer(200, code)
            case f.Reset(f.Side.REQUEST):
                await self._break_request()
            case f.StopReading():
                await self._stop_reading()
            case f.Reset() | f.LoseAnswer() | f.Truncate():
                await self._break_answer(action)
            case f.Twice():
                await self._twice()
            case f.Late(behind):
                await self._deliver_late(behind)
            case f.Delay(seconds):
                await asyncio.sleep(seconds)
                await self._pass(action)
            case _:
                await self._pass(action)

    async def _answer(self, status: int, code: str) -> None:
        async for _ in self._client.pieces(self._head.length):
            pass
        text = f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
        head = f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
        bare = self._head.first[0] == "HEAD"
        await self._client.send(head.encode() + (b"" if bare else text))

    async def _break_request(self) -> None:
        """What came until then has been passed on."""
        cut = self._chance.randrange(self._head.length + 1)
        server = await self._proxy.connect()
        with suppress(OSError):
            await server.send(self._forwarded())
            async for piece in self._client.pieces(cut):
                await server.send(piece)
        server.reset()
        self._client.reset()
        raise EndedError

    async def _stop_reading(self) -> None:
        async for _ in self._client.pieces(self._chance.randrange(max(1, self._head.length // 2))):
            pass
        self._client.narrow(LEAST_WINDOW)
        await self._proxy.ended.wait()
        raise EndedError

    async def _break_answer(self, action: f.Reset | f.LoseAnswer | f.Truncate) -> None:
        whole = b"".join([piece async for piece in self._served(None)])
        cut = 0 if isinstance(action, f.LoseAnswer) else self._chance.randrange(len(whole))
        await self._client.send(whole[:cut])
        if isinstance(action, f.Truncate):
            self._client.close()
        else:
            self._client.reset()
        raise EndedError

    async def _twice(self) -> None:
        body = b"".join([piece async for piece in self._client.pieces(self._head.length)])
        async for _ in self._served(None, body):
            pass
        async for piece in self._served(None, body):
            await self._client.send(piece)

    async def _deliver_late(self, behind: str) -> None:
        body = b"".join([piece async for piece in self._client.pieces(self._head.length)])
        delivered = self._proxy.late[behind] = asyncio.Event()
        self._client.reset()
        await self._proxy.came[behind].wait()
        async for _ in self._served(None, body):
            pass
        delivered.set()
        raise EndedError

    async def _pass(self, action: f.Action | None) -> None:
        if isinstance(action, f.Rate):
            self._client.narrow(SLOW_WINDOW)
        async for piece in self._served(action):
            await self._client.send(piece)

    async def _served(self, action: f.Action | None, body: bytes | None = None) -> AsyncIterator[bytes]:
        """The server's answer to this request, whose body is the client's or the given one; as it comes."""
        server = await self._proxy.connect()
        try:
            await self._deliver(server, action, body)
            head = await server.head()
            yield head.raw
            async for piece in self._content(server, head):
                yield piece
        finally:
            server.close()

    async def _deliver(self, server: Peer, action: f.Action | None, body: bytes | None) -> None:
        """A server that answers before the body's end may take nothing more: the rest is read all the same."""
        taken = True
        flipped = self._chance.randrange(max(1, self._head.length)) if isinstance(action, f.FlipBit) else -1
        await server.send(self._forwarded())
        async for piece in self._client.pieces(self._head.length) if body is None else _one(body):
            if isinstance(action, f.Rate):
                await self._proxy.turn(len(piece), action.bytes_per_s)
            passed = self._flipped(piece, flipped) if 0 <= flipped < len(piece) else piece
            flipped -= len(piece)
            if taken:
                try:
                    await server.send(passed)
                except OSError:
                    taken = False

    def _flipped(self, piece: bytes, at: int) -> bytes:
        return piece[:at] + bytes([piece[at] ^ 1 << self._chance.randrange(8)]) + piece[at + 1 :]

    async def _content(self, server: Peer, head: Head) -> AsyncIterator[bytes]:
        if self._head.first[0] == "HEAD" or int(head.first[1]) in BODILESS:
            return
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                line = await server.reader.readuntil(b"\r\n")
                yield line
                size = int(line.partition(b";")[0], 16)
                async for piece in server.pieces(size + 2):
                    yield piece
                if size == 0:
                    return
        async for piece in server.pieces(head.length):
            yield piece

    def _forwarded(self) -> bytes:
        """The request's head without what is between the client and this proxy alone."""
        lines = self._head.raw.removesuffix(HEAD_END).split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(b"expect:")]
        return b"\r\n".join(kept) + HEAD_END


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body
