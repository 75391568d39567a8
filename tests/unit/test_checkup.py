"""What an examination's findings are judged to be, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ml_dash.errors import Code
from ml_dashd.core import checkup
from ml_dashd.core.capabilities import Capabilities, Trial
from ml_dashd.core.checkup import GIB, Check, Reach, Verdict
from ml_dashd.core.model import Algorithm, Trouble
from ml_dashd.core.retry import Fault, StoreError

OK, BAD, NONE = Verdict.OK, Verdict.BAD, Verdict.NONE
S3 = "s3://bucket/some/where"
REACH = Reach("https://s3", "env", answered=True, skew_s=0.4, trusts="the system's certificates")
REFUSED = StoreError(Fault.UNREACHABLE, "no route")
FULL = Trial(Algorithm.CRC64NVME, *[True] * 5)


def verdicts(checks: list[Check]) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in checks}


@pytest.mark.parametrize(
    ("reach", "expected"),
    [
        (REACH, {"store": OK, "tls": OK, "clock": OK}),
        (replace(REACH, trusts=""), {"store": OK, "tls": NONE, "clock": OK}),
        (replace(REACH, skew_s=-301.0), {"store": OK, "tls": OK, "clock": BAD}),
        (replace(REACH, skew_s=None), {"store": OK, "tls": OK}),
        (Reach("https://s3", "env", failure=REFUSED, trusts="x"), {"store": BAD, "tls": NONE}),
        (Reach("https://s3", "env", failure=StoreError(Fault.UNTRUSTED, "no"), trusts="x"), {"store": BAD, "tls": BAD}),
        (Reach("https://s3", None, failure=REFUSED, trusts="x"), {"store": NONE, "tls": NONE}),
    ],
)
def test_how_a_server_is_reached(reach: Reach, expected: dict[str, Verdict]) -> None:
    checks = checkup.reach_checks(reach)
    assert verdicts(checks) == expected
    assert all(check.hint for check in checks if check.failed)


@pytest.mark.parametrize(
    ("skew_s", "verdict", "found"),
    [
        (0.4, OK, "as the server's"),
        (-20.2, OK, "20 s behind the server's"),
        (299.0, OK, "299 s ahead of the server's"),
        (300.0, BAD, "300 s ahead of the server's"),
        (-1000.0, BAD, "1000 s behind the server's"),
    ],
)
def test_the_clock(skew_s: float, verdict: Verdict, found: str) -> None:
    check = checkup.clock_check(skew_s)
    assert (check.verdict, check.found) == (verdict, found)


@pytest.mark.parametrize(
    ("provider", "refused", "verdict"),
    [("env", None, OK), (None, None, BAD), ("iam-role", StoreError(Fault.CREDENTIALS, "expired"), BAD)],
)
def test_credentials(provider: str | None, refused: StoreError | None, verdict: Verdict) -> None:
    check = checkup.credentials_check(provider, refused)
    assert check.verdict is verdict
    assert (provider or "none") in check.found


def test_the_bucket() -> None:
    assert checkup.bucket_check(None).verdict is OK
    assert "create the bucket" in checkup.bucket_check(StoreError(Fault.NO_BUCKET, "NoSuchBucket")).hint


@pytest.mark.parametrize(
    ("operation", "url", "hint"),
    [
        ("PutObject", S3, "allow s3:PutObject on arn:aws:s3:::bucket/some/where/*"),
        ("PutObject", "s3://bucket", "allow s3:PutObject on arn:aws:s3:::bucket/*"),
        ("ListBucket", S3, "allow s3:ListBucket on arn:aws:s3:::bucket"),
        ("PutObject", "file:///data", "let the daemon's user read and write there"),
    ],
)
def test_a_denial_names_the_permission(operation: str, url: str, hint: str) -> None:
    assert checkup.call_check(operation, StoreError(Fault.DENIED, "AccessDenied"), url).hint == hint


@pytest.mark.parametrize("fault", sorted(set(Fault) - {Fault.DENIED}))
def test_whatever_else_a_call_fails_with_has_a_hint(fault: Fault) -> None:
    check = checkup.call_check("GetObject", StoreError(fault, "x" * 5000), S3)
    assert check.failed
    assert check.hint
    assert len(check.found) == checkup.LONGEST


def test_calls_have_the_names_of_their_store() -> None:
    assert checkup.call_check("GetObject", None, S3) == Check("GetObject", OK, "works")
    assert checkup.call_check("GetObject", None, "file:///data").name == "store read"
    assert checkup.untried("GetObject", S3, "PutObject failed").name == "GetObject"
    assert checkup.untried("GetObject", "file:///data", "x").found == "not tried: x"


def test_what_is_not_needed_is_never_a_problem() -> None:
    assert checkup.optional_check("CopyObject", None).verdict is OK
    assert checkup.optional_check("CopyObject", StoreError(Fault.REFUSED, "501")).verdict is NONE


@pytest.mark.parametrize(
    ("chosen", "named", "verdict", "found"),
    [
        (Algorithm.CRC64NVME, False, OK, "crc64nvme"),
        (Algorithm.MD5, True, OK, "md5, as store.checksum says"),
        (Algorithm.NONE, True, OK, "none, as store.checksum says: every object is read back"),
        (Algorithm.NONE, False, NONE, "the server verifies none: every object is read back"),
    ],
)
def test_the_checksum(chosen: Algorithm, named: bool, verdict: Verdict, found: str) -> None:
    check = checkup.checksum_check(chosen, named=named)
    assert (check.verdict, check.found) == (verdict, found)


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (FULL, "crc64nvme: verified;"),
        (replace(FULL, listed=False), "crc64nvme: verified, not listed;"),
        (replace(FULL, put_refused=False), "crc64nvme: not verified;"),
        (replace(FULL, part_refused=False), "crc64nvme: not verified;"),
        (replace(FULL, put_stated=False), "crc64nvme: verified, not stated;"),
        (replace(FULL, whole_stated=False), "crc64nvme: verified, not stated;"),
        (Trial(Algorithm.MD5, put_refused=True, put_stated=True), "md5: refuses what is wrong;"),
    ],
)
def test_what_a_server_was_found_to_do(trial: Trial, words: str) -> None:
    found = Capabilities(0, (trial,), put_if_none_match=True, complete_if_none_match=False, completed_again=None)
    text = checkup.capabilities_check(found).found
    assert words in text
    assert "If-None-Match: honoured for Put, ignored for Complete; Complete again: not tried" in text


@pytest.mark.parametrize(("again", "words"), [("", "succeeds"), ("NoSuchUpload", "NoSuchUpload")])
def test_a_complete_that_came_again(again: str, words: str) -> None:
    found = Capabilities(0, (), put_if_none_match=True, complete_if_none_match=True, completed_again=again)
    assert checkup.capabilities_check(found).found.endswith(f"Complete again: {words}")


@pytest.mark.parametrize(
    ("free", "size", "verdict"),
    [(10 * GIB, 500 * GIB, OK), (10 * GIB - 1, 500 * GIB, BAD), (GIB, 10 * GIB, OK), (GIB - 1, 10 * GIB, BAD)],
)
def test_room_is_ten_gib_or_a_tenth(free: int, size: int, verdict: Verdict) -> None:
    check = checkup.room_check("spool's disk", "/spool", free, size)
    assert check.verdict is verdict
    assert "/spool" in check.found


@pytest.mark.parametrize(
    ("used", "quota", "verdict"), [(GIB, 0, OK), (8 * GIB, 10 * GIB, OK), (9 * GIB, 10 * GIB, BAD)]
)
def test_the_quota_is_told_before_it_is_reached(used: int, quota: int, verdict: Verdict) -> None:
    assert checkup.quota_check(used, quota).verdict is verdict


@pytest.mark.parametrize(
    ("limit", "kind", "verdict"),
    [(65536, "service", OK), (65535, "service", BAD), (1024, "embedded", OK), (1023, "embedded", BAD)],
)
def test_descriptors(limit: int, kind: str, verdict: Verdict) -> None:
    assert checkup.descriptors_check(limit, kind).verdict is verdict


@pytest.mark.parametrize(("limit", "verdict"), [(None, OK), (GIB, OK), (GIB // 4, BAD)])
def test_memory(limit: int | None, verdict: Verdict) -> None:
    assert checkup.memory_check(limit, 96 * 1024**2).verdict is verdict


@pytest.mark.parametrize(("seconds", "verdict"), [([0.001, 5.0, 0.002], OK), ([0.2, 0.1, 0.001], BAD)])
def test_commits_are_judged_by_their_median(seconds: list[float], verdict: Verdict) -> None:
    assert checkup.commit_check(seconds).verdict is verdict


def test_hand_offs_and_hashes() -> None:
    assert checkup.intake_check(None).verdict is OK
    assert checkup.intake_check(Trouble(Code.DISK_FULL, "full", "free space")).hint == "free space"
    assert checkup.node_check(7, 7200.0, None).found == "7; without the catalog it lasts for another 2 h"
    lapsed = checkup.node_check(7, 0.0, Trouble(Code.CATALOG_UNREACHABLE, "no node number is held", "mend it"))
    assert (lapsed.verdict, lapsed.found) == (BAD, "CATALOG_UNREACHABLE: no node number is held")
    assert checkup.hashing_check(openssl=True, bytes_per_s=1.7e9).found == "SHA-256 by OpenSSL, 1.70 GB/s on a thread"
    assert checkup.hashing_check(openssl=False, bytes_per_s=3e8).failed
