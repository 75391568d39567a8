"""The Unix socket: connections, peer credentials, frames and descriptors. What a message means is flow/serve.py's.

Raw sockets with `add_reader` and `recvmsg`, because stream APIs drop descriptors without a word. `recv_fds` is not
used: it ignores MSG_CMSG_CLOEXEC.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ml_dash import messages
from ml_dash.errors import Code, MLDashError, ProtocolError
from ml_dash.messages import Failed, Hello, Message
from ml_dash.wire import MAX_DESCRIPTORS, Decoder, Frame
from ml_dashd.edge import listening
from ml_dashd.ports import Clock, Service, Session

log = logging.getLogger("ml_dashd.socket")

RECEIVE_BYTES = 256 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
QUEUED_FRAMES = 4
"""Requests of one connection that wait; then it is not read from, and the client's send blocks."""
SEND_TIMEOUT_S = 30.0
"""A peer that does not take its reply for this long is dropped."""
BACKLOG = 512
ACCEPT_PAUSE_S = 0.1
"""After a failed accept (out of descriptors, say): others may be closed meanwhile."""
_RECEIVED = memoryview(bytearray(RECEIVE_BYTES))
"""Where every read goes, and from there into its connection's decoder: all reads are the loop's."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect: these uids, through a socket of this mode, so many at once."""

    uids: frozenset[int]
    mode: int
    max_connections: int


