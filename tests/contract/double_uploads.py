"""What the tests of the S3 double put there, and what is right of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from awscrt import checksums as crt
from botocore.exceptions import ClientError

PART = b"p" * (5 << 20)
LAST = b"the last"
WHOLE = PART + LAST
AT = {"Bucket": "bucket", "Key": "a key/ü&?"}
CRC64, CRC32C = {"ChecksumAlgorithm": "CRC64NVME"}, {"ChecksumAlgorithm": "CRC32C"}


def crc64(data: bytes) -> str:
    return base64.b64encode(crt.crc64nvme(data).to_bytes(8, "big")).decode()


def crc32c(data: bytes) -> str:
    return base64.b64encode(crt.crc32c(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def refusal(call: Callable[[], Any]) -> tuple[str, int]:
    with pytest.raises(ClientError) as refused:
        call()
    response = refused.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


class Upload:
    """An upload of two parts, with what is right of it; a test changes something."""

    def __init__(self, s3: Any, pieces: tuple[bytes, ...] = (PART, LAST), **begun: str) -> None:
        self.s3 = s3
        self.field, self.sum = (
            ("ChecksumCRC32C", crc32c) if "CRC32C" in begun.values() else ("ChecksumCRC64NVME", crc64)
        )
        self.id = AT | {"UploadId": s3.create_multipart_upload(**AT, **begun)["UploadId"]}
        proof = (lambda piece: {self.field: self.sum(piece)}) if begun else (lambda _: {})
        self.parts = [
            {
                "PartNumber": number,
                "ETag": s3.upload_part(**self.id, PartNumber=number, Body=piece, **proof(piece))["ETag"],
            }
            | proof(piece)
            for number, piece in enumerate(pieces, start=1)
        ]

    def complete(self, parts: list[dict[str, Any]] | None = None, **more: Any) -> Any:
        return self.s3.complete_multipart_upload(**self.id, MultipartUpload={"Parts": parts or self.parts}, **more)
