"""An HTTP server that says just what a test has written."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ml_dashd.edge.s3_client import Origin

OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'
BULK = bytes(range(256)) * 64 * 1024
"""16 MiB: more than the buffers of both ends hold."""
Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with the next of `says`; connections are counted, and may be ended."""

    def __init__(self) -> None:
        self.says: list[bytes | Say] = []
        self.asked: list[bytes] = []
        self.connections = 0
        self.came = asyncio.Event()
        self.ended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(
        self,
        bytes_at_once: int = 32 * 1024 * 1024,
        certified: ssl.SSLContext | None = None,
        trusting: ssl.SSLContext | None = None,
    ) -> Origin:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=bytes_at_once, ssl=certified)
        return Origin("127.0.0.1", self._server.sockets[0].getsockname()[1], trusting)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                self.asked.append(await self._request(reader))
                self.came.set()
                say = self.says.pop(0)
                if isinstance(say, bytes):
                    writer.write(say)
                else:
                    await say(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        """A request, to the word with which each of them ends."""
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await reader.readexactly(size)

    def end_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def stop(self) -> None:
        self.end_all()
        self._server.close()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


def ending_with(text: bytes) -> Say:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    return say


@asynccontextmanager
async def peer_that(
    begins: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    certified: ssl.SSLContext | None = None,
) -> AsyncIterator[Origin]:
    """A server that does that with a connection, and then nothing until the test is over."""
    over, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await begins(reader, writer)
        await over.wait()
        writer.transport.abort()
        ended.set()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certified)
    yield Origin("127.0.0.1", listening.sockets[0].getsockname()[1], None)
    over.set()
    await ended.wait()
    listening.close()
