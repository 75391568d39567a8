"""The benchmarks run, and their null S3 server refuses what is wrong. How fast anything is, no test says."""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import ssl
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import boto3
import pytest
from awscrt.checksums import crc64nvme
from botocore.config import Config
from botocore.exceptions import ClientError

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
PART = b"p" * (5 << 20)
LAST = b"l" * 1000
WHOLE = PART + LAST
WRONG = "AAAAAAAAAAA="


def checksum(data: bytes) -> str:
    return base64.b64encode(crc64nvme(data).to_bytes(8, "big")).decode()


def figures(script: str, folder: Path, *options: str) -> Any:
    """What a benchmark prints with --json; it must leave nothing behind."""
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", "--folder", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return json.loads(done.stdout)


def test_handoff_gives_figures(tmp_path: Path) -> None:
    found = figures("handoff.py", tmp_path)
    assert {each["case"] for each in found["handoff"]} == {"one alone", "bursts of 10", "daemon busy", "just written"}
    for each in found["handoff"] + found["disk"]:
        assert each["calls"] >= 3
        assert 0 < each["p50_ms"] <= each["p99_ms"] <= each["max_ms"]
    assert all(each["ack"] == "disk" and each["fsync_p50_ms"] > 0 for each in found["disk"])
    assert [(each["processes"], each["acks"]) for each in found["acks"]] == [(2, 20)]
    assert all(each["seconds"] > 0 for each in found["acks"])


def test_stall_gives_figures(tmp_path: Path) -> None:
    found = figures("stall.py", tmp_path)
    assert [each["load"] for each in found["stalls"]] == ["idle", "one file of 24 MiB", "50 of 4 KiB"]
    for each in found["stalls"]:
        assert each["questions"] > 0
        assert 0 < each["answers_ms"]["p50"] <= each["answers_ms"]["p99.9"] <= each["answers_ms"]["max"]


def test_fleet_gives_figures(tmp_path: Path, mongodb_url: str) -> None:
    found = figures("fleet.py", tmp_path, "--url", mongodb_url, "--documents", "2000")
    assert all(each["records_per_second"] > 0 for each in found["commits"])
    listed = {each["call"]: each["listed"] for each in found["lists"]}
    assert listed["list(), first page"] == 500
    assert listed['newest of "models/7.pt"'] == 1
    for each in found["lists"]:
        assert 0 < each["p50_ms"] <= each["p99_ms"]
        assert each["keys"] >= each["listed"]
        assert all("SCAN {" in plan and "COLLSCAN" not in plan for plan in each["plan"])


def test_the_load_of_a_fleet_gives_figures(tmp_path: Path, mongodb_url: str) -> None:
    options = ("--simulate", "40", "--files", "50", "--rate", "0.5", "--processes", "2")
    found = figures("fleet.py", tmp_path, "--url", mongodb_url, *options)
    done = {each["deed"]: each for each in found["deeds"]}
    assert done.keys() == importlib.import_module("fleet_nodes").per_second().keys()
    assert all(0 < each["p50_ms"] <= each["p99_ms"] for each in done.values())
    assert all(each["offered_per_second"] > 0 and each["failed"] == 0 for each in done.values())
    documents = {each["collection"]: each["documents"] for each in found["collections"]}
    assert documents["files"] >= 40 * 50 + 100, "what is there, and what was listed late"
    assert documents["experiments"] == documents["metrics"] == 40
    assert documents["metric_rows"] >= 40 * 4, "four rows a node to begin with"
    assert found["cores_of_all"] > 0
    assert found["walk"]["records_per_second"] > 0


def test_the_connections_of_a_fleet_give_figures(tmp_path: Path, mongodb_url: str) -> None:
    found = figures("fleet.py", tmp_path, "--url", mongodb_url, "--connect", "5")
    assert found["connections"] == 15, "a node's own, and two by which it hears of the member"


