"""Multipart uploads: begun, sent in parts, listed by pages, completed as strictly as AWS does, aborted."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from xml.etree import ElementTree as ET

from tests.doubles.s3_double import body
from tests.doubles.s3_double.exchange import Answer, Refusal, Request, element, nested, xml
from tests.doubles.s3_double.objects import (
    PAGE,
    Objects,
    StoredObject,
    check_key,
    copied_range,
    encoded,
    encoding,
    kept,
    source_of,
)

MOST_PARTS = 10_000
LEAST_PART = 5 << 20
"""Bytes of every part but the last."""
TAGS = {name: f"Checksum{name.upper()}" for name in body.ALGORITHMS}


@dataclass(frozen=True, slots=True)
class PartStored:
    content: bytes
    etag: str
    checksum: str
    """Of the upload's algorithm."""


@dataclass(slots=True)
class Upload:
    """An upload that is open. `asked` is whether its sender chose the algorithm."""

    bucket: str
    key: str
    headers: Mapping[str, str]
    algorithm: str
    kind: str
    asked: bool
    number: int
    """It is the n-th that was begun, which is the order of those with one key."""
    begun: datetime
    parts: dict[int, PartStored] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """A part as the request to complete an upload lists it."""

    number: int
    etag: str
    checksums: Mapping[str, str]


