"""An HTTP proxy on loopback that takes S3's requests whole and may change, refuse or answer them."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

TIMEOUT_S = 60


@dataclass
class Request:
    """What a client sent. `operation` is S3's name of it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    operation: str = ""

    def __post_init__(self) -> None:
        self.operation = _operation(self.method, self.target, self.headers)


@dataclass
class Answer:
    """What a client gets."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def refusal(status: int, code: str) -> Answer:
    """S3's error of that code."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml"}, body)


class MeddlingProxy:
    """Passes everything through but for what `before` changes or answers itself, and `after` changes in the answer.

    `seen` has the operations, in order.
    """

    def __init__(
        self,
        endpoint: str,
        before: Callable[[Request], Answer | None] = lambda _: None,
        after: Callable[[Request, Answer], None] = lambda _, __: None,
    ) -> None:
        self.seen: list[str] = []
        server = urlsplit(endpoint).netloc
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers.items()), body)
                seen.append(request.operation)
                answer = before(request)
                if answer is None:
                    answer = _pass_on(server, request)
                    after(request, answer)
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "content-length" not in {name.lower() for name in answer.headers}:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 the names are http.server's

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def _pass_on(server: str, request: Request) -> Answer:
    connection = http.client.HTTPConnection(server, timeout=TIMEOUT_S)
    try:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        connection.request(request.method, request.target, request.body or None, headers)
        answer = connection.getresponse()
        left_out = ("connection", "transfer-encoding")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in left_out}
        return Answer(answer.status, kept, answer.read())
    finally:
        connection.close()


def _operation(method: str, target: str, headers: dict[str, str]) -> str:
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    copied = any(name.lower() == "x-amz-copy-source" for name in headers)
    if parts.path.strip("/").count("/") == 0:
        return "ListMultipartUploads" if "uploads" in query else "HeadBucket" if method == "HEAD" else "ListObjectsV2"
    part = "uploadId" in query
    return {
        "HEAD": "HeadObject",
        "GET": "ListParts" if part else "GetObject",
        "DELETE": "AbortMultipartUpload" if part else "DeleteObject",
        "POST": "CompleteMultipartUpload" if part else "CreateMultipartUpload",
        "PUT": ("UploadPartCopy" if part else "CopyObject") if copied else ("UploadPart" if part else "PutObject"),
    }[method]
