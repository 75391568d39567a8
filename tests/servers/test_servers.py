"""That the servers are real: they keep what they were given and refuse what was damaged on the way."""

import base64
import contextlib
import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awscrt.checksums
import pytest
from botocore.exceptions import ClientError

from tests.servers.localstack import LocalStack
from tests.servers.s3server import S3Server
from tests.servers.swift import Swift

PART = bytes(range(256)) * (5 * 1024 * 1024 // 256)
REST = b"the rest"


@pytest.fixture(scope="module", params=["swift", "localstack", "ceph"])
def server(request: pytest.FixtureRequest) -> S3Server:
    started: S3Server = request.getfixturevalue(request.param)
    started.make_bucket("servers-own")
    return started


@pytest.fixture
def s3(server: S3Server) -> Iterator[Any]:
    with contextlib.closing(server.client()) as client:
        yield client


def _read(s3: Any, bucket: str, key: str) -> bytes:
    with contextlib.closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        content: bytes = body.read()
    return content


def _md5(data: bytes) -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)  # S3's choice


def _crc64nvme(data: bytes) -> str:
    return base64.b64encode(awscrt.checksums.crc64nvme(data).to_bytes(8, "big")).decode()


def test_what_is_put_is_read_back(s3: Any) -> None:
    put = s3.put_object(Bucket="servers-own", Key="small/öre", Body=b"hello", Metadata={"job": "7"})
    head = s3.head_object(Bucket="servers-own", Key="small/öre")
    assert put["ETag"] == head["ETag"] == f'"{_md5(b"hello").hexdigest()}"'
    assert head["ContentLength"] == 5
    assert head["Metadata"] == {"job": "7"}
    assert _read(s3, "servers-own", "small/öre") == b"hello"


def test_multipart_makes_one_object_with_a_composite_etag(s3: Any) -> None:
    target = {"Bucket": "servers-own", "Key": "large"}
    upload = target | {"UploadId": s3.create_multipart_upload(**target)["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
        for number, body in enumerate([PART, REST], start=1)
    ]
    listed = s3.list_parts(**upload)["Parts"]
    assert [part["Size"] for part in listed] == [len(PART), len(REST)]
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    digests = _md5(PART).digest() + _md5(REST).digest()
    etag = f'"{_md5(digests).hexdigest()}-2"'
    assert (done["ETag"] or etag) == s3.head_object(**target)["ETag"] == etag  # Ceph leaves it out of the answer
    assert _read(s3, "servers-own", "large") == PART + REST


def test_a_wrong_content_md5_is_refused_and_leaves_no_object(s3: Any) -> None:
    wrong = base64.b64encode(_md5(b"other").digest()).decode()
    with pytest.raises(ClientError) as refused:
        s3.put_object(Bucket="servers-own", Key="damaged", Body=b"hello", ContentMD5=wrong)
    assert refused.value.response["Error"]["Code"] == "BadDigest"
    assert s3.list_objects_v2(Bucket="servers-own", Prefix="damaged")["KeyCount"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swift", "ceph"])
def test_a_server_that_was_killed_has_kept_all(name: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(name)
    server.make_bucket("killed")
    with contextlib.closing(server.client()) as s3:
        s3.put_object(Bucket="killed", Key="object", Body=b"kept")
        upload = {"Bucket": "killed", "Key": "parts"}
        upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
        s3.upload_part(**upload, PartNumber=1, Body=PART)
    server.kill()
    assert not server.pids
    server.start()
    with contextlib.closing(server.client()) as s3:
        assert _read(s3, "killed", "object") == b"kept"
        assert [part["Size"] for part in s3.list_parts(**upload)["Parts"]] == [len(PART)]


@pytest.mark.slow
def test_no_server_outlives_the_process_that_started_it(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    program = """if True:
        import os, pathlib, signal, sys
        sys.path.insert(0, sys.argv[1])
        from tests.servers.swift import Swift
        server = Swift(pathlib.Path(sys.argv[2]))
        server.start()
        print(*server.ports, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", program, str(pytestconfig.rootpath), str(tmp_path)]
    died = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=90, check=False)
    assert died.returncode == -signal.SIGKILL
    ports = [int(port) for port in died.stdout.split()]
    assert len(ports) == 4
    deadline = time.monotonic() + 10
    while any(map(_accepts, ports)):
        assert time.monotonic() < deadline, "servers were left behind"
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_wrong_secret_is_refused(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Swift, "secret_key", "guessed")
    with contextlib.closing(swift.client()) as s3, pytest.raises(ClientError) as refused:
        s3.list_buckets()
    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_crc64nvme_is_checked_and_returned(localstack: LocalStack) -> None:
    localstack.make_bucket("checksums")
    with contextlib.closing(localstack.client()) as s3:
        target = {"Bucket": "checksums", "Key": "object", "Body": PART}
        with pytest.raises(ClientError) as refused:
            s3.put_object(**target, ChecksumCRC64NVME=_crc64nvme(REST))
        assert refused.value.response["Error"]["Code"] == "BadDigest"
        s3.put_object(**target, ChecksumCRC64NVME=_crc64nvme(PART))
        head = s3.head_object(Bucket="checksums", Key="object", ChecksumMode="ENABLED")
    assert head["ChecksumCRC64NVME"] == _crc64nvme(PART)