def test_catalog_gives_figures(tmp_path: Path) -> None:
    found = figures("catalog.py", tmp_path)["catalog"]
    listed = {(each["files"], each["call"]): each["listed"] for each in found}
    of_2000 = {call: files for (size, call), files in listed.items() if size == 2000}
    assert of_2000 == {
        "save_json": 0,
        "list(), first page": 500,
        'list("**/*.json")': 100,
        'list("configs/*.json")': 10,
        'list("*")': 0,
        'list("models/*", latest=True)': 50,
        "download by name": 0,
    }
    of_none = {call: files for (size, call), files in listed.items() if size == 0}
    assert of_none == dict.fromkeys(of_2000, 0) | {"list(), first page": 1 + 5}, "what it saved itself"
    for each in found:
        assert each["calls"] == 5
        assert 0 < each["p50_ms"] <= each["p99_ms"] <= each["max_ms"]


def test_blocking_gives_figures_of_every_saver_and_size(torch: Path, tmp_path: Path) -> None:
    found = figures("blocking.py", tmp_path, "--seed", "7")
    ours = ["save_torch", "save_pkl", "save_blob", "save_safetensors", "upload", "save_json"]
    whats = [("ml-dash", saver) for saver in ours]
    whats += [("ml-dash 0.11", saver) for saver in ours if saver != "save_safetensors"]
    whats += [(one, one) for one in ("torch.save", "memcpy", "async_save")] + [("wandb", "add_file")]
    assert [(each["size_bytes"], each["who"], each["what"]) for each in found["figures"]] == [
        (size, *what) for size in (1 << 10, 1 << 20) for what in whats
    ]
    for each in found["figures"]:
        assert each["rounds"] == 2
        assert min(each["first_ms"], each["seconds_ms"]) > 0
        assert ("with_flush_ms" in each) == (each["who"] in ("ml-dash 0.11", "async_save"))


def test_interference_gives_figures(tmp_path: Path) -> None:
    found = figures("interference.py", tmp_path, "--size", "20M")
    assert found["size_bytes"] == 20 << 20
    assert [each["beside"] for each in found["interference"] if each["loop"] == "numpy"] == [
        "alone",
        "default settings",
        "not stepping back",
    ]
    for each in found["interference"]:
        assert each["steps"] >= 1
        assert 0 < each["p50_ms"] <= each["p99_ms"]
        assert min(each["slower_p50"], each["slower_p99"], each["slower_mean"]) > 0
        assert (each["mb_per_s"] is None) == (each["beside"] == "alone")


def test_peers_give_figures_and_a_picture_once_every_byte_is_verified(tmp_path: Path) -> None:
    folder, picture = tmp_path / "work", tmp_path / "peers.svg"
    options = ["--size", "20M", "--files", "8", "--seed", "7", "--profile", "--picture", str(picture)]
    found = figures("peers.py", folder, "--only", "http", "tls", "small", *options)
    assert (found["seed"], found["rounds"]) == (7, 1)
    peers = ["s5cmd", "awscrt", "obstore", "boto3", "aiobotocore"]
    ours = {"http": ["ml-dashd"], "tls": ["ml-dashd"], "small": ["ml-dashd, full queue", "ml-dashd, from hand-off"]}
    assert {name: list(each["clients"]) for name, each in found["workloads"].items()} == {
        name: some + peers for name, some in ours.items()
    }
    for workload in found["workloads"].values():
        for each in workload["clients"].values():
            assert len(each["all_wall_s"]) == len(each["all_cpu_s"]) == 1
            assert min(each[name] for name in ("wall_s", "cpu_s_per_gb", "peak_mb", "files_per_s", "sink_cpu_s")) > 0
    http = found["workloads"]["http"]
    assert list(http["floor"]) == ["read", "SHA-256", "CRC64NVME", "send"]
    assert min(http["floor"].values()) > 0
    assert sum(http["clients"]["ml-dashd"]["threads_s_per_gb"].values()) > 0
    assert {goal["workload"] for goal in found["goals"]} == {"http", "tls", "small"}
    drawn = ET.fromstring(picture.read_text())  # noqa: S314 our own
    words = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {*peers, "ml-dashd", "must: 0.5 × s5cmd", "CPU, seconds a GB", "files a second"} <= words  # noqa: RUF001


