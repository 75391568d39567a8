"""A failure that was told is gone: nothing of it waits for the collector of garbage, with all that it has passed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ml_dash.errors import Code
from ml_dash.messages import Failed
from ml_dashd.core.model import Algorithm, Job
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.connection import Connection
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.s3_bulk import BulkLine
from ml_dashd.edge.s3_client import Origin
from ml_dashd.edge.s3_line import Line, Lines, request
from ml_dashd.edge.s3_reply import Reply
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.batch import Batch
from tests.edge.connection_rig import Rig, soon
from tests.edge.journal_rig import job

pytestmark = pytest.mark.usefixtures("uncollected")


class Broken(Exception):  # noqa: N818 what a test throws
    """It can be watched, which Python's own can't."""


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def thrown() -> list[weakref.ref[Broken]]:
    return []


@pytest.fixture
def throw(thrown: list[weakref.ref[Broken]]) -> Callable[..., Any]:
    def throw(*_: object) -> None:
        failure = Broken()
        thrown.append(weakref.ref(failure))
        try:
            raise failure
        finally:
            del failure

    return throw


async def settled() -> None:
    """What the loop has still to do with it is done."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_of_a_thread(throw: Callable[..., Any], thrown: list[weakref.ref[Broken]]) -> None:
    pool = Pool(1, "test")
    with suppress(Broken):
        await pool.run(throw)
    with suppress(Broken):
        await pool.strand().submit(throw)
    await pool.run(int)  # its thread has let go of the one before
    pool.close()
    await settled()
    assert [failure() for failure in thrown] == [None, None]


async def test_of_a_file_among_others(throw: Callable[..., Any], thrown: list[weakref.ref[Broken]]) -> None:
    class Stub(SimpleNamespace):
        async def algorithm(self) -> Algorithm:
            return Algorithm.NONE

        async def advance_all(self, jobs: Sequence[Job], *_: object) -> Sequence[Job]:
            return jobs

        async def commit(self, jobs: Sequence[Job]) -> None:
            assert not jobs

        async def put(self, *_: object) -> None:
            throw()

        def key(self, record: object) -> str:
            return "k"

    stub: Any = Stub()
    batch = Batch(journal=stub, store=stub, finish=stub, checksums=stub, single=stub, faults=NoFaults())
    for _, failure in await batch.run([job(1), job(2)]):
        assert isinstance(failure, Broken)
        del failure
    await settled()
    assert [failure() for failure in thrown] == [None, None]


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
async def test_of_a_connection_to_the_store(bulk: bool) -> None:
    begun: list[weakref.ref[Any]] = []
    threads = Pool(1, "send")
    begin: Any = partial(BulkLine.begin, 100, threads) if bulk else partial(Line.begin, 100)

    async def watched(*connected: Any) -> Any:
        line = await begin(*connected)
        begun.append(weakref.ref(line))
        return line

    async def ask(line: Any) -> Reply:
        head = request("PUT", "/b/k", {"host": "h", "content-length": "4"})
        return await line.ask(head, memoryview(b"body"), *([Throttle()] if bulk else []))

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    lines: Lines[Any] = Lines(watched)
    with suppress(ConnectionError):
        await lines.ask(Origin("127.0.0.1", server.sockets[0].getsockname()[1], None), ask)
    lines.close()
    server.close()
    await server.wait_closed()
    threads.close()
    await settled()
    assert [line() for line in begun] == [None]


async def test_of_a_client_that_breaks_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[weakref.ref[Connection]] = []

    async def serve(connection: Connection) -> None:
        connections.append(weakref.ref(connection))
        await served(connection)

    served: Callable[[Connection], Awaitable[None]] = Connection.serve
    monkeypatch.setattr(Connection, "serve", serve)
    rig = Rig(tmp_path / "socket", peer_timeout_s=0.01)
    rig.server.start()
    peer = rig.peer()
    await peer.send(b"\0")
    (said,) = await soon(peer.replies())
    assert isinstance(said, Failed)
    assert said.code == Code.PROTOCOL
    peer.socket.close()
    await soon(rig.service.gone.get())
    await rig.server.stop()
    await settled()
    assert [connection() for connection in connections] == [None]
