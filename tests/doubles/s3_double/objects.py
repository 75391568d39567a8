"""Buckets and their objects: put, copied, stated, read in ranges, listed and deleted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote, unquote

from tests.doubles.s3_double import body
from tests.doubles.s3_double.exchange import Answer, Refusal, Request, element, nested, xml

META = "x-amz-meta-"
KEPT = ("content-type", "cache-control", "content-disposition", "content-language", "content-encoding", "expires",
        "x-amz-storage-class", "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id")  # fmt: skip
"""Headers that an object is given, and gives back."""
LONGEST_KEY = 1024
MOST_METADATA = 2048
LARGEST = 5 << 30
"""Bytes in one request."""
PAGE = 1000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object. `checksum` as headers have it: algorithm, value, type."""

    pieces: Sequence[bytes]
    etag: str
    headers: Mapping[str, str]
    checksum: tuple[str, str, str]
    modified: datetime
    upload_id: str | None = None
    """The multipart upload that it was made of."""

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)

    def range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        found, at = [], 0
        for piece in self.pieces:
            found.append(piece[max(0, start - at) : max(0, end - at)])
            at += len(piece)
        return b"".join(found)


@dataclass(slots=True)
class Bucket:
    """What tests may look at."""

    objects: dict[str, StoredObject] = field(default_factory=dict)


