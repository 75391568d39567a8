"""What is answered over HTTP: aiohttp's application, whose import would be a quarter of a daemon's start."""

from __future__ import annotations

import logging
from asyncio import Protocol
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ml_dashd.core.listen import is_loopback
from ml_dashd.core.model import Trouble
from ml_dashd.core.overview import reasons
from ml_dashd.edge import status_page
from ml_dashd.edge.http import Observed

log = logging.getLogger("ml_dashd.http")

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "ml-dashd"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """Answers each connection's one request. `asked` is told whose has come whole.

    `by_name`: only who asks in a name of this machine is answered.
    """

    def __init__(self, observed: Observed, asked: Callable[[Protocol], None], *, by_name: bool) -> None:
        self._observed = observed
        self._asked = asked
        self._by_name = by_name
        self._runner = web.AppRunner(
            self._app(), access_log=None, logger=_theirs(), keepalive_timeout=0, lingering_time=0, shutdown_timeout=1
        )

    async def begin(self) -> Callable[[], Protocol]:
        """What makes the protocol of a connection."""
        await self._runner.setup()
        return cast("Callable[[], Protocol]", self._runner.server)

    async def end(self) -> None:
        """Lets the answers in hand be sent, for a second. Idempotent."""
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._once])
        for path, handler in (
            ("/healthz", self._healthz),
            ("/readyz", self._readyz),
            ("/metrics", self._metrics),
            ("/status.json", self._status),
            ("/", self._page),
        ):
            app.router.add_get(path, handler, allow_head=False)
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _once(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers one request, whatever becomes of it, and closes."""
        if request.protocol is not None:
            self._asked(request.protocol)
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
        if self._by_name and not is_loopback(request.host):
            raise web.HTTPMisdirectedRequest
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(await self._observed.health())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(await self._observed.ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._observed.metrics(), headers={"Content-Type": METRICS_TYPE})

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._observed.status())

    async def _page(self, _: web.Request) -> web.Response:
        page = status_page.as_html(await self._observed.status())
        return web.Response(text=page, content_type="text/html", headers=status_page.HEADERS)


def _verdict(troubles: Mapping[str, Trouble]) -> web.Response:
    return web.json_response({"ok": not troubles, "reasons": reasons(troubles)}, status=503 if troubles else 200)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _theirs() -> logging.Logger:
    """The library's log, without the traceback that it has for whatever is no HTTP: who sends it gets a 400."""
    theirs = logging.getLogger("aiohttp.server.ml_dashd")
    theirs.filters = [lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))]
    return theirs
