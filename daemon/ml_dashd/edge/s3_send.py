"""The data path to S3: objects and parts, signed here; fetched by aiohttp, and sent by it where there is a proxy.

Else the loop sends what is small (s3_line.py), and threads what is large (s3_bulk.py). aiobotocore, which makes all
other calls, takes 0.9 ms of CPU a request before the first byte leaves. Credentials and endpoint are botocore's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from http import HTTPStatus
from socket import socket
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import aiohttp
from yarl import URL

from ml_dashd.core.redact import redact
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.core.sigv4 import Signer, canonical_query, encode_key
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.s3_bulk import STALL_S, BulkLine
from ml_dashd.edge.s3_client import (
    CONNECT_TIMEOUT_S,
    DATA_READ_TIMEOUT_S,
    MOVED,
    Clients,
    Origin,
    S3Settings,
    Way,
    make_socket,
)
from ml_dashd.edge.s3_errors import clock_difference, fault_of, sorted_error
from ml_dashd.edge.s3_line import Line, Lines, Lost, request
from ml_dashd.edge.s3_reply import Reply
from ml_dashd.edge.system import breathe
from ml_dashd.edge.threads import Pool

DIRECT_BYTES = 1024 * 1024
"""Up to here a body is given to the loop's transport at once: to have a thread send 1 MiB takes a tenth more CPU."""
PUT_FAULTS = {"NoSuchUpload": Fault.GONE, "NoSuchKey": Fault.GONE}
"""The second is Ceph's word for it: a PUT of an object is never told that."""
GET_FAULTS = {"NoSuchKey": Fault.MISSING, "InvalidRange": Fault.CORRUPT}
"""The second is said of an object that ends before the range."""
RECEIVE_BYTES = 256 * 1024
"""What may wait to be taken off a connection, twice: as much as uvloop reads at a time."""
ERROR_BYTES = 64 * 1024
"""As much as is read of a refusal: none that S3 gives is longer."""


