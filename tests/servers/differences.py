"""How the servers of the tests differ, as seen by boto3: `python -m tests.servers.differences` prints the table.

docs/s3-servers.md shows it, and test_differences.py holds it to what the servers say.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.servers.ceph import Ceph
from tests.servers.debian import NotInstallableError
from tests.servers.localstack import LocalStack
from tests.servers.s3server import S3Server
from tests.servers.swift import Swift

PART = bytes(range(256)) * (5 * 1024 * 1024 // 256)
REST = b"the rest"
SERVERS: tuple[type[S3Server], ...] = (Swift, Ceph, LocalStack)


class Bench:
    """A bucket of a server, and names for objects that no other question uses."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self.s3, self.bucket, self.number = s3, bucket, 0

    def target(self) -> dict[str, Any]:
        self.number += 1
        return {"Bucket": self.bucket, "Key": f"object-{self.number}"}

    def begin(self, **more: Any) -> dict[str, Any]:
        target = self.target()
        return target | {"UploadId": self.s3.create_multipart_upload(**target, **more)["UploadId"]}

    def part(self, upload: dict[str, Any], number: int, body: bytes, **more: Any) -> dict[str, Any]:
        sent = self.s3.upload_part(**upload, PartNumber=number, Body=body, **more)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def complete(self, upload: dict[str, Any], parts: list[dict[str, Any]], **more: Any) -> Any:
        return self.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **more)


def _said(ask: Callable[[], Any], good: str = "yes") -> str:
    """A word for what came of it: `good`, or the server's own error code, or its status."""
    try:
        answer = ask()
    except ClientError as refused:
        code = refused.response["Error"].get("Code") or "error"
        return f"{code} ({refused.response['ResponseMetadata']['HTTPStatusCode']})" if not code.isdigit() else code
    return answer if isinstance(answer, str) else good


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def etag_of_complete(bench: Bench) -> str:
    upload = bench.begin()
    done = bench.complete(upload, [bench.part(upload, 1, REST)])
    return "yes" if done.get("ETag", "").strip('"') else "empty"


def small_parts(bench: Bench) -> str:
    upload = bench.begin()
    parts = [bench.part(upload, number, REST) for number in (1, 2)]
    return _said(lambda: bench.complete(upload, parts), "accepted")


def wrong_order(bench: Bench) -> str:
    upload = bench.begin()
    parts = [bench.part(upload, 1, PART), bench.part(upload, 2, PART)]
    return _said(lambda: bench.complete(upload, parts[::-1]), "accepted")


def subset(bench: Bench) -> str:
    upload = bench.begin()
    parts = [bench.part(upload, 1, PART), bench.part(upload, 2, REST)]
    return _said(lambda: bench.complete(upload, parts[:1]), "accepted")


def complete_twice(bench: Bench) -> str:
    upload = bench.begin()
    parts = [bench.part(upload, 1, REST)]
    bench.complete(upload, parts)
    return _said(lambda: bench.complete(upload, parts), "200")


def after_abort(bench: Bench) -> str:
    upload = bench.begin()
    bench.s3.abort_multipart_upload(**upload)
    return _said(lambda: bench.s3.list_parts(**upload), "lists none")


def _wrong_checksum(bench: Bench, algorithm: str, size: int) -> str:
    wrong = base64.b64encode(bytes(size)).decode()
    upload = bench.begin()
    field = {f"Checksum{algorithm}": wrong} if algorithm != "MD5" else {"ContentMD5": wrong}
    return _said(lambda: bench.part(upload, 1, REST, **field), "ignored")


def wrong_md5(bench: Bench) -> str:
    return _wrong_checksum(bench, "MD5", 16)


def wrong_crc32c(bench: Bench) -> str:
    return _wrong_checksum(bench, "CRC32C", 4)


def wrong_crc64nvme(bench: Bench) -> str:
    return _wrong_checksum(bench, "CRC64NVME", 8)


def stated_checksum(bench: Bench) -> str:
    target = bench.target()

    def ask() -> str:
        bench.s3.put_object(**target, Body=REST, ChecksumAlgorithm="CRC64NVME")
        head = bench.s3.head_object(**target, ChecksumMode="ENABLED")
        return "yes" if head.get("ChecksumCRC64NVME") else "no"

    return _said(ask)


def etag_is_md5(bench: Bench) -> str:
    target = bench.target()
    etag = bench.s3.put_object(**target, Body=REST)["ETag"].strip('"')
    return "yes" if etag == base64.b64decode(_md5(REST)).hex() else "no"


def none_match_put(bench: Bench) -> str:
    target = bench.target()
    bench.s3.put_object(**target, Body=REST)
    return _said(lambda: bench.s3.put_object(**target, Body=REST, IfNoneMatch="*"), "ignored")


def none_match_complete(bench: Bench) -> str:
    upload = bench.begin()
    parts = [bench.part(upload, 1, REST)]
    bench.s3.put_object(Bucket=upload["Bucket"], Key=upload["Key"], Body=REST)
    return _said(lambda: bench.complete(upload, parts, IfNoneMatch="*"), "ignored")


