"""What the probe finds on each server, on servers that verify less than they seem to, and that it leaves nothing."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from ml_dashd.core.capabilities import Capabilities, Trial
from ml_dashd.core.model import Algorithm
from ml_dashd.core.plan import MIB
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.s3 import S3Store
from ml_dashd.edge.s3_client import S3Settings
from tests.doubles.meddling_proxy import Answer, MeddlingProxy, Request, refusal
from tests.harness import Bucket
from tests.servers.s3server import S3Server

NOW_MS = 1_900_000_000_000


@asynccontextmanager
async def a_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Store]:
    for name, value in bucket.credentials.items():
        monkeypatch.setenv(name, value)
    store = S3Store(S3Settings(bucket.bucket, "pre/", bucket.endpoint, "us-east-1", None, None, 4, 5 * MIB))
    try:
        yield store
    finally:
        await store.close()


async def found_on(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, before: Callable[[Request], Answer | None] = lambda _: None
) -> Capabilities:
    """What is found where a proxy meddles."""
    with MeddlingProxy(server.endpoint, before) as proxy:
        async with a_store(Bucket(server, proxy.endpoint), monkeypatch) as store:
            return await store.prober.probe(store.scratch(7), NOW_MS)


def full(algorithm: Algorithm) -> Trial:
    return Trial(algorithm, put_refused=True, put_stated=True, part_refused=True, listed=True, whole_stated=True)


async def test_localstack_is_as_aws_is(localstack: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await found_on(localstack, monkeypatch)
    assert found.chosen() is Algorithm.CRC64NVME
    assert found.trials[0] == full(Algorithm.CRC64NVME)
    assert [trial.put_refused for trial in found.trials] == [True, True, True]
    assert (found.put_if_none_match, found.complete_if_none_match) == (True, True)
    assert found.completed_again == "NoSuchUpload"


async def test_swift_refuses_damage_and_states_an_md5_alone(swift: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await found_on(swift, monkeypatch)
    assert found.chosen() is Algorithm.MD5
    assert found.trials[2] == full(Algorithm.MD5)
    assert [(trial.put_refused, trial.put_stated) for trial in found.trials[:2]] == [(True, False)] * 2
    assert (found.put_if_none_match, found.complete_if_none_match, found.completed_again) == (True, True, "")


@pytest.mark.parametrize(
    ("ignored", "chosen"),
    [
        (("x-amz-checksum-crc64nvme",), Algorithm.CRC32C),
        (("x-amz-checksum-crc64nvme", "x-amz-checksum-crc32c"), Algorithm.MD5),
        (("x-amz-checksum-crc64nvme", "x-amz-checksum-crc32c", "content-md5"), Algorithm.NONE),
    ],
)
async def test_a_checksum_that_is_ignored_is_not_chosen(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch, ignored: tuple[str, ...], chosen: Algorithm
) -> None:
    def drop(request: Request) -> None:
        request.headers = {name: value for name, value in request.headers.items() if name.lower() not in ignored}

    assert (await found_on(localstack, monkeypatch, drop)).chosen() is chosen


async def test_a_checksum_is_not_chosen_that_is_verified_for_whole_objects_and_not_for_parts(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(request: Request) -> None:
        if request.operation == "UploadPart":
            request.headers.pop("x-amz-checksum-crc64nvme", None)

    found = await found_on(localstack, monkeypatch, drop)
    assert found.trials[0].part_refused is False
    assert found.chosen() is Algorithm.CRC32C


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "CompleteMultipartUpload"])
async def test_a_checksum_of_the_whole_object_that_is_not_understood_is_not_chosen(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def refuse(request: Request) -> Answer | None:
        typed = any(name.lower() == "x-amz-checksum-type" for name in request.headers)
        return refusal(501, "NotImplemented") if typed and request.operation == operation else None

    assert (await found_on(localstack, monkeypatch, refuse)).chosen() is Algorithm.MD5


async def test_conditions_that_are_ignored_or_not_understood(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle(request: Request) -> Answer | None:
        condition = request.headers.pop("If-None-Match", None)
        return refusal(501, "NotImplemented") if condition and request.operation == "PutObject" else None

    found = await found_on(localstack, monkeypatch, meddle)
    assert (found.put_if_none_match, found.complete_if_none_match) == (False, False)


async def test_a_server_that_asks_for_patience_is_asked_again(
    localstack: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a bucket under load would have to take twenty requests in a row before the first file moves."""
    asked = itertools.count()

    def refuse(_: Request) -> Answer | None:
        return refusal(503, "SlowDown") if next(asked) % 2 else None

    found = await found_on(localstack, monkeypatch, refuse)
    assert found.trials[0] == full(Algorithm.CRC64NVME)
    assert (found.put_if_none_match, found.complete_if_none_match) == (True, True)


async def test_a_denial_is_no_finding(localstack: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(request: Request) -> Answer | None:
        return refusal(403, "AccessDenied") if request.operation == "UploadPart" else None

    with pytest.raises(StoreError) as denied:
        await found_on(localstack, monkeypatch, deny)
    assert denied.value.fault is Fault.DENIED


async def test_the_store_leaves_nothing_of_what_it_was_asked_with(
    swift: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(swift)
    async with a_store(bucket, monkeypatch) as store:
        assert await store.prepare() is Algorithm.MD5
    assert (bucket.keys(), bucket.open_uploads()) == ([], [])


async def test_what_a_daemon_has_left_that_never_came_back_is_removed_after_a_day(
    swift: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(swift)
    async with a_store(bucket, monkeypatch) as store:
        await store.prober.probe(store.scratch(1), _now_ms())
        assert (bucket.keys(), len(bucket.open_uploads())) == (["pre/.ml-dash-probe/1"], 1)
        await store.prober.probe(store.scratch(2), _now_ms())
        assert len(bucket.keys()) == 2
        await store.prober.probe(store.scratch(3), _now_ms() + 25 * 3600 * 1000)
    assert (bucket.keys(), len(bucket.open_uploads())) == (["pre/.ml-dash-probe/3"], 1)


async def test_it_costs_one_large_part(localstack: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def count(request: Request) -> None:
        nonlocal sent
        sent += len(request.body)

    await found_on(localstack, monkeypatch, count)
    assert 5 * MIB < sent < 5.1 * MIB


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
