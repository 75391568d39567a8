"""Small requests on kept connections, against a server that says just what a test has written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge import s3_line
from ml_dashd.edge.s3_client import Origin
from ml_dashd.edge.s3_line import NOTHING, Line, Lines, request
from ml_dashd.edge.s3_reply import Reply
from tests.doubles.scripted_server import BULK, OK, Server, ending_with, hang_up, peer_that

ASKED = request("PUT", "/b/k", {"host": "h", "content-length": "4"}, b"body")


def kept() -> Lines[Line]:
    return Lines(partial(Line.begin, 100))


async def ask(lines: Lines[Line], origin: Origin, request: bytes, body: memoryview = NOTHING) -> Reply:
    return await lines.ask(origin, lambda line: line.ask(request, body))


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    yield made
    await made.stop()


async def test_an_answer_from_where_the_bucket_was_keeps_no_connection_there(server: Server) -> None:
    """The bucket turns out to be elsewhere while requests are under way: none that follow go the old way."""
    other, go = Server(), asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(OK)

    origin, moved, lines = await server.start(), await other.start(), kept()
    server.says, other.says = [late, OK], [OK, OK]
    first = asyncio.create_task(ask(lines, origin, ASKED))
    await server.came.wait()
    await ask(lines, moved, ASKED)
    go.set()
    assert (await first).status == 200
    await ask(lines, moved, ASKED)
    assert (len(server.asked), len(other.asked)) == (1, 2)
    lines.close()
    await other.stop()


async def test_a_connection_is_kept_for_the_next_request(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK, OK]
    first, second = await ask(lines, origin, ASKED), await ask(lines, origin, ASKED)
    assert first == second == Reply(200, {"etag": '"e"', "content-length": "0"}, b"")
    assert (server.connections, server.asked) == (1, [ASKED, ASKED])
    lines.close()
    await server.ended.wait()


async def test_a_kept_connection_that_has_ended_costs_nothing(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK, hang_up, OK]
    await ask(lines, origin, ASKED)
    assert (await ask(lines, origin, ASKED)).status == 200
    assert server.connections == 2
    lines.close()


async def test_a_request_is_not_repeated_once_some_of_its_answer_has_come(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK, ending_with(b"HTTP/1.1 200 OK\r\nContent-Le")]
    await ask(lines, origin, ASKED)
    with pytest.raises(ConnectionError):
        await ask(lines, origin, ASKED)
    assert len(server.asked) == 2


async def test_a_fresh_connection_that_ends_is_an_error(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [hang_up]
    with pytest.raises(ConnectionError, match="hung up"):
        await ask(lines, origin, ASKED)


async def test_a_server_that_wants_no_more_requests_is_asked_on_another_connection(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), OK]
    await ask(lines, origin, ASKED)
    await server.ended.wait()
    await ask(lines, origin, ASKED)
    assert server.connections == 2
    lines.close()


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n<Err>", b"<Err>"),
        (b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n<Er\r\n2\r\nr>\r\n0\r\n\r\n", b"<Err>"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n<Err>", b"<Err>"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 200\r\n\r\n" + b"x" * 200, b"x" * 100),
    ],
    ids=["length", "chunks", "after a continue", "too long"],
)
async def test_a_refusal_is_read(server: Server, answer: bytes, content: bytes) -> None:
    origin, lines = await server.start(), kept()
    server.says = [answer]
    assert (await ask(lines, origin, ASKED))[::2] == (403, content)
    lines.close()


async def test_a_refusal_without_a_length_ends_with_the_connection(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [ending_with(b"HTTP/1.1 403 No\r\n\r\n<Err>")]
    assert (await ask(lines, origin, ASKED))[::2] == (403, b"<Err>")


async def test_a_truncated_refusal_is_none(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [ending_with(b"HTTP/1.1 403 No\r\nContent-Length: 50\r\n\r\n<Err>")]
    with pytest.raises(ConnectionError):
        await ask(lines, origin, ASKED)


async def test_what_is_not_http_is_an_error(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [b"SSH-2.0-OpenSSH_9.2\r\n"]
    with pytest.raises(ConnectionError, match="not HTTP"):
        await ask(lines, origin, ASKED)
    await server.ended.wait()


async def test_whoever_gives_up_ends_the_connection(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [b""]
    asking = asyncio.create_task(ask(lines, origin, ASKED))
    await server.came.wait()
    asking.cancel()
    await server.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_silent_server_is_given_up_and_not_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK, b""]
    await ask(lines, origin, ASKED)
    monkeypatch.setattr(s3_line, "DATA_READ_TIMEOUT_S", 0.05)
    with pytest.raises(ConnectionError, match="no answer"):
        await ask(lines, origin, ASKED)
    await server.ended.wait()
    assert len(server.asked) == 2


async def test_an_idle_connection_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_line, "IDLE_S", 0.05)
    origin, lines = await server.start(), kept()
    server.says = [OK]
    await ask(lines, origin, ASKED)
    await server.ended.wait()


async def test_an_answer_that_nobody_asked_for_ends_the_connection(server: Server) -> None:
    """Its next request would be given the answer to another."""
    origin, lines = await server.start(), kept()
    server.says = [OK + OK.replace(b"200", b"500"), OK]
    assert (await ask(lines, origin, ASKED)).status == 200
    assert (await ask(lines, origin, ASKED)).status == 200
    assert server.connections == 2
    lines.close()


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    nobody = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = nobody.sockets[0].getsockname()[1]
    nobody.close()
    await nobody.wait_closed()
    with pytest.raises(StoreError, match=str(port)) as refused:
        await ask(kept(), Origin("127.0.0.1", port, None), ASKED)
    assert refused.value.fault is Fault.UNREACHABLE


def test_no_header_can_be_two() -> None:
    with pytest.raises(ValueError, match="line"):
        request("PUT", "/", {"content-type": "a\r\nx-amz-acl: public-read"}, b"")


HEAD = request("PUT", "/b/k", {"host": "h", "content-length": str(len(BULK))})


async def test_a_body_arrives_whole_at_a_server_that_takes_its_time(server: Server) -> None:
    origin, lines = await server.start(bytes_at_once=64 * 1024), kept()
    server.says = [OK, OK]
    for _ in range(2):
        assert (await ask(lines, origin, HEAD, memoryview(BULK))).status == 200
    assert server.asked == [HEAD + BULK] * 2
    assert server.connections == 1
    lines.close()


async def test_a_body_goes_from_its_start_where_the_kept_connection_has_ended(server: Server) -> None:
    origin, lines = await server.start(), kept()
    server.says = [OK, OK]
    await ask(lines, origin, ASKED)
    server.end_all()
    assert (await ask(lines, origin, HEAD, memoryview(BULK))).status == 200
    assert server.asked == [ASKED, HEAD + BULK]
    lines.close()


@pytest.mark.parametrize(("status", "taken"), [(b"503 Slow Down", True), (b"403 Forbidden", True), (b"200 OK", False)])
async def test_an_answer_to_half_a_body_is_a_refusal_or_nothing(status: bytes, taken: bool) -> None:
    """The server reads no further: nobody waits until it does, and the connection serves no other request."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HEAD) + 1000)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    lines = kept()
    async with peer_that(refuse) as origin, asyncio.timeout(30):
        if taken:
            assert (await ask(lines, origin, HEAD, memoryview(BULK))).status == int(status[:3])
        else:
            with pytest.raises(ConnectionError, match="before it had the whole body"):
                await ask(lines, origin, HEAD, memoryview(BULK))
        await asyncio.sleep(0)  # the transport tells of its end in the loop's next turn
        assert not lines._all


async def test_whoever_gives_up_a_body_that_nobody_takes_ends_its_connection() -> None:
    begun = asyncio.Event()

    async def take_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        begun.set()

    lines = kept()
    async with peer_that(take_nothing) as origin:
        asking = asyncio.create_task(ask(lines, origin, HEAD, memoryview(BULK)))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0)  # as above
        assert not lines._all
