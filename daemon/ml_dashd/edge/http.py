"""Health, readiness, metrics and a page of status over HTTP, for probes and scrapers on this machine. It only reads.

One small request a connection, in bounded time: a slow or hostile client costs one of few connections, and no more.
What answers is loaded for the first who asks: a daemon that nobody watches does without.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ml_dash.errors import Code, error
from ml_dashd.core.listen import Listen
from ml_dashd.core.model import Trouble
from ml_dashd.edge import listening

if TYPE_CHECKING:
    from ml_dashd.edge.http_pages import Pages

log = logging.getLogger("ml_dashd.http")

MAX_CONNECTIONS = 32
BACKLOG = 128
MAX_REQUEST_BYTES = 16 * 1024
"""Of one connection, whatever it says: a probe's request has some hundred bytes."""
DEADLINE_S = 15.0
"""From connect to the last byte of the answer; the answers themselves are ready within five seconds."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Observed(Protocol):
    """What is asked of the daemon. Each answers within a bounded time."""

    async def health(self) -> Mapping[str, Trouble]:
        """Why it should be started again, by what says so; empty while all is well."""

    async def ready(self) -> Mapping[str, Trouble]:
        """Why files that are handed over now are refused, or wait; by the name of the check that says so."""

    async def metrics(self) -> bytes:
        """Prometheus' text format."""

    async def status(self) -> Mapping[str, Any]:
        """How it does, as core/overview.py says."""


class HttpServer:
    """Serves /healthz, /readyz, /metrics, and how it does at / and /status.json. `mode` is that of a Unix socket."""

    def __init__(self, listen: Listen, mode: int, observed: Observed) -> None:
        self._listen = listen
        self._mode = mode
        self._observed = observed
        self._listener: socket.socket | None = None
        """Until the first connection comes."""
        self._beginning: asyncio.Task[None] | None = None
        self._pages: Pages | None = None
        self._answer: Callable[[], asyncio.Protocol] | None = None
        self._server: asyncio.Server | None = None
        self._open: dict[_Guarded, None] = {}
        """In the order in which they came."""

    async def start(self) -> None:
        """Binds and listens; raises CONFIG where something else does, ImportError where aiohttp is not installed."""
        if find_spec("aiohttp") is None:  # sooner said than when somebody asks
            raise ModuleNotFoundError("No module named 'aiohttp'")
        if self._listen.path:
            listener = listening.bind(Path(self._listen.path), self._mode, "http.listen")
        else:
            listener = _bind_loopback(self._listen)
        listener.listen(BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._first_has_come, listener)

    async def stop(self) -> None:
        """Stops listening, and lets the answers in hand be sent, for a second. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            self._leave()
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._leave()
        self._answer = None
        pages, self._pages = self._pages, None
        if pages is not None:
            await pages.end()
        for connection in list(self._open):
            connection.cut()

    def _leave(self) -> None:
        if self._listen.path:
            listening.leave(Path(self._listen.path))

    # ---- the first who asks

    def _first_has_come(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)
        self._listener = None
        self._beginning = asyncio.create_task(self._begin(listener), name="http")

    async def _begin(self, listener: socket.socket) -> None:
        """Whoever connects meanwhile waits in the socket's queue."""
        try:
            made = await asyncio.to_thread(_load)
            self._pages = pages = made(self._observed, self._has_asked, by_name=bool(self._listen.host))
            self._answer = await pages.begin()
            loop = asyncio.get_running_loop()
            listen = loop.create_unix_server if self._listen.path else loop.create_server
            self._server = await listen(self._admit, sock=listener, backlog=BACKLOG, start_serving=False)
            await self._server.start_serving()
        except Exception:
            log.exception("http_failed", extra={"path": ""})
        finally:
            if self._server is None:
                listener.close()  # refused is sooner known than not answered
                self._leave()

    # ---- connections

    def _admit(self) -> asyncio.BaseProtocol:
        if self._answer is None or not self._has_room():
            return _Refused()
        return _Guarded(self._answer(), self._open)

    def _has_room(self) -> bool:
        """Whether there is room for one more; the oldest that has not finished its request makes it, if need be."""
        if len(self._open) < MAX_CONNECTIONS:
            return True
        oldest = next((one for one in self._open if not one.asked), None)
        if oldest is not None:
            oldest.cut()
        return oldest is not None

    def _has_asked(self, protocol: asyncio.Protocol) -> None:
        for one in self._open:
            one.note(protocol)


def _load() -> type[Pages]:
    from ml_dashd.edge.http_pages import Pages  # noqa: PLC0415 most daemons are never asked

    return Pages


def _bind_loopback(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((listen.host, listen.port))
    except OSError as failure:
        listener.close()
        raise error(
            Code.CONFIG,
            f"http.listen: {listen.host} port {listen.port} can't be listened on: {failure.strerror}",
            "give http.listen another port",
        ) from None
    return listener


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast("asyncio.Transport", transport)
        with suppress(OSError):
            wire.write(BUSY)
        wire.close()


class _Guarded(asyncio.Protocol):
    """A connection's bounds, around aiohttp's protocol, which has none for a first request that does not come."""

    def __init__(self, inner: asyncio.Protocol, opened: dict[_Guarded, None]) -> None:
        self.asked = False
        """Whether its request has come whole."""
        self._inner = inner
        self._opened = opened
        self._received = 0
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None

    def note(self, protocol: asyncio.Protocol) -> None:
        """A request has come whole: maybe this connection's."""
        self.asked = self.asked or protocol is self._inner

    def cut(self) -> None:
        """Ends it at once."""
        self._opened.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._late = asyncio.get_running_loop().call_later(DEADLINE_S, self.cut)
        self._opened[self] = None
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_REQUEST_BYTES:
            self.cut()
        else:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, failure: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._opened.pop(self, None)
        self._transport = None
        self._inner.connection_lost(failure)
