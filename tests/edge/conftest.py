"""Servers of a test's own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.connection_rig import Rig


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[Any]:
    rigs: list[Rig] = []
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def made(**changes: Any) -> Rig:
        rigs.append(Rig(tmp_path / f"socket-{len(rigs)}", **changes))
        rigs[-1].server.start()
        return rigs[-1]

    yield made
    for rig in rigs:
        rig.service.open.set()
        for peer in rig.peers:
            peer.socket.close()
        await rig.server.stop()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
