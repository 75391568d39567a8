"""Large bodies, sent by threads, to a server that says just what a test has written."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import pytest_asyncio
import trustme

from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge import s3_bulk
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.s3_bulk import BulkLine
from ml_dashd.edge.s3_client import Origin
from ml_dashd.edge.s3_line import Lines, request
from ml_dashd.edge.s3_reply import Reply
from ml_dashd.edge.threads import Pool
from tests.doubles.scripted_server import BULK, OK, Server, ending_with, hang_up, peer_that

HEAD = request("PUT", "/b/k", {"host": "h", "content-length": str(len(BULK))})
UNCAPPED = Throttle()


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(2, "send")
    yield pool
    pool.close()


@pytest.fixture
def lines(threads: Pool) -> Iterator[Lines[BulkLine]]:
    kept: Lines[BulkLine] = Lines(partial(BulkLine.begin, 100, threads))
    yield kept
    assert not kept._all, "a connection is left over"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def ask(lines: Lines[BulkLine], origin: Origin) -> Reply:
    return await lines.ask(origin, lambda line: line.ask(HEAD, memoryview(BULK), UNCAPPED))


async def test_a_body_arrives_whole_at_a_server_that_takes_its_time(server: Server, lines: Lines[BulkLine]) -> None:
    origin = await server.start(bytes_at_once=64 * 1024)
    server.says = [OK, OK]
    for _ in range(2):
        assert await ask(lines, origin) == Reply(200, {"etag": '"e"', "content-length": "0"}, b"")
    assert server.asked == [HEAD + BULK] * 2
    assert server.connections == 1
    lines.close()
    await server.ended.wait()


class Prompt:
    """Stands for a socket whose server answers in the very moment in which it has the whole body."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._pipe = os.pipe()

    def fileno(self) -> int:
        return self._pipe[0]

    def close(self) -> None:
        for descriptor in self._pipe:
            os.close(descriptor)

    def send(self, data: memoryview) -> int:
        self._left -= len(data)
        return len(data)

    def recv(self, _: int) -> bytes:
        if self._left:
            raise BlockingIOError
        return OK


@pytest.mark.parametrize("size", [1, s3_bulk.PIECE, 3 * s3_bulk.PIECE + 1, 16 * s3_bulk.PIECE])
def test_an_answer_at_once_is_none_that_came_too_early(threads: Pool, size: int) -> None:
    line = BulkLine(Prompt(len(HEAD) + size), 100, threads, lambda _: None)  # type: ignore[arg-type]
    reply = line._exchange(HEAD, memoryview(bytes(size)), last=True)
    assert reply is not None
    assert (reply.status, line.usable) == (200, True)
    line.close()


async def test_over_tls_it_arrives_whole_and_the_connection_is_kept(
    server: Server, lines: Lines[BulkLine], authority: trustme.CA
) -> None:
    """What TLS says for itself after its handshake (tickets) is no answer."""
    origin = await server.start(64 * 1024, certified(authority), trusting(authority))
    server.says = [OK, OK]
    for _ in range(2):
        assert (await ask(lines, origin)).status == 200
    assert server.asked == [HEAD + BULK] * 2
    assert server.connections == 1
    lines.close()


async def test_a_server_that_nobody_vouches_for_is_sent_nothing(
    server: Server, lines: Lines[BulkLine], authority: trustme.CA
) -> None:
    origin = await server.start(certified=certified(authority), trusting=ssl.create_default_context())
    with pytest.raises(StoreError) as refused:
        await ask(lines, origin)
    assert refused.value.fault is Fault.UNTRUSTED
    assert server.asked == []


async def test_a_handshake_that_never_ends_is_broken_off(lines: Lines[BulkLine], authority: trustme.CA) -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        begun.set()

    begun = asyncio.Event()
    async with peer_that(say_nothing) as origin:
        asking = asyncio.create_task(ask(lines, origin._replace(tls=trusting(authority))))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_it_goes_from_its_start_where_the_kept_connection_has_ended(
    server: Server, lines: Lines[BulkLine]
) -> None:
    origin = await server.start()
    server.says = [OK, OK]
    await ask(lines, origin)
    server.end_all()
    assert (await ask(lines, origin)).status == 200
    assert server.asked == [HEAD + BULK] * 2
    assert server.connections == 2
    lines.close()


async def test_it_is_not_repeated_once_some_of_its_answer_has_come(server: Server, lines: Lines[BulkLine]) -> None:
    origin = await server.start()
    server.says = [OK, ending_with(b"HTTP/1.1 200 OK\r\nContent-Le")]
    await ask(lines, origin)
    with pytest.raises(ConnectionError):
        await ask(lines, origin)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n<Err>", b"<Err>"),
        (b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<Er\r\n2\r\nr>\r\n0\r\n\r\n", b"<Err>"),
    ],
    ids=["after a continue", "chunks"],
)
async def test_a_refusal_is_read(server: Server, lines: Lines[BulkLine], answer: bytes, content: bytes) -> None:
    origin = await server.start()
    server.says = [answer]
    assert (await ask(lines, origin))[::2] == (403, content)
    lines.close()