class Sender:
    """Sends bodies. One session of connections, kept while it is used."""

    def __init__(self, settings: S3Settings, clients: Clients, throttle: Throttle | None = None) -> None:
        self._settings = settings
        self._clients = clients
        self._throttle = throttle or Throttle()
        self._session: aiohttp.ClientSession | None = None
        self._lines: Lines[Line] = Lines(partial(Line.begin, ERROR_BYTES))
        self._threads: Pool | None = None
        self._bulk: Lines[BulkLine] = Lines(self._begin_bulk)
        self._signer: Signer | None = None

    async def put(
        self, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: memoryview, what: str
    ) -> Mapping[str, str]:
        """PUTs a body; returns the answer's headers. Raises StoreError."""
        direct = len(body) <= min(DIRECT_BYTES, self._throttle.slice_bytes)
        if direct:
            await self._throttle.take(len(body))  # before it is signed: a signature ages
        way, target, signed = await self._sign("PUT", key, query, headers)
        signed["content-length"] = str(len(body))
        try:
            head = request("PUT", target, signed)
            if way.proxy is not None:
                answer = await self._put_by_session(way, target, signed, body, direct=direct)
            elif direct:
                answer = await self._lines.ask(way.origin, lambda line: line.ask(head, body))
            else:
                answer = await self._bulk.ask(way.origin, lambda line: line.ask(head, body, self._throttle))
        except StoreError as failure:
            raise StoreError(failure.fault, redact(f"{what}: {failure.message}")) from failure
        except Exception as failure:
            raise sorted_error(failure, what) from failure
        # A 200 can hold an error; then it has no ETag.
        if answer.status != HTTPStatus.OK or "etag" not in answer.headers:
            raise await self._refusal(answer, way, what, PUT_FAULTS)
        return answer.headers

    async def _put_by_session(
        self, way: Way, target: str, headers: dict[str, str], body: memoryview, *, direct: bool
    ) -> Reply:
        url = URL(way.origin_url + target, encoded=True)
        async with asyncio.timeout(STALL_S) as limit:
            data = bytes(body) if direct else _slices(body, limit, self._throttle)
            async with self._open().put(url, data=data, headers=headers, **_way(way)) as answer:
                return await _replied(answer)

    async def get(self, key: str, offset: int, into: memoryview, arrived: Callable[[int], None], what: str) -> None:
        """GETs a range, which is not empty, into a buffer; tells how many bytes came. Raises StoreError."""
        asked = {"range": f"bytes={offset}-{offset + len(into) - 1}"}
        way, target, signed = await self._sign("GET", key, {}, asked)
        url = URL(way.origin_url + target, encoded=True)
        try:
            async with self._open().get(url, headers=signed, **_way(way)) as answer:
                refusal = await self._unfit(answer, way, offset, len(into), what)
                if refusal is None:
                    await _receive(answer.content, into, arrived)
        except Exception as failure:
            raise sorted_error(failure, what) from failure
        if refusal is not None:
            raise refusal

    async def close(self) -> None:
        """Ends the connections. What is called afterwards begins new ones."""
        self._lines.close()
        self._bulk.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.close()

    async def _begin_bulk(self, peer: socket, origin: Origin, lost: Lost[BulkLine]) -> BulkLine:
        if self._threads is None:
            self._threads = Pool(self._settings.connections, "send")
        return await BulkLine.begin(ERROR_BYTES, self._threads, peer, origin, lost)

    async def _sign(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[Way, str, dict[str, str]]:
        """The way, the request's target, and its headers."""
        access = await self._clients.access()
        way = access.way
        path = f"{way.base_path}/{encode_key(key)}"
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        given = {**headers, "host": way.netloc}
        signed = self._signer_of(way.region).headers(access.keys, method, path, query, given, at)
        text = canonical_query(query)
        return way, f"{path}?{text}" if text else path, signed

    async def _unfit(
        self, answer: aiohttp.ClientResponse, way: Way, offset: int, size: int, what: str
    ) -> StoreError | None:
        """Why an answer is not the range; None where it is. A server that knows no ranges sends the whole object."""
        if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return await self._refusal(await _replied(answer), way, what, GET_FAULTS)
        if answer.status == HTTPStatus.OK and offset:
            return StoreError(Fault.REFUSED, f"{what}: the server sends no ranges")
        if answer.content_length is not None and answer.content_length < size:
            return StoreError(Fault.CORRUPT, f"{what}: it ends after {offset + answer.content_length} bytes")
        return None

    async def _refusal(self, answer: Reply, way: Way, what: str, faults: Mapping[str, Fault]) -> StoreError:
        said = _error_of(answer.content)
        region = answer.headers.get("x-amz-bucket-region") or said.region
        if answer.status in MOVED and region not in ("", way.region) and await self._clients.relocate(region):
            return StoreError(Fault.TRANSIENT, f"{what}: the bucket is in {region}")
        fault = faults.get(said.code) or fault_of(said.code, answer.status)
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
                read_bufsize=RECEIVE_BYTES,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session


def _way(way: Way) -> dict[str, Any]:
    """How a request gets to the bucket. A redirect is the bucket's word that it is elsewhere: it is not followed."""
    return {"proxy": way.proxy, "ssl": way.tls or True, "allow_redirects": False}


async def _replied(answer: aiohttp.ClientResponse) -> Reply:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Reply(answer.status, headers, await answer.content.read(ERROR_BYTES))


async def _slices(body: memoryview, limit: asyncio.Timeout, throttle: Throttle) -> AsyncIterator[memoryview]:
    """A buffer as aiohttp takes it without a copy; each piece that was taken moves the limit on.

    It has no timeout of its own while it sends. What waits for its share of a cap does not count.
    """
    loop = asyncio.get_running_loop()
    limit.reschedule(loop.time() + STALL_S)
    for start in range(0, len(body), throttle.slice_bytes):
        piece = body[start : start + throttle.slice_bytes]
        if throttle.capped:
            limit.reschedule(None)
            await throttle.take(len(piece))
            limit.reschedule(loop.time() + STALL_S)
        yield piece
        limit.reschedule(loop.time() + STALL_S)
        await breathe()


async def _receive(content: aiohttp.StreamReader, into: memoryview, arrived: Callable[[int], None]) -> None:
    """Piece by piece as the transport has them: none is joined with another before it goes into the buffer."""
    done = 0
    async for piece, _ in content.iter_chunks():
        taken = min(len(piece), len(into) - done)
        into[done : done + taken] = piece[:taken] if taken < len(piece) else piece
        done += taken
        arrived(taken)
        if done == len(into):
            return  # of a whole object, the rest is not wanted
    raise ConnectionError(f"the answer broke off after {done} of {len(into)} bytes")


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
