"""What the null S3 server knows, and what it answers. It keeps sizes and checksums, and no byte.

Every bucket exists. Complete is checked as strictly as what is known of the parts allows: their number, sizes and
CRC64NVMEs must give the size and the CRC64NVME that the client states of the whole. Two questions are for benchmarks:
GET /_stats counts, and GET /_objects lists what is stored.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from awscrt import checksums as crt

STARTED = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
"""When everything was made, as far as anybody is told."""
PAGE = 1000
ETAG = f'"{"0" * 32}"'
STATED = "x-amz-checksum-"
CRC64 = "crc64nvme"
CRCS = {CRC64: (crt.crc64nvme, 8), "crc32c": (crt.crc32c, 4), "crc32": (crt.crc32, 4)}
"""Each by its name in headers: the function, and how many bytes its value has."""


class Refused(Exception):  # noqa: N818 it is an answer
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(slots=True)
class Request:
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]

    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")}


@dataclass(slots=True)
class Body:
    """What came with a request. Checksums as in headers: those stated and, where it was read, its CRC64NVME."""

    size: int
    checksums: dict[str, str]
    content: bytes = b""
    etag: str = ETAG
    """Of a body that was read and has a Content-MD5, that MD5."""


@dataclass(slots=True)
class Stored:
    size: int
    crc64: str | None
    etag: str
    metadata: dict[str, str]


@dataclass(slots=True)
class Upload:
    key: str
    metadata: dict[str, str]
    parts: dict[int, Body] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""


class NullStore:
    """What is stored, and which uploads are open. For one thread."""

    def __init__(self) -> None:
        self._objects: dict[str, Stored] = {}
        self._uploads: dict[str, Upload] = {}
        self._begun = 0
        self._received = 0
        self._requests: Counter[str] = Counter()
        self._operations = {
            ("PUT", ""): self._put_object,
            ("HEAD", ""): self._head_object,
            ("DELETE", ""): self._delete_object,
            ("POST", "uploads"): self._create_upload,
            ("GET", "uploads"): self._list_uploads,
            ("GET", "list-type"): self._list_objects,
            ("PUT", "uploadId"): self._upload_part,
            ("GET", "uploadId"): self._list_parts,
            ("POST", "uploadId"): self._complete_upload,
            ("DELETE", "uploadId"): self._abort_upload,
        }

    def answer(self, request: Request, body: Body) -> Answer:
        """Raises Refused."""
        if request.key == "/_stats":
            return _json(self.stats())
        if request.key == "/_objects":
            return _json({key: [stored.size, stored.crc64] for key, stored in self._objects.items()})
        about = next((name for name in ("uploadId", "uploads", "list-type") if name in request.query), "")
        operation = self._operations.get((request.method, about))
        if operation is None:
            raise Refused(404, "NoSuchKey")
        self._received += body.size
        self._requests[operation.__name__] += 1
        return operation(request, body)

    def stats(self) -> dict[str, object]:
        return {
            "bytes": self._received,
            "requests": {name.strip("_"): count for name, count in self._requests.items()},
            "objects": len(self._objects),
            "uploads": len(self._uploads),
            "cpu_s": time.process_time(),
        }

    # ---- objects

    def _put_object(self, request: Request, body: Body) -> Answer:
        self._objects[request.key] = Stored(body.size, body.checksums.get(CRC64), body.etag, request.metadata())
        return Answer(headers={"ETag": body.etag} | _as_headers(body.checksums))

    def _head_object(self, request: Request, _: Body) -> Answer:
        stored = self._objects.get(request.key)
        if stored is None:
            raise Refused(404, "NoSuchKey")
        headers = {"ETag": stored.etag, "Content-Length": str(stored.size)} | stored.metadata
        if stored.crc64 is not None and request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= {STATED + CRC64: stored.crc64, f"{STATED}type": "FULL_OBJECT"}
        return Answer(headers=headers)

    def _delete_object(self, request: Request, _: Body) -> Answer:
        self._objects.pop(request.key, None)
        return Answer(204)

    def _list_objects(self, request: Request, _: Body) -> Answer:
        """The first page: what a probe asks for is never more."""
        start = _start_of(request)
        found = [(key, stored.size) for key, stored in self._objects.items() if key.startswith(start)]
        contents = (
            f"<Contents><Key>{escape(key.split('/', 2)[2])}</Key><Size>{size}</Size>"
            f"<LastModified>{STARTED}</LastModified></Contents>"
            for key, size in sorted(found)[:PAGE]
        )
        more = f"<IsTruncated>{str(len(found) > PAGE).lower()}</IsTruncated>"
        return _xml("ListBucketResult", more + "".join(contents))

    # ---- multipart uploads

    def _create_upload(self, request: Request, _: Body) -> Answer:
        self._begun += 1
        upload_id = f"upload-{self._begun}"
        self._uploads[upload_id] = Upload(request.key, request.metadata())
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def _upload_part(self, request: Request, body: Body) -> Answer:
        self._upload(request).parts[int(request.query["partNumber"])] = body
        return Answer(headers={"ETag": body.etag} | _as_headers(body.checksums))

    def _list_parts(self, request: Request, _: Body) -> Answer:
        parts, after = self._upload(request).parts, int(request.query.get("part-number-marker") or 0)
        numbers = sorted(number for number in parts if number > after)
        page = numbers[: min(PAGE, int(request.query.get("max-parts") or PAGE))]
        more = f"<IsTruncated>{str(len(page) < len(numbers)).lower()}</IsTruncated>"
        return _xml("ListPartsResult", more + "".join(_part_xml(number, parts[number]) for number in page))

    def _list_uploads(self, request: Request, _: Body) -> Answer:
        start = _start_of(request)
        found = (
            f"<Upload><Key>{escape(upload.key.split('/', 2)[2])}</Key><UploadId>{upload_id}</UploadId>"
            f"<Initiated>{STARTED}</Initiated></Upload>"
            for upload_id, upload in self._uploads.items()
            if upload.key.startswith(start)
        )
        return _xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>" + "".join(found))

    def _complete_upload(self, request: Request, body: Body) -> Answer:
        upload = self._upload(request)
        _check_listed(body.content, upload.parts)
        parts = [upload.parts[number] for number in sorted(upload.parts)]
        size, crc64 = sum(part.size for part in parts), _combined(parts)
        stated = body.checksums.get(CRC64)
        if request.headers.get("x-amz-mp-object-size", str(size)) != str(size):
            raise Refused(400, "InvalidRequest")
        if crc64 is not None and stated not in (None, crc64):
            raise Refused(400, "BadDigest")
        self._objects[upload.key] = Stored(size, crc64 or stated, ETAG, upload.metadata)
        del self._uploads[request.query["uploadId"]]
        return _xml("CompleteMultipartUploadResult", f"<ETag>{escape(ETAG)}</ETag>")

    def _abort_upload(self, request: Request, _: Body) -> Answer:
        self._upload(request)
        del self._uploads[request.query["uploadId"]]
        return Answer(204)

    def _upload(self, request: Request) -> Upload:
        upload = self._uploads.get(request.query["uploadId"])
        if upload is None or upload.key != request.key:
            raise Refused(404, "NoSuchUpload")
        return upload


def parse(head: bytes) -> Request:
    """The head of a request, up to the blank line."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    known = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
    return Request(method, unquote(path), known, headers)


