"""A client that sends whatever a test asks for, whole or broken, and shows exactly what comes back."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

from ml_dash import messages, wire
from ml_dash.address import reachable
from ml_dash.messages import Branch, Branched, Hello, Message, Welcome

M = TypeVar("M", bound=Message)

PATIENCE_S = 90.0
"""Longer than a request may ask the daemon to wait: on a busy machine an answer comes when it can."""


class RawClient:
    """One connection. `received` are the descriptors that came with replies; they are closed with it."""

    def __init__(self, path: Path, passed: int | None = None) -> None:
        """At a path, or on a socket that the daemon has passed."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=passed)
        self._socket.settimeout(PATIENCE_S)
        self._decoder = wire.Decoder(messages.REPLY_LIMITS)
        self._frames: list[wire.Frame] = []
        self.received: list[int] = []
        self._number = 0
        if passed is not None:
            return
        with reachable(path) as address:
            self._socket.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self.received:
            os.close(descriptor)
        self.received = []
        self._socket.close()

    def greet(self) -> Self:
        """Says Hello and hears Welcome."""
        self.ask(Welcome, Hello(request=0, min_version=1, max_version=1, client="test"))
        return self

    def branch(self) -> RawClient:
        """Another connection, which the daemon passes through this one; nobody has said Hello on it."""
        self.ask(Branched, Branch(request=8))
        return RawClient(self.path, self.received.pop())

    def ask(self, kind: type[M], message: Message, descriptors: Sequence[int] = ()) -> M:
        """Sends a message and returns the reply, which must be of that kind."""
        self.send(messages.encode(message, len(descriptors)), descriptors)
        reply = self.reply()
        assert isinstance(reply, kind), reply
        return reply

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Bytes, with descriptors beside the first; a daemon that has hung up meanwhile is no error."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sent = self._socket.sendmsg([data], rights)
            self._socket.sendall(data[sent:])

    def finish(self) -> None:
        """Sends nothing more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reply(self) -> Message | None:
        """The next message, or None when the daemon has hung up."""
        while not self._frames:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(1 << 18, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                return None
            came = array.array("i")
            for _, _, content in ancillary:
                came.frombytes(content)
            if not data:
                return None
            self._frames += self._decoder.feed(data, came)
        frame = self._frames.pop(0)
        self.received.extend(frame.descriptors)
        return messages.decode(frame, messages.REPLIES)

    def replies(self) -> list[Message]:
        """Everything that comes until the daemon hangs up."""
        replies = []
        while (reply := self.reply()) is not None:
            replies.append(reply)
        return replies
