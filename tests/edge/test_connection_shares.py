"""Connections, with a service of the test's own: peers that are many, and what the log says of them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ml_dash import messages as m
from ml_dash.errors import Code
from ml_dashd.core.access import Policy
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.socket_server import Access, SocketServer
from ml_dashd.edge.system import SystemClock
from tests.edge.connection_rig import (
    PATIENCE_S,
    PUT,
    UPLOAD,
    Gate,
    soon,
    until,
)


async def test_nobody_gets_more_connections_than_are_left(make_rig: Any) -> None:
    rig = make_rig(policy=Policy(os.geteuid(), frozenset({os.geteuid() + 1})))
    kept = [await rig.greeted() for _ in range(4)]
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    assert "4 connections are open, 4 of them of uid" in failed.message
    kept[0].socket.close()
    await soon(rig.service.gone.get())
    await rig.greeted()


async def test_who_shares_with_nobody_gets_all_connections(make_rig: Any) -> None:
    rig = make_rig()
    for _ in range(8):
        await rig.greeted()
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER


async def test_without_descriptors_to_give_away_nobody_is_let_in(make_rig: Any) -> None:
    budget, held = DescriptorBudget(), [10**9]
    budget.count(lambda: held[0])
    rig = make_rig(budget=budget)
    (failed,) = await rig.peer().replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    held[0] = 0
    await rig.greeted()


async def test_descriptors_that_do_not_fit_the_budget_are_not_kept(make_rig: Any) -> None:
    budget, held = DescriptorBudget(), [0]
    budget.count(lambda: held[0])
    rig = make_rig(budget=budget)
    other, peer = await rig.greeted(), await rig.greeted()
    held[0] = 10**9
    await peer.send(m.encode(UPLOAD, 1)[:10], [0])
    (failed,) = await peer.replies()
    assert isinstance(failed, m.Failed)
    assert (failed.code, failed.request) == (Code.RETRY_LATER, 0)
    held[0] = 0
    await until(lambda: budget._holders[1]() == 1)
    await other.send(m.encode(PUT))
    assert await soon(rig.service.begun.get()) == PUT


async def test_nobody_has_more_descriptors_waiting_than_are_left(make_rig: Any) -> None:
    """Whoever sends half frames leaves others room for whole ones."""
    budget, held = DescriptorBudget(), [0]
    rig = make_rig(policy=Policy(os.geteuid(), frozenset({os.geteuid() + 1})), budget=budget)
    budget.count(lambda: held[0])
    first, second = await rig.greeted(), await rig.greeted()
    held[0] = budget.left() - 40
    await first.send(m.encode(UPLOAD, 16)[:10], [0] * 16)
    await until(lambda: rig.server._received.total() == 16)
    await second.send(m.encode(UPLOAD, 16)[:10], [0] * 16)
    (failed,) = await second.replies()
    assert isinstance(failed, m.Failed)
    assert failed.code == Code.RETRY_LATER
    assert rig.server.count(os.geteuid() + 1, 10)
    assert rig.server.count(os.geteuid() + 1, -10)


async def test_descriptors_count_until_they_are_closed(make_rig: Any) -> None:
    budget = DescriptorBudget()
    rig = make_rig(budget=budget)
    counted = budget._holders[0]
    peer = await rig.asking(UPLOAD)
    assert counted() == 2
    await peer.send(m.encode(UPLOAD, 16)[:20], [0] * 16)
    await until(lambda: counted() == 18)
    rig.service.open.set()
    await peer.reply()
    assert counted() == 17
    peer.socket.close()
    await soon(rig.service.gone.get())
    assert rig.server._received.total() == 0


async def test_the_log_is_not_filled_by_peers(make_rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ml_dashd.socket")
    rig = make_rig(policy=Policy(os.geteuid() + 1))
    for _ in range(50):
        assert len(await rig.peer().replies()) == 1
    assert [record.msg.split()[0] for record in caplog.records] == ["connection_refused"]
    rig.server._said[("connection_refused", os.geteuid())] = (-1000.0, 49)
    await rig.peer().replies()
    assert vars(caplog.records[-1])["spared"] == 49


class FastClock(SystemClock):
    """Sleeps take no time, and move the clock, until it is late."""

    def __init__(self) -> None:
        self.now = 0.0
        self.late = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= 150:
            self.late.set()
        await asyncio.sleep(0)


async def test_a_failing_accept_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FastClock()
    with socket.socket(socket.AF_UNIX) as deaf:  # nobody can be accepted at a socket that does not listen
        deaf.bind(str(tmp_path / "socket"))
        server = SocketServer(
            tmp_path / "socket", Gate(), clock, Access(Policy(os.geteuid()), 0o600, 8, 60.0), passed=deaf
        )
        server.start()
        async with asyncio.timeout(PATIENCE_S):
            await clock.late.wait()
        await server.stop()
    said = [vars(record)["spared"] for record in caplog.records]
    assert {record.msg for record in caplog.records} == {"accept_failed"}
    assert said[0] == 0
    assert len(said) == 3
    assert all(590 < spared < 610 for spared in said[1:])  # ten a second


async def test_who_the_log_has_heard_of_is_forgotten_some_day(make_rig: Any) -> None:
    rig = make_rig()
    for uid in range(5000):
        assert rig.server.worth_a_line("connection_refused", uid) == 0
    assert rig.server.worth_a_line("connection_refused", 4999) is None
    assert len(rig.server._said) <= 2000
