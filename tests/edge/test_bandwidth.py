"""The cap: bytes over time, on a folder and on S3, and that waiting for it is no stall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ml_dashd.core.checksum import Digest, digest
from ml_dashd.core.model import Algorithm, Target
from ml_dashd.core.plan import MIB, Part
from ml_dashd.edge import s3_send
from ml_dashd.edge.bandwidth import Throttle
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.s3 import S3Store
from ml_dashd.edge.s3_client import S3Settings
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from tests.doubles.moody_store import MoodyStore

BANDWIDTH = 4_000_000
BODY = bytes(range(256)) * (3 * MIB // 256)


class StoodClock(SystemClock):
    """Time that goes on only where somebody waits for it: each is waited for in turn."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def of(body: bytes) -> Digest:
    return digest(memoryview(body), Algorithm.CRC64NVME)


def target(number: int) -> Target:
    return Target(f"a/b/c/files/{number}/x.bin", number, len(BODY), "text/plain")


@pytest.fixture
def threads() -> Iterator[Pool]:
    made = Pool(2, "test")
    yield made
    made.close()


@pytest.fixture
def clock() -> StoodClock:
    return StoodClock()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[MoodyStore]:
    with MoodyStore() as made:
        for name, value in made.credentials.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
async def s3(bucket: MoodyStore, clock: StoodClock) -> AsyncIterator[S3Store]:
    made = S3Store(settings_of(bucket), Throttle(BANDWIDTH, clock))
    yield made
    await made.close()


def settings_of(bucket: MoodyStore) -> S3Settings:
    return S3Settings("bucket", "", bucket.endpoint, "us-east-1", Algorithm.CRC64NVME, None, 4, 16 * MIB)


async def test_a_folder_is_written_at_that_rate(tmp_path: Path, threads: Pool, clock: StoodClock) -> None:
    store = LocalStore(tmp_path, threads, NoFaults(), throttle=Throttle(BANDWIDTH, clock))
    await store.prepare()
    await store.put(target(1), memoryview(BODY), of(BODY))
    upload_id = await store.begin(target(2))
    for number in (1, 2):
        part = Part(number, (number - 1) * len(BODY), len(BODY))
        await store.send_part(target(2), upload_id, part, memoryview(BODY), of(BODY))
    assert clock.now == pytest.approx(3 * len(BODY) / BANDWIDTH, rel=0.05)
    assert (tmp_path / target(1).key).read_bytes() == BODY
    assert (tmp_path / ".ml-dash-tmp" / upload_id).read_bytes() == BODY * 2
    await store.put(target(3), memoryview(b""), of(b""))
    assert (tmp_path / target(3).key).read_bytes() == b""


async def test_a_bucket_is_sent_that_rate(s3: S3Store, bucket: MoodyStore, clock: StoodClock) -> None:
    """By the bytes that arrived; small bodies count, too."""
    small = BODY[:100_000]
    for number in range(1, 11):
        await s3.put(target(number), memoryview(small), of(small))
    upload_id = await s3.begin(target(99))
    await s3.send_part(target(99), upload_id, Part(1, 0, len(BODY)), memoryview(BODY), of(BODY))
    arrived = sum(bucket.received.values())
    assert arrived == len(BODY) + 10 * len(small)
    assert clock.now == pytest.approx(arrived / BANDWIDTH, rel=0.1)


async def test_what_waits_for_the_cap_does_not_stall(bucket: MoodyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice takes a quarter of a second under the least cap, and a body that stands still less is given up."""
    monkeypatch.setattr(s3_send, "STALL_S", 0.2)
    store = S3Store(settings_of(bucket), Throttle(65_536, SystemClock()))
    body = BODY[:80_000]
    try:
        await store.put(target(1), memoryview(body), of(body))
    finally:
        await store.close()
    assert list(bucket.received.values()) == [len(body)]


async def test_without_a_cap_nobody_waits() -> None:
    clock = StoodClock()
    throttle = Throttle(0, clock)
    assert not throttle.capped
    for _ in range(100):
        await throttle.take(MIB)
    assert clock.now == 0