class Uploads:
    """The operations on multipart uploads, whose objects go to `objects`."""

    def __init__(self, objects: Objects, now: Callable[[], datetime]) -> None:
        self.open: dict[str, Upload] = {}
        self._objects = objects
        self._now = now
        self._numbers = itertools.count(1)
        self._completed: dict[str, tuple[str, str, Sequence[Listed], Answer]] = {}

    def create(self, request: Request) -> Answer:
        self._objects.bucket(request.bucket)
        check_key(request)
        named = request.headers.get("x-amz-checksum-algorithm", "").lower()
        if named and named not in body.ALGORITHMS:
            raise Refusal("InvalidRequest", f"the checksum algorithm {named} is not known")
        kind = request.headers.get("x-amz-checksum-type", "").upper()
        if kind and not named:
            raise Refusal("InvalidRequest", "a checksum type needs a checksum algorithm")
        algorithm = body.ALGORITHMS[named or body.DEFAULT]
        if kind and kind not in algorithm.types:
            raise Refusal("InvalidRequest", f"{named} can't be {kind}")
        upload_id = secrets.token_urlsafe(24)
        headers, kind = kept(request.headers), kind or algorithm.types[0]
        number = next(self._numbers)
        name = named or body.DEFAULT
        self.open[upload_id] = Upload(
            request.bucket, request.key, headers, name, kind, bool(named), number, self._now()
        )
        answer = xml("InitiateMultipartUploadResult", *_where(request), element("UploadId", upload_id))
        stated = {"x-amz-checksum-algorithm": name.upper(), "x-amz-checksum-type": kind} if named else {}
        return Answer(200, {**answer.headers, **stated}, answer.content)

    def put_part(self, request: Request) -> Answer:
        upload, number = self._upload(request), self._number(request)
        for name in request.checksums:
            if upload.asked and name != upload.algorithm:
                raise Refusal("InvalidRequest", f"the upload's checksum is {upload.algorithm}, and the part's {name}")
        if upload.asked and not request.checksums:
            raise Refusal("InvalidRequest", f"the upload's checksum is {upload.algorithm}, and the part has none")
        part = self._keep(upload, number, request.content)
        return Answer(headers={"ETag": f'"{part.etag}"', **_as_headers(request.checksums)})

    def copy_part(self, request: Request) -> Answer:
        upload, number = self._upload(request), self._number(request)
        source = self._objects.object(*source_of(request))
        part = self._keep(upload, number, source.range(*copied_range(request, source.size)))
        return xml("CopyPartResult", element("ETag", f'"{part.etag}"'), element("LastModified", self._now()))

    def list_parts(self, request: Request) -> Answer:
        upload = self._upload(request)
        after = request.number("part-number-marker", 0, 0, MOST_PARTS)
        limit = request.number("max-parts", PAGE, 0, PAGE)
        numbers = sorted(number for number in upload.parts if number > after)
        page = numbers[:limit]
        asked = [element("ChecksumAlgorithm", upload.algorithm.upper()), element("ChecksumType", upload.kind)]
        return xml(
            "ListPartsResult",
            *_where(request),
            element("UploadId", request.query["uploadId"]),
            *(asked if upload.asked else []),
            element("PartNumberMarker", after),
            element("NextPartNumberMarker", page[-1] if page else 0),
            element("MaxParts", limit),
            element("IsTruncated", len(page) < len(numbers)),
            *(nested("Part", self._listed(upload, number)) for number in page),
        )

    def list_uploads(self, request: Request) -> Answer:
        self._objects.bucket(request.bucket)
        prefix, limit = request.query.get("prefix", ""), request.number("max-uploads", PAGE, 1, PAGE)
        marker = request.query.get("key-marker", "")
        within = self.open.get(request.query.get("upload-id-marker", ""))
        after = (marker.encode(), within.number if within else MOST_PARTS**4)
        found = sorted(
            (upload.key.encode(), upload.number, upload_id)
            for upload_id, upload in self.open.items()
            if upload.bucket == request.bucket and upload.key.startswith(prefix)
        )
        left = [each for each in found if not marker or each[:2] > after]
        page = left[:limit]
        key, upload_id = (page[-1][0].decode(), page[-1][2]) if page else ("", "")
        return xml(
            "ListMultipartUploadsResult",
            *encoding(request),
            element("Bucket", request.bucket),
            element("Prefix", encoded(request, prefix)),
            element("NextKeyMarker", encoded(request, key)),
            element("NextUploadIdMarker", upload_id),
            element("MaxUploads", limit),
            element("IsTruncated", len(page) < len(left)),
            *(_open_upload(request, self.open[upload_id], upload_id) for _, _, upload_id in page),
        )

    def complete(self, request: Request) -> Answer:
        """Repeated with the same list it gives the same answer, as long as its object is there."""
        listed, upload_id = _listed_parts(request.content), request.query["uploadId"]
        if (before := self._completed.get(upload_id)) and before[:3] == (request.bucket, request.key, listed):
            stored = self._objects.bucket(request.bucket).objects.get(request.key)
            if stored is not None and stored.upload_id == upload_id:
                return before[3]
        upload = self._upload(request)
        parts = _evidenced(upload, listed)
        stored = self._assembled(upload, parts, upload_id)
        _check_whole(request, upload, stored)
        self._objects.check_condition(request)
        self._objects.bucket(upload.bucket).objects[upload.key] = stored
        del self.open[upload_id]
        name, value, kind = stored.checksum
        answer = xml(
            "CompleteMultipartUploadResult",
            *_where(request),
            element("ETag", f'"{stored.etag}"'),
            element(TAGS[name], value),
            element("ChecksumType", kind),
        )
        self._completed[upload_id] = (request.bucket, request.key, listed, answer)
        return answer

    def abort(self, request: Request) -> Answer:
        self._upload(request)
        del self.open[request.query["uploadId"]]
        return Answer(204)

    def _upload(self, request: Request) -> Upload:
        self._objects.bucket(request.bucket)
        upload = self.open.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise Refusal("NoSuchUpload", request.query["uploadId"])
        return upload

    def _number(self, request: Request) -> int:
        number = request.number("partNumber", 0, 1, MOST_PARTS + 1)
        if number > MOST_PARTS:
            raise Refusal("InvalidArgument", f"a part's number is at most {MOST_PARTS}")
        return number

    def _keep(self, upload: Upload, number: int, content: bytes) -> PartStored:
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        upload.parts[number] = PartStored(content, etag, body.checksum(upload.algorithm, [content]))
        return upload.parts[number]

    def _listed(self, upload: Upload, number: int) -> list[str]:
        part = upload.parts[number]
        return [
            element("PartNumber", number),
            element("ETag", f'"{part.etag}"'),
            element("Size", len(part.content)),
            *([element(TAGS[upload.algorithm], part.checksum)] if upload.asked else []),
        ]

    def _assembled(self, upload: Upload, parts: Sequence[PartStored], upload_id: str) -> StoredObject:
        pieces = [part.content for part in parts]
        digests = b"".join(bytes.fromhex(part.etag) for part in parts)
        value = (
            body.checksum(upload.algorithm, pieces)
            if upload.kind == body.FULL_OBJECT
            else body.composite(upload.algorithm, [part.checksum for part in parts])
        )
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        checksum = (upload.algorithm, value, upload.kind)
        return StoredObject(pieces, etag, upload.headers, checksum, self._now(), upload_id)


