"""One client's connection: frames and descriptors in, replies out. What a message means is flow/serve.py's.

Raw sockets with `add_reader` and `recvmsg`, because stream APIs drop descriptors without a word. `recv_fds` is not
used: it ignores MSG_CMSG_CLOEXEC.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from ml_dash import messages
from ml_dash.errors import Code, MLDashError, ProtocolError
from ml_dash.messages import (
    Branch,
    Branched,
    Failed,
    Fetch,
    Hello,
    ListExperiments,
    Message,
    Reconcile,
    Verify,
    Wait,
)
from ml_dash.wire import MAX_DESCRIPTORS, Decoder, Frame
from ml_dashd.ports import Service, Session

log = logging.getLogger("ml_dashd.socket")

RECEIVE_BYTES = 256 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
QUEUED_BYTES = 64 * 1024
"""Of a connection with a whole request and this much waiting no more is read: the client's send blocks. With a request
of the largest kind begun, and a read, it holds at most 1 MiB."""
QUEUED_DESCRIPTORS = 2 * MAX_DESCRIPTORS
"""As QUEUED_BYTES, for descriptors."""
_RECEIVED = memoryview(bytearray(RECEIVE_BYTES))
"""Where every read goes, and from there into its connection's decoder: all reads are the loop's."""


class Host(Protocol):
    """The server, as its connections see it."""

    @property
    def peer_timeout_s(self) -> float:
        """How long a peer may take to say Hello, to finish a frame, to take a reply."""

    def count(self, uid: int, descriptors: int) -> bool:
        """Notes that so many descriptors came from a user, or, below 0, were closed; whether there was room."""

    def branch(self, session: Session) -> socket.socket:
        """The far end of another connection of the session's user, for the caller to close. Raises MLDashError."""

    def worth_a_line(self, event: str, uid: int) -> int | None:
        """How many such events the log was spared since its last line; None to spare it this one."""


class _HungUpError(ConnectionError):
    """The peer has gone in the middle of its request."""


