"""A null S3 server: benchmarks send to it, so that what they measure is the sender.

    python benchmarks/null_sink.py [--port N] [--verify]

Prints its port, listens on loopback alone, and ends when its stdin does. Every bucket exists. GET /_stats counts.

A body is discarded in the kernel (MSG_TRUNC: it is never copied), and the checksum that its sender stated is believed.
Bodies up to READ_BYTES are read and verified like a real server's, because clients find out with small ones what a
server can do; with --verify all are. Complete is checked in both modes, as strictly as what is known of the parts
allows: their number, sizes and CRC64NVMEs must give the size and the CRC64NVME that the client states of the whole.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from awscrt import checksums as crt

READ_BYTES = 64 * 1024
PIECE = 1024 * 1024
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


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]

    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")}


@dataclass(frozen=True, slots=True)
class Body:
    """What came with a request. Checksums as in headers: those stated and, where it was read, its CRC64NVME."""

    size: int
    checksums: dict[str, str]
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Stored:
    size: int
    crc64: str | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Upload:
    key: str
    metadata: dict[str, str]
    parts: dict[int, Body] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""


class Sink:
    """The server's state: what is stored, and which uploads are open. A request is answered under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
            ("PUT", "uploadId"): self._upload_part,
            ("GET", "uploadId"): self._list_parts,
            ("POST", "uploadId"): self._complete_upload,
            ("DELETE", "uploadId"): self._abort_upload,
        }

    def answer(self, request: Request, body: Body) -> Answer:
        if request.key == "/_stats":
            return Answer(content=json.dumps(self.stats()).encode())
        about = next((name for name in ("uploadId", "uploads") if name in request.query), "")
        operation = self._operations.get((request.method, about))
        if operation is None:
            raise Refused(404, "NoSuchKey")
        with self._lock:
            self._received += body.size
            self._requests[operation.__name__.strip("_")] += 1
            return operation(request, body)

    def stats(self) -> dict[str, object]:
        with self._lock:
            return {
                "bytes": self._received,
                "requests": dict(self._requests),
                "objects": len(self._objects),
                "uploads": len(self._uploads),
                "cpu_s": time.process_time(),
            }

    # ---- objects

    def _put_object(self, request: Request, body: Body) -> Answer:
        self._objects[request.key] = Stored(body.size, body.checksums.get(CRC64), request.metadata())
        return Answer(headers={"ETag": ETAG} | _as_headers(body.checksums))

    def _head_object(self, request: Request, _: Body) -> Answer:
        stored = self._objects.get(request.key)
        if stored is None:
            raise Refused(404, "NoSuchKey")
        headers = {"ETag": ETAG, "Content-Length": str(stored.size)} | stored.metadata
        if stored.crc64 is not None and request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= {STATED + CRC64: stored.crc64, f"{STATED}type": "FULL_OBJECT"}
        return Answer(headers=headers)

    def _delete_object(self, request: Request, _: Body) -> Answer:
        self._objects.pop(request.key, None)
        return Answer(204)

    # ---- multipart uploads

    def _create_upload(self, request: Request, _: Body) -> Answer:
        self._begun += 1
        upload_id = f"upload-{self._begun}"
        self._uploads[upload_id] = Upload(request.key, request.metadata())
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def _upload_part(self, request: Request, body: Body) -> Answer:
        self._upload(request).parts[int(request.query["partNumber"])] = body
        return Answer(headers={"ETag": ETAG} | _as_headers(body.checksums))

    def _list_parts(self, request: Request, _: Body) -> Answer:
        parts, after = self._upload(request).parts, int(request.query.get("part-number-marker") or 0)
        numbers = sorted(number for number in parts if number > after)
        page = numbers[: min(PAGE, int(request.query.get("max-parts") or PAGE))]
        more = f"<IsTruncated>{str(len(page) < len(numbers)).lower()}</IsTruncated>"
        return _xml("ListPartsResult", more + "".join(_part_xml(number, parts[number]) for number in page))

    def _list_uploads(self, request: Request, _: Body) -> Answer:
        start = f"{request.key.rstrip('/')}/{request.query.get('prefix', '')}"
        found = (
            f"<Upload><Key>{escape(upload.key.split('/', 2)[2])}</Key><UploadId>{upload_id}</UploadId></Upload>"
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
        self._objects[upload.key] = Stored(size, crc64 or stated, upload.metadata)
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


class Connection:
    """One client's connection: its requests, one after the other, in a thread of its own."""

    def __init__(self, peer: socket.socket, sink: Sink, *, verify: bool) -> None:
        self._peer = peer
        self._sink = sink
        self._read_limit = sys.maxsize if verify else READ_BYTES
        self._ahead = bytearray()
        """Received, and not yet used."""
        self._room = memoryview(bytearray(PIECE))

    def serve(self) -> None:
        with self._peer, suppress(ConnectionError):
            while head := self._until(b"\r\n\r\n"):
                request = _parse(head)
                try:
                    answer = self._sink.answer(request, self._body(request))
                except Refused as refused:
                    answer = _xml("Error", f"<Code>{refused.code}</Code>", refused.status)
                self._send(answer, bare=request.method == "HEAD")

    def _send(self, answer: Answer, *, bare: bool) -> None:
        headers = {"Content-Length": str(len(answer.content))} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._peer.sendall("\r\n".join(lines).encode() + (b"" if bare else answer.content))

    def _body(self, request: Request) -> Body:
        headers = request.headers
        if "transfer-encoding" in headers:
            raise ConnectionError("a body without a Content-Length is not understood")
        if headers.get("expect", "").lower() == "100-continue":
            self._peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        if request.method == "POST":
            return Body(0, _stated(headers), b"".join(map(bytes, self._pieces(length))))
        if length > self._read_limit:
            self._discard(length)
            return Body(int(headers.get("x-amz-decoded-content-length", length)), _stated(headers))
        return self._verified(headers, length)

    def _verified(self, headers: dict[str, str], length: int) -> Body:
        """A body that is really read. Raises Refused, after its end, where it is not what its sender says."""
        trailers: dict[str, str] = {}
        chunked = "aws-chunked" in headers.get("content-encoding", "")
        announced = headers.get("x-amz-trailer", "").strip().lower().removeprefix(STATED)
        crcs = {name: 0 for name in CRCS if name in (CRC64, announced) or STATED + name in headers}
        md5 = hashlib.md5(usedforsecurity=False) if "content-md5" in headers else None
        size = 0
        for piece in self._chunks(trailers) if chunked else self._pieces(length):
            size += len(piece)
            crcs = {name: CRCS[name][0](piece, crc) for name, crc in crcs.items()}
            if md5 is not None:
                md5.update(piece)
        if size != int(headers.get("x-amz-decoded-content-length", size)):
            raise Refused(400, "IncompleteBody")
        computed = {name: encode(crc, CRCS[name][1]) for name, crc in crcs.items()}
        for name, stated in _stated(headers | trailers).items():
            if stated != computed[name]:
                raise Refused(400, "BadDigest")
        if md5 is not None and headers["content-md5"] != base64.b64encode(md5.digest()).decode():
            raise Refused(400, "BadDigest")
        return Body(size, computed)

    # ---- bytes

    def _until(self, mark: bytes) -> bytes:
        """What comes before a mark; b"" when the client has hung up."""
        while (end := self._ahead.find(mark)) < 0:
            if not (more := self._peer.recv(READ_BYTES)):
                return b""
            self._ahead += more
        found = bytes(self._ahead[:end])
        del self._ahead[: end + len(mark)]
        return found

    def _pieces(self, size: int) -> Iterator[memoryview]:
        """The next bytes. A piece is valid until the next is asked for."""
        first = bytes(self._ahead[:size])
        del self._ahead[:size]
        if first:
            yield memoryview(first)
        left = size - len(first)
        while left:
            count = self._receive(left, 0)
            yield self._room[:count]
            left -= count

    def _discard(self, size: int) -> None:
        """Drops the next bytes in the kernel."""
        left = size - len(self._ahead[:size])
        del self._ahead[:size]
        while left:
            left -= self._receive(left, socket.MSG_TRUNC)

    def _receive(self, most: int, flags: int) -> int:
        count = self._peer.recv_into(self._room, min(most, PIECE), flags | socket.MSG_WAITALL)
        if count == 0:
            raise ConnectionError("the client hung up in a body")
        return count

    def _chunks(self, trailers: dict[str, str]) -> Iterator[memoryview]:
        """The content of an aws-chunked body: "size[;signature]", bytes, …, "0", then the trailers."""
        while size := int(self._until(b"\r\n").partition(b";")[0], 16):
            yield from self._pieces(size)
            self._until(b"\r\n")
        while line := self._until(b"\r\n"):
            name, _, value = line.decode().partition(":")
            trailers[name.lower()] = value.strip()


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    parts = urlsplit(target)
    return Request(method, unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)), headers)


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


