"""The network of a node: a namespace with a loopback of its own, from which nothing is reached but what is led out.

Root alone may make one, and not on every machine. Where there is none, the node shares the network of the tests.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Self

from tests.doubles.loop_thread import LoopThread

_LOOPBACK = Path(__file__).with_name("loopback.py")
_PIECE = 1 << 16
_TOOLS = ("unshare", "nsenter")


class Network:
    """Leads ports of the node's loopback to the same ports of the tests' own, until it is cut.

    `under` are the words that run a command in it (DaemonProcess.under); none where the network is shared.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.under: list[str] = []
        self._ports = ports
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._ending = ExitStack()

    @property
    def is_apart(self) -> bool:
        """Whether it is a network of its own."""
        return bool(self.under)

    def __enter__(self) -> Self:
        with self._ending:
            if all(map(shutil.which, _TOOLS)):
                self._separate()
            self._ending = self._ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def cut(self) -> None:
        """Ends every connection that leads out, and refuses new ones. Nothing where the network is shared."""
        if self.is_apart:
            self._loop.run(self._cut())

    def mend(self) -> None:
        """Lets connections out again."""
        self._is_cut = False

    def _separate(self) -> None:
        ours, theirs = socket.socketpair()
        self._ending.callback(ours.close)
        held = [sys.executable, "-I", "-S", str(_LOOPBACK), str(theirs.fileno()), *map(str, self._ports)]
        with theirs:
            # Its process is that of unshare: the namespace has a name in /proc for as long as it runs.
            holder = subprocess.Popen(
                ["unshare", "--net", *held],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # that it may not
                start_new_session=True,
            )
        self._ending.callback(holder.wait)
        self._ending.callback(ours.shutdown, socket.SHUT_RDWR)
        _, descriptors, *_ = socket.recv_fds(ours, 1, len(self._ports))
        if not descriptors:
            return
        self._loop = LoopThread("network")
        self._ending.callback(self._loop.close)
        self._loop.run(self._lead(descriptors))
        self._ending.callback(self._loop.run, self._end())
        self.under = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]

    async def _lead(self, descriptors: Sequence[int]) -> None:
        self._listeners = [
            await asyncio.start_server(partial(self._serve, port), sock=socket.socket(fileno=descriptor), limit=_PIECE)
            for port, descriptor in zip(self._ports, descriptors, strict=True)
        ]

    async def _end(self) -> None:
        for listener in self._listeners:
            listener.close()
        await self._cut()

    async def _cut(self) -> None:
        self._is_cut = True
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE)
        except OSError:  # nobody listens: that a connection is made and ends is all that can be told from here
            writer.transport.abort()
            return
        both = {writer, there[1]}
        self._open |= both
        with suppress(asyncio.CancelledError):  # at the end
            await asyncio.gather(_pass(reader, there[1]), _pass(there[0], writer))
        self._open -= both


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one end is closed; what came before is still passed on."""
    with suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    writer.close()
