"""Connections, with a service of the test's own: peers that go away, that are slow."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code, error
from ml_dash.wire import HEADER, VERSION
from tests.edge.connection_rig import (
    FETCH,
    HELLO,
    PUT,
    UPLOAD,
    WAIT,
    soon,
    until,
)

# ---- who goes away


@pytest.mark.parametrize("message", [WAIT, FETCH], ids=["Wait", "Fetch"])
async def test_what_only_waits_ends_with_its_peer(make_rig: Any, message: m.Message) -> None:
    rig = make_rig()
    peer = await rig.asking(message)
    peer.socket.close()
    assert await soon(rig.service.ended.get()) == (message, "cancelled")
    await soon(rig.service.gone.get())
    await until(lambda: rig.server.connections == 0)


@pytest.mark.parametrize("message", [PUT, UPLOAD], ids=["Put", "Upload"])
async def test_a_hand_off_goes_on_without_its_peer(make_rig: Any, message: m.Message) -> None:
    rig = make_rig()
    peer = await rig.asking(message)
    peer.socket.close()
    await (await rig.asking(WAIT)).send(b"")  # the loop has had its turns
    assert rig.service.ended.empty()
    rig.service.open.set()
    assert await soon(rig.service.ended.get()) == (message, "answered")


async def test_who_only_has_nothing_more_to_say_still_waits(make_rig: Any) -> None:
    rig = make_rig()
    peer = await rig.asking(WAIT)
    peer.socket.shutdown(socket.SHUT_WR)
    await rig.asking(PUT)
    assert rig.service.ended.empty()
    rig.service.open.set()
    assert await peer.replies() == [m.Done(request=2)]


async def test_a_wait_that_was_sent_ahead_is_not_begun_for_nobody(make_rig: Any) -> None:
    rig = make_rig()
    peer = await rig.asking(PUT)
    await peer.send(m.encode(WAIT) * 100)
    peer.socket.close()
    await rig.asking(WAIT)
    rig.service.open.set()
    await soon(rig.service.gone.get())
    assert rig.service.begun.empty()


async def test_a_stop_ends_who_waits(make_rig: Any) -> None:
    rig = make_rig()
    await rig.asking(WAIT)
    await rig.server.stop()
    assert await soon(rig.service.ended.get()) == (WAIT, "cancelled")


# ---- replies that do not wait for the loop


async def test_an_early_reply_is_the_only_one(make_rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes of the rest: the peer would take a second reply for that of its next request."""
    rig = make_rig()
    rig.service.early, rig.service.refusal = m.Done(request=2), error(Code.INTERNAL, "what follows has failed")
    peer = await rig.asking(PUT)
    assert await peer.reply() == m.Done(request=2)
    assert rig.service.ended.empty()
    rig.service.early = None
    rig.service.open.set()
    assert await soon(rig.service.ended.get()) == (PUT, "answered")
    rig.service.refusal = None
    await peer.send(m.encode(replace(WAIT, request=3)))
    assert await peer.reply() == m.Done(request=3)
    assert [(each.message, each.error) for each in caplog.records if each.levelname == "ERROR"] == [
        ("failed_once_answered", "what follows has failed")
    ]


async def test_what_the_socket_does_not_take_of_an_early_reply_follows(make_rig: Any) -> None:
    """More than a socket holds, to a peer that does not read yet."""
    rig = make_rig()
    record = m.Record(
        id=1, namespace="a", project="b", experiment="c", path="/", filename="d", size_bytes=0,
        content_type="text/plain", created_ms=2, updated_ms=3, state="QUEUED", ack="memory", pin="fd",
        description="x" * 2000,
    )  # fmt: skip
    rig.service.early = m.Page(request=2, records=(record,) * 1000)
    rig.service.open.set()
    peer = await rig.asking(PUT)
    assert await soon(rig.service.ended.get()) == (PUT, "answered")
    assert await peer.reply() == rig.service.early


async def test_an_early_reply_to_a_peer_that_has_gone_is_nobodys(make_rig: Any) -> None:
    """The request goes on, and the connection ends, as without it."""
    rig = make_rig()
    peer = await rig.greeted()
    rig.service.early = m.Done(request=2)
    await peer.send(m.encode(PUT))
    peer.socket.close()
    rig.service.open.set()
    assert await soon(rig.service.ended.get()) == (PUT, "answered")
    await soon(rig.service.gone.get())


# ---- who is slow


async def test_who_says_nothing_is_hung_up_on(make_rig: Any) -> None:
    rig = make_rig(peer_timeout_s=0.1)
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert (failed.code, failed.request) == (Code.PROTOCOL, 0)
    assert failed.message == "Hello did not come within 0.1 s"


@pytest.mark.parametrize("said", [b"", HELLO], ids=["Hello", "a request"])
async def test_who_sends_a_byte_now_and_then_is_hung_up_on(make_rig: Any, said: bytes) -> None:
    """Progress is not enough: the frame has its time as a whole."""
    rig = make_rig(peer_timeout_s=0.3)
    peer = rig.peer()
    await peer.send(said)
    endless = HEADER.pack(60_000, VERSION, 0, m.Hello.kind) + b"\x81\xa6client"

    async def dribble() -> None:
        for byte in endless * 1000:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.01)

    dribbling = asyncio.create_task(dribble())
    *_, failed = await peer.replies()
    dribbling.cancel()
    await asyncio.gather(dribbling, return_exceptions=True)
    assert isinstance(failed, m.Failed)
    assert failed.message == "the rest of a frame did not come within 0.3 s"


async def test_who_has_said_hello_may_be_silent_for_ever(make_rig: Any) -> None:
    rig = make_rig(peer_timeout_s=0.1)
    peer = await rig.greeted()
    await rig.peer().replies()  # until another's time is up
    await peer.send(m.encode(PUT))
    assert await soon(rig.service.begun.get()) == PUT


async def test_each_frame_has_its_time_anew(make_rig: Any) -> None:
    """The rest of one, and the start of the next, come together."""
    rig = make_rig(peer_timeout_s=0.5)
    rig.service.open.set()
    peer = await rig.greeted()
    data = m.encode(PUT)
    await peer.send(data[:9])
    for _ in range(8):
        await asyncio.sleep(0.1)
        await peer.send(data[9:] + data[:9])
        assert isinstance(await peer.reply(), m.Done)


async def test_time_does_not_run_while_we_do_not_listen(make_rig: Any) -> None:
    """A peer whose requests pile up, the last of them begun, waits for us."""
    rig = make_rig(peer_timeout_s=0.5)
    peer = await rig.asking(PUT)
    whole = m.encode(WAIT)
    ahead = 150_000 // len(whole)
    await peer.send(whole * ahead + whole[:-1])
    for _ in range(2):
        await rig.peer().replies()  # until others' time is up
    rig.service.open.set()
    for _ in range(1 + ahead):
        assert isinstance(await peer.reply(), m.Done)
    await peer.send(whole[-1:])
    assert isinstance(await peer.reply(), m.Done)


async def test_who_takes_no_reply_is_dropped(make_rig: Any) -> None:
    rig = make_rig(peer_timeout_s=0.2)
    rig.service.open.set()
    peer = await rig.greeted()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sending = asyncio.create_task(peer.send(m.encode(PUT) * 100_000))
    await soon(rig.service.gone.get())
    await until(lambda: rig.server.connections == 0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
