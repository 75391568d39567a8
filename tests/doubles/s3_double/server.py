"""The server: HTTP on loopback, each request verified and answered in turn, in a thread of its own."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import aiohttp
from aiohttp import web

from tests.doubles.loop_thread import LoopThread
from tests.doubles.s3_double import body, signature
from tests.doubles.s3_double.exchange import Answer, Refusal, Request
from tests.doubles.s3_double.objects import LARGEST, Bucket, Objects
from tests.doubles.s3_double.signature import Secret, Signed
from tests.doubles.s3_double.uploads import Upload, Uploads
from tests.servers.s3server import s3_client

SUBRESOURCES = ("uploads", "uploadId", "list-type")
"""Of a query's names those that make another operation of a method."""
DETAILS = {"partNumber", "prefix", "continuation-token", "start-after", "max-keys", "encoding-type", "key-marker",
           "upload-id-marker", "max-uploads", "part-number-marker", "max-parts", "x-id"}  # fmt: skip
"""The others that are known; "x-id" is an SDK's name for the operation."""


class S3Double:
    """As the real servers of tests/servers: an endpoint, a key, a client. Buckets and uploads are there to look at.

    `secrets` are the keys that it knows, `skew_s` is how far its clock is ahead, `requests` counts by operation.
    """

    name = "s3_double"
    access_key = "AKIADOUBLE"
    secret_key = "the/double's+secret"
    region = "us-east-1"

    def __init__(self) -> None:
        self.secrets = {self.access_key: Secret(self.secret_key)}
        self.skew_s = 0.0
        self.requests: Counter[str] = Counter()
        self.endpoint = ""
        self._objects = Objects(self._now)
        self._uploads = Uploads(self._objects, self._now)
        self._operations = _operations(self._objects, self._uploads)

    @property
    def buckets(self) -> dict[str, Bucket]:
        return self._objects.buckets

    @property
    def uploads(self) -> dict[str, Upload]:
        """The multipart uploads that are open, by their ids."""
        return self._uploads.open

    def client(self, **options: Any) -> Any:
        """A boto3 client as the real servers give it; the caller closes it."""
        return s3_client(self.endpoint, self.access_key, self.secret_key, self.region, **options)

    def make_bucket(self, name: str) -> str:
        self.buckets[name] = Bucket()
        return name

    def __enter__(self) -> Self:
        self._thread = LoopThread(self.name)
        self.endpoint = f"http://127.0.0.1:{self._thread.run(self._start())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(self._runner.cleanup())
        self._thread.close()

    async def _start(self) -> int:
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = self._answer(await self._verified(request))
        except Refusal as refusal:
            answer = refusal.answer()
        headers = {"Date": formatdate(self._now_s(), usegmt=True), "x-amz-request-id": "double", **answer.headers}
        response = (
            web.StreamResponse(status=answer.status, headers={"Content-Length": "0", **headers})
            if request.method == "HEAD"
            else web.Response(status=answer.status, headers=headers, body=answer.content)
        )
        if not request.content.is_eof():
            response.force_close()  # nobody knows whether its body comes: it was not asked to go on
        return response

    async def _verified(self, request: web.BaseRequest) -> Request:
        """Its signature is verified before its body is taken, which decides whether there is a 100 Continue."""
        path, _, text = request.raw_path.partition("?")
        query = parse_qsl(text, keep_blank_values=True)
        headers = _headers(request)
        try:
            signature.verify(Signed(request.method, path, query, headers), self.secrets, self.region, self._now_s())
            raw = await _received(request, headers)
        except Refusal:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await _drain(request, headers)
            raise
        content, checksums = body.verified(headers, raw, of_body=request.method == "PUT")
        bucket, _, key = path.removeprefix("/").partition("/")
        return Request(request.method, unquote(bucket), unquote(key), dict(query), headers, content, checksums)

    def _answer(self, request: Request) -> Answer:
        about = next((name for name in SUBRESOURCES if name in request.query), "")
        place = "object" if request.key else "bucket" if request.bucket else "service"
        copied = "copy" if "x-amz-copy-source" in request.headers else ""
        operation = self._operations.get((request.method, place, about, copied))
        if operation is None or set(request.query) - DETAILS - {about}:
            raise Refusal("NotImplemented", f"{request.method} of a {place} with {sorted(request.query)}")
        name, call = operation
        self.requests[name] += 1
        return call(request)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._now_s(), UTC)

    def _now_s(self) -> float:
        return time.time() + self.skew_s


def _operations(objects: Objects, uploads: Uploads) -> dict[tuple[str, str, str, str], tuple[str, Any]]:
    """Method, of what, subresource, whether copied: the operation's name at AWS, and who answers it."""
    return {
        ("GET", "service", "", ""): ("ListBuckets", objects.list_buckets),
        ("PUT", "bucket", "", ""): ("CreateBucket", objects.create_bucket),
        ("HEAD", "bucket", "", ""): ("HeadBucket", objects.head_bucket),
        ("DELETE", "bucket", "", ""): ("DeleteBucket", objects.delete_bucket),
        ("GET", "bucket", "list-type", ""): ("ListObjectsV2", objects.list_objects),
        ("GET", "bucket", "uploads", ""): ("ListMultipartUploads", uploads.list_uploads),
        ("PUT", "object", "", ""): ("PutObject", objects.put),
        ("PUT", "object", "", "copy"): ("CopyObject", objects.copy),
        ("HEAD", "object", "", ""): ("HeadObject", objects.head),
        ("GET", "object", "", ""): ("GetObject", objects.get),
        ("DELETE", "object", "", ""): ("DeleteObject", objects.delete),
        ("POST", "object", "uploads", ""): ("CreateMultipartUpload", uploads.create),
        ("PUT", "object", "uploadId", ""): ("UploadPart", uploads.put_part),
        ("PUT", "object", "uploadId", "copy"): ("UploadPartCopy", uploads.copy_part),
        ("GET", "object", "uploadId", ""): ("ListParts", uploads.list_parts),
        ("POST", "object", "uploadId", ""): ("CompleteMultipartUpload", uploads.complete),
        ("DELETE", "object", "uploadId", ""): ("AbortMultipartUpload", uploads.abort),
    }


def _headers(request: web.BaseRequest) -> dict[str, str]:
    """By their names in lower case, several of one name joined, as they are signed. Bytes are UTF-8."""
    joined: dict[str, str] = {}
    for name, value in request.raw_headers:
        lower, text = name.decode().lower(), value.decode()
        joined[lower] = f"{joined[lower]},{text}" if lower in joined else text
    return joined


async def _received(request: web.BaseRequest, headers: dict[str, str]) -> bytes:
    if request.method in ("PUT", "POST") and "content-length" not in headers:
        raise Refusal("MissingContentLength", "the length of a body is to be stated")
    if int(headers.get("content-length", 0)) > LARGEST:
        raise Refusal("EntityTooLarge", f"at most {LARGEST} bytes go in one request")
    if headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await request.content.read()
    except (aiohttp.ClientError, OSError):
        raise Refusal("IncompleteBody", "its sender hung up") from None


async def _drain(request: web.BaseRequest, headers: dict[str, str]) -> None:
    """Takes what its sender sends all the same, so that the answer is not lost with the connection."""
    if headers.get("expect", "").lower() != "100-continue":
        async for _ in request.content.iter_any():
            pass
