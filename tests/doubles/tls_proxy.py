"""What ends TLS in front of a server that speaks plain HTTP; it stalls when it is told to."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

PIECE = 1 << 18


class TlsProxy:
    """Listens on loopback with a certificate; `open` counts the connections that clients have now."""

    def __init__(self, endpoint: str, certificate: Path, host: str = "localhost") -> None:
        parts = urlsplit(endpoint)
        self._server = (parts.hostname, parts.port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._host = host
        self.open = 0
        self.handshakes = 0
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def stall(self) -> None:
        """Reads nothing more from anybody: clients' windows close. Connections are still taken."""
        asyncio.run_coroutine_threadsafe(self._let(flow=False), self._loop).result(10)

    def go_on(self) -> None:
        asyncio.run_coroutine_threadsafe(self._let(flow=True), self._loop).result(10)

    def wait_for(self, true: Callable[[], bool], timeout: float) -> bool:
        """Whether it has become true, looked at when connections come and go."""
        with self._changed:
            return self._changed.wait_for(true, timeout)

    async def _let(self, *, flow: bool) -> None:
        (self._flows.set if flow else self._flows.clear)()

    async def _run(self) -> None:
        self._loop, self._stop, self._flows = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._flows.set()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except asyncio.CancelledError:
                return  # the double ends; asyncio's streams would log it as a failure
            finally:
                tasks.discard(task)

        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._context, limit=PIECE)
        port = listening.sockets[0].getsockname()[1]
        self.port = port
        self.endpoint = f"https://{self._host}:{port}"
        self._started.set()
        await self._stop.wait()
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count(1)
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._server, limit=PIECE)
            ways: list[Awaitable[None]] = [self._pass(reader, upstream), self._pass(upstream_reader, writer)]
            try:
                await asyncio.gather(*ways)
            except BaseException:
                upstream.transport.abort()  # what it has not taken yet would hold it open
                raise
            upstream.close()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()
            self._count(-1)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._flows.wait()
            piece = await reader.read(PIECE)
            if not piece:
                break
            writer.write(piece)
            await writer.drain()
        with suppress(OSError, ssl.SSLError):
            writer.close()

    def _count(self, change: int) -> None:
        with self._changed:
            self.open += change
            self.handshakes += max(change, 0)
            self._changed.notify_all()