def stated(headers: dict[str, str]) -> dict[str, str]:
    """The checksums that a client states, by their names."""
    return {name: headers[STATED + name] for name in CRCS if STATED + name in headers}


def encode(crc: int, size: int) -> str:
    return base64.b64encode(crc.to_bytes(size, "big")).decode()


def refusal(refused: Refused) -> Answer:
    return _xml("Error", f"<Code>{refused.code}</Code>", refused.status)


def _start_of(request: Request) -> str:
    """What the keys that are asked for begin with, the bucket's name included."""
    return f"{request.key.rstrip('/')}/{request.query.get('prefix', '')}"


def _check_listed(content: bytes, parts: dict[int, Body]) -> None:
    """Refuses a list that is not of all parts, in order, each with the checksum that it has here."""
    listed = list(ET.fromstring(content).iterfind("{*}Part"))  # noqa: S314 from our own clients
    numbers = [int(part.findtext("{*}PartNumber", "0")) for part in listed]
    if numbers != sorted(parts):
        raise Refused(400, "InvalidPart")
    for number, part in zip(numbers, listed, strict=True):
        if part.findtext("{*}ChecksumCRC64NVME") not in (None, parts[number].checksums.get(CRC64)):
            raise Refused(400, "InvalidPart")


def _combined(parts: list[Body]) -> str | None:
    """The whole's CRC64NVME; None where that of a part is not known."""
    crc = 0
    for part in parts:
        if CRC64 not in part.checksums:
            return None
        crc = crt.combine_crc64nvme(crc, int.from_bytes(base64.b64decode(part.checksums[CRC64]), "big"), part.size)
    return encode(crc, 8)


def _as_headers(checksums: dict[str, str]) -> dict[str, str]:
    return {STATED + name: value for name, value in checksums.items()}


def _part_xml(number: int, part: Body) -> str:
    crc64 = part.checksums.get(CRC64)
    checksum = f"<ChecksumCRC64NVME>{crc64}</ChecksumCRC64NVME>" if crc64 else ""
    etag = escape(part.etag)
    return f"<Part><PartNumber>{number}</PartNumber><Size>{part.size}</Size><ETag>{etag}</ETag>{checksum}</Part>"


def _json(content: object) -> Answer:
    return Answer(headers={"Content-Type": "application/json"}, content=json.dumps(content).encode())


def _xml(name: str, content: str, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/xml"}, f"<{name}>{content}</{name}>".encode())
