"""Buckets in other regions, clocks that are off, and what a server does not know: followed, or said with a hint."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from ml_dash.errors import Code
from ml_dash.messages import Record
from tests.doubles.gate import Answer, Asked, Gate, refusal
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.servers.localstack import LocalStack
from tests.servers.swift import Swift

MIB = 1 << 20
SIZES = {"small.bin": MIB, "large.bin": 20 * MIB}
HOUR_S = 3600

pytestmark = pytest.mark.slow


def hand_over(daemon: DaemonProcess, folder: Path) -> dict[str, str]:
    expected = {name: make_file(folder / name, size) for name, size in SIZES.items()}
    with daemon.experiment().run as exp:
        for name in expected:
            exp.files.upload(folder / name, to=name)
    return expected


def stored(daemon: DaemonProcess, expected: dict[str, str]) -> None:
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)


def blocked(daemon: DaemonProcess, code: Code) -> Record:
    found = eventually(lambda: len(seen := daemon.status().blocked) == len(SIZES) and seen)
    assert {record.error_code for record in found} == {code}
    return found[0]


def region_of(asked: Asked) -> str:
    """The one that the request is signed for: Credential=KEY/DAY/REGION/s3/aws4_request."""
    return asked.headers.get("authorization", "").partition("Credential=")[2].split("/")[2]


class Elsewhere:
    """A front that answers, as AWS does in each of its ways, that the bucket is in another region."""

    def __init__(self, status: int, code: str, where: str) -> None:
        self.status, self.code, self.where = status, code, where

    def __call__(self, asked: Asked) -> Answer | None:
        if region_of(asked) == "us-east-1":
            return None
        more = "<Region>us-east-1</Region>" if self.where == "body" else ""
        headers = {"x_amz_bucket_region": "us-east-1"} if self.where == "header" else {}
        return refusal(self.status, self.code, more, **headers)


@pytest.mark.parametrize(
    ("status", "code", "where"),
    [
        (301, "PermanentRedirect", "header"),
        (307, "TemporaryRedirect", "header"),
        (400, "AuthorizationHeaderMalformed", "header"),
        (400, "AuthorizationHeaderMalformed", "body"),
    ],
)
@pytest.mark.parametrize("checksum", ["auto", "md5"], ids=["asked by the probe first", "asked by the data path first"])
def test_a_bucket_in_another_region(
    status: int, code: str, where: str, checksum: str, swift: Swift, tmp_path: Path
) -> None:
    with Gate(swift.endpoint, Elsewhere(status, code, where)) as gate:
        store = Bucket(swift, endpoint=gate.endpoint)
        settings = f'region = "eu-west-1"\nchecksum = "{checksum}"\n'
        with DaemonProcess(tmp_path / "daemon", store, settings) as daemon:
            stored(daemon, hand_over(daemon, tmp_path))
            wrong = [asked for asked in gate.asked if region_of(asked) == "eu-west-1"]
            assert 0 < len(wrong) < len(gate.asked) / 2, "it is learned, and not asked each time"


def test_a_bucket_of_swift_in_another_region(swift: Swift, tmp_path: Path) -> None:
    """The real server's own words."""
    with DaemonProcess(tmp_path / "daemon", Bucket(swift), 'region = "eu-west-1"\n') as daemon:
        stored(daemon, hand_over(daemon, tmp_path))


def test_a_server_that_names_ever_other_regions_is_not_followed_for_ever(swift: Swift, tmp_path: Path) -> None:
    named: list[str] = []

    def judge(asked: Asked) -> Answer:
        named.append(f"region-{len(named)}")
        return refusal(301, "PermanentRedirect", x_amz_bucket_region=named[-1])

    with Gate(swift.endpoint, judge) as gate:
        store = Bucket(swift, endpoint=gate.endpoint)
        with DaemonProcess(tmp_path / "daemon", store, 'checksum = "md5"\n') as daemon, daemon.experiment().run as exp:
            exp.files.save_text("x", to="x.txt")
            eventually(lambda: len(gate.asked) > 5, timeout=60)
            used = [region_of(asked) for asked in gate.asked]
            assert len(set(used)) <= 4


@pytest.mark.parametrize("ahead_s", [2 * HOUR_S, -2 * HOUR_S])
def test_a_clock_that_is_off_is_said(ahead_s: int, swift: Swift, tmp_path: Path) -> None:
    off = [ahead_s]

    def judge(asked: Asked) -> Answer | None:
        if not off:
            return None
        return refusal(403, "RequestTimeTooSkewed", date=formatdate(time.time() - off[0], usegmt=True))

    with Gate(swift.endpoint, judge) as gate:
        store = Bucket(swift, endpoint=gate.endpoint)
        with DaemonProcess(tmp_path / "daemon", store, 'checksum = "md5"\n') as daemon:
            expected = hand_over(daemon, tmp_path)
            said = blocked(daemon, Code.STORE_CLOCK)
            assert f" s {'ahead of' if ahead_s > 0 else 'behind'} the store's" in (said.error_message or "")
            assert any(f"clock is {abs(ahead_s) + more} s" in (said.error_message or "") for more in range(-60, 60))
            off.clear()
            stored(daemon, expected)


PLACED = 'sse = "AES256"\nstorage_class = "STANDARD_IA"\n'


def test_encryption_and_storage_class_are_asked_for(localstack: LocalStack, tmp_path: Path) -> None:
    store = Bucket(localstack)
    with DaemonProcess(tmp_path / "daemon", store, PLACED) as daemon:
        stored(daemon, hand_over(daemon, tmp_path))
        with store._client() as s3:
            for key in list(store.keys()):
                head = s3.head_object(Bucket=store.bucket, Key=key)
                assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")


def test_a_kms_key_is_asked_for_with_every_object(localstack: LocalStack, tmp_path: Path) -> None:
    """A front takes the headers away: there is no KMS behind it."""
    key, seen = "arn:aws:kms:us-east-1:123456789012:key/1a2b", []

    def judge(asked: Asked) -> None:
        if asked.headers.pop("x-amz-server-side-encryption", "") == "aws:kms":
            seen.append((asked.method, asked.headers.pop("x-amz-server-side-encryption-aws-kms-key-id", "")))

    settings = f'sse = "aws:kms"\nsse_kms_key_id = "{key}"\nchecksum = "crc64nvme"\n'
    with Gate(localstack.endpoint, judge) as gate:
        store = Bucket(localstack, endpoint=gate.endpoint)
        with DaemonProcess(tmp_path / "daemon", store, settings) as daemon:
            stored(daemon, hand_over(daemon, tmp_path))
    assert sorted(seen) == [("POST", key), ("PUT", key)]


@pytest.mark.parametrize("setting", ['storage_class = "REDUCED_PRICE"', 'sse = "AES256"'])
@pytest.mark.parametrize("name", ["swift", "ceph"])
def test_what_a_server_does_not_know_is_said(
    name: str, setting: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Swift and Ceph have other words for it. The files are kept; without the setting they go up."""
    store = Bucket(request.getfixturevalue(name))
    with DaemonProcess(tmp_path / "daemon", store, f"{setting}\n") as daemon:
        expected = hand_over(daemon, tmp_path)
        said = blocked(daemon, Code.STORE_UNSUPPORTED)
        assert setting.split('"')[1] in (said.error_message or "") or name == "swift"
        assert "store.sse" in (said.error_hint or "")
        daemon.kill()
        daemon.settings = ""
        daemon.start()
        stored(daemon, expected)
