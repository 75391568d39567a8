"""The null S3 server of the benchmarks in this process: it can refuse, be away and come back, and it remembers."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Self

from null_sink import Connection, serve
from null_store import Answer, Body, NullStore, Refused, Request

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
        self._store = _Remembering(self)
        self._ends: list[int] = []
        """The pipe whose end ends the server's thread, while there is one."""
        self._thread = threading.Thread()
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
        listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
        self._ends = list(os.pipe())
        self._thread = threading.Thread(target=self._serve, args=[listener, self._ends[0]], daemon=True)
        self._thread.start()

    def go_away(self) -> None:
        """Nobody listens there any more, and connections are gone. Idempotent."""
        if self._ends:
            reading, writing = self._ends
            self._ends = []
            os.close(writing)
            self._thread.join()
            os.close(reading)

    def _serve(self, listener: socket.socket, end: int) -> None:
        peers: list[socket.socket] = []

        def begin(peer: socket.socket) -> Coroutine[int, None, None]:
            peers.append(peer)
            return Connection(peer, self._store, verify=False).serve()

        with listener:
            serve(listener, begin, end)
        for peer in peers:
            peer.close()

    def stored_of(self, *experiments: str) -> int:
        """How many files of these experiments are whole."""
        return sum(any(f"/{experiment}/" in key for experiment in experiments) for key in self.stored)

    def received_of(self, experiment: str) -> int:
        """Bytes of its files."""
        return sum(count for key, count in self.received.items() if f"/{experiment}/" in key)


class _Remembering(NullStore):
    def __init__(self, store: MoodyStore) -> None:
        super().__init__()
        self._moody = store

    def answer(self, request: Request, body: Body) -> Answer:
        store, probe = self._moody, "-probe/" in request.key
        if request.method == "PUT":
            store.puts += 1
        refusal = None if probe else store.mood(store.puts, request)
        if refusal is not None:
            raise Refused(*refusal)
        answer = super().answer(request, body)
        if request.method == "PUT":
            store.received[request.key] += body.size
        whole = ("PUT", False), ("POST", True)
        if not probe and (request.method, "uploadId" in request.query) in whole:
            store.stored.append(request.key)
        return answer
