"""A TCP proxy on loopback that counts what passes towards the server, and stalls when it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

PIECE = 1 << 18


class CountingProxy:
    """Passes everything through; `received` counts the bytes that clients have sent."""

    def __init__(self, endpoint: str, port: int = 0) -> None:
        parts = urlsplit(endpoint)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
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

    def go_on(self) -> None:
        """Ends a stall: what came meanwhile is passed on."""
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
                if counted:
                    with self._changed:
                        self.received += len(piece)
                        self._changed.notify_all()
                self._flows.wait()
                sink.sendall(piece)
        for peer in (source, sink):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        both.wait()
        with self._changed:
            self._open.discard(source)
        source.close()

    def _run(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
