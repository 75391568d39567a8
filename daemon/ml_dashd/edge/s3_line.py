"""HTTP/1.1 for what is stored: one request, one answer, on a connection that is kept.

aiohttp takes 0.17 ms of CPU for a request whose body is at hand; this takes 0.02: of thousands of small files that is
most of what sending them costs. Large bodies go by threads (s3_bulk.py), over connections that are kept the same way.
What needs more than that (a proxy, an answer to be streamed) is aiohttp's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from socket import socket
from typing import Generic, Protocol, Self, TypeVar

import aiohappyeyeballs

from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.s3_client import CONNECT_TIMEOUT_S, DATA_READ_TIMEOUT_S, Origin, make_socket
from ml_dashd.edge.s3_reply import Replies, Reply, early

IDLE_S = 15.0
"""A connection that nobody used for so long is ended, as aiohttp does: most servers do it after 20 s to 60 s."""

NOTHING = memoryview(b"")


def request(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes out, with as much of its body as is given. Raises ValueError where a header would be two."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers):
        raise ValueError("a header holds a line's end")
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Kept(Protocol):
    """A connection that can be used again."""

    idle_since: float
    silent: bool
    """Whether nothing has come of the answer, and it ended: then the request may be repeated elsewhere."""

    @property
    def usable(self) -> bool:
        """Whether another request may follow."""
        ...

    def close(self) -> None:
        """Ends it in good order."""
        ...


L = TypeVar("L", bound=Kept)
Lost = Callable[[L], None]
"""Told of a connection that has ended."""
Begin = Callable[[socket, Origin, Lost[L]], Awaitable[L]]
"""Makes a connection of a socket that is connected. Raises OSError."""


class Line(asyncio.Protocol):
    """One connection: a request that is at hand whole, its answer, and then the next."""

    def __init__(self, content_bytes: int, lost: Lost[Line]) -> None:
        self._loop = asyncio.get_running_loop()
        self._replies = Replies(content_bytes)
        self._lost = lost
        self._answer: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport
        self._ended = False
        self.idle_since = 0.0
        self.silent = True

    @classmethod
    async def begin(cls, content_bytes: int, socket: socket, origin: Origin, lost: Lost[Line]) -> Self:
        """On a socket that is connected. Raises OSError."""
        name = origin.host if origin.tls else None
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: cls(content_bytes, lost), sock=socket, ssl=origin.tls, server_hostname=name
        )
        return line

    @property
    def usable(self) -> bool:
        return self._replies.more and not self._ended

    async def ask(self, request: bytes, body: memoryview = NOTHING) -> Reply:
        """Raises ConnectionError where the connection ends first, or says nothing. Whoever gives up ends it.

        `body` is what follows the request, without a copy: it stays as it is until the answer is there.
        """
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        self.silent = True
        self._transport.writelines((request, body) if body else (request,))
        # asyncio.timeout takes four times as long.
        patience = self._loop.call_later(DATA_READ_TIMEOUT_S, self._give_up)
        try:
            return await answer
        except BaseException:
            self._abort()
            raise
        finally:
            patience.cancel()
            # Nobody waits for it any more, and a failure that is kept in it would hold itself by this frame.
            self._answer = None
            del answer

    def close(self) -> None:
        self._ended = True
        self._transport.close()

    def _abort(self) -> None:
        """Ends it at once, whatever is on its way."""
        self._ended = True
        self._transport.abort()

    # ---- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.silent = False
        try:
            self._answered(self._replies.feed(data))
        except ConnectionError as broken:
            self._fail(broken)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._lost(self)
        replies = self._replies.end()
        if exc is None:
            self._answered(replies)
        self._fail(exc or ConnectionError("the server has hung up"))

    def _answered(self, replies: list[Reply]) -> None:
        for reply in replies:
            if self._answer is None or self._answer.done():
                self._abort()  # nobody has asked
            elif self._transport.get_write_buffer_size():
                self._early(self._answer, reply)
            else:
                self._answer.set_result(reply)

    def _early(self, answer: asyncio.Future[Reply], reply: Reply) -> None:
        """The rest of the body would be the next request."""
        self._abort()
        try:
            answer.set_result(early(reply))
        except ConnectionError as nothing:
            self._fail(nothing)

    def _give_up(self) -> None:
        self.silent = False
        self._fail(ConnectionError(f"no answer within {DATA_READ_TIMEOUT_S} s"))

    def _fail(self, failure: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(failure)


class Lines(Generic[L]):
    """Connections to one origin at a time, of the kind that `begin` makes."""

    def __init__(self, begin: Begin[L]) -> None:
        self._begin = begin
        self._origin: Origin | None = None
        self._all: set[L] = set()
        self._idle: list[L] = []
        self._tidying: asyncio.TimerHandle | None = None

    async def ask(self, origin: Origin, by: Callable[[L], Awaitable[Reply]]) -> Reply:
        """Sends an idempotent request. Raises StoreError where no connection comes about, ConnectionError later.

        A server may end a kept connection in the moment in which it is used: then the request goes on another.
        """
        if origin != self._origin:
            self._end_idle()
            self._origin = origin
        while self._idle:
            line = self._idle.pop()
            try:
                return await self._ask(line, origin, by)
            except ConnectionError:
                if not line.silent:
                    raise
        return await self._ask(await self._connect(origin), origin, by)

    def close(self) -> None:
        """Ends all connections. What is asked afterwards begins new ones. Idempotent."""
        self._end_idle()
        for line in [*self._all]:
            line.close()

    async def _ask(self, line: L, origin: Origin, by: Callable[[L], Awaitable[Reply]]) -> Reply:
        reply = await by(line)
        if line.usable and origin == self._origin:  # it may have turned out to be elsewhere meanwhile
            self._keep(line)
        else:
            line.close()
        return reply

    def _keep(self, line: L) -> None:
        loop = asyncio.get_running_loop()
        line.idle_since = loop.time()
        self._idle.append(line)
        if self._tidying is None:
            self._tidying = loop.call_later(IDLE_S, self._tidy)

    def _tidy(self) -> None:
        """Ends those that were idle for long: the first in the list, for the last one is used first."""
        loop = asyncio.get_running_loop()
        self._tidying = None
        while self._idle and self._idle[0].idle_since + IDLE_S <= loop.time():
            self._idle.pop(0).close()
        if self._idle:
            self._tidying = loop.call_at(self._idle[0].idle_since + IDLE_S, self._tidy)

    def _end_idle(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None
        idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _forget(self, line: L) -> None:
        self._all.discard(line)
        if line in self._idle:
            self._idle.remove(line)

    async def _connect(self, origin: Origin) -> L:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await loop.getaddrinfo(origin.host, origin.port, type=1, proto=6)  # SOCK_STREAM, TCP
                socket = await aiohappyeyeballs.start_connection(
                    found, happy_eyeballs_delay=0.25, socket_factory=make_socket
                )
                line = await self._begin(socket, origin, self._forget)
        except ssl.SSLCertVerificationError as refused:
            raise StoreError(Fault.UNTRUSTED, f"{origin.host}:{origin.port}: {refused}") from refused
        except OSError as failure:  # TimeoutError and SSLError are
            what = str(failure) or f"no connection within {CONNECT_TIMEOUT_S} s"
            raise StoreError(Fault.UNREACHABLE, f"{origin.host}:{origin.port}: {what}") from failure
        self._all.add(line)
        return line
