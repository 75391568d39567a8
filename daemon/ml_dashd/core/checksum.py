"""Checksums: what is computed of each part, what proves an object, and which of them a store understands."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from awscrt import checksums as crt

from ml_dashd.core.model import Algorithm, Evidence, SentPart


@dataclass(frozen=True, slots=True)
class Digest:
    """What was computed of some bytes: always the CRC64NVME, and `proof`, the store's own checksum of them."""

    size_bytes: int
    crc64nvme: int
    algorithm: Algorithm
    proof: str | None
    """Base64 of the big-endian checksum, as S3 headers have it; None where the algorithm is none."""


class Digester:
    """Takes bytes in order and gives their Digest. Feeding it releases the GIL."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._size = 0
        self._crc64 = 0
        self._crc32c = 0
        self._md5 = hashlib.md5(usedforsecurity=False) if algorithm is Algorithm.MD5 else None

    def update(self, data: memoryview) -> None:
        self._size += len(data)
        self._crc64 = crt.crc64nvme(data, self._crc64)
        if self._algorithm is Algorithm.CRC32C:
            self._crc32c = crt.crc32c(data, self._crc32c)
        if self._md5 is not None:
            self._md5.update(data)

    def digest(self) -> Digest:
        return Digest(self._size, self._crc64, self._algorithm, self._proof())

    def _proof(self) -> str | None:
        match self._algorithm:
            case Algorithm.CRC64NVME:
                return encode_crc(self._crc64, 8)
            case Algorithm.CRC32C:
                return encode_crc(self._crc32c, 4)
            case _:
                return None if self._md5 is None else base64.b64encode(self._md5.digest()).decode()


def digest(data: memoryview, algorithm: Algorithm) -> Digest:
    """The Digest of bytes that are all at hand."""
    digester = Digester(algorithm)
    digester.update(data)
    return digester.digest()


def encode_crc(value: int, size: int) -> str:
    """A CRC as S3 writes it: base64 of its big-endian bytes."""
    return base64.b64encode(value.to_bytes(size, "big")).decode()


def combine(digests: Sequence[Digest], algorithm: Algorithm) -> Digest:
    """The Digest of a whole object from those of its parts, in order.

    CRCs combine into the object's own; of MD5s S3 makes the "composite" ETag, which is the proof here.
    """
    size = sum(each.size_bytes for each in digests)
    crc64 = 0
    for each in digests:
        crc64 = crt.combine_crc64nvme(crc64, each.crc64nvme, each.size_bytes)
    match algorithm:
        case Algorithm.CRC64NVME:
            proof: str | None = encode_crc(crc64, 8)
        case Algorithm.CRC32C:
            proof = encode_crc(_combine_crc32c(digests), 4)
        case Algorithm.MD5:
            proof = composite_etag(digests)
        case _:
            proof = None
    return Digest(size, crc64, algorithm, proof)


def composite_etag(digests: Sequence[Digest]) -> str:
    """The ETag that S3 gives to an object completed from parts with these MD5s: MD5 of the MD5s, then their number."""
    joined = b"".join(base64.b64decode(each.proof or "") for each in digests)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(digests)}"


def part_etag(proof: str) -> str:
    """The ETag of a part, or of an object stored in one request, whose base64 MD5 is `proof`."""
    return base64.b64decode(proof).hex()


def proves(evidence: Evidence, sent: Digest) -> bool | None:
    """Whether what the store states is what was sent: None where it states too little and the bytes must be read back.

    With MD5 `sent.proof` is the composite ETag of a multipart upload, or the base64 MD5 of a single request; an ETag
    that differs disproves nothing, because under KMS it is no MD5.
    """
    if evidence.size_bytes != sent.size_bytes:
        return False
    if sent.algorithm in (Algorithm.CRC64NVME, Algorithm.CRC32C):
        return None if evidence.checksum is None else evidence.checksum == sent.proof
    if sent.algorithm is Algorithm.MD5 and sent.proof is not None:
        expected = sent.proof if "-" in sent.proof else part_etag(sent.proof)
        return True if evidence.etag == expected else None
    return None


def has_part(listed: SentPart | None, ours: Digest, journaled: SentPart | None) -> bool:
    """Rule 3: whether the part that the store lists holds the bytes that we have just read again.

    Either the store states our checksum, or its ETag is their MD5, or it is the ETag with which it answered when we
    sent a part whose CRC64NVME was the same (under KMS an ETag is no MD5, so it is compared with itself alone).
    """
    if listed is None or listed.size_bytes != ours.size_bytes:
        return False
    if listed.checksum is not None:
        return listed.checksum == ours.proof
    if ours.algorithm is Algorithm.MD5 and ours.proof is not None and listed.etag == part_etag(ours.proof):
        return True
    return journaled is not None and (journaled.etag, journaled.crc64nvme) == (listed.etag, ours.crc64nvme)


def _combine_crc32c(digests: Sequence[Digest]) -> int:
    crc = 0
    for each in digests:
        part = int.from_bytes(base64.b64decode(each.proof or ""), "big")
        crc = crt.combine_crc32c(crc, part, each.size_bytes)
    return crc
