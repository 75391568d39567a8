"""100 GB in one file: memory stays flat, each byte is read once, a kill costs what was in flight, 10,000 parts work.

A tenth of it, unless the suites run at full size.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest
from awscrt import checksums as crt

from tests.doubles.null_store import NullStore
from tests.harness import DaemonProcess
from tests.measured import loop_lag, measured

pytestmark = pytest.mark.slow

MIB, GB = 1 << 20, 10**9
PART = 16 * MIB
STRIDE = 5 * MIB
"""A sparse file has a mark of its own at the start of every stretch of this size: each part is another."""
SETTLED, SETTLED_SHORT = 5 * GB, 9 * GB
"""As much has to be sent before memory is looked at: pools and caches are full then. Of the short run it is more:
beside other tests the pace, and with it the buffers in use, still grows after 5 GB."""
FLAT = 0.05
IN_FLIGHT = 5 * PART
"""Parts on the line, which a kill may lose: four of them, and one that the server has and the journal has not."""
LONGEST_S = 3600.0
SETTINGS = 'checksum = "crc64nvme"\n'


@pytest.fixture
def store() -> Iterator[NullStore]:
    with NullStore() as running:
        yield running


def stretches(size: int) -> Iterator[tuple[int, bytes, int]]:
    """The offset of each mark, the mark, and how many zeros follow."""
    for start in range(0, size, STRIDE):
        end = min(size, start + STRIDE)
        mark = (start + 1).to_bytes(8, "big")[: end - start]
        yield start, mark, end - start - len(mark)


def make_sparse(path: Path, size: int) -> str:
    """Writes the file, which takes hardly any disk; returns its CRC64NVME as S3 has it."""
    zeros, whole = memoryview(bytes(STRIDE)), 0
    with path.open("wb") as file:
        file.truncate(size)
        for start, mark, empty in stretches(size):
            file.seek(start)
            file.write(mark)
            whole = crt.crc64nvme(zeros[:empty], crt.crc64nvme(mark, whole))
    return base64.b64encode(whole.to_bytes(8, "big")).decode()


def sha256_of_sparse(size: int) -> str:
    """Of the same bytes, without reading them."""
    zeros, digest = memoryview(bytes(STRIDE)), hashlib.sha256()
    for _, mark, empty in stretches(size):
        digest.update(mark)
        digest.update(zeros[:empty])
    return digest.hexdigest()


def watch(store: NullStore, until: Callable[[int, int], bool], look: Callable[[int], None] = lambda _: None) -> None:
    """Looks several times a second at how many bytes have come, until it is so of them and of the objects."""
    deadline = time.monotonic() + LONGEST_S
    while not until((stats := store.stats())["bytes"], stats["objects"]):
        look(stats["bytes"])
        assert time.monotonic() < deadline, f"it stands at {stats}"
        time.sleep(0.2)


def bytes_read(daemon: DaemonProcess) -> int:
    """By read calls of all kinds: what a hole of a sparse file gives is never read from the disk."""
    assert daemon.process is not None
    counts = Path(f"/proc/{daemon.process.pid}/io").read_text()
    return int(re.search(r"rchar: (\d+)", counts)[1])


def hand_over(daemon: DaemonProcess, source: Path) -> None:
    with daemon.experiment(wait=False).run as exp:
        exp.files.upload(source)


def assert_stored(daemon: DaemonProcess, store: NullStore, size: int, crc64: str) -> str:
    """One object, of these bytes; returns the SHA-256 that the catalog has."""
    with daemon.experiment().run as exp:
        exp.files.flush(timeout=60)
        (record,) = exp.files().list()
    assert record["state"] == "DONE"
    assert store.head(store.key_of(record)) == (size, crc64)
    stats = store.stats()
    assert (stats["objects"], stats["uploads"]) == (1, 0)
    return record["checksum"]


def test_memory_is_flat_and_each_byte_is_read_once(
    store: NullStore, tmp_path: Path, full_size: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 100 * GB if full_size else 10 * GB
    crc64 = make_sparse(tmp_path / "huge.bin", size)
    settled = SETTLED if full_size else SETTLED_SHORT
    resident: list[int] = []

    def look(received: int) -> None:
        if received >= settled:
            resident.append(measured(daemon).rss_bytes)

    with ThreadPoolExecutor(1) as aside, DaemonProcess(tmp_path / "daemon", store, SETTINGS) as daemon:
        read, began = bytes_read(daemon), time.monotonic()
        hand_over(daemon, tmp_path / "huge.bin")
        sha256 = aside.submit(sha256_of_sparse, size)
        watch(store, lambda _, objects: objects == 1, look)
        took = time.monotonic() - began
        assert assert_stored(daemon, store, size, crc64) == sha256.result()
        ratio = (bytes_read(daemon) - read) / store.stats()["bytes"]
        middle = median(resident)
        with capsys.disabled():
            print(
                f"\n{size / GB:g} GB in {took:.1f} s; read ÷ sent = {ratio:.4f}; RSS {min(resident) / 1e6:.1f} to "
                f"{max(resident) / 1e6:.1f} MB in {len(resident)} looks; {loop_lag(daemon)}"
            )
        assert store.stats()["bytes"] == size
        assert 1.0 <= ratio < 1.005
        assert (1 - FLAT) * middle <= min(resident)
        assert max(resident) <= (1 + FLAT) * middle


def test_killed_at_a_third_and_at_two_thirds_it_completes(store: NullStore, tmp_path: Path, full_size: bool) -> None:
    size = 100 * GB if full_size else 5 * GB
    crc64 = make_sparse(tmp_path / "huge.bin", size)
    with DaemonProcess(tmp_path / "daemon", store, SETTINGS) as daemon:
        hand_over(daemon, tmp_path / "huge.bin")
        for share in (0.3, 0.7):
            watch(store, lambda received, _, share=share: received >= share * size)
            daemon.kill()
            daemon.start()
        watch(store, lambda _, objects: objects == 1)
        assert_stored(daemon, store, size, crc64)
        assert store.stats()["bytes"] <= size + 2 * IN_FLIGHT


def test_ten_thousand_parts_are_an_object(store: NullStore, tmp_path: Path, full_size: bool) -> None:
    """As many as S3 allows; in the small, more than a page of ListParts. The last part is smaller."""
    count = 10_000 if full_size else 1_100
    size = count * STRIDE - 1
    crc64 = make_sparse(tmp_path / "huge.bin", size)
    with DaemonProcess(tmp_path / "daemon", store, f"{SETTINGS}part_size = {STRIDE}\n") as daemon:
        hand_over(daemon, tmp_path / "huge.bin")
        watch(store, lambda _, objects: objects == 1)
        assert_stored(daemon, store, size, crc64)
        assert store.stats()["requests"]["upload_part"] == count
