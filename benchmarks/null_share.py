"""One null store for several processes: each takes bodies in, and asks for its answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from null_store import Answer, Body, NullStore, Refused, Request


class AskedStore:
    """The store in another process. For one thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Tells that connections are taken."""
        self._pipe.send(None)

    def answer(self, request: Request, body: Body) -> Answer:
        """Raises Refused."""
        self._pipe.send((request, body))
        said = self._pipe.recv()
        if isinstance(said, Answer):
            return said
        raise Refused(*said)


def share(processes: int, serve: Callable[[AskedStore], None], begun: Callable[[], None], stdin: int) -> None:
    """Has so many children serve, and answers them until stdin ends; they see that themselves.

    `begun` is called once each of them has told that it is ready.
    """
    pipes = []
    for _ in range(processes):
        ours, theirs = Pipe()
        if os.fork() == 0:
            ours.close()
            try:
                serve(AskedStore(theirs))
            finally:
                os._exit(0)  # whatever ended it: what follows is the parent's
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    begun()
    store = NullStore()
    with suppress(EOFError):  # of a child that has seen it first
        while stdin not in (ready := wait([*pipes, stdin])):
            for pipe in ready:
                if isinstance(pipe, Connection):
                    pipe.send(_answer(store, *pipe.recv()))


def _answer(store: NullStore, request: Request, body: Body) -> Answer | tuple[int, str]:
    try:
        return store.answer(request, body)
    except Refused as refused:
        return refused.status, refused.code