@pytest.mark.parametrize(
    ("ours", "theirs", "at_least", "met", "stretch_met"),
    [
        (0.5, 1, False, True, False),
        (0.51, 1, False, False, False),
        (2, 1, True, True, True),
        (0.8, 2, True, False, False),
    ],
)
def test_a_goal_is_met_up_to_its_bound(
    monkeypatch: pytest.MonkeyPatch, ours: float, theirs: float, at_least: bool, met: bool, stretch_met: bool
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    goals = importlib.import_module("goals")
    goal = goals.Goal("", "http", "ours", "cpu", "theirs", 0.5, 1.5 if at_least else 0.4, at_least=at_least)
    workloads = {"http": {"clients": {"ours": {"cpu": ours}, "theirs": {"cpu": theirs}}}}
    verdict = goal.verdict(workloads)
    assert (verdict.value, verdict.met, verdict.stretch_met) == (ours / theirs, met, stretch_met)
    assert goal.mark(workloads).value == 0.5 * theirs


# ---- the server that they send to


@pytest.fixture(scope="module", params=["timed", "verifying"])
def sink(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """The server's mode, and its port."""
    command = [sys.executable, str(BENCHMARKS / "null_sink.py"), *(["--verify"] * (request.param == "verifying"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield request.param, int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(30) == 0, "it ends when its stdin does"


@pytest.fixture
def s3(sink: tuple[str, int]) -> Iterator[Any]:
    settings = Config(
        request_checksum_calculation="when_required", retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
    )
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{sink[1]}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=settings,
    )
    yield client
    client.close()


def begin(s3: Any, key: str) -> dict[str, Any]:
    """An upload of two parts, both sent."""
    at = {"Bucket": "b", "Key": key}
    begun = s3.create_multipart_upload(**at, ChecksumAlgorithm="CRC64NVME", Metadata={"ml-dash-id": "7"})
    upload = at | {"UploadId": begun["UploadId"]}
    for number, data in enumerate((PART, LAST), start=1):
        s3.upload_part(**upload, PartNumber=number, Body=data, ChecksumCRC64NVME=checksum(data))
    return upload


def complete(s3: Any, upload: dict[str, Any], **changed: Any) -> Any:
    listed = s3.list_parts(**upload)["Parts"]
    assert [part["Size"] for part in listed] == [len(PART), len(LAST)]
    parts = [{name: part[name] for name in ("PartNumber", "ETag", "ChecksumCRC64NVME")} for part in listed]
    right = {
        "MultipartUpload": {"Parts": parts},
        "MpuObjectSize": len(WHOLE),
        "ChecksumType": "FULL_OBJECT",
        "ChecksumCRC64NVME": checksum(WHOLE),
    }
    return s3.complete_multipart_upload(**upload, **(right | changed))


def code_of(refused: pytest.ExceptionInfo[ClientError]) -> str:
    return refused.value.response["Error"]["Code"]


def test_an_upload_is_listed_completed_and_stated(s3: Any) -> None:
    upload = begin(s3, "a key/ü")
    open_uploads = s3.list_multipart_uploads(Bucket="b", Prefix="a key/")["Uploads"]
    assert [(each["Key"], each["UploadId"]) for each in open_uploads] == [("a key/ü", upload["UploadId"])]
    first = s3.list_parts(**upload, MaxParts=1)
    assert (len(first["Parts"]), first["IsTruncated"]) == (1, True)
    assert [part["PartNumber"] for part in s3.list_parts(**upload, PartNumberMarker=1)["Parts"]] == [2]
    complete(s3, upload)
    stated = s3.head_object(Bucket="b", Key="a key/ü", ChecksumMode="ENABLED")
    assert (stated["ContentLength"], stated["ChecksumCRC64NVME"]) == (len(WHOLE), checksum(WHOLE))
    assert stated["Metadata"] == {"ml-dash-id": "7"}
    s3.delete_object(Bucket="b", Key="a key/ü")
    with pytest.raises(ClientError, match="404"):
        s3.head_object(Bucket="b", Key="a key/ü")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"MpuObjectSize": len(WHOLE) + 1}, "InvalidRequest"),
        ({"ChecksumCRC64NVME": WRONG}, "BadDigest"),
        ({"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": "x"}]}}, "InvalidPart"),
        (
            {
                "MultipartUpload": {
                    "Parts": [{"PartNumber": n, "ETag": "x", "ChecksumCRC64NVME": WRONG} for n in (1, 2)]
                }
            },
            "InvalidPart",
        ),
    ],
    ids=["size", "checksum", "number of parts", "checksum of a part"],
)
def test_a_wrong_complete_is_refused(s3: Any, changed: dict[str, Any], code: str) -> None:
    upload = begin(s3, "wrong")
    with pytest.raises(ClientError) as refused:
        complete(s3, upload, **changed)
    assert code_of(refused) == code
    s3.abort_multipart_upload(**upload)
    with pytest.raises(ClientError) as refused:
        s3.list_parts(**upload)
    assert code_of(refused) == "NoSuchUpload"


