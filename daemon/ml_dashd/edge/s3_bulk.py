"""Large bodies over HTTP/1.1: a thread sends one from its buffer, without a copy, and waits for the answer.

Python's lock is free while the kernel copies and while OpenSSL encrypts: so many cores send at once as there are
bodies under way, and the loop has time for others. One loop that sends everything ends at 5 GB/s over HTTP and at
1.5 over TLS.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.s3_client import DATA_READ_TIMEOUT_S, Origin
from ml_dashd.edge.s3_line import Lost
from ml_dashd.edge.s3_reply import Replies, Reply, early
from ml_dashd.edge.threads import Pool, unhurried

T = TypeVar("T")

STALL_S = 60.0
"""A body of which nothing could be sent for this long is given up."""
PIECE = 1024 * 1024
"""After so much it is looked whether the server has answered already."""
RECEIVE = 64 * 1024
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: what waits to be sent is thrown away with the connection."""


class BulkLine:
    """One connection. Its thread alone touches the socket, but for `_break`, which wakes it."""

    def __init__(self, peer: socket.socket, content_bytes: int, threads: Pool, lost: Lost[BulkLine]) -> None:
        self._peer = peer
        self._thread = threads.strand()
        self._lost = lost
        self._replies = Replies(content_bytes)
        self._readable, self._either = select.poll(), select.poll()
        self._readable.register(peer, select.POLLIN)
        self._either.register(peer, select.POLLIN | select.POLLOUT)
        self._busy = False
        self._ended = False
        self._broken = False
        """What was sent may wait to be taken, and nobody will."""
        self.idle_since = 0.0
        self.silent = True

    @classmethod
    async def begin(
        cls, content_bytes: int, threads: Pool, peer: socket.socket, origin: Origin, lost: Lost[BulkLine]
    ) -> Self:
        """On a socket that is connected and does not block. Raises OSError."""
        if origin.tls is not None:
            peer = origin.tls.wrap_socket(peer, server_hostname=origin.host, do_handshake_on_connect=False)
        line = cls(peer, content_bytes, threads, lost)
        if isinstance(peer, ssl.SSLSocket):
            await line._run(line._shake_hands, peer)
        return line

    @property
    def usable(self) -> bool:
        return self._replies.more and not self._ended

    async def ask(self, head: bytes, body: memoryview, throttle: Throttle) -> Reply:
        """Sends a request whose body is not empty. Raises ConnectionError where the connection ends first.

        When it returns, or raises, nobody holds the body any more. Whoever gives up ends the connection.
        """
        self.silent = True
        step = throttle.slice_bytes if throttle.capped else len(body)
        try:
            for start in range(0, len(body), step):
                piece = body[start : start + step]
                if throttle.capped:
                    await throttle.take(len(piece))
                last = start + step >= len(body)
                reply = await self._run(self._exchange, b"" if start else head, piece, last)
                if reply is not None:
                    return reply
        except BaseException:
            self._broken = True
            self.close()
            raise
        raise AssertionError("the last piece has an answer")

    def close(self) -> None:
        """Ends it. A thread that is at work with it fails, and closes it then."""
        self._ended = True
        if self._busy:
            self._break()
        else:
            self._close()

    # ---- in the loop

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        """Has the thread do it. A caller that is cancelled breaks it off, and waits until that has happened."""
        self._busy = True
        try:
            return await unhurried(self._thread.submit(work, *args), self._break)
        except BaseException:
            self._ended = self._broken = True
            raise
        finally:
            self._busy = False
            if self._ended:
                self._close()

    def _break(self) -> None:
        """Wakes a thread that waits for the peer. Not SSLSocket's own shutdown: what is sent after that is plain."""
        with suppress(OSError):
            socket.socket.shutdown(self._peer, socket.SHUT_RDWR)

    def _close(self) -> None:
        if self._peer.fileno() < 0:
            return
        if self._broken:
            self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._peer.close()
        self._replies.end()
        self._lost(self)

    # ---- in the thread

    def _shake_hands(self, peer: ssl.SSLSocket) -> None:
        """Its time is the caller's."""
        while True:
            try:
                return peer.do_handshake()
            except ssl.SSLWantReadError:
                self._readable.poll()
            except ssl.SSLWantWriteError:
                self._either.poll()

    def _exchange(self, head: bytes, body: memoryview, last: bool) -> Reply | None:
        """Sends some of a body; the answer, where this is the last of it, or one that came before."""
        if head and self._heard() is not None:
            self.silent = True
            raise ConnectionError("the server has answered before it was asked")
        first = self._send(memoryview(head)) or self._send(body)
        if first is not None:
            return self._early(first)
        return self._answer() if last else None

    def _send(self, data: memoryview) -> Reply | None:
        """Gives bytes to the kernel; an answer that is there before the last of them."""
        at, look_at = 0, PIECE
        while at < len(data):
            if at >= look_at:
                look_at = at + PIECE
                if (first := self._heard()) is not None:
                    return first
            try:
                at += self._peer.send(data[at : at + PIECE])
            except _NOT_NOW:
                if not self._either.poll(STALL_S * 1000):
                    self.silent = False
                    raise ConnectionError(f"the server took nothing for {STALL_S:g} s") from None
                look_at = at
            except OSError as failure:
                if (first := self._heard()) is None:
                    raise ConnectionError(str(failure)) from failure
                return first
        return None

    def _answer(self) -> Reply:
        while (reply := self._heard()) is None:
            if not self._readable.poll(DATA_READ_TIMEOUT_S * 1000):
                self.silent = False
                raise ConnectionError(f"no answer within {DATA_READ_TIMEOUT_S} s")
        return reply

    def _heard(self) -> Reply | None:
        """An answer that is there already. What else the server has said (100 Continue, TLS tickets) is taken in."""
        try:
            while (reply := self._receive()) is None:
                pass
        except _NOT_NOW:
            return None
        return reply

    def _receive(self) -> Reply | None:
        """Takes what comes next; an answer once it is whole. Raises ConnectionError at the connection's end."""
        data = self._peer.recv(RECEIVE)
        replies = self._replies.feed(data) if data else self._replies.end()
        self.silent = self.silent and not data
        if len(replies) > 1:
            self._ended = True  # nobody has asked for the second
        if not data and not replies:
            raise ConnectionError("the server has hung up")
        return replies[0] if replies else None

    def _early(self, reply: Reply) -> Reply:
        """The rest of the body would be the next request."""
        self._ended = self._broken = True
        return early(reply)