class Objects:
    """The operations on buckets and objects. `now` gives the time in UTC."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._now = now

    def bucket(self, name: str) -> Bucket:
        found = self.buckets.get(name)
        if found is None:
            raise Refusal("NoSuchBucket", name)
        return found

    def object(self, bucket: str, key: str) -> StoredObject:
        found = self.bucket(bucket).objects.get(key)
        if found is None:
            raise Refusal("NoSuchKey", key)
        return found

    # ---- buckets

    def list_buckets(self, request: Request) -> Answer:
        return xml("ListAllMyBucketsResult", nested("Buckets", map(_bucket_element, sorted(self.buckets))))

    def create_bucket(self, request: Request) -> Answer:
        if request.bucket in self.buckets:
            raise Refusal("BucketAlreadyOwnedByYou", request.bucket)
        self.buckets[request.bucket] = Bucket()
        return Answer(headers={"Location": f"/{request.bucket}"})

    def head_bucket(self, request: Request) -> Answer:
        self.bucket(request.bucket)
        return Answer()

    def delete_bucket(self, request: Request) -> Answer:
        if self.bucket(request.bucket).objects:
            raise Refusal("BucketNotEmpty", request.bucket)
        del self.buckets[request.bucket]
        return Answer(204)

    def list_objects(self, request: Request) -> Answer:
        prefix = request.query.get("prefix", "")
        after = unquote(request.query.get("continuation-token", "")) or request.query.get("start-after", "")
        limit = request.number("max-keys", PAGE, 0, PAGE)
        objects = self.bucket(request.bucket).objects
        keys = sorted((key for key in objects if key.startswith(prefix) and key > after), key=str.encode)
        page = keys[:limit]
        truncated = len(page) < len(keys)
        token = [element("NextContinuationToken", quote(page[-1]))] if truncated and page else []
        return xml(
            "ListBucketResult",
            *encoding(request),
            element("Name", request.bucket),
            element("Prefix", encoded(request, prefix)),
            element("KeyCount", len(page)),
            element("MaxKeys", limit),
            element("IsTruncated", truncated),
            *token,
            *(nested("Contents", _listed(request, key, objects[key])) for key in page),
        )

    # ---- objects

    def put(self, request: Request) -> Answer:
        stored = StoredObject(
            [request.content],
            hashlib.md5(request.content, usedforsecurity=False).hexdigest(),
            kept(request.headers),
            one_checksum(request),
            self._now(),
        )
        check_key(request)
        self.check_condition(request)
        self.bucket(request.bucket).objects[request.key] = stored
        return Answer(headers={"ETag": f'"{stored.etag}"', **_checksum_headers(stored), **_encryption(stored)})

    def copy(self, request: Request) -> Answer:
        source = self.object(*source_of(request))
        check_key(request)
        self.check_condition(request)
        replaced = request.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
        made = StoredObject(
            source.pieces,
            hashlib.md5(source.content, usedforsecurity=False).hexdigest(),
            kept(request.headers) if replaced else source.headers,
            (body.DEFAULT, body.checksum(body.DEFAULT, source.pieces), body.FULL_OBJECT),
            self._now(),
        )
        self.bucket(request.bucket).objects[request.key] = made
        return xml("CopyObjectResult", element("ETag", f'"{made.etag}"'), element("LastModified", made.modified))

    def head(self, request: Request) -> Answer:
        stored = self.object(request.bucket, request.key)
        return Answer(200, {**_headers(request, stored), "Content-Length": str(stored.size)})

    def get(self, request: Request) -> Answer:
        stored = self.object(request.bucket, request.key)
        if (asked := request.headers.get("range")) is None:
            return Answer(200, _headers(request, stored), stored.content)
        start, end = _range(asked, stored.size)
        headers = _headers(request, stored) | {"Content-Range": f"bytes {start}-{end - 1}/{stored.size}"}
        return Answer(206, headers, stored.range(start, end))

    def delete(self, request: Request) -> Answer:
        self.bucket(request.bucket).objects.pop(request.key, None)
        return Answer(204)

    def check_condition(self, request: Request) -> None:
        condition = request.headers.get("if-none-match")
        if condition not in (None, "*"):
            raise Refusal("NotImplemented", "If-None-Match takes * alone")
        if condition and request.key in self.bucket(request.bucket).objects:
            raise Refusal("PreconditionFailed", f"there is an object {request.key}")


def check_key(request: Request) -> None:
    """Raises Refusal where a key or its metadata are longer than they may be."""
    if len(request.key.encode()) > LONGEST_KEY:
        raise Refusal("KeyTooLongError", request.key)
    metadata = {name: value for name, value in request.headers.items() if name.startswith(META)}
    if sum(len(name) - len(META) + len(value) for name, value in metadata.items()) > MOST_METADATA:
        raise Refusal("MetadataTooLarge", request.key)


def kept(headers: Mapping[str, str]) -> dict[str, str]:
    """What an object is given beside its content."""
    found = {name: value for name, value in headers.items() if name in KEPT or name.startswith(META)}
    plain = [each for each in found.pop("content-encoding", "").split(",") if each.strip() not in ("", "aws-chunked")]
    return {"content-type": "binary/octet-stream"} | found | ({"content-encoding": ",".join(plain)} if plain else {})


def one_checksum(request: Request) -> tuple[str, str, str]:
    """That of an object which came in one request: the stated one, or what AWS computes by itself."""
    for name, value in request.checksums.items():
        return name, value, body.FULL_OBJECT
    return body.DEFAULT, body.checksum(body.DEFAULT, [request.content]), body.FULL_OBJECT


def source_of(request: Request) -> tuple[str, str]:
    """The bucket and the key that x-amz-copy-source names."""
    bucket, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
    return bucket, key


def copied_range(request: Request, size: int) -> tuple[int, int]:
    """The part of its source that a part is copied from."""
    asked = request.headers.get("x-amz-copy-source-range")
    if asked is None:
        return 0, size
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    if found is None or not int(found[1]) <= int(found[2]) < size:
        raise Refusal("InvalidRange", asked)
    return int(found[1]), int(found[2]) + 1


def encoding(request: Request) -> list[str]:
    """Says that keys are encoded, where they were asked to be."""
    return [element("EncodingType", "url")] if request.query.get("encoding-type") == "url" else []


def encoded(request: Request, text: str) -> str:
    return quote(text, safe="/-._~") if request.query.get("encoding-type") == "url" else text


def _range(asked: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if found is None or found[1] == found[2] == "":
        raise Refusal("InvalidRange", asked)
    if found[1] == "":
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2] or size) + 1)
    if start >= end:
        raise Refusal("InvalidRange", asked)
    return start, end


def _headers(request: Request, stored: StoredObject) -> dict[str, str]:
    headers = {
        "ETag": f'"{stored.etag}"',
        "Last-Modified": format_datetime(stored.modified.astimezone(UTC), usegmt=True),
        "Accept-Ranges": "bytes",
        **stored.headers,
    }
    if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and "range" not in request.headers:
        headers |= _checksum_headers(stored)
    return headers


def _checksum_headers(stored: StoredObject) -> dict[str, str]:
    name, value, kind = stored.checksum
    return {f"x-amz-checksum-{name}": value, "x-amz-checksum-type": kind}


def _encryption(stored: StoredObject) -> dict[str, str]:
    return {name: value for name, value in stored.headers.items() if name.startswith("x-amz-server-side-encryption")}


def _bucket_element(name: str) -> str:
    return nested("Bucket", [element("Name", name)])


def _listed(request: Request, key: str, stored: StoredObject) -> list[str]:
    return [
        element("Key", encoded(request, key)),
        element("LastModified", stored.modified),
        element("ETag", f'"{stored.etag}"'),
        element("Size", stored.size),
        element("StorageClass", stored.headers.get("x-amz-storage-class", "STANDARD")),
    ]
