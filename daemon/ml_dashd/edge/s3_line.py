"""HTTP/1.1 for what is stored: one request, one answer, on a connection that is kept.

aiohttp takes 0.17 ms of CPU for a request whose body is at hand, and 0.4 for one of 1 MiB; this takes 0.02 and 0.1: of
thousands of small files that is most of what sending them costs. What needs more than that (a proxy, an answer to be
streamed) is aiohttp's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import aiohappyeyeballs
import httptools

from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.s3_client import CONNECT_TIMEOUT_S, DATA_READ_TIMEOUT_S, Origin, make_socket

IDLE_S = 15.0
"""A connection that nobody used for so long is ended, as aiohttp does: most servers do it after 20 s to 60 s."""
HEADERS = 128
"""More than any answer of S3 has."""
FIRST_FINAL = 200
"""What is below is said before the answer."""


Pieces = Callable[[], AsyncIterator[memoryview]]
"""A body that follows its request piece by piece; from its start each time it is called."""


class Reply(NamedTuple):
    """An answer; names of headers are in lower case. Of a content that is too long the start."""

    status: int
    headers: dict[str, str]
    content: bytes


def request(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes out, with as much of its body as is given. Raises ValueError where a header would be two."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers):
        raise ValueError("a header holds a line's end")
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Line(asyncio.Protocol):
    """One connection: a request, its answer, and then the next."""

    def __init__(self, content_bytes: int, lost: Callable[[Line], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._content_bytes = content_bytes
        self._lost = lost
        self._answer: asyncio.Future[Reply] | None = None
        self._headers: dict[str, str] = {}
        self._content = b""
        self._unframed = False
        self._transport: asyncio.Transport
        self._full: asyncio.Future[None] | None = None
        """While the transport takes no more: until it does, or nobody wants it to."""
        self.idle_since = 0.0
        self.usable = True
        """Whether another request may follow."""
        self.silent = True
        """Whether nothing has come of the answer, and it ended: then the request may be repeated elsewhere."""

    async def ask(self, request: bytes, pieces: Pieces | None = None) -> Reply:
        """Raises ConnectionError where the connection ends first, or says nothing. Whoever gives up ends it."""
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        self.silent = True
        self._transport.write(request)
        try:
            if pieces is not None:
                await self._stream(pieces(), answer)
            # asyncio.timeout takes four times as long.
            patience = self._loop.call_later(DATA_READ_TIMEOUT_S, self._give_up)
            try:
                return await answer
            finally:
                patience.cancel()
        except BaseException:
            self.abort()
            raise
        finally:  # nobody waits for it any more, and a failure that is kept in it would hold itself by this frame
            self._answer = None
            del answer

    async def _stream(self, pieces: AsyncIterator[memoryview], answer: asyncio.Future[Reply]) -> None:
        """Gives a body to the transport as fast as it takes it. An answer that comes first is a refusal, or nothing."""
        async for piece in pieces:
            if answer.done():
                self.abort()  # the rest of the body would be taken for the next request
                if answer.exception() is None and answer.result().status == FIRST_FINAL:
                    raise ConnectionError("the server has answered before it had the whole body")
                return
            self._transport.write(piece)
            if self._full is not None:
                await self._full

    def close(self) -> None:
        """Ends it in good order."""
        self.usable = False
        self._transport.close()

    def abort(self) -> None:
        """Ends it at once, whatever is on its way."""
        self.usable = False
        self._transport.abort()

    # ---- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def pause_writing(self) -> None:
        self._full = self._loop.create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as broken:
            self._fail(ConnectionError(f"the answer is not HTTP: {broken}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._lost(self)
        if exc is None and self._unframed:
            self.on_message_complete()
        self._fail(exc or ConnectionError("the server has hung up"))
        self.resume_writing()
        del self._parser  # it holds this line, and nothing comes any more

    def _give_up(self) -> None:
        self.silent = False
        self._fail(ConnectionError(f"no answer within {DATA_READ_TIMEOUT_S} s"))

    def _fail(self, failure: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(failure)

    # ---- for the parser

    def on_message_begin(self) -> None:
        self._headers, self._content, self._unframed = {}, b"", False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) < HEADERS:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Where nothing says how long the content is, it ends with the connection."""
        self._unframed = not {"content-length", "transfer-encoding"} & self._headers.keys()

    def on_body(self, body: bytes) -> None:
        self._content += body[: self._content_bytes - len(self._content)]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < FIRST_FINAL:
            return
        self._unframed = False
        self.usable = self.usable and self._parser.should_keep_alive()
        if self._answer is None or self._answer.done():
            self.abort()  # nobody has asked
        else:
            self._answer.set_result(Reply(status, self._headers, self._content))
            self.resume_writing()  # one that answers too early may never take the rest


class Lines:
    """Connections to one origin at a time. `content_bytes` is as much as is kept of an answer."""

    def __init__(self, content_bytes: int) -> None:
        self._content_bytes = content_bytes
        self._origin: Origin | None = None
        self._all: set[Line] = set()
        self._idle: list[Line] = []
        self._tidying: asyncio.TimerHandle | None = None

    async def ask(self, origin: Origin, request: bytes, pieces: Pieces | None = None) -> Reply:
        """Sends an idempotent request. Raises StoreError where no connection comes about, ConnectionError later.

        A server may end a kept connection in the moment in which it is used: then the request goes on another.
        """
        if origin != self._origin:
            self._end_idle()
            self._origin = origin
        while self._idle:
            line = self._idle.pop()
            try:
                return await self._ask(line, origin, request, pieces)
            except ConnectionError:
                if not line.silent:
                    raise
        return await self._ask(await self._connect(origin), origin, request, pieces)

    def close(self) -> None:
        """Ends all connections. What is asked afterwards begins new ones. Idempotent."""
        self._end_idle()
        for line in [*self._all]:
            line.close()

    async def _ask(self, line: Line, origin: Origin, request: bytes, pieces: Pieces | None) -> Reply:
        reply = await line.ask(request, pieces)
        if line.usable and origin == self._origin:  # it may have turned out to be elsewhere meanwhile
            self._keep(line)
        else:
            line.close()
        return reply

    def _keep(self, line: Line) -> None:
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

    def _forget(self, line: Line) -> None:
        self._all.discard(line)
        if line in self._idle:
            self._idle.remove(line)

    async def _connect(self, origin: Origin) -> Line:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await loop.getaddrinfo(origin.host, origin.port, type=1, proto=6)  # SOCK_STREAM, TCP
                socket = await aiohappyeyeballs.start_connection(
                    found, happy_eyeballs_delay=0.25, socket_factory=make_socket
                )
                name = origin.host if origin.tls else None
                _, line = await loop.create_connection(
                    lambda: Line(self._content_bytes, self._forget), sock=socket, ssl=origin.tls, server_hostname=name
                )
        except ssl.SSLCertVerificationError as refused:
            raise StoreError(Fault.UNTRUSTED, f"{origin.host}:{origin.port}: {refused}") from refused
        except OSError as failure:  # TimeoutError and SSLError are
            what = str(failure) or f"no connection within {CONNECT_TIMEOUT_S} s"
            raise StoreError(Fault.UNREACHABLE, f"{origin.host}:{origin.port}: {what}") from failure
        self._all.add(line)
        return line
