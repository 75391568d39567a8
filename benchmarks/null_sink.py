"""A null S3 server: benchmarks send to it, so that what they measure is the sender.

    python benchmarks/null_sink.py [--port N] [--verify] [--tls CA_FILE] [--processes N]

Prints its port, listens on loopback alone, and ends when its stdin does. What it answers is in null_store.py.

A body is discarded in the kernel (MSG_TRUNC: it is never copied), or decrypted into one piece of memory over and over,
and the checksum that its sender stated is believed. Bodies up to READ_BYTES are read and verified like a real server's,
because clients find out with small ones what a server can do; with --verify all are. With --tls it makes an authority,
writes its certificate to CA_FILE, and has itself certified for 127.0.0.1 and localhost.

One thread serves all connections: with one each, as many as a client opens would take turns at Python's lock. With
--processes there are several such threads, each in a process of its own (by default one for each four cores): what
many cores send, one can't decrypt.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import select
import socket
import ssl
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from null_share import AskedStore, share
from null_store import CRC64, CRCS, STATED, Answer, Body, NullStore, Refused, Request, encode, parse, refusal, stated

READ_BYTES = 64 * 1024
PIECE = 1024 * 1024
TAIL = 1024
"""The end of an aws-chunked body, in which its trailers are: they are far shorter."""
BACKLOG = 1024
Use = Callable[[memoryview], object]
ROOM = memoryview(bytearray(PIECE))
"""What was received last, on any connection: it is used before anything else is received."""


@types.coroutine
def ready(events: int) -> Generator[int, None, None]:
    """Until the connection can be read from, or written to."""
    yield events


class Connection:
    """One client's connection: its requests, one after the other."""

    def __init__(self, peer: socket.socket, store: NullStore | AskedStore, *, verify: bool) -> None:
        self._peer = peer
        self._store = store
        self._read_limit = sys.maxsize if verify else READ_BYTES
        self._drop = 0 if isinstance(peer, ssl.SSLSocket) else socket.MSG_TRUNC
        self._ahead = bytearray()
        """Received, and not yet used."""

    async def serve(self) -> None:
        with self._peer, suppress(ConnectionError, ssl.SSLError):
            if isinstance(self._peer, ssl.SSLSocket):
                await self._when_ready(self._peer.do_handshake)
            while True:
                if not self._ahead:
                    await ready(select.EPOLLIN)
                request = parse(await self._until(b"\r\n\r\n"))
                try:
                    answer = self._store.answer(request, await self._body(request))
                except Refused as refused:
                    answer = refusal(refused)
                await self._send(answer, bare=request.method == "HEAD")

    async def _send(self, answer: Answer, *, bare: bool) -> None:
        headers = {"Content-Length": str(len(answer.content))} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await self._send_all("\r\n".join(lines).encode() + (b"" if bare else answer.content))

    # ---- bodies

    async def _body(self, request: Request) -> Body:
        headers = request.headers
        if headers.get("expect", "").lower() == "100-continue":
            await self._send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        framed = "transfer-encoding" in headers
        length, end = await self._unframed() if framed else (int(headers.get("content-length", 0)), b"")
        if request.method == "POST":
            return Body(0, stated(headers), await self._exactly(length))
        if length <= self._read_limit:
            self._ahead[:0] = end
            return await self._verified(headers, length)
        chunked = _is_chunked(headers)
        if not framed:
            await self._discard(length - TAIL if chunked else length)
            end = await self._exactly(TAIL) if chunked else b""
        if not chunked:
            return Body(length, stated(headers))
        trailers = dict(map(_field, end[end.rfind(b"\r\n0") :].split(b"\r\n")[2:]))
        return Body(int(headers["x-amz-decoded-content-length"]), stated(headers | trailers))

    async def _unframed(self) -> tuple[int, bytes]:
        """A body in HTTP's own chunks: its length, and all of it, or its end where it is only to be believed."""
        length, end = 0, bytearray()
        while size := int((await self._until(b"\r\n")).partition(b";")[0], 16):
            length += size
            await self._discard(max(0, size - self._read_limit))
            end += await self._exactly(min(size, self._read_limit))
            del end[: -self._read_limit]
            await self._until(b"\r\n")
        while await self._until(b"\r\n"):
            pass
        return length, bytes(end)

    async def _verified(self, headers: dict[str, str], length: int) -> Body:
        """A body that is really read. Raises Refused, after its end, where it is not what its sender says."""
        chunked = _is_chunked(headers)
        announced = headers.get("x-amz-trailer", "").strip().lower().removeprefix(STATED)
        crcs = {name: 0 for name in CRCS if name in (CRC64, announced) or STATED + name in headers}
        md5 = hashlib.md5(usedforsecurity=False) if "content-md5" in headers else None
        size = 0

        def use(piece: memoryview) -> None:
            nonlocal size
            size += len(piece)
            for name, crc in crcs.items():
                crcs[name] = CRCS[name][0](piece, crc)
            if md5 is not None:
                md5.update(piece)

        trailers = await self._chunks(use) if chunked else await self._each(length, use)
        if size != int(headers.get("x-amz-decoded-content-length", size)):
            raise Refused(400, "IncompleteBody")
        body = Body(size, {name: encode(crc, CRCS[name][1]) for name, crc in crcs.items()})
        for name, value in stated(headers | trailers).items():
            if value != body.checksums[name]:
                raise Refused(400, "BadDigest")
        if md5 is not None:
            body.etag = f'"{md5.hexdigest()}"'
            if headers["content-md5"] != base64.b64encode(md5.digest()).decode():
                raise Refused(400, "BadDigest")
        return body

    async def _chunks(self, use: Use) -> dict[str, str]:
        """The content of an aws-chunked body: "size[;signature]", bytes, …, "0"; then its trailers."""
        while size := int((await self._until(b"\r\n")).partition(b";")[0], 16):
            await self._each(size, use)
            await self._until(b"\r\n")
        trailers = {}
        while line := await self._until(b"\r\n"):
            name, value = _field(line)
            trailers[name] = value
        return trailers

    # ---- bytes

    async def _until(self, mark: bytes) -> bytes:
        """What comes before a mark."""
        while (end := self._ahead.find(mark)) < 0:
            count = await self._receive(READ_BYTES)
            self._ahead += ROOM[:count]
        found = bytes(self._ahead[:end])
        del self._ahead[: end + len(mark)]
        return found

    async def _exactly(self, size: int) -> bytes:
        pieces: list[bytes] = []
        await self._each(size, lambda piece: pieces.append(bytes(piece)))
        return b"".join(pieces)

    async def _each(self, size: int, use: Use) -> dict[str, str]:
        """The next bytes, a piece at a time. Such a body has no trailers."""
        first = bytes(self._ahead[:size])
        if first:
            del self._ahead[: len(first)]
            use(memoryview(first))
        left = size - len(first)
        while left:
            count = await self._receive(left)
            use(ROOM[:count])
            left -= count
        return {}

    async def _discard(self, size: int) -> None:
        """Drops the next bytes, in turn with the other connections."""
        left = size - len(self._ahead[:size])
        del self._ahead[:size]
        while left:
            left -= await self._receive(left, self._drop)
            if self._drop and left:
                await ready(select.EPOLLIN)

    async def _receive(self, most: int, flags: int = 0) -> int:
        """Into ROOM. Raises ConnectionError where the client has hung up."""
        count = await self._when_ready(self._peer.recv_into, ROOM, min(most, PIECE), flags)
        if count == 0:
            raise ConnectionError("the client hung up")
        return int(count)

    async def _send_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[await self._when_ready(self._peer.send, left) :]

    async def _when_ready(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                await ready(select.EPOLLIN)
            except ssl.SSLWantWriteError:
                await ready(select.EPOLLOUT)
            except BlockingIOError:
                await ready(select.EPOLLOUT if call == self._peer.send else select.EPOLLIN)


def _is_chunked(headers: dict[str, str]) -> bool:
    return "aws-chunked" in headers.get("content-encoding", "")


def _field(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode("latin-1").partition(":")
    return name.lower(), value.strip()


def serve(listener: socket.socket, begin: Callable[[socket.socket], Coroutine[int, None, None]], stdin: int) -> None:
    """Until stdin ends. `begin` gives a connection's coroutine, which yields what it waits for."""
    poll = select.epoll()
    for number in (listener.fileno(), stdin):
        poll.register(number, select.EPOLLIN)
    running: dict[int, Coroutine[int, None, None]] = {}
    waiting: dict[int, int] = {}
    while True:
        for number, _ in poll.poll():
            if number == stdin:
                if not os.read(stdin, 1):
                    return
            elif number == listener.fileno():
                peer, _ = listener.accept()
                peer.setblocking(False)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                poll.register(number := peer.fileno(), select.EPOLLIN)
                running[number], waiting[number] = begin(peer), select.EPOLLIN
            else:
                try:
                    events = running[number].send(None)
                except StopIteration:  # its socket is closed, so that nobody waits for it any more
                    del running[number], waiting[number]
                    continue
                if events != waiting[number]:
                    waiting[number] = events
                    poll.modify(number, events)


def certified(ca_file: Path) -> ssl.SSLContext:
    """A certificate by an authority of its own, whose certificate is written to a file."""
    import trustme  # not needed without TLS

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(ca_file))
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description="A null S3 server for benchmarks; ends when its stdin does.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--verify", action="store_true", help="read every body and verify its checksums")
    parser.add_argument("--tls", type=Path, metavar="CA_FILE", help="serve HTTPS; the authority goes to this file")
    each_four = max(1, (os.cpu_count() or 1) // 4)
    parser.add_argument("--processes", type=int, default=each_four, help="default: one for each four cores")
    options = parser.parse_args()
    context = certified(options.tls) if options.tls else None
    stdin = sys.stdin.fileno()

    def serving(listener: socket.socket, store: NullStore | AskedStore) -> None:
        def begin(peer: socket.socket) -> Coroutine[int, None, None]:
            if context is not None:
                peer = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
            return Connection(peer, store, verify=options.verify).serve()

        with suppress(KeyboardInterrupt):
            serve(listener, begin, stdin)

    def serving_too(store: AskedStore) -> None:
        with socket.create_server(("127.0.0.1", port), backlog=BACKLOG, reuse_port=True) as another:
            store.ready()
            serving(another, store)

    if options.processes == 1:
        with socket.create_server(("127.0.0.1", options.port), backlog=BACKLOG) as listener:
            print(listener.getsockname()[1], flush=True)
            serving(listener, NullStore())
        return
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", options.port))  # who does not listen gets none of the connections
        port = reserved.getsockname()[1]
        share(options.processes, serving_too, lambda: print(port, flush=True), stdin)


if __name__ == "__main__":
    main()
