"""Connections of the data path, over TLS and by a proxy: none outlives a request that was given up."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ml_dashd.core.checksum import digest
from ml_dashd.core.model import Algorithm, Target
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge import s3_client, s3_send, tls
from ml_dashd.edge.s3 import S3Store
from ml_dashd.edge.s3_client import S3Settings
from tests.doubles.authority import Authority
from tests.doubles.gate import Gate
from tests.doubles.tls_proxy import TlsProxy

MIB = 1 << 20
BODY = memoryview(bytes(32 * MIB))
"""More than the buffers of both ends hold."""
USER_TIMEOUT_MS = 1_000
GIVEN_UP_S = 0.5


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
def front(sink: str, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsProxy]:
    """TLS ends there, and nothing is read once the connection stands."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(s3_client, "USER_TIMEOUT_MS", USER_TIMEOUT_MS)
    monkeypatch.setattr(s3_send, "STALL_S", GIVEN_UP_S)
    with TlsProxy(sink, authority.server) as proxy:
        yield proxy


def store_at(endpoint: str, authority: Authority, proxy: str | None = None) -> S3Store:
    settings = S3Settings(
        "bucket", "", endpoint, "us-east-1", Algorithm.NONE, str(authority.bundle), 4, 5 * MIB, proxy=proxy
    )
    return S3Store(settings)


async def put(store: S3Store) -> Any:
    return await store.put(Target("key", 1, len(BODY), "x/y"), BODY, digest(BODY, Algorithm.NONE))


@pytest.mark.slow
@pytest.mark.parametrize("proxied", [False, True], ids=["straight", "by a proxy"])
@pytest.mark.parametrize("how", ["stalled", "cancelled"])
async def test_a_peer_that_takes_nothing_keeps_no_connection(
    how: str, proxied: bool, front: TlsProxy, authority: Authority
) -> None:
    with Gate(front.endpoint) as proxy:
        store = store_at(front.endpoint, authority, proxy.endpoint if proxied else None)
        front.stall()
        sending = asyncio.create_task(put(store))
        await asyncio.to_thread(front.wait_for, lambda: front.open == 1, 30)
        if how == "cancelled":
            await asyncio.sleep(GIVEN_UP_S / 5)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        else:
            with pytest.raises(StoreError) as failed:
                await sending
            assert failed.value.fault is Fault.TRANSIENT
        await store.close()
        front.go_on()  # its end of the connection sees what became of ours
        assert await asyncio.to_thread(front.wait_for, lambda: front.open == 0, 30), "the connection is still there"


async def test_certificates_are_read_off_the_loop_and_for_tls_alone(
    front: TlsProxy, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = tls.ssl.create_default_context

    def create(**options: Any) -> Any:
        read.append(threading.get_ident())
        return real(**options)

    monkeypatch.setattr(tls, "ssl", SimpleNamespace(create_default_context=create, SSLContext=tls.ssl.SSLContext))
    for endpoint, expected in ((front.endpoint.replace("https", "http"), False), (front.endpoint, True)):
        read.clear()
        store = store_at(endpoint, authority)
        with pytest.raises(StoreError):
            await put(store)
        with pytest.raises(StoreError):
            await asyncio.wait_for(store.head("key"), GIVEN_UP_S)
        await store.close()
        assert bool(read) is expected
        assert threading.get_ident() not in read
