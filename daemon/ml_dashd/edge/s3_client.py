"""The client for S3: settings, credentials, and the sockets under it all. botocore's own retries are off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as boto

from ml_dashd.core.model import Algorithm
from ml_dashd.core.sigv4 import Keys

USER_TIMEOUT_MS = 30_000
"""TCP_USER_TIMEOUT: frees a connection whose peer takes nothing, which a cancelled request would keep for ever."""
DEFAULT_REGION = "us-east-1"
"""What is signed for where nothing names a region, as every SDK does."""
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

    @property
    def addressing(self) -> str:
        """Whether the bucket stands in the path or in the host's name: "path" or "virtual"."""
        return "path" if self.endpoint_url or "." in self.bucket else "virtual"


@dataclass(frozen=True, slots=True)
class Access:
    """What signs a request, and where the bucket is."""

    keys: Keys
    region: str
    bucket_url: str


def bucket_url(endpoint: str, bucket: str, addressing: str) -> str:
    """The URL below which the bucket's keys are, without a slash at its end."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    if addressing == "path":
        return f"{parts.scheme}://{parts.netloc}{path}/{bucket}"
    return f"{parts.scheme}://{bucket}.{parts.netloc}{path}"


class Clients:
    """The client of control calls, which never wait behind parts, and its credentials."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._open: AsyncExitStack | None = None
        self._control: Any = None
        self._credentials: Any = None

    async def control(self) -> Any:
        await self._ensure()
        return self._control

    async def access(self) -> Access:
        """What a request of one's own needs, as it is at this moment: credentials that are about to end are renewed."""
        control = await self.control()
        if self._credentials is None:
            raise boto.NoCredentialsError
        frozen = await self._credentials.get_frozen_credentials()
        keys = Keys(frozen.access_key, frozen.secret_key, frozen.token)
        url = bucket_url(control.meta.endpoint_url, self._settings.bucket, self._settings.addressing)
        return Access(keys, control.meta.region_name or DEFAULT_REGION, url)

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
            self._credentials = await session.get_credentials()
            self._control = await stack.enter_async_context(self._make(session))
            self._open = stack

    @asynccontextmanager
    async def _make(self, session: Any) -> AsyncIterator[Any]:
        settings = self._settings
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=CONTROL_READ_TIMEOUT_S,
            max_pool_connections=settings.connections + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            s3={"payload_signing_enabled": False, "addressing_style": settings.addressing},
            connector_args={"socket_factory": make_socket},
        )
        client = session.create_client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            verify=settings.ca_bundle,
            config=config,
        )
        async with client as s3:
            yield s3


def make_socket(address: tuple[Any, ...]) -> socket.socket:
    """Aiohttp's sockets, with the timeouts that botocore's own options do not reach."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made
