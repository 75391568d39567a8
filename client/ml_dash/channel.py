"""One socket to a daemon, after connecting: requests out, answers and descriptors in."""

from __future__ import annotations

import array
import os
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

from ml_dash import messages, wire
from ml_dash.errors import Code, error
from ml_dash.messages import Failed, Message, Progress
from ml_dash.reach import daemon_of
from ml_dash.silence import Silence

RECEIVE_BYTES = 64 * 1024
ANCILLARY_BYTES = socket.CMSG_SPACE(4 * wire.MAX_DESCRIPTORS)
OPEN: weakref.WeakSet[Channel] = weakref.WeakSet()
"""Every one of this process, for a child that was forked."""


class Channel:
    """One socket, after connecting; not safe among threads."""

    def __init__(self, peer: socket.socket, silence: Silence) -> None:
        self._socket = peer
        self.daemon = daemon_of(peer)
        self.silence = silence
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._decoder = wire.Decoder(messages.REPLY_LIMITS)
        self._frames: list[wire.Frame] = []
        self._received: list[int] = []
        self._number = 0
        OPEN.add(self)

    def ask(
        self,
        build: Callable[[int], Message],
        descriptors: Sequence[int] = (),
        progress: Callable[[Progress], None] | None = None,
        *,
        keep: bool = False,
    ) -> Message:
        """One request and its answer; request 0 is the daemon's own word before it hangs up.

        Descriptors that come with it are kept for `take_received` only with `keep`.
        """
        self.begin(build, descriptors)
        while isinstance(answer := self.receive(keep=keep), Progress):
            if progress is not None:
                progress(answer)
        return answer

    def has_hung_up(self) -> bool:
        """Whether the daemon has closed its end, as far as that is known here."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def begin(self, build: Callable[[int], Message], descriptors: Sequence[int] = ()) -> None:
        """Sends a request; what is received from here on belongs to it."""
        close_all(self._received)  # nobody took them: Ctrl-C came in between, and they are not the next answer's
        self._received = []
        self._number += 1
        self.silence.heard()
        self._send(_encode(build(self._number), len(descriptors)), descriptors)

    def receive(self, *, keep: bool = False) -> Message:
        """The request's answer, or some Progress before it."""
        while True:
            frame = self._next()
            answer = messages.decode(frame, messages.REPLIES)
            if keep:
                self._received.extend(frame.descriptors)
            else:
                close_all(frame.descriptors)
            if isinstance(answer, Progress):
                return answer
            if answer.request in (self._number, 0):
                if isinstance(answer, Failed) and answer.code == Code.SHUTTING_DOWN:
                    raise error(Code.SHUTTING_DOWN, answer.message)
                return answer

    @property
    def has_more(self) -> bool:
        """Whether a message has arrived that nobody has received yet; poll sees only what comes after it."""
        return bool(self._frames)

    def fileno(self) -> int:
        """The socket's, for poll."""
        return self._socket.fileno()

    def take_received(self) -> list[int]:
        """The descriptors of the last answer, for the caller to close."""
        received, self._received = self._received, []
        return received

    def close(self) -> None:
        close_all(self._decoder.take_descriptors())
        close_all(self._received)
        self._received = []
        self._socket.close()

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        left = memoryview(data)
        try:
            while left:
                try:
                    sent = self._socket.sendmsg([left], rights, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self.silence.look()
                    continue
                left, rights = left[sent:], []
        except BrokenPipeError:
            # The daemon has hung up; it may have said why.
            self._frames.append(self._next())

    def _next(self) -> wire.Frame:
        while not self._frames:
            try:
                count, ancillary, _, _ = self._socket.recvmsg_into(
                    [self._buffer], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self.silence.look()
                continue
            self.silence.heard()
            received = array.array("i")
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
            if not count:
                close_all(received)
                raise EOFError("the connection was closed")
            self._frames.extend(self._decoder.feed(self._buffer[:count], received))
        return self._frames.pop(0)


def _encode(message: Message, descriptors: int) -> bytes:
    try:
        return messages.encode(message, descriptors)
    except UnicodeEncodeError as bad:
        what = f"{bad.object[:120]!r} has an unpaired surrogate"
        raise error(Code.INVALID_PATH, what, "use text that UTF-8 can hold") from None


def close_all(descriptors: Sequence[int] | array.array[int]) -> None:
    """Closes descriptors; one that is closed already is no error."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
