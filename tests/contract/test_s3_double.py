"""The S3 double refuses what AWS refuses and answers as AWS does: what a test shows with it holds there."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.contract.double_uploads import AT, LAST, PART, WHOLE, Upload, crc32c, crc64, md5, refusal
from tests.doubles.s3_double import S3Double, body
from tests.doubles.s3_double.exchange import Refusal
from tests.doubles.s3_double.signature import Secret

# ---- who asks


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda double: double.secrets.update({double.access_key: Secret("another")}), ("SignatureDoesNotMatch", 403)),
        (lambda double: double.secrets.clear(), ("InvalidAccessKeyId", 403)),
        (lambda double: setattr(double, "region", "eu-west-1"), ("SignatureDoesNotMatch", 403)),
        (lambda double: setattr(double, "skew_s", 16 * 60.0), ("RequestTimeTooSkewed", 403)),
        (lambda double: setattr(double, "skew_s", -16 * 60.0), ("RequestTimeTooSkewed", 403)),
        (
            lambda double: double.secrets.update({double.access_key: Secret(double.secret_key, token="session")}),
            ("InvalidToken", 400),
        ),
        (
            lambda double: double.secrets.update({double.access_key: Secret(double.secret_key, expires_s=1.0)}),
            ("ExpiredToken", 400),
        ),
    ],
    ids=["secret", "key", "region", "late", "early", "token", "expired"],
)
def test_a_request_of_somebody_else_is_refused(
    double: S3Double, s3: Any, change: Callable[[S3Double], None], refused: tuple[str, int]
) -> None:
    s3.put_object(**AT, Body=b"before")
    change(double)
    assert refusal(lambda: s3.put_object(**AT, Body=b"after")) == refused
    assert refusal(s3.list_buckets) == refused
    assert double.buckets["bucket"].objects[AT["Key"]].content == b"before"


def test_a_clock_within_a_quarter_of_an_hour_is_taken(double: S3Double, s3: Any) -> None:
    double.skew_s = 14 * 60.0
    s3.put_object(**AT, Body=b"x")
    stated = s3.head_object(**AT)["LastModified"].timestamp()
    assert abs(stated - time.time() - double.skew_s) < 60


def test_what_is_not_signed_is_refused(double: S3Double, s3: Any) -> None:
    """Headers that were added on the way, ones that were changed, and requests without any signature."""

    def meddle(request: Any, **_: Any) -> None:
        request.headers["x-amz-meta-added"] = "1"

    s3.meta.events.register("before-send.s3", meddle)
    assert refusal(lambda: s3.put_object(**AT, Body=b"x")) == ("AccessDenied", 403)
    s3.meta.events.unregister("before-send.s3", meddle)

    def change(request: Any, **_: Any) -> None:
        request.headers["x-amz-meta-id"] = "other"

    s3.meta.events.register("before-send.s3", change)
    assert refusal(lambda: s3.put_object(**AT, Body=b"x", Metadata={"id": "mine"})) == ("SignatureDoesNotMatch", 403)
    with closing(http.client.HTTPConnection(double.endpoint.removeprefix("http://"), timeout=30)) as connection:
        connection.request("PUT", "/bucket/x", b"x")
        answer = connection.getresponse()
        assert (answer.status, b"<Code>AccessDenied</Code>" in answer.read()) == (403, True)
    assert double.buckets["bucket"].objects == {}


# ---- bodies


@pytest.mark.parametrize(
    ("stated", "code"),
    [
        ({"ChecksumCRC64NVME": crc64(b"other")}, "BadDigest"),
        ({"ChecksumCRC32C": crc32c(b"other")}, "BadDigest"),
        ({"ContentMD5": md5(b"other")}, "BadDigest"),
        ({"ContentMD5": "AAAA"}, "InvalidDigest"),
        ({"ChecksumCRC64NVME": crc32c(b"hello")}, "InvalidRequest"),
        ({"ChecksumCRC64NVME": crc64(b"hello"), "ChecksumCRC32C": crc32c(b"hello")}, "InvalidRequest"),
    ],
    ids=["crc64nvme", "crc32c", "md5", "no md5", "another's length", "two"],
)
def test_a_body_that_is_not_what_is_stated_is_refused(
    double: S3Double, s3: Any, stated: dict[str, str], code: str
) -> None:
    assert refusal(lambda: s3.put_object(**AT, Body=b"hello", **stated)) == (code, 400)
    upload = Upload(s3, (LAST,))
    assert refusal(lambda: s3.upload_part(**upload.id, PartNumber=2, Body=b"hello", **stated)) == (code, 400)
    assert double.buckets["bucket"].objects == {}
    assert list(double.uploads[upload.id["UploadId"]].parts) == [1]


def test_a_body_that_is_not_the_signed_one_is_refused(double: S3Double, s3: Any) -> None:
    def damage(request: Any, **_: Any) -> None:
        request.body = b"hellO"

    s3.meta.events.register("before-send.s3", damage)
    assert refusal(lambda: s3.put_object(**AT, Body=b"hello")) == ("XAmzContentSHA256Mismatch", 400)
    assert double.buckets["bucket"].objects == {}


def test_a_body_that_ends_early_leaves_nothing(double: S3Double) -> None:
    with closing(double.client()) as s3:
        url = s3.meta.endpoint_url.removeprefix("http://")
        head: dict[str, str] = {}
        s3.meta.events.register("before-send.s3", lambda request, **_: head.update(request.headers.items()))
        s3.put_object(**AT, Body=b"0123456789")
    del double.buckets["bucket"].objects[AT["Key"]]
    with closing(http.client.HTTPConnection(url, timeout=30)) as connection:
        connection.putrequest("PUT", "/bucket/a%20key/%C3%BC%26%3F", skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", url)
        for name, value in head.items():
            if name.lower() not in ("expect", "host"):
                connection.putheader(name, value)
        connection.endheaders(b"01234")
    with closing(double.client()) as s3:
        assert refusal(lambda: s3.get_object(**AT)) == ("NoSuchKey", 404)


def test_an_aws_chunked_body_is_unpacked_and_its_trailer_verified() -> None:
    headers = {
        "content-encoding": "aws-chunked",
        "x-amz-content-sha256": body.STREAMING,
        "x-amz-decoded-content-length": "5",
        "x-amz-trailer": "x-amz-checksum-crc32c",
    }
    raw = b"3\r\nhel\r\n2;chunk-signature=0\r\nlo\r\n0\r\nx-amz-checksum-crc32c:%s\r\n\r\n"
    right = crc32c(b"hello")
    assert body.verified(headers, raw % right.encode(), of_body=True) == (b"hello", {"crc32c": right})
    for changed, sent, code in (
        ({}, raw % crc32c(b"other").encode(), "BadDigest"),
        ({"x-amz-decoded-content-length": "6"}, raw % right.encode(), "IncompleteBody"),
        ({"x-amz-trailer": "x-amz-checksum-crc64nvme"}, raw % right.encode(), "InvalidRequest"),
        ({"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}, raw % right.encode(), "NotImplemented"),
    ):
        with pytest.raises(Refusal) as refused:
            body.verified(headers | changed, sent, of_body=True)
        assert refused.value.code == code


# ---- objects


def test_an_object_is_stated_as_it_was_put(s3: Any) -> None:
    put = s3.put_object(**AT, Body=b"hello", Metadata={"id": "7"}, ContentType="text/x", StorageClass="STANDARD_IA")
    stated = s3.head_object(**AT, ChecksumMode="ENABLED")
    assert put["ETag"] == stated["ETag"] == f'"{hashlib.md5(b"hello", usedforsecurity=False).hexdigest()}"'
    assert put["ChecksumCRC64NVME"] == stated["ChecksumCRC64NVME"] == crc64(b"hello")
    assert (stated["ContentLength"], stated["ContentType"], stated["Metadata"]) == (5, "text/x", {"id": "7"})
    assert (stated["ChecksumType"], stated["StorageClass"]) == ("FULL_OBJECT", "STANDARD_IA")
    assert "ChecksumCRC64NVME" not in s3.head_object(**AT)


@pytest.mark.parametrize(
    ("asked", "content", "stated"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
    ],
)
def test_a_range_is_given(s3: Any, asked: str, content: bytes, stated: str) -> None:
    s3.put_object(**AT, Body=b"0123456789")
    answer = s3.get_object(**AT, Range=asked)
    with closing(answer["Body"]) as stream:
        assert (stream.read(), answer["ContentRange"]) == (content, stated)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206


def test_a_range_that_is_not_there_is_refused(s3: Any) -> None:
    s3.put_object(**AT, Body=b"0123456789")
    assert refusal(lambda: s3.get_object(**AT, Range="bytes=10-")) == ("InvalidRange", 416)


def test_what_is_not_there_is_told_in_aws_words(s3: Any) -> None:
    assert refusal(lambda: s3.head_object(**AT)) == ("404", 404)
    assert refusal(lambda: s3.get_object(**AT)) == ("NoSuchKey", 404)
    assert refusal(lambda: s3.get_object(Bucket="none", Key="x")) == ("NoSuchBucket", 404)
    assert refusal(lambda: s3.head_bucket(Bucket="none")) == ("404", 404)
    assert refusal(lambda: s3.list_parts(**AT, UploadId="none")) == ("NoSuchUpload", 404)
    assert refusal(lambda: s3.upload_part(**AT, UploadId="none", PartNumber=1, Body=b"x")) == ("NoSuchUpload", 404)
    assert refusal(lambda: s3.abort_multipart_upload(**AT, UploadId="none")) == ("NoSuchUpload", 404)
    s3.delete_object(**AT)
    assert refusal(lambda: s3.get_object_tagging(**AT))[1] == 501


def test_what_is_too_long_is_refused(s3: Any) -> None:
    assert refusal(lambda: s3.put_object(Bucket="bucket", Key="ü" * 513, Body=b"")) == ("KeyTooLongError", 400)
    assert refusal(lambda: s3.put_object(**AT, Body=b"", Metadata={"x": "y" * 2048})) == ("MetadataTooLarge", 400)


def test_an_object_that_is_there_is_not_put_over_on_condition(s3: Any) -> None:
    s3.put_object(**AT, Body=b"first", IfNoneMatch="*")
    assert refusal(lambda: s3.put_object(**AT, Body=b"second", IfNoneMatch="*")) == ("PreconditionFailed", 412)
    upload = Upload(s3)
    assert refusal(lambda: upload.complete(IfNoneMatch="*")) == ("PreconditionFailed", 412)
    s3.delete_object(**AT)
    upload.complete(IfNoneMatch="*")


def test_keys_are_listed_by_pages(s3: Any) -> None:
    names = [f"n/{number} ü" for number in range(5)]
    for name in (*names, "other"):
        s3.put_object(Bucket="bucket", Key=name, Body=b"x")
    pages = list(
        s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix="n/", PaginationConfig={"PageSize": 2})
    )
    assert [len(page["Contents"]) for page in pages] == [2, 2, 1]
    assert [each["Key"] for page in pages for each in page["Contents"]] == names


def test_an_object_is_copied_whole_or_in_parts(double: S3Double, s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="source", Body=WHOLE, Metadata={"id": "7"})
    s3.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": "source"})
    assert s3.head_object(Bucket="bucket", Key="copy")["Metadata"] == {"id": "7"}
    at = {"Bucket": "bucket", "Key": "parts"}
    upload = at | {"UploadId": s3.create_multipart_upload(**at)["UploadId"]}
    ranges = (f"bytes=0-{len(PART) - 1}", f"bytes={len(PART)}-{len(WHOLE) - 1}")
    etags = [
        s3.upload_part_copy(**upload, PartNumber=n, CopySource="bucket/source", CopySourceRange=r)["CopyPartResult"][
            "ETag"
        ]
        for n, r in enumerate(ranges, start=1)
    ]
    parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert double.buckets["bucket"].objects["copy"].content == WHOLE
    assert double.buckets["bucket"].objects["parts"].content == WHOLE