class SocketServer:
    """Listens at a path, for the uids that may; or at a socket that somebody else has made and goes on to own."""

    def __init__(
        self, path: Path, service: Service, clock: Clock, access: Access, passed: socket.socket | None = None
    ) -> None:
        self._passed = passed
        self._path = path
        self._clock = clock
        self._service = service
        self._access = access
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._numbers = 0
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        """Listens. A socket file that nobody listens on any more is replaced; raises CONFIG for any other."""
        listener = self._passed or self._bind()
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="accept")

    def _bind(self) -> socket.socket:
        listener = listening.bind(self._path, self._access.mode, "daemon.socket")
        listener.listen(BACKLOG)
        return listener

    async def stop(self) -> None:
        """Stops listening, lets the requests in hand be answered, and ends the connections."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            if self._passed is None:
                listening.leave(self._path)
        for connection in self._connections.values():
            connection.finish()
        if self._connections:
            _, late = await asyncio.wait(list(self._connections), timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as failure:
                log.warning("accept_failed", extra={"error": failure})
                await self._clock.sleep(ACCEPT_PAUSE_S)
                continue
            self._admit(peer)

    def _admit(self, peer: socket.socket) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        self._numbers += 1
        session = Session(self._numbers, uid, pid)
        refusal = None
        if uid not in self._access.uids:
            refusal = Failed(request=0, code=Code.ACCESS_DENIED, message=f"uid {uid} may not use this daemon")
        elif len(self._connections) >= self._access.max_connections:
            refusal = Failed(
                request=0,
                code=Code.RETRY_LATER,
                message=f"{self._access.max_connections} connections are open already",
            )
        if refusal is not None:
            log.info("connection_refused", extra={"uid": uid, "pid": pid, "code": refusal.code})
            with suppress(OSError):
                peer.send(messages.encode(refusal))
            peer.close()
            return
        connection = Connection(peer, session, self._service)
        task = asyncio.create_task(connection.serve(), name=f"connection {self._numbers}")
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)


class _HungUpError(ConnectionError):
    """The peer has gone in the middle of its request."""


class Connection:
    """One client. Its requests are answered one after the other, in their order."""

    def __init__(self, peer: socket.socket, session: Session, service: Service) -> None:
        peer.setblocking(False)
        self._socket = peer
        self._session = session
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(messages.REQUEST_LIMITS)
        self._frames: deque[Frame] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._reading = False
        self._failure: ProtocolError | None = None

    def finish(self) -> None:
        """No more requests are taken; those that have arrived are answered."""
        self._ended = True
        self._pause()
        self._arrived.set()

    async def serve(self) -> None:
        """Until the peer hangs up or breaks the protocol."""
        try:
            self._resume()
            greeted = False
            while (frame := await self._next()) is not None:
                await self._answer(frame, greeted=greeted)
                greeted = True
            if self._failure is not None:
                raise self._failure
        except ProtocolError as broken:
            log.warning("protocol_error", extra={"pid": self._session.pid, "error": broken.message})
            await self._say_goodbye(broken)
        except (OSError, TimeoutError) as lost:
            log.debug("connection_lost", extra={"pid": self._session.pid, "error": lost})
        finally:
            self._close()

    async def _answer(self, frame: Frame, *, greeted: bool) -> None:
        try:
            if not greeted and frame.kind != Hello.kind:
                raise ProtocolError(Code.PROTOCOL, "the first message is not Hello")
            message = messages.decode(frame, messages.REQUESTS)
            descriptors = frame.descriptors
            reply, attached = await self._handle(message, descriptors)
            await self._send(reply, attached)
        finally:
            _close(frame.descriptors)

    async def _handle(self, message: Message, descriptors: Sequence[int]) -> tuple[Message, Sequence[int]]:
        try:
            return await self._service.handle(self._session, message, descriptors, self._report)
        except _HungUpError:
            raise
        except MLDashError as refused:
            return _failed(message, refused), ()
        except Exception as defect:
            name = type(message).__name__
            log.exception("request_failed", extra={"kind": name})
            return _failed(message, MLDashError(Code.INTERNAL, f"{name} failed: {defect!r}")), ()

    # ---- reading

    async def _next(self) -> Frame | None:
        while not self._frames:
            if self._ended:
                return None
            self._resume()
            self._arrived.clear()
            await self._arrived.wait()
        return self._frames.popleft()

    def _resume(self) -> None:
        if not self._reading and not self._ended:
            self._loop.add_reader(self._socket.fileno(), self._readable)
            self._reading = True

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._socket.fileno())
            self._reading = False

    def _readable(self) -> None:
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [_RECEIVED], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.finish()
            return
        received = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            _close(received)
            self._break(ProtocolError(Code.PROTOCOL, f"more than {MAX_DESCRIPTORS} descriptors, or none left here"))
            return
        try:
            self._frames.extend(self._decoder.feed(_RECEIVED[:count], received))
        except ProtocolError as broken:
            self._break(broken)
            return
        if not count:
            self.finish()
        elif len(self._frames) >= QUEUED_FRAMES:
            self._pause()
        self._arrived.set()

    def _break(self, broken: ProtocolError) -> None:
        self._failure = broken
        self.finish()

    # ---- writing

    async def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        data = memoryview(messages.encode(message, len(descriptors)))
        sent = 0
        if descriptors:
            sent = await self._send_with(data, descriptors)
        elif len(data) <= RECEIVE_BYTES:
            with suppress(BlockingIOError):
                sent = self._socket.send(data)
        if sent < len(data):
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._loop.sock_sendall(self._socket, data[sent:])

    async def _report(self, message: Message) -> None:
        """What comes before the reply. A peer that is gone ends the request, and is no defect of it."""
        try:
            await self._send(message)
        except (OSError, TimeoutError) as lost:
            raise _HungUpError(str(lost)) from None

    async def _send_with(self, data: memoryview, descriptors: Sequence[int]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        while True:
            try:
                return self._socket.sendmsg([data], rights)
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._socket.fileno(), _settle, ready)
        try:
            await asyncio.wait_for(ready, SEND_TIMEOUT_S)
        finally:
            self._loop.remove_writer(self._socket.fileno())

    async def _say_goodbye(self, broken: ProtocolError) -> None:
        with suppress(OSError, TimeoutError):
            await self._send(Failed(request=0, code=broken.code, message=broken.message, hint=broken.hint))

    def _close(self) -> None:
        self._ended = True
        self._pause()
        _close(self._decoder.take_descriptors())
        for frame in self._frames:
            _close(frame.descriptors)
        self._frames.clear()
        self._socket.close()
        self._service.disconnected(self._session)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return received.tolist()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _failed(message: Message, refused: MLDashError) -> Failed:
    return Failed(
        request=message.request,
        code=refused.code,
        message=refused.message[:8000],
        hint=(refused.hint or "")[:8000],
    )
