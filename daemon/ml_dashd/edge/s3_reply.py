"""Answers of HTTP/1.1, as their bytes come: no connection is touched here."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import httptools

HEADERS = 128
"""More than any answer of S3 has."""
FIRST_FINAL = 200
"""What is below is said before the answer."""


class Reply(NamedTuple):
    """An answer; names of headers are in lower case. Of a content that is too long the start."""

    status: int
    headers: dict[str, str]
    content: bytes


def early(reply: Reply) -> Reply:
    """An answer that came before the whole body: a refusal. Raises ConnectionError where it is none: it is nothing."""
    if reply.status == HTTPStatus.OK:
        raise ConnectionError("the server has answered before it had the whole body")
    return reply


class Replies:
    """The answers on one connection. `content_bytes` is as much as is kept of a content."""

    def __init__(self, content_bytes: int) -> None:
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        """None at the end: it holds what it tells."""
        self._content_bytes = content_bytes
        self._headers: dict[str, str] = {}
        self._content = b""
        self._unframed = False
        self._whole: list[Reply] = []
        self.more = True
        """Whether the server takes another request on this connection."""

    def feed(self, data: bytes) -> list[Reply]:
        """What is whole now. Raises ConnectionError where it is not HTTP, or comes after the end."""
        if self._parser is None:
            raise ConnectionError("the connection has ended")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as broken:
            self.more = False
            raise ConnectionError(f"the answer is not HTTP: {broken}") from None
        return self._taken()

    def end(self) -> list[Reply]:
        """What is whole because the server has hung up: an answer that does not say how long it is. Idempotent."""
        self.more = False
        if self._unframed:
            self.on_message_complete()
        self._parser = None
        return self._taken()

    def _taken(self) -> list[Reply]:
        whole, self._whole = self._whole, []
        return whole

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
        if self._parser is None or (status := self._parser.get_status_code()) < FIRST_FINAL:
            return
        self._unframed = False
        self.more = self.more and self._parser.should_keep_alive()
        self._whole.append(Reply(status, self._headers, self._content))
