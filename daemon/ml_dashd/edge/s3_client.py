"""The client for S3: settings, credentials, and the sockets under it all. botocore's own retries are off."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.handlers import add_expect_header
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies

from ml_dashd.core.model import Algorithm
from ml_dashd.core.sigv4 import Keys
from ml_dashd.edge.s3_credentials import Chain
from ml_dashd.edge.s3_errors import sorted_error
from ml_dashd.edge.tls import trusting

USER_TIMEOUT_MS = 30_000
"""TCP_USER_TIMEOUT: frees a connection whose peer takes nothing, which a cancelled request would keep for ever."""
DEFAULT_REGION = "us-east-1"
"""What is signed for where nothing names a region, as every SDK does."""
DIRECT = "direct"
"""In place of a proxy's URL: none, whatever the environment says."""
MOVED = (301, 307, 400)
"""How a bucket of another region answers."""
MAX_MOVES = 3
"""A bucket is in one region: a server that names ever others is not followed."""
AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")
CONNECT_TIMEOUT_S = 10
DATA_READ_TIMEOUT_S = 60
CONTROL_READ_TIMEOUT_S = 300
"""Complete may take minutes on the server's side."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How the store keeps what it is sent: asked for with every object and upload. None leaves it to the bucket."""

    sse: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """For requests that are signed here."""
        return {header: value for header, _, value in self._named if value is not None}

    @property
    def arguments(self) -> dict[str, str]:
        """The same for botocore's calls."""
        return {argument: value for _, argument, value in self._named if value is not None}

    @property
    def _named(self) -> tuple[tuple[str, str, str | None], ...]:
        return (
            ("x-amz-server-side-encryption", "ServerSideEncryption", self.sse),
            ("x-amz-server-side-encryption-aws-kms-key-id", "SSEKMSKeyId", self.sse_kms_key_id),
            ("x-amz-storage-class", "StorageClass", self.storage_class),
        )


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
    addressing: str = "auto"
    """"path", "virtual", or "auto": by path at an endpoint that is not AWS's, and for a bucket whose name has a dot."""
    profile: str | None = None
    credentials_file: str | None = None
    proxy: str | None = None
    """A URL, "direct" for none, or None for the environment's (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""
    placement: Placement = Placement()
    copy_bytes: int = 5 * 1024**3
    """The largest object that CopyObject takes: S3's limit."""

    @property
    def proxies(self) -> dict[str, str] | None:
        """As botocore takes them; None leaves it to the environment."""
        if self.proxy is None:
            return None
        return {} if self.proxy == DIRECT else {"http": self.proxy, "https": self.proxy}

    def proxy_for(self, url: str) -> str | None:
        """The proxy for a request, by the same rules by which botocore chooses."""
        proxies = get_environ_proxies(url) if self.proxies is None else self.proxies
        found: str | None = ProxyConfiguration(proxies=proxies).proxy_url_for(url)
        return found

    def style(self, endpoint: str | None) -> str:
        """Whether the bucket stands in the path or in the host's name there: "path" or "virtual"."""
        if self.addressing != "auto":
            return self.addressing
        return "path" if endpoint or "." in self.bucket else "virtual"


class Origin(NamedTuple):
    """A server. `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class Way:
    """Where the bucket is, and how it is reached: the same for every request, until it turns out to be elsewhere."""

    region: str
    bucket_url: str
    proxy: str | None
    tls: ssl.SSLContext | None

    @cached_property
    def netloc(self) -> str:
        """The host, and the port where it is named: what the header Host says."""
        return urlsplit(self.bucket_url).netloc

    @cached_property
    def base_path(self) -> str:
        """What goes before a key in a request's path, without a slash at its end."""
        return urlsplit(self.bucket_url).path

    @cached_property
    def origin_url(self) -> str:
        """The URL as far as its path."""
        return self.bucket_url.removesuffix(self.base_path)

    @cached_property
    def origin(self) -> Origin:
        """Whom to connect to."""
        parts = urlsplit(self.bucket_url)
        return Origin(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), self.tls)