def _evidenced(upload: Upload, listed: Sequence[Listed]) -> list[PartStored]:
    """The parts that are listed, each as it is here; all but the last of them large enough."""
    found = []
    for each in listed:
        part = upload.parts.get(each.number)
        if part is None or part.etag != each.etag.strip('"'):
            raise Refusal("InvalidPart", f"part {each.number} was not uploaded, or has another ETag")
        stated = each.checksums.get(upload.algorithm)
        if upload.asked and stated is None:
            raise Refusal("InvalidRequest", f"part {each.number} is listed without its {upload.algorithm}")
        if stated not in (None, part.checksum) or set(each.checksums) - {upload.algorithm}:
            raise Refusal("InvalidPart", f"part {each.number} has another checksum")
        found.append(part)
    for number, part in enumerate(found[:-1], start=1):
        if len(part.content) < LEAST_PART:
            raise Refusal("EntityTooSmall", f"part {number} of the list has {len(part.content)} bytes")
    return found


def _check_whole(request: Request, upload: Upload, stored: StoredObject) -> None:
    """Raises Refusal unless the object is what the request says of it."""
    if (size := request.headers.get("x-amz-mp-object-size")) not in (None, str(stored.size)):
        raise Refusal("InvalidRequest", f"x-amz-mp-object-size is {size}, and the parts have {stored.size} bytes")
    if request.headers.get("x-amz-checksum-type", upload.kind).upper() != upload.kind:
        raise Refusal("InvalidRequest", f"the upload's checksum is {upload.kind}")
    for name, value in request.checksums.items():
        if name != upload.algorithm:
            raise Refusal("InvalidRequest", f"the upload's checksum is {upload.algorithm}, and not {name}")
        if value != stored.checksum[1]:
            raise Refusal("BadDigest", f"the {name} is not that of the object")


def _listed_parts(content: bytes) -> list[Listed]:
    try:
        root = ET.fromstring(content)  # noqa: S314 from the tests' own clients
        listed = [
            Listed(
                int(part.findtext("{*}PartNumber", "")),
                part.findtext("{*}ETag", ""),
                {name: found for name, tag in TAGS.items() if (found := part.findtext(f"{{*}}{tag}")) is not None},
            )
            for part in root.iterfind("{*}Part")
        ]
    except (ET.ParseError, ValueError):
        raise Refusal("MalformedXML", "the list of parts is not understood") from None
    if not listed or len(listed) > MOST_PARTS:
        raise Refusal("MalformedXML", f"{len(listed)} parts are listed")
    numbers = [part.number for part in listed]
    if numbers != sorted(set(numbers)):
        raise Refusal("InvalidPartOrder", "the parts are not listed in order")
    return listed


def _open_upload(request: Request, upload: Upload, upload_id: str) -> str:
    key = encoded(request, upload.key)
    return nested("Upload", [element("Key", key), element("UploadId", upload_id), element("Initiated", upload.begun)])


def _where(request: Request) -> tuple[str, str]:
    return element("Bucket", request.bucket), element("Key", request.key)


def _as_headers(checksums: Mapping[str, str]) -> dict[str, str]:
    return {f"x-amz-checksum-{name}": value for name, value in checksums.items()}