def copy_part(bench: Bench) -> str:
    source = bench.target()
    bench.s3.put_object(**source, Body=PART)
    upload = bench.begin()
    return _said(lambda: bench.s3.upload_part_copy(**upload, PartNumber=1, CopySource=source))


def _placed(bench: Bench, **more: Any) -> str:
    return _said(lambda: bench.s3.put_object(**bench.target(), Body=REST, **more), "accepted")


def sse_s3(bench: Bench) -> str:
    return _placed(bench, ServerSideEncryption="AES256")


def sse_kms(bench: Bench) -> str:
    return _placed(bench, ServerSideEncryption="aws:kms", SSEKMSKeyId="no-such-key")


def known_class(bench: Bench) -> str:
    return _placed(bench, StorageClass="STANDARD_IA")


def unknown_class(bench: Bench) -> str:
    return _placed(bench, StorageClass="NO_SUCH_CLASS")


def attributes(bench: Bench) -> str:
    target = bench.target()
    bench.s3.put_object(**target, Body=REST)
    try:
        answer = bench.s3.get_object_attributes(**target, ObjectAttributes=["ObjectSize"])
    except ClientError:  # one that does not know the request answers with the object itself
        return "no"
    return "yes" if answer.get("ObjectSize") == len(REST) else "no"


def deleting_nothing(bench: Bench) -> str:
    return _said(lambda: bench.s3.delete_object(**bench.target()), "204")


QUESTIONS: dict[str, Callable[[Bench], str]] = {
    "ETag in the answer to Complete": etag_of_complete,
    "ETag of a PutObject is its MD5": etag_is_md5,
    "parts below 5 MiB, at Complete": small_parts,
    "Complete, parts in wrong order": wrong_order,
    "Complete with some of the parts": subset,
    "Complete a second time": complete_twice,
    "ListParts after Abort": after_abort,
    "part with a wrong Content-MD5": wrong_md5,
    "part with a wrong CRC32C": wrong_crc32c,
    "part with a wrong CRC64NVME": wrong_crc64nvme,
    "HEAD states the CRC64NVME": stated_checksum,
    "If-None-Match: * at PutObject": none_match_put,
    "If-None-Match: * at Complete": none_match_complete,
    "UploadPartCopy": copy_part,
    "SSE-S3 (AES256)": sse_s3,
    "SSE-KMS with a key that is not there": sse_kms,
    "storage class STANDARD_IA": known_class,
    "a storage class that is not there": unknown_class,
    "GetObjectAttributes": attributes,
    "DeleteObject of nothing": deleting_nothing,
}


def signed_wrongly(server: S3Server) -> str:
    """What a wrong secret is answered with."""
    type_ = type(server)
    right = type_.secret_key
    type_.secret_key = "guessed"
    try:
        with contextlib.closing(server.client()) as s3:
            return _said(s3.list_buckets, "accepted")
    finally:
        type_.secret_key = right


def in_wrong_region(server: S3Server) -> str:
    """What a signature for another region is answered with."""
    type_ = type(server)
    right = type_.region
    type_.region = "eu-west-1"
    try:
        with contextlib.closing(server.client()) as s3:
            return _said(s3.list_buckets, "accepted")
    finally:
        type_.region = right


ABOUT: dict[str, Callable[[S3Server], str]] = {
    "a wrong secret": signed_wrongly,
    "a signature for another region": in_wrong_region,
}


def observe(server: S3Server) -> dict[str, str]:
    """Every answer of a server that runs."""
    bucket = server.make_bucket(f"differences-{secrets.token_hex(4)}")
    with contextlib.closing(server.client()) as s3:
        bench = Bench(s3, bucket)
        seen = {question: _said(partial(ask, bench)) for question, ask in QUESTIONS.items()}
    return seen | {question: ask(server) for question, ask in ABOUT.items()}


def table(seen: dict[str, dict[str, str]]) -> str:
    """Markdown: a row a question, a column a server."""
    rows = [["", *seen], ["---"] * (1 + len(seen))]
    rows += [[question, *(seen[name][question] for name in seen)] for question in next(iter(seen.values()))]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows)


def read_table(text: str) -> dict[str, dict[str, str]]:
    """The opposite of `table`: the first table in a text whose head names servers."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head = next(cells for cells in lines if set(cells) == {kind.name for kind in SERVERS})
    rows = [cells for cells in lines if cells[0] in QUESTIONS or cells[0] in ABOUT]
    return {name: {cells[0]: cells[1 + column] for cells in rows} for column, name in enumerate(head)}


def main() -> None:
    seen = {}
    with tempfile.TemporaryDirectory(prefix="differences-") as folder:
        for kind in SERVERS:
            state = Path(folder) / kind.name
            state.mkdir()
            try:
                with kind(state) as server:
                    seen[kind.name] = observe(server)
            except NotInstallableError as reason:
                sys.stderr.write(f"no {kind.name}: {reason}\n")
    print(table(seen))


if __name__ == "__main__":
    main()
