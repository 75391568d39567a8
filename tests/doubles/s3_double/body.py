"""What a body says of itself, verified: its length, its SHA-256, Content-MD5 and x-amz-checksum-*."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from awscrt import checksums as crt

from tests.doubles.s3_double.exchange import Refusal

STATED = "x-amz-checksum-"
MODIFIERS = ("type", "algorithm", "mode")
"""Headers of the same beginning that are no checksums."""
STREAMING = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
UNSIGNED = "UNSIGNED-PAYLOAD"
DEFAULT = "crc64nvme"
"""What AWS computes of an object that came without a checksum."""
FULL_OBJECT, COMPOSITE = "FULL_OBJECT", "COMPOSITE"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`compute` goes over pieces of bytes in order. `types` are those that a multipart upload may have."""

    size: int
    compute: Callable[[Iterable[bytes]], bytes]
    types: tuple[str, ...]


def _crc(function: Callable[[bytes, int], int], size: int) -> Callable[[Iterable[bytes]], bytes]:
    def compute(pieces: Iterable[bytes]) -> bytes:
        value = 0
        for piece in pieces:
            value = function(piece, value)
        return value.to_bytes(size, "big")

    return compute


def _hash(name: str) -> Callable[[Iterable[bytes]], bytes]:
    def compute(pieces: Iterable[bytes]) -> bytes:
        made = hashlib.new(name, usedforsecurity=False)
        for piece in pieces:
            made.update(piece)
        return made.digest()

    return compute


ALGORITHMS = {
    "crc64nvme": Algorithm(8, _crc(crt.crc64nvme, 8), (FULL_OBJECT,)),
    "crc32c": Algorithm(4, _crc(crt.crc32c, 4), (COMPOSITE, FULL_OBJECT)),
    "crc32": Algorithm(4, _crc(crt.crc32, 4), (COMPOSITE, FULL_OBJECT)),
    "sha1": Algorithm(20, _hash("sha1"), (COMPOSITE,)),
    "sha256": Algorithm(32, _hash("sha256"), (COMPOSITE,)),
}
"""By its name in headers. The first type is the one that an upload has where it asks for none."""


def checksum(name: str, pieces: Iterable[bytes]) -> str:
    """As S3 writes it: base64."""
    return base64.b64encode(ALGORITHMS[name].compute(pieces)).decode()


def composite(name: str, checksums: Iterable[str]) -> str:
    """The checksum of the parts' checksums, and how many they are."""
    values = [base64.b64decode(each) for each in checksums]
    return f"{checksum(name, [b''.join(values)])}-{len(values)}"


def stated(headers: Mapping[str, str]) -> dict[str, str]:
    """The checksums that a sender states, by algorithm; at most one, and one that is written as it should be."""
    found = {
        name.removeprefix(STATED): value
        for name, value in headers.items()
        if name.startswith(STATED) and name.removeprefix(STATED) not in MODIFIERS
    }
    if len(found) > 1:
        raise Refusal("InvalidRequest", "there is more than one x-amz-checksum- header")
    for name, value in found.items():
        if name not in ALGORITHMS:
            raise Refusal("InvalidRequest", f"{STATED}{name} is not known")
        if len(_decoded(value.rpartition("-")[0] or value)) != ALGORITHMS[name].size:
            raise Refusal("InvalidRequest", f"the value of {STATED}{name} is no such checksum")
    return found


def verified(headers: Mapping[str, str], raw: bytes, *, of_body: bool) -> tuple[bytes, dict[str, str]]:
    """A body's content, and the checksum that was stated. Raises Refusal where it is wrong.

    `of_body` is whether the checksum is the body's own: in a request to complete an upload it is the object's.
    """
    content, trailers = _unpacked(headers, raw)
    digest = headers.get("x-amz-content-sha256", UNSIGNED)
    if digest not in (UNSIGNED, STREAMING) and digest != hashlib.sha256(raw).hexdigest():
        raise Refusal("XAmzContentSHA256Mismatch", "the body is not the one that was signed")
    if (md5 := headers.get("content-md5")) is not None:
        if len(_decoded(md5)) != hashlib.md5(usedforsecurity=False).digest_size:
            raise Refusal("InvalidDigest", "Content-MD5 is no MD5")
        if _decoded(md5) != hashlib.md5(content, usedforsecurity=False).digest():
            raise Refusal("BadDigest", "Content-MD5 is not that of the body")
    checksums = stated({**headers, **trailers})
    if "x-amz-sdk-checksum-algorithm" in headers and not checksums:
        raise Refusal("InvalidRequest", "x-amz-sdk-checksum-algorithm is there, and no checksum")
    for name, value in checksums.items():
        if of_body and value != checksum(name, [content]):
            raise Refusal("BadDigest", f"the {name} is not that of the body")
    return content, checksums


def _unpacked(headers: Mapping[str, str], raw: bytes) -> tuple[bytes, dict[str, str]]:
    """What is in a body that may be aws-chunked: "size", bytes, …, "0", then the trailers."""
    if "aws-chunked" not in headers.get("content-encoding", ""):
        return raw, {}
    if headers.get("x-amz-content-sha256") != STREAMING:
        raise Refusal("NotImplemented", "chunks that are signed one by one are not known here")
    pieces, at = [], 0
    while size := _size_of_chunk(raw, at):
        start = raw.index(b"\r\n", at) + 2
        pieces.append(raw[start : start + size])
        at = start + size + 2
    content = b"".join(pieces)
    if len(content) != int(headers.get("x-amz-decoded-content-length", "-1")):
        raise Refusal("IncompleteBody", "x-amz-decoded-content-length is not the size of the content")
    lines = raw[at:].decode("latin-1").split("\r\n")[1:]
    fields = (line.partition(":") for line in lines if ":" in line)
    trailers = {name.lower(): value.strip() for name, _, value in fields}
    if (announced := headers.get("x-amz-trailer", "").lower()) and announced not in trailers:
        raise Refusal("InvalidRequest", f"the trailer {announced} is missing")
    return content, trailers


def _size_of_chunk(raw: bytes, at: int) -> int:
    line = raw[at : at + 32].partition(b"\r\n")[0]
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise Refusal("IncompleteBody", f"no chunk begins at {at}") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
