"""Clients for S3: how bytes are sent, which errors mean what, and the sockets under it all.

Parts are sent as an async iterable over a memoryview of a pooled buffer: no copy, no hashing on the loop, and the right
bytes again after a retry. botocore's own retries, payload hashes, trailers and `Expect: 100-continue` are off.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as boto
from botocore.handlers import add_expect_header

from ml_dashd.core.model import Algorithm
from ml_dashd.core.redact import redact
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.system import breathe

SLICE_BYTES = 1024 * 1024
"""What is given to the transport at a time: 512 KiB to 1 MiB measured best."""
STALL_S = 60.0
"""A part of which nothing could be sent for this long is given up: aiohttp has no timeout of its own while it sends."""
USER_TIMEOUT_MS = 30_000
"""TCP_USER_TIMEOUT: frees a connection whose peer takes nothing, which a cancelled request would keep for ever."""
CONNECT_TIMEOUT_S = 10
DATA_READ_TIMEOUT_S = 60
CONTROL_READ_TIMEOUT_S = 300
"""Complete may take minutes on the server's side."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where and how. `checksum` None means: find out."""

    bucket: str
    key_prefix: str
    endpoint_url: str | None
    region: str | None
    checksum: Algorithm | None
    ca_bundle: str | None
    connections: int
    part_bytes: int


class Body:
    """A buffer as botocore and aiohttp want a request's body; `moved` is called whenever a piece was taken."""

    def __init__(self, buffer: memoryview, moved: Callable[[], None]) -> None:
        self._buffer = buffer
        self._moved = moved

    def __len__(self) -> int:
        return len(self._buffer)

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return len(self._buffer) if whence == os.SEEK_END else offset

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("a body is never read: it would be hashed on the loop")

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._buffer), SLICE_BYTES):
            yield self._buffer[start : start + SLICE_BYTES]
            self._moved()
            await breathe()


class Clients:
    """Two clients of one session, so that Complete and ListParts never wait behind parts."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._open: AsyncExitStack | None = None
        self._data: Any = None
        self._control: Any = None

    async def data(self) -> Any:
        await self._ensure()
        return self._data

    async def control(self) -> Any:
        await self._ensure()
        return self._control

    async def close(self) -> None:
        """Ends the connections. What is called afterwards begins new ones."""
        async with self._lock:
            if self._open is not None:
                await self._open.aclose()
            self._open = None

    async def _ensure(self) -> None:
        async with self._lock:
            if self._open is not None:
                return
            stack, session = AsyncExitStack(), get_session()
            self._data = await stack.enter_async_context(self._make(session, DATA_READ_TIMEOUT_S))
            self._control = await stack.enter_async_context(self._make(session, CONTROL_READ_TIMEOUT_S))
            self._open = stack

    @asynccontextmanager
    async def _make(self, session: Any, read_timeout: int) -> AsyncIterator[Any]:
        settings = self._settings
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout,
            max_pool_connections=settings.connections + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            s3={"payload_signing_enabled": False, "addressing_style": "path" if settings.endpoint_url else "auto"},
            connector_args={"socket_factory": _make_socket},
        )
        client = session.create_client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            verify=settings.ca_bundle,
            config=config,
        )
        async with client as s3:
            s3.meta.events.unregister("before-call.s3", add_expect_header)
            yield s3


@asynccontextmanager
async def watched(buffer: memoryview) -> AsyncIterator[Body]:
    """A body for one request, which is given up when nothing moves for STALL_S."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(STALL_S) as limit:
        yield Body(buffer, lambda: limit.reschedule(loop.time() + STALL_S))


FAULTS: dict[str, Fault] = {
    "SlowDown": Fault.THROTTLED,
    "ServiceUnavailable": Fault.THROTTLED,
    "TooManyRequests": Fault.THROTTLED,
    "RequestTimeout": Fault.TRANSIENT,
    "RequestTimeTooSkewed": Fault.TRANSIENT,
    "ExpiredToken": Fault.TRANSIENT,
    "OperationAborted": Fault.TRANSIENT,
    "BadDigest": Fault.CORRUPT,
    "InvalidDigest": Fault.CORRUPT,
    "IncompleteBody": Fault.CORRUPT,
    "XAmzContentChecksumMismatch": Fault.CORRUPT,
    "NoSuchUpload": Fault.GONE,
    "InvalidPart": Fault.GONE,
    "InvalidPartOrder": Fault.GONE,
    "EntityTooSmall": Fault.GONE,
    "NoSuchBucket": Fault.NO_BUCKET,
    "InvalidAccessKeyId": Fault.CREDENTIALS,
    "SignatureDoesNotMatch": Fault.CREDENTIALS,
    "InvalidToken": Fault.CREDENTIALS,
    "AuthorizationHeaderMalformed": Fault.CREDENTIALS,
    "AccessDenied": Fault.DENIED,
    "AllAccessDisabled": Fault.DENIED,
    "AccountProblem": Fault.DENIED,
}
"""S3's error codes. Others follow their HTTP status: 5xx may pass, 403 is a denial, what else is 4xx stays refused."""


def sorted_error(failure: Exception, what: str) -> StoreError:
    """Whatever a call raised, as a StoreError. An endpoint's URL may hold a password, and owners read the message."""
    return StoreError(_fault_of(failure), redact(f"{what}: {str(failure) or type(failure).__name__}"))


def _fault_of(failure: Exception) -> Fault:
    if isinstance(failure, boto.ClientError):
        return _fault_of_answer(failure)
    if isinstance(failure, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Fault.CREDENTIALS
    if isinstance(
        failure, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.SSLError | boto.ProxyConnectionError
    ):
        return Fault.UNREACHABLE
    return Fault.TRANSIENT


def _fault_of_answer(failure: boto.ClientError) -> Fault:
    code = str(failure.response.get("Error", {}).get("Code", ""))
    status = int(failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if (fault := FAULTS.get(code)) is not None:
        return fault
    if code.startswith("KMS.") or status == 403:  # noqa: PLR2004 Forbidden
        return Fault.DENIED
    if status >= 500 or status < 400:  # noqa: PLR2004 a 200 can hold an error, too
        return Fault.TRANSIENT
    return Fault.REFUSED


def code_of(failure: BaseException) -> str:
    """The S3 error code of what a call raised; "" for anything else."""
    response = getattr(failure, "response", {})
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _make_socket(address: tuple[Any, ...]) -> socket.socket:
    """Aiohttp's sockets, with the timeouts that botocore's own options do not reach."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made
