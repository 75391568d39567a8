"""A proxy that reads HTTP: it lets a request pass to a server, or answers it by itself; or is a client's own proxy."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "proxy-connection", "proxy-authorization", "keep-alive"}
PIECE = 1 << 18


@dataclass(frozen=True)
class Asked:
    """A request as it came; `headers` have lower-case names, `body` is there for what is no PUT."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What is said in the server's place."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Judge = Callable[[Asked], Answer | None]


def refusal(status: int, code: str, more: str = "", **headers: str) -> Answer:
    """An error as S3 words it."""
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>"
    return Answer(status, text.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


class Gate:
    """Listens on loopback. As a server's front it passes on what `judge` says nothing to.

    As a proxy it takes absolute URLs and CONNECT, and leads all of them to that one server, whatever host they name.
    """

    def __init__(self, endpoint: str, judge: Judge | None = None) -> None:
        parts = urlsplit(endpoint)
        self.server = (parts.hostname or "", parts.port or 80)
        self.judge = judge
        self.asked: list[Asked] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"gate": self}))
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gate: Gate

    def setup(self) -> None:
        super().setup()
        self.upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self.upstream is not None:
            self.upstream.close()

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that is killed
            super().handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, b"" if self.command == "PUT" else body)
        self.gate.asked.append(asked)
        answer = None if self.gate.judge is None else self.gate.judge(asked)
        if answer is None:
            answer = self._pass_on(asked, body)
        self.send_response_only(answer.status)
        length = {} if self.command == "HEAD" and "content-length" in answer.headers else {"content-length": ""}
        for name, value in (answer.headers | length).items():
            self.send_header(name, value or str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _pass_on(self, asked: Asked, body: bytes) -> Answer:
        if self.upstream is None:
            self.upstream = http.client.HTTPConnection(*self.gate.server, timeout=120)
        parts = urlsplit(asked.target)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self.upstream.putrequest(asked.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in asked.headers.items():
            if name not in HOP:
                self.upstream.putheader(name, value)
        self.upstream.endheaders(body)
        answer = self.upstream.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in HOP}
        return Answer(answer.status, answer.read(), headers)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815 the standard library's names

    def do_CONNECT(self) -> None:
        asked = Asked("CONNECT", self.path, {name.lower(): value for name, value in self.headers.items()})
        self.gate.asked.append(asked)
        answer = None if self.gate.judge is None else self.gate.judge(asked)
        self.close_connection = True
        if answer is not None:
            self.send_error(answer.status)
            return
        with socket.create_connection(self.gate.server) as upstream:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join(10)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(piece)
    for peer in (source, sink):
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
