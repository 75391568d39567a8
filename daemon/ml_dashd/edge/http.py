"""Health, readiness and metrics over HTTP, for probes and scrapers on this machine. It only reads.

One small request a connection, in bounded time: a slow or hostile client costs one of few connections, and no more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ml_dash.errors import Code, error
from ml_dashd.core.listen import Listen, is_loopback
from ml_dashd.core.model import Trouble
from ml_dashd.core.redact import redact
from ml_dashd.edge import listening

log = logging.getLogger("ml_dashd.http")

MAX_CONNECTIONS = 32
BACKLOG = 128
MAX_REQUEST_BYTES = 16 * 1024
"""Of one connection, whatever it says: a probe's request has some hundred bytes."""
DEADLINE_S = 15.0
"""From connect to the last byte of the answer; the answers themselves are ready within five seconds."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "ml-dashd"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Observed(Protocol):
    """What is asked of the daemon. Each answers within a bounded time."""

    async def health(self) -> Mapping[str, Trouble]:
        """Why it should be started again, by what says so; empty while all is well."""

    async def ready(self) -> Mapping[str, Trouble]:
        """Why files that are handed over now are refused, or wait; by the name of the check that says so."""

    async def metrics(self) -> bytes:
        """Prometheus' text format."""


class HttpServer:
    """Serves /healthz, /readyz and /metrics. `mode` is that of a Unix socket."""

    def __init__(self, listen: Listen, mode: int, observed: Observed) -> None:
        self._listen = listen
        self._mode = mode
        self._observed = observed
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._open: dict[_Guarded, None] = {}
        """In the order in which they came."""

    async def start(self) -> None:
        """Binds and listens; raises CONFIG where something else does."""
        runner = web.AppRunner(
            self._app(), access_log=None, logger=_theirs(), keepalive_timeout=0, lingering_time=0, shutdown_timeout=1
        )
        await runner.setup()
        self._runner = runner
        loop = asyncio.get_running_loop()
        if self._listen.path:
            listener = listening.bind(Path(self._listen.path), self._mode, "http.listen")
            self._server = await loop.create_unix_server(self._admit, sock=listener, backlog=BACKLOG)
        else:
            listener = _bind_loopback(self._listen)
            self._server = await loop.create_server(self._admit, sock=listener, backlog=BACKLOG)

    async def stop(self) -> None:
        """Stops listening, and lets the answers in hand be sent, for a second. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if self._listen.path:
                listening.leave(Path(self._listen.path))
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for connection in list(self._open):
            connection.cut()

    # ---- connections

    def _admit(self) -> asyncio.BaseProtocol:
        if self._runner is None or self._runner.server is None or not self._has_room():
            return _Refused()
        return _Guarded(cast("asyncio.Protocol", self._runner.server()), self._open)

    def _has_room(self) -> bool:
        """Whether there is room for one more; the oldest that has not finished its request makes it, if need be."""
        if len(self._open) < MAX_CONNECTIONS:
            return True
        oldest = next((one for one in self._open if not one.asked), None)
        if oldest is not None:
            oldest.cut()
        return oldest is not None

    # ---- answers

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._once])
        for path, handler in (
            ("/healthz", self._healthz),
            ("/readyz", self._readyz),
            ("/metrics", self._metrics),
        ):
            app.router.add_get(path, handler, allow_head=False)
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _once(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers one request, whatever becomes of it, and closes."""
        for one in self._open:
            one.note(request)
        try:
            response = await self._answer(request, handler)
        except web.HTTPException as refused:
            refused.force_close()
            raise
        except Exception:
            log.exception("http_failed", extra={"path": request.path})
            response = web.Response(status=500, text="see the daemon's log\n")
        response.force_close()
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._listen.host and not is_loopback(request.host):
            raise web.HTTPMisdirectedRequest
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(await self._observed.health())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(await self._observed.ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._observed.metrics(), headers={"Content-Type": METRICS_TYPE})


def _verdict(troubles: Mapping[str, Trouble]) -> web.Response:
    reasons = [
        {"check": name, "code": trouble.code, "message": redact(trouble.message), "hint": redact(trouble.hint)}
        for name, trouble in troubles.items()
    ]
    return web.json_response({"ok": not reasons, "reasons": reasons}, status=503 if reasons else 200)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


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


def _theirs() -> logging.Logger:
    """The library's log, without the traceback that it has for whatever is no HTTP: who sends it gets a 400."""
    theirs = logging.getLogger("aiohttp.server.ml_dashd")
    theirs.filters = [lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))]
    return theirs


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

    def note(self, request: web.Request) -> None:
        """A request has come whole: maybe this connection's."""
        self.asked = self.asked or request.protocol is self._inner

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
