"""A TCP proxy on loopback that counts what passes, and stalls, cuts and damages when it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

PIECE = 1 << 18
HEAD = 1 << 13
"""No answer's head is longer."""


class CountingProxy:
    """Passes everything through; `received` counts the bytes that clients have sent, `returned` the server's."""

    def __init__(self, endpoint: str, port: int = 0) -> None:
        parts = urlsplit(endpoint)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        self.returned = 0
        self._stall_at = self._flip_at = float("inf")
        self._returning: list[socket.socket] = []
        """The servers whose bytes are waiting, or on their way, to a client."""
        self._changed = threading.Condition()
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_on()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for peer in self._open:
                with suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def wait_for_bytes(self, count: int, timeout: float) -> bool:
        """Until so many bytes have passed in all, or nothing more comes in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.received >= count, timeout)

    def stall(self) -> None:
        """Passes nothing on; connections stay open, and new ones are taken, as by a server that hangs."""
        self._flows.clear()

    def stall_after(self, count: int) -> None:
        """Stalls once the server has sent so many more bytes."""
        self._stall_at = self.returned + count

    def wait_for_stall(self, timeout: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._flows.is_set(), timeout)

    def flip_after(self, count: int) -> None:
        """Flips a bit, once, when the server has sent so many more bytes."""
        self._flip_at = self.returned + count

    def cut(self) -> None:
        """Ends one of the connections in which the server is sending."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._returning, 60)
            self._returning.pop(0).shutdown(socket.SHUT_RDWR)

    def go_on(self) -> None:
        """Ends a stall: what came meanwhile is passed on, but to who was cut off."""
        self._stall_at = float("inf")
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            with self._changed:
                self._open |= {client, server}
            both = threading.Barrier(2)
            self._run(self._pass, client, server, both, True)
            self._run(self._pass, server, client, both, False)

    def _pass(self, source: socket.socket, sink: socket.socket, both: threading.Barrier, counted: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                piece = self._count(source, piece, counted)
                self._flows.wait()
                sink.sendall(piece)
                with self._changed:
                    self._returning = [each for each in self._returning if each is not source]
        for peer in (source, sink):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        both.wait()
        with self._changed:
            self._returning = [each for each in self._returning if each is not source]
            self._open.discard(source)
        source.close()

    def _count(self, source: socket.socket, piece: bytes, counted: bool) -> bytes:
        with self._changed:
            if counted:
                self.received += len(piece)
            else:
                self.returned += len(piece)
                self._returning.append(source)
                if self.returned >= self._stall_at:
                    self._flows.clear()
                if self.returned >= self._flip_at and len(piece) > HEAD:
                    self._flip_at = float("inf")
                    piece = piece[:-1] + bytes([piece[-1] ^ 1])
            self._changed.notify_all()
        return piece

    def _run(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
