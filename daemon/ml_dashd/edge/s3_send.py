"""The data path to S3: objects and parts, signed here and sent by aiohttp. Everything else is aiobotocore's.

aiobotocore takes 0.9 ms of CPU a request before the first byte leaves; this takes 0.14 ms, which is what makes small
files quick. Credentials and the endpoint are botocore's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import aiohttp
from yarl import URL

from ml_dashd.core.redact import redact
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.sigv4 import Signer, canonical_query, encode_key
from ml_dashd.edge.s3_client import CONNECT_TIMEOUT_S, DATA_READ_TIMEOUT_S, MOVED, Clients, S3Settings, Way, make_socket
from ml_dashd.edge.s3_errors import clock_difference, fault_of, sorted_error
from ml_dashd.edge.system import breathe

SLICE_BYTES = 1024 * 1024
"""What is given to the transport at a time: 512 KiB to 1 MiB measured best."""
STALL_S = 60.0
"""A body of which nothing could be sent for this long is given up: aiohttp has no timeout of its own while it sends."""
DIRECT_BYTES = 256 * 1024
"""Up to here a body is given to the transport at once; a larger one in slices, so that the loop can look at others."""
GONE_UPLOAD = ("NoSuchUpload", "NoSuchKey")
"""The second is Ceph's word for it: a PUT of an object is never told that."""
ERROR_BYTES = 64 * 1024
"""As much as is read of an answer: none that S3 gives to a PUT is longer."""


class Sender:
    """Sends bodies. One session of connections, kept while it is used."""

    def __init__(self, settings: S3Settings, clients: Clients) -> None:
        self._settings = settings
        self._clients = clients
        self._session: aiohttp.ClientSession | None = None
        self._signer: Signer | None = None

    async def put(
        self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: memoryview, what: str
    ) -> Mapping[str, str]:
        """PUTs a body; returns the answer's headers. Raises StoreError."""
        access = await self._clients.access()
        way = access.way
        base = urlsplit(way.bucket_url)
        path = f"{base.path}/{encode_key(key)}"
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        given = {**headers, "host": base.netloc}
        signed = self._signer_of(way.region).headers(access.keys, "PUT", path, query, given, at)
        signed["content-length"] = str(len(body))
        text = canonical_query(query)
        url = URL(f"{base.scheme}://{base.netloc}{path}" + (f"?{text}" if text else ""), encoded=True)
        try:
            async with asyncio.timeout(STALL_S) as limit:
                data = bytes(body) if len(body) <= DIRECT_BYTES else _slices(body, limit)
                given_way: dict[str, Any] = {"proxy": way.proxy, "ssl": way.tls or True}
                async with self._open().put(
                    url, data=data, headers=signed, allow_redirects=False, **given_way
                ) as answer:
                    refusal = None if answer.status == HTTPStatus.OK else await self._refusal(answer, way, what)
        except Exception as failure:
            raise sorted_error(failure, what) from failure
        if refusal is not None:
            raise refusal
        return answer.headers

    async def close(self) -> None:
        """Ends the connections. What is called afterwards begins new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _refusal(self, answer: aiohttp.ClientResponse, way: Way, what: str) -> StoreError:
        said = _error_of(await answer.content.read(ERROR_BYTES))
        region = answer.headers.get("x-amz-bucket-region") or said.region
        if answer.status in MOVED and region not in ("", way.region) and await self._clients.relocate(region):
            return StoreError(Fault.TRANSIENT, f"{what}: the bucket is in {region}")
        fault = Fault.GONE if said.code in GONE_UPLOAD else fault_of(said.code, answer.status)
        message = f"{what}: {said.code or answer.status} {said.message}".rstrip()
        if fault is Fault.SKEWED:
            message += clock_difference(answer.headers.get("date"))
        return StoreError(fault, redact(message))

    def _signer_of(self, region: str) -> Signer:
        if self._signer is None or self._signer.region != region:
            self._signer = Signer(region)
        return self._signer

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._settings.connections,
                    socket_factory=make_socket,
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=DATA_READ_TIMEOUT_S
                ),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session


async def _slices(body: memoryview, limit: asyncio.Timeout) -> AsyncIterator[memoryview]:
    """A pooled buffer as aiohttp takes it without a copy; each piece that was taken moves the limit on."""
    for start in range(0, len(body), SLICE_BYTES):
        yield body[start : start + SLICE_BYTES]
        limit.reschedule(asyncio.get_running_loop().time() + STALL_S)
        await breathe()


class _Said(NamedTuple):
    """What an error's XML says; empty where it is none."""

    code: str = ""
    message: str = ""
    region: str = ""


def _error_of(content: bytes) -> _Said:
    try:
        root = ET.fromstring(content)  # noqa: S314 expat bounds entities; the store is the operator's
    except ET.ParseError:
        return _Said()
    return _Said(*(root.findtext(f"{{*}}{name}") or "" for name in ("Code", "Message", "Region")))
