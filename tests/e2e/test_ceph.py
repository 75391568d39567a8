"""Ceph's gateway by a small choice of what the other stores have to do, and where its quirks come in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from tests.e2e.test_after_the_ack import test_one_file_is_uploaded_twice_at_once  # noqa: F401 run here, too
from tests.e2e.test_round_trip import (  # noqa: F401
    test_every_size_uploaded_and_saved,
    test_objects_lie_where_the_spec_says,
    test_unicode_and_long_names,
)
from tests.harness import Bucket, DaemonProcess, StoreUnderTest, assert_whole, eventually, make_file
from tests.servers.ceph import Ceph

MIB = 1 << 20

pytestmark = pytest.mark.slow


@pytest.fixture
def store(ceph: Ceph) -> StoreUnderTest:
    return Bucket(ceph)


@pytest.fixture
def stopping(store: Bucket, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that the test starts, with the fault that it is about."""
    process = DaemonProcess(tmp_path / "daemon", store)
    yield process
    process.kill()


@pytest.mark.parametrize("point", ["upload.part_journaled", "upload.before_complete", "upload.after_complete"])
def test_the_daemon_is_killed(point: str, stopping: DaemonProcess, tmp_path: Path) -> None:
    """Parts that are stored are not sent again; Complete, whose ETag is empty, is proved by HEAD."""
    stopping.start(faults=f"{point}=kill")
    expected = {"large.bin": make_file(tmp_path / "large.bin", 70 * MIB)}
    with stopping.experiment(wait=False).run as exp:
        exp.files.upload(tmp_path / "large.bin")
        stopping.wait_for_death()
        stopping.start()
        exp.files.flush(timeout=60)
        assert_whole(stopping, exp, expected)


def test_a_file_is_taken_back_while_it_is_sent(stopping: DaemonProcess, tmp_path: Path) -> None:
    """After Abort its upload is NoSuchKey, which is no object that is missing."""
    stopping.start(faults="upload.part_journaled=hang")
    make_file(tmp_path / "large.bin", 300 * MIB)
    with stopping.experiment(wait=False).run as exp:
        result = exp.files.upload(tmp_path / "large.bin")
        stopping.wait_until_hung()
        stopping.resume()
        exp.files("large.bin").delete()
        with pytest.raises(MLDashError) as ended:
            result.wait(30)
        assert ended.value.code is Code.CANCELLED
        eventually(lambda: stopping.store.open_uploads() == [])  # the server ends a part that it has begun
        assert_whole(stopping, exp, {})