@pytest.mark.parametrize("name", ["ChecksumCRC64NVME", "ChecksumCRC32", "ContentMD5"])
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_wrong_body_is_refused_where_it_is_read(s3: Any, sink: tuple[str, int], name: str, size: int) -> None:
    wrong = {"ChecksumCRC64NVME": WRONG, "ChecksumCRC32": "AAAAAA==", "ContentMD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}[name]
    if sink[0] == "timed" and size > 1000:
        s3.put_object(Bucket="b", Key="k", Body=bytes(size), **{name: wrong})
        return
    with pytest.raises(ClientError) as refused:
        s3.put_object(Bucket="b", Key="k", Body=bytes(size), **{name: wrong})
    assert code_of(refused) == "BadDigest"


@pytest.mark.parametrize(("stated", "status"), [(zlib.crc32(b"hello"), 200), (1, 400)])
def test_an_aws_chunked_body_is_decoded_and_its_trailer_verified(
    sink: tuple[str, int], stated: int, status: int
) -> None:
    trailer = base64.b64encode(stated.to_bytes(4, "big"))
    body = b"3\r\nhel\r\n2;chunk-signature=0\r\nlo\r\n0\r\nx-amz-checksum-crc32:" + trailer + b"\r\n\r\n"
    headers = {
        "Content-Encoding": "aws-chunked",
        "x-amz-decoded-content-length": "5",
        "x-amz-trailer": "x-amz-checksum-crc32",
    }
    with closing(http.client.HTTPConnection("127.0.0.1", sink[1], timeout=30)) as connection:
        connection.request("PUT", "/b/chunked", body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert (answer.status, b"<Code>BadDigest</Code>" in said) == (status, status == 400)
        connection.request("GET", "/_stats")  # the next request is read where the body ended
        stats = json.loads(connection.getresponse().read())
        assert {"bytes", "requests", "objects", "uploads", "cpu_s"} <= set(stats)


@pytest.mark.parametrize("right", [True, False])
def test_a_trailer_in_chunks_of_http_counts_whether_its_body_is_read_or_dropped(
    s3: Any, sink: tuple[str, int], right: bool
) -> None:
    stated = checksum(PART) if right else WRONG
    body = b"%x\r\n%b\r\n0\r\nx-amz-checksum-crc64nvme:%b\r\n\r\n" % (len(PART), PART, stated.encode())
    headers = {
        "Content-Encoding": "aws-chunked",
        "Transfer-Encoding": "chunked",
        "x-amz-decoded-content-length": str(len(PART)),
        "x-amz-trailer": "x-amz-checksum-crc64nvme",
    }
    pieces = (body[start : start + 300_000] for start in range(0, len(body), 300_000))
    with closing(http.client.HTTPConnection("127.0.0.1", sink[1], timeout=30)) as connection:
        connection.request("PUT", "/b/framed", pieces, headers, encode_chunked=True)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == (200 if right or sink[0] == "timed" else 400)
        connection.request("GET", "/_objects")
        stored = json.loads(connection.getresponse().read())
    if answer.status == 200:
        assert stored["/b/framed"] == [len(PART), stated]
        assert s3.head_object(Bucket="b", Key="framed", ChecksumMode="ENABLED")["ChecksumCRC64NVME"] == stated


def test_over_tls_it_is_certified_by_the_authority_that_it_writes(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    command = [sys.executable, str(BENCHMARKS / "null_sink.py"), "--tls", str(authority)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        with (
            closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=30)) as stranger,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            stranger.request("GET", "/_stats")
        trusting = ssl.create_default_context(cafile=str(authority))
        for host in ("127.0.0.1", "localhost"):
            with closing(http.client.HTTPSConnection(host, port, timeout=30, context=trusting)) as connection:
                connection.request("PUT", "/b/k", PART)
                assert connection.getresponse().status == 200
        process.stdin.close()
        assert process.wait(30) == 0
