"""Multipart uploads to the S3 double: it refuses what AWS refuses, and answers as AWS does."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.contract.double_uploads import AT, CRC32C, CRC64, LAST, PART, WHOLE, Upload, crc32c, crc64, refusal
from tests.doubles.s3_double import S3Double


def test_a_whole_upload_is_stated_by_its_checksum(double: S3Double, s3: Any) -> None:
    upload = Upload(s3, **CRC64)
    done = upload.complete(MpuObjectSize=len(WHOLE), ChecksumType="FULL_OBJECT", ChecksumCRC64NVME=crc64(WHOLE))
    stated = s3.head_object(**AT, ChecksumMode="ENABLED")
    digests = b"".join(hashlib.md5(piece, usedforsecurity=False).digest() for piece in (PART, LAST))
    assert stated["ETag"] == done["ETag"] == f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-2"'
    assert (stated["ChecksumCRC64NVME"], stated["ChecksumType"]) == (crc64(WHOLE), "FULL_OBJECT")
    assert double.buckets["bucket"].objects[AT["Key"]].content == WHOLE
    assert double.uploads == {}


def test_a_composite_checksum_is_one_of_checksums(s3: Any) -> None:
    upload = Upload(s3, **CRC32C)
    joined = b"".join(base64.b64decode(crc32c(piece)) for piece in (PART, LAST))
    assert refusal(lambda: upload.complete(ChecksumType="FULL_OBJECT")) == ("InvalidRequest", 400)
    assert refusal(lambda: upload.complete(ChecksumCRC32C=f"{crc32c(b'x')}-2")) == ("BadDigest", 400)
    assert upload.complete(ChecksumCRC32C=f"{crc32c(joined)}-2")["ChecksumCRC32C"] == f"{crc32c(joined)}-2"
    assert s3.head_object(**AT, ChecksumMode="ENABLED")["ChecksumType"] == "COMPOSITE"


def test_a_full_crc32c_is_that_of_the_object(s3: Any) -> None:
    upload = Upload(s3, **CRC32C, ChecksumType="FULL_OBJECT")
    assert upload.complete(ChecksumCRC32C=crc32c(WHOLE), ChecksumType="FULL_OBJECT")["ChecksumCRC32C"] == crc32c(WHOLE)


@pytest.mark.parametrize(
    ("change", "more", "code"),
    [
        (lambda parts: parts[::-1], {}, "InvalidPartOrder"),
        (lambda parts: [*parts, parts[1] | {"PartNumber": 3}], {}, "InvalidPart"),
        (lambda parts: [parts[0] | {"ETag": parts[1]["ETag"]}, parts[1]], {}, "InvalidPart"),
        (lambda parts: [parts[0] | {"ChecksumCRC64NVME": crc64(b"x")}, parts[1]], {}, "InvalidPart"),
        (
            lambda parts: [{k: v for k, v in each.items() if "Checksum" not in k} for each in parts],
            {},
            "InvalidRequest",
        ),
        (lambda parts: parts, {"MpuObjectSize": 1}, "InvalidRequest"),
        (lambda parts: parts, {"ChecksumCRC64NVME": crc64(b"x")}, "BadDigest"),
        (lambda parts: parts, {"ChecksumCRC32C": crc32c(WHOLE)}, "InvalidRequest"),
        (lambda parts: parts, {"ChecksumType": "COMPOSITE"}, "InvalidRequest"),
    ],
    ids=["order", "a part too many", "etag", "checksum", "no checksum", "size", "whole", "another", "type"],
)
def test_a_wrong_complete_is_refused_and_the_right_one_taken(
    double: S3Double, s3: Any, change: Callable[[Any], Any], more: dict[str, Any], code: str
) -> None:
    upload = Upload(s3, **CRC64)
    assert refusal(lambda: upload.complete(change(upload.parts), **more)) == (code, 400)
    assert double.buckets["bucket"].objects == {}
    upload.complete()
    assert double.buckets["bucket"].objects[AT["Key"]].content == WHOLE


def test_every_part_but_the_last_has_five_mebibytes(s3: Any) -> None:
    assert refusal(Upload(s3, (PART[1:], LAST)).complete) == ("EntityTooSmall", 400)


def test_a_subset_of_the_parts_is_an_object(double: S3Double, s3: Any) -> None:
    upload = Upload(s3)
    upload.complete(upload.parts[:1])
    assert double.buckets["bucket"].objects[AT["Key"]].content == PART


def test_a_part_of_another_algorithm_or_without_any_is_refused(s3: Any) -> None:
    upload = Upload(s3, (LAST,), **CRC64)
    part = upload.id | {"PartNumber": 2, "Body": b"x"}
    assert refusal(lambda: s3.upload_part(**part, ChecksumCRC32C=crc32c(b"x"))) == ("InvalidRequest", 400)
    assert refusal(lambda: s3.upload_part(**part)) == ("InvalidRequest", 400)
    for number in (0, 10_001):
        beyond = partial(s3.upload_part, **upload.id, PartNumber=number, Body=b"x")
        assert refusal(beyond) == ("InvalidArgument", 400)


@pytest.mark.parametrize(
    "asked",
    [
        {"ChecksumType": "FULL_OBJECT"},
        {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "COMPOSITE"},
        {"ChecksumAlgorithm": "SHA256", "ChecksumType": "FULL_OBJECT"},
    ],
)
def test_a_checksum_that_there_is_not_is_refused_from_the_start(s3: Any, asked: dict[str, str]) -> None:
    assert refusal(lambda: s3.create_multipart_upload(**AT, **asked)) == ("InvalidRequest", 400)


def test_complete_again_says_the_same_and_after_abort_nothing_is_there(double: S3Double, s3: Any) -> None:
    upload = Upload(s3, **CRC64)
    first = upload.complete()
    assert upload.complete()["ETag"] == first["ETag"]
    assert refusal(lambda: upload.complete(upload.parts[:1])) == ("NoSuchUpload", 404)
    assert refusal(lambda: s3.list_parts(**upload.id)) == ("NoSuchUpload", 404)
    s3.delete_object(**AT)
    assert refusal(upload.complete) == ("NoSuchUpload", 404)
    other = Upload(s3)
    s3.abort_multipart_upload(**other.id)
    assert refusal(other.complete) == ("NoSuchUpload", 404)
    assert (double.uploads, double.buckets["bucket"].objects) == ({}, {})


def test_parts_and_uploads_are_listed_by_pages(s3: Any) -> None:
    upload = Upload(s3, (b"1", b"2", b"3"), **CRC64)
    first = s3.list_parts(**upload.id, MaxParts=2)
    assert ([each["PartNumber"] for each in first["Parts"]], first["IsTruncated"]) == ([1, 2], True)
    last = s3.list_parts(**upload.id, PartNumberMarker=first["NextPartNumberMarker"])
    assert [(each["PartNumber"], each["ChecksumCRC64NVME"]) for each in last["Parts"]] == [(3, crc64(b"3"))]
    second = Upload(s3, ())
    elsewhere = s3.create_multipart_upload(Bucket="bucket", Key="z")["UploadId"]
    found, markers = [], {}
    while True:
        page = s3.list_multipart_uploads(Bucket="bucket", MaxUploads=1, **markers)
        found += [(each["Key"], each["UploadId"]) for each in page["Uploads"]]
        if not page["IsTruncated"]:
            break
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert found == [(AT["Key"], upload.id["UploadId"]), (AT["Key"], second.id["UploadId"]), ("z", elsewhere)]
    mine = s3.list_multipart_uploads(Bucket="bucket", Prefix="a key/")["Uploads"]
    assert [each["UploadId"] for each in mine] == [upload.id["UploadId"], second.id["UploadId"]]
