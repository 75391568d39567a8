"""The null S3 server of the benchmarks in this process: it can refuse, be away and come back, and it remembers."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from benchmarks.null_sink import Answer, Body, Connection, Refused, Request, Sink
from tests.harness import StoreUnderTest

Mood = Callable[[int, Request], tuple[int, str] | None]
"""Of the how-manieth request with a body: what it is refused with, or None."""


def content(_: int, __: Request) -> None:
    """Refuses nothing."""


class MoodyStore(StoreUnderTest):
    """`stored` lists keys in the order in which they became whole; `received` counts bytes that were taken, by key."""

    url = "s3://bucket/"

    def __init__(self) -> None:
        self.credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
        self.credentials["AWS_DEFAULT_REGION"] = "us-east-1"
        self.mood: Mood = content
        self.stored: list[str] = []
        self.received: Counter[str] = Counter()
        self.puts = 0
        self._listener: socket.socket | None = None
        self._peers: set[socket.socket] = set()
        self._sink = _Remembering(self)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_away()

    def come_back(self) -> None:
        """Listens at its port."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def go_away(self) -> None:
        """Nobody listens there any more. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for peer in list(self._peers):
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def stored_of(self, *experiments: str) -> int:
        """How many files of these experiments are whole."""
        return sum(any(f"/{experiment}/" in key for experiment in experiments) for key in self.stored)

    def received_of(self, experiment: str) -> int:
        """Bytes of its files."""
        return sum(count for key, count in self.received.items() if f"/{experiment}/" in key)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._peers.add(peer)
                threading.Thread(target=self._serve, args=[peer], daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with suppress(OSError):
            Connection(peer, self._sink, verify=False).serve()
        self._peers.discard(peer)


class _Remembering(Sink):
    def __init__(self, store: MoodyStore) -> None:
        super().__init__()
        self._store = store
        self._order = threading.Lock()

    def answer(self, request: Request, body: Body) -> Answer:
        store = self._store
        with self._order:
            if request.method == "PUT":
                store.puts += 1
            refusal = store.mood(store.puts, request) if "-probe/" not in request.key else None
            if refusal is not None:
                raise Refused(*refusal)
            answer = super().answer(request, body)
            if request.method == "PUT":
                store.received[request.key] += body.size
            if "-probe/" not in request.key and (
                (request.method == "PUT" and "uploadId" not in request.query)
                or (request.method == "POST" and "uploadId" in request.query)
            ):
                store.stored.append(request.key)
            return answer