def encode(crc: int, size: int) -> str:
    return base64.b64encode(crc.to_bytes(size, "big")).decode()


def _stated(headers: dict[str, str]) -> dict[str, str]:
    return {name: headers[STATED + name] for name in CRCS if STATED + name in headers}


def _as_headers(checksums: dict[str, str]) -> dict[str, str]:
    return {STATED + name: value for name, value in checksums.items()}


def _part_xml(number: int, part: Body) -> str:
    crc64 = part.checksums.get(CRC64)
    checksum = f"<ChecksumCRC64NVME>{crc64}</ChecksumCRC64NVME>" if crc64 else ""
    return (
        f"<Part><PartNumber>{number}</PartNumber><Size>{part.size}</Size><ETag>{escape(ETAG)}</ETag>{checksum}</Part>"
    )


def _xml(name: str, content: str, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/xml"}, f"<{name}>{content}</{name}>".encode())


def _accept(listener: socket.socket, *, verify: bool) -> None:
    sink = Sink()
    while True:
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(peer, sink, verify=verify).serve, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description="A null S3 server for benchmarks; ends when its stdin does.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--verify", action="store_true", help="read every body and verify its checksums")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port)) as listener, suppress(KeyboardInterrupt):
        threading.Thread(target=_accept, args=[listener], kwargs={"verify": options.verify}, daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        sys.stdin.buffer.read()  # whoever started it holds the other end


if __name__ == "__main__":
    main()
