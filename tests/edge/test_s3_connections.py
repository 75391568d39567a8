"""Connections of the data path, over TLS and by a proxy: none outlives a request that was given up."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from ml_dashd.core.checksum import digest
from ml_dashd.core.model import Algorithm, Target
from ml_dashd.core.retry import StoreError
from ml_dashd.edge import s3_bulk, s3_client, s3_line, s3_send, tls
from ml_dashd.edge.s3 import S3Store
from ml_dashd.edge.s3_client import S3Settings
from tests.doubles.authority import Authority
from tests.doubles.gate import Answer, Gate
from tests.doubles.tls_proxy import TlsProxy

MIB = 1 << 20
BODY = memoryview(bytes(32 * MIB))
"""More than the buffers of both ends hold."""
USER_TIMEOUT_MS = 1_000
GIVEN_UP_S = 2.0
BOUND_S = 60
TLS_ENDS_S = 1.0
"""So long a peer has to say that it has heard of the end of TLS; uvloop's own default is 30 s."""


class HurriedLoop(uvloop.Loop):
    """The daemon's loop, with less patience at the end of TLS."""

    async def create_connection(self, *arguments: Any, **named: Any) -> Any:
        if named.get("ssl"):
            named["ssl_shutdown_timeout"] = TLS_ENDS_S
        return await super().create_connection(*arguments, **named)

    async def start_tls(self, *arguments: Any, **named: Any) -> Any:
        return await super().start_tls(*arguments, **named | {"ssl_shutdown_timeout": TLS_ENDS_S})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), ["localhost"])


@pytest.fixture
def sink() -> Iterator[str]:
    """A server that reads what it gets and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def accept() -> None:
            held = []
            while not stopped.is_set():
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    break
            for peer in held:
                peer.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        stopped.set()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def front(sink: str, authority: Authority, keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsProxy]:
    """TLS ends there, and nothing is read once the connection stands."""
    monkeypatch.setattr(s3_client, "USER_TIMEOUT_MS", USER_TIMEOUT_MS)
    for module in (s3_send, s3_bulk):
        monkeypatch.setattr(module, "STALL_S", GIVEN_UP_S)
    with TlsProxy(sink, authority.server) as proxy:
        yield proxy


def store_at(endpoint: str, authority: Authority, proxy: str | None = None) -> S3Store:
    settings = S3Settings(
        "bucket", "", endpoint, "us-east-1", Algorithm.NONE, str(authority.bundle), 4, 5 * MIB, proxy=proxy
    )
    return S3Store(settings)


async def put(store: S3Store) -> Any:
    return await store.put(Target("key", 1, len(BODY), "x/y"), BODY, digest(BODY, Algorithm.NONE))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sockets of the data path, as /proc names them."""
    sockets: list[str] = []

    def make(address: tuple[Any, ...]) -> socket.socket:
        socket = s3_client.make_socket(address)
        sockets.append(f"socket:[{os.fstat(socket.fileno()).st_ino}]")
        return socket

    for module in (s3_send, s3_line):
        monkeypatch.setattr(module, "make_socket", make)
    return sockets


def open_files() -> set[str]:
    """What this process has open, as /proc names it."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(each.readlink()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("proxied", [False, True], ids=["straight", "by a proxy"])
@pytest.mark.parametrize("how", ["stalled", "cancelled"])
def test_a_peer_that_takes_nothing_keeps_no_connection(
    how: str, proxied: bool, front: TlsProxy, authority: Authority, made: list[str]
) -> None:
    """On the loop that the daemon runs on."""

    async def give_up(proxy: str | None) -> None:
        store = store_at(front.endpoint, authority, proxy)
        sending = asyncio.create_task(put(store))
        assert await asyncio.to_thread(front.wait_for, lambda: front.open == 1, 30)
        if how == "cancelled":
            sending.cancel()
        with pytest.raises((StoreError, asyncio.CancelledError)) as ended:
            await sending
        assert isinstance(ended.value, asyncio.CancelledError if how == "cancelled" else StoreError)
        async with asyncio.timeout(BOUND_S):
            while open_files().intersection(made):  # noqa: ASYNC110 nobody tells of it
                await asyncio.sleep(0.02)
        await store.close()

    front.stall()
    with Gate(front.endpoint) as gate, asyncio.Runner(loop_factory=HurriedLoop) as runner:
        runner.run(give_up(gate.endpoint if proxied else None))
    assert len(made) == 1


async def test_certificates_are_read_off_the_loop_and_for_tls_alone(
    authority: Authority, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the data path and by aiobotocore's calls."""
    read: list[int] = []
    real = tls.ssl.create_default_context

    def create(**options: Any) -> Any:
        read.append(threading.get_ident())
        return real(**options)

    monkeypatch.setattr(tls, "ssl", SimpleNamespace(create_default_context=create, SSLContext=tls.ssl.SSLContext))
    empty = Answer(404, headers={"connection": "close"})
    with Gate("http://nobody.test", lambda _: empty) as gate, TlsProxy(gate.endpoint, authority.server) as front:
        for endpoint, contexts in ((gate.endpoint, 0), (front.endpoint, 2)):
            read.clear()
            store = store_at(endpoint, authority)
            with pytest.raises(StoreError):
                await put(store)
            assert await store.head("key") is None
            await store.close()
            assert len(read) == contexts
            assert threading.get_ident() not in read