async def test_a_refusal_without_a_length_ends_with_the_connection(server: Server, lines: Lines[BulkLine]) -> None:
    origin = await server.start()
    server.says = [ending_with(b"HTTP/1.1 403 No\r\n\r\n<Err>")]
    assert (await ask(lines, origin))[::2] == (403, b"<Err>")


async def test_a_fresh_connection_that_ends_is_an_error(server: Server, lines: Lines[BulkLine]) -> None:
    origin = await server.start()
    server.says = [hang_up]
    with pytest.raises(ConnectionError, match="hung up"):
        await ask(lines, origin)


async def test_an_answer_that_nobody_asked_for_ends_the_connection(server: Server, lines: Lines[BulkLine]) -> None:
    """Its next request would be given the answer to another."""
    origin = await server.start()
    server.says = [OK + OK.replace(b"200", b"500"), OK]
    assert (await ask(lines, origin)).status == 200
    assert (await ask(lines, origin)).status == 200
    assert server.connections == 2
    lines.close()


@pytest.mark.parametrize("secure", [False, True], ids=["http", "tls"])
@pytest.mark.parametrize(("status", "taken"), [(b"503 Slow Down", True), (b"403 Forbidden", True), (b"200 OK", False)])
async def test_an_answer_to_half_a_body_is_a_refusal_or_nothing(
    lines: Lines[BulkLine], authority: trustme.CA, status: bytes, taken: bool, secure: bool
) -> None:
    """The server reads no further: nobody waits until it does, and the connection serves no other request."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 1000)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    async with peer_that(refuse, certified(authority) if secure else None) as there, asyncio.timeout(30):
        origin = there._replace(tls=trusting(authority) if secure else None)
        if taken:
            assert (await ask(lines, origin)).status == int(status[:3])
        else:
            with pytest.raises(ConnectionError, match="before it had the whole body"):
                await ask(lines, origin)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "tls"])
async def test_whoever_gives_up_a_body_that_nobody_takes_has_it_back(
    lines: Lines[BulkLine], authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    """Its thread has let go of it by then: the buffer may be filled with something else."""
    begun, let_go, send = asyncio.Event(), threading.Event(), BulkLine._send
    loop = asyncio.get_running_loop()

    def watched(line: BulkLine, data: memoryview) -> Reply | None:
        if len(data) < len(BULK):
            return send(line, data)
        loop.call_soon_threadsafe(begun.set)
        try:
            return send(line, data)
        finally:
            let_go.set()

    async def take_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]

    monkeypatch.setattr(BulkLine, "_send", watched)
    async with peer_that(take_nothing, certified(authority) if secure else None) as there:
        asking = asyncio.create_task(ask(lines, there._replace(tls=trusting(authority) if secure else None)))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert let_go.is_set()


@pytest.mark.parametrize("secure", [False, True], ids=["http", "tls"])
async def test_a_body_that_nobody_takes_is_given_up(
    lines: Lines[BulkLine], authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async def take_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]

    monkeypatch.setattr(s3_bulk, "STALL_S", 0.1)
    async with peer_that(take_nothing, certified(authority) if secure else None) as there:
        with pytest.raises(ConnectionError, match="took nothing"):
            await ask(lines, there._replace(tls=trusting(authority) if secure else None))


@pytest.mark.parametrize("secure", [False, True], ids=["http", "tls"])
async def test_a_silent_server_is_given_up_and_not_asked_again(
    server: Server, lines: Lines[BulkLine], authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    origin = await (
        server.start(certified=certified(authority), trusting=trusting(authority)) if secure else server.start()
    )
    monkeypatch.setattr(s3_bulk, "DATA_READ_TIMEOUT_S", 0.5)
    server.says = [OK, b""]
    await ask(lines, origin)
    with pytest.raises(ConnectionError, match="no answer"):
        await ask(lines, origin)
    await server.ended.wait()
    assert len(server.asked) == 2


async def test_what_is_said_to_nobody_is_no_answer(server: Server, lines: Lines[BulkLine]) -> None:
    """As a proxy's 408 to a connection that waits: the next request goes on another one."""
    said = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        await said.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    origin = await server.start()
    server.says = [late, OK]
    await ask(lines, origin)
    said.set()
    while not lines._idle[0]._readable.poll(0):  # noqa: ASYNC110 nobody tells of it
        await asyncio.sleep(0)
    assert (await ask(lines, origin)).status == 200
    assert server.connections == 2
    lines.close()


async def test_whoever_gives_up_while_a_slice_waits_for_its_share_leaves_no_connection(
    server: Server, lines: Lines[BulkLine]
) -> None:
    class Full(Throttle):
        async def take(self, size_bytes: int) -> None:
            waiting.set()
            await asyncio.Event().wait()

    waiting = asyncio.Event()
    origin = await server.start()
    asking = asyncio.create_task(lines.ask(origin, lambda line: line.ask(HEAD, memoryview(BULK), Full(65_536))))
    await waiting.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not lines._all


async def test_closing_ends_what_is_under_way(server: Server, lines: Lines[BulkLine]) -> None:
    origin = await server.start()
    server.says = [b""]
    asking = asyncio.create_task(ask(lines, origin))
    await server.came.wait()
    lines.close()
    with pytest.raises(ConnectionError):
        await asking