class Connection:
    """One client. Its requests are answered one after the other, in their order."""

    def __init__(self, peer: socket.socket, session: Session, service: Service, host: Host) -> None:
        peer.setblocking(False)
        self._socket = peer
        self._session = session
        self._service = service
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(messages.REQUEST_LIMITS)
        self._arrived = asyncio.Event()
        self._ended = False
        self._reading = False
        self._greeted = False
        self._failure: ProtocolError | None = None
        self._patience: asyncio.TimerHandle | None = None
        """Runs while the peer owes us Hello, or the rest of a frame."""
        self._left: memoryview | None = None
        """Of a reply that was sent early: what the socket did not take."""
        self._waiting: asyncio.Timeout | None = None
        """Ends a request that only waits, once nobody is left to be told."""

    def finish(self) -> None:
        """No more requests are taken; those that have arrived are answered."""
        self._ended = True
        self._pause()
        self._arrived.set()

    async def serve(self) -> None:
        """Until the peer hangs up or breaks the protocol."""
        try:
            self._resume()
            while (frame := await self._next()) is not None:
                await self._answer(frame)
            if self._failure is not None:
                raise self._failure
        except ProtocolError as broken:
            spared = self._host.worth_a_line("protocol_error", self._session.uid)
            if spared is not None:
                about = {
                    "uid": self._session.uid,
                    "pid": self._session.pid,
                    "code": broken.code,
                    "spared": spared,
                    "error": broken.message,
                }
                log.warning("protocol_error", extra=about)
            await self._say_goodbye(broken)
        except (OSError, TimeoutError) as lost:
            log.debug("connection_lost", extra={"pid": self._session.pid, "error": lost})
        finally:
            self._close()

    async def _answer(self, frame: Frame) -> None:
        try:
            if not self._greeted and frame.kind != Hello.kind:
                raise ProtocolError(Code.PROTOCOL, "the first message is not Hello")
            self._greeted = True
            message = messages.decode(frame, messages.REQUESTS)
            if isinstance(message, Branch):
                await self._branch(message)
                return
            reply, attached = await self._handle(message, frame.descriptors)
            left, self._left = self._left, None
            if left is None:
                await self._send(reply, attached)
                return
            if isinstance(reply, Failed):
                log.error("failed_once_answered", extra={"kind": type(message).__name__, "error": reply.message})
            await self._send_all(left)
        finally:
            self._drop(frame.descriptors)

    async def _branch(self, message: Branch) -> None:
        try:
            far_end = self._host.branch(self._session)
        except MLDashError as refused:
            await self._send(_failed(message, refused))
            return
        with far_end:
            await self._send(Branched(request=message.request), [far_end.fileno()])

    async def _handle(self, message: Message, descriptors: Sequence[int]) -> tuple[Message, Sequence[int]]:
        try:
            return await self._ask(message, descriptors)
        except _HungUpError:
            raise
        except MLDashError as refused:
            return _failed(message, refused), ()
        except Exception as defect:
            name = type(message).__name__
            log.exception("request_failed", extra={"kind": name})
            return _failed(message, MLDashError(Code.INTERNAL, f"{name} failed: {defect!r}")), ()

    async def _ask(self, message: Message, descriptors: Sequence[int]) -> tuple[Message, Sequence[int]]:
        """What waits, reads, or is done again, ends when nobody is left to be told; what takes a file in never does."""
        if not isinstance(message, Wait | Fetch | Verify | ListExperiments | Reconcile):
            return await self._service.handle(self._session, message, descriptors, self)
        waiting = self._waiting = asyncio.timeout(None)
        try:
            async with waiting:
                return await self._service.handle(self._session, message, descriptors, self)
        except TimeoutError:
            if waiting.expired():
                raise _HungUpError("the peer hung up while it waited") from None
            raise
        finally:
            self._waiting = None

    # ---- reading

    async def _next(self) -> Frame | None:
        while (frame := self._decoder.pop()) is None:
            if self._ended:
                return None
            self._resume()
            self._arrived.clear()
            await self._arrived.wait()
        return frame

    def _resume(self) -> None:
        if not self._reading and not self._ended:
            self._loop.add_reader(self._socket.fileno(), self._readable)
            self._reading = True
            self._watch()

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._socket.fileno())
            self._reading = False
            self._watch()

    def _watch(self) -> None:
        """Gives the peer its time for what it owes us. That time does not run while we are not listening."""
        owing = self._reading and (self._decoder.unfinished or not (self._greeted or self._decoder.whole_bytes))
        if owing and self._patience is None:
            self._patience = self._loop.call_later(self._host.peer_timeout_s, self._lose_patience)
        elif not owing:
            self._be_patient()

    def _be_patient(self) -> None:
        """What was owed has come."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        owed = "the rest of a frame" if self._decoder.unfinished else "Hello"
        self._break(ProtocolError(Code.PROTOCOL, f"{owed} did not come within {self._host.peer_timeout_s:g} s"))

    def _readable(self) -> None:
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [_RECEIVED], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._gone()
            return
        received = _descriptors(ancillary)
        if (refusal := self._no_room(received, flags)) is not None:
            self._drop(received)
            self._break(refusal)
            return
        whole = self._decoder.whole_bytes
        try:
            self._decoder.push(_RECEIVED[:count], received)
        except ProtocolError as broken:
            self._break(broken)
            return
        if not count:
            self._gone()
        if self._decoder.whole_bytes > whole:
            self._be_patient()
        self._watch()
        if self._is_full():
            self._pause()
        self._arrived.set()

    def _is_full(self) -> bool:
        waiting = self._decoder
        return waiting.whole_bytes > 0 and (
            waiting.size_bytes >= QUEUED_BYTES or waiting.descriptors >= QUEUED_DESCRIPTORS
        )

    def _no_room(self, received: Sequence[int], flags: int) -> ProtocolError | None:
        """Why descriptors that came are not kept. Near the process's limit the kernel lets some of them go."""
        room = not received or self._host.count(self._session.uid, len(received))
        if flags & socket.MSG_CTRUNC and len(received) >= MAX_DESCRIPTORS:
            return ProtocolError(Code.PROTOCOL, f"more than {MAX_DESCRIPTORS} descriptors at once")
        if flags & socket.MSG_CTRUNC or not room:
            return ProtocolError(Code.RETRY_LATER, "the daemon has no room for the descriptors that came")
        return None

    def _break(self, broken: ProtocolError) -> None:
        self._failure = broken
        self.finish()

    def _gone(self) -> None:
        """The end of what the peer says. One that has hung up hears nothing any more, either."""
        self.finish()
        if self._waiting is not None and self._hung_up():
            self._waiting.reschedule(self._loop.time())

    def _hung_up(self) -> bool:
        """Whether the peer has closed its socket, and not only ended what it sends."""
        poller = select.poll()
        poller.register(self._socket, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))

    def _drop(self, descriptors: Sequence[int]) -> None:
        """Closes descriptors that the peer sent."""
        if descriptors:
            _close(descriptors)
            self._host.count(self._session.uid, -len(descriptors))

    # ---- writing

    async def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        data = memoryview(messages.encode(message, len(descriptors)))
        sent = 0
        if descriptors:
            sent = await self._send_with(data, descriptors)
        elif len(data) <= RECEIVE_BYTES:
            with suppress(BlockingIOError):
                sent = self._socket.send(data)
        await self._send_all(data[sent:])

    async def _send_all(self, data: memoryview) -> None:
        if data:
            async with asyncio.timeout(self._host.peer_timeout_s):
                await self._loop.sock_sendall(self._socket, data)

    def early(self, reply: Message) -> Callable[[], None]:
        data = memoryview(messages.encode(reply, 0))

        def send() -> None:
            sent = 0
            with suppress(OSError):  # the loop finds out whether it is full or broken
                sent = self._socket.send(data)
            self._left = data[sent:]

        return send

    async def report(self, message: Message) -> None:
        """A peer that is gone ends the request, and is no defect of it."""
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
            await asyncio.wait_for(ready, self._host.peer_timeout_s)
        finally:
            self._loop.remove_writer(self._socket.fileno())

    async def _say_goodbye(self, broken: ProtocolError) -> None:
        with suppress(OSError, TimeoutError):
            await self._send(Failed(request=0, code=broken.code, message=broken.message, hint=broken.hint))

    def _close(self) -> None:
        self._ended = True
        self._failure = None  # it was raised, so that it holds the frames that it passed, and they hold this
        self._pause()
        self._drop(self._decoder.take_descriptors())
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