@dataclass(frozen=True, slots=True)
class Access:
    """What a request of one's own needs."""

    keys: Keys
    way: Way


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
        self._retired: list[AsyncExitStack] = []
        self._control: Any = None
        self._way = Way("", "", None, None)
        self._chain = Chain(settings.profile, settings.credentials_file, settings.proxies)
        self._regions: list[str] = []
        """Where the bucket has said that it is, the last one last."""

    @property
    def generation(self) -> int:
        """Which credentials are in use; see `renew`."""
        return self._chain.generation

    async def control(self) -> Any:
        await self._ensure()
        return self._control

    async def access(self) -> Access:
        """As it is at this moment: credentials that are about to end are renewed."""
        await self._ensure()
        frozen = await self._chain.get_frozen_credentials()
        return Access(Keys(frozen.access_key, frozen.secret_key, frozen.token), self._way)

    def renew(self, generation: int) -> None:
        """The store has refused the credentials that were in use then: the next request asks for others."""
        self._chain.renew(generation)

    async def relocate(self, region: str) -> bool:
        """The bucket is in that region: what is called afterwards goes there. False where that has been tried.

        What is on its way is not disturbed.
        """
        async with self._lock:
            if region in self._regions or len(self._regions) == MAX_MOVES:
                return False
            self._regions.append(region)
            if self._open is not None:
                self._retired.append(self._open)
                self._open = None
            return True

    async def follow(self, failure: Exception) -> bool:
        """Relocates where that is what a call's failure says, and botocore has not followed it by itself."""
        if not isinstance(failure, ClientError):
            return False
        about = failure.response.get("ResponseMetadata", {})
        region = about.get("HTTPHeaders", {}).get("x-amz-bucket-region", self._way.region)
        return about.get("HTTPStatusCode") in MOVED and region != self._way.region and await self.relocate(region)

    async def provider(self) -> str | None:
        """Where credentials were found, in botocore's words, such as "env" or "iam-role"; None where there are none."""
        await self._ensure()
        try:
            await self._chain.get_frozen_credentials()
        except NoCredentialsError:
            return None
        return self._chain.provider

    async def close(self) -> None:
        """Ends the connections. What is called afterwards begins new ones."""
        async with self._lock:
            open_now, self._open = self._open, None
            for stack in (*self._retired, *([open_now] if open_now is not None else [])):
                await stack.aclose()
            self._retired.clear()

    async def _ensure(self) -> None:
        if self._open is not None:
            return
        async with self._lock:
            if self._open is None:
                try:
                    await self._begin()
                except Exception as failure:
                    raise sorted_error(failure, f"open {self._settings.bucket}") from failure

    async def _begin(self) -> None:
        settings, session = self._settings, await self._chain.session()
        endpoint = settings.endpoint_url or await _configured_endpoint(session)
        ca_bundle = settings.ca_bundle or session.get_config_variable("ca_bundle")
        async with AsyncExitStack() as stack:
            self._control = await stack.enter_async_context(self._make(session, endpoint, ca_bundle))
            meta = self._control.meta
            url = bucket_url(meta.endpoint_url, settings.bucket, settings.style(endpoint))
            tls = await asyncio.to_thread(trusting, ca_bundle) if url.startswith("https:") else None
            self._way = Way(meta.region_name or DEFAULT_REGION, url, settings.proxy_for(url), tls)
            self._open = stack.pop_all()

    @asynccontextmanager
    async def _make(self, session: AioSession, endpoint: str | None, ca_bundle: str | None) -> AsyncIterator[Any]:
        settings = self._settings
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=CONTROL_READ_TIMEOUT_S,
            max_pool_connections=settings.connections + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            s3={"payload_signing_enabled": False, "addressing_style": settings.style(endpoint)},
            proxies=settings.proxies,
            connector_args={"socket_factory": make_socket},
        )
        plain = endpoint is not None and endpoint.startswith("http:")
        client = session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=self._regions[-1] if self._regions else settings.region,
            verify=False if plain else ca_bundle or True,
            config=config,
        )
        async with client as s3:
            # A body would wait for 100 Continue for ever, where a server or a proxy never sends it.
            s3.meta.events.unregister("before-call.s3", add_expect_header)
            yield s3


async def _configured_endpoint(session: AioSession) -> str | None:
    """The endpoint that the AWS chain names (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile); None: AWS's own."""
    async with session.create_client("s3") as s3:
        endpoint: str = s3.meta.endpoint_url
    host = urlsplit(endpoint).hostname or ""
    return None if host.endswith(AWS_DOMAINS) else endpoint


def make_socket(address: tuple[Any, ...]) -> socket.socket:
    """Aiohttp's sockets, with the timeouts that botocore's own options do not reach."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made
