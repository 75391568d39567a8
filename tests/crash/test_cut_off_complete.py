"""A server that dies within Complete: the object is there, and its upload is listed beside it. Aborting it is fatal.

On Swift, whose Complete first makes the object, of the upload's own parts, and then removes the upload's marker.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.doubles.s3_double import S3Double
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually
from tests.servers.swift import Swift

PART = 5 << 20
CONTENT = b"0123456789" * (PART // 4)


class Marker:
    """Where Swift notes on its disk that an upload is open: an object of zero bytes, and the list that names it."""

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        disk, segments = bucket.server.data / "d1", f"AUTH_test/{bucket.bucket}+segments"
        self._folders = [
            *disk.glob(f"objects/*/*/{_hash(f'{segments}/{key}/{upload_id}')}"),
            *disk.glob(f"containers/*/*/{_hash(segments)}"),
        ]
        assert len(self._folders) == 2

    def keep(self, kept: Path) -> None:
        for number, folder in enumerate(self._folders):
            shutil.copytree(folder, kept / str(number))

    def leave(self, kept: Path) -> None:
        """As it was when it was kept: the server has died before it removed it."""
        for number, folder in enumerate(self._folders):
            shutil.rmtree(folder)
            shutil.copytree(kept / str(number), folder)


def _hash(name: str) -> str:
    """The folder of a name, by what Swift is told in tests/servers/swift.py."""
    return hashlib.md5(f"y/{name}x".encode(), usedforsecurity=False).hexdigest()


@pytest.mark.slow
def test_the_upload_of_an_object_is_ended_and_never_aborted(swift: Swift, tmp_path: Path) -> None:
    """By the next daemon; and a day later, by its sweep."""
    store, kept = Bucket(swift), tmp_path / "kept"
    expected = {"model.pt": hashlib.sha256(CONTENT).hexdigest()}
    with DaemonProcess(
        tmp_path / "daemon",
        store,
        settings=f"part_size = {PART}\n",
        faults="upload.before_complete=hang,upload.after_complete=kill",
    ) as daemon:
        with daemon.experiment(wait=False).run as exp:
            exp.files.save_blob(CONTENT, to="model.pt")
        daemon.wait_until_hung()
        ((key, upload_id),) = daemon.rows("SELECT key, upload_id FROM files")
        marker = Marker(store, key, upload_id)
        marker.keep(kept)
        daemon.resume()
        daemon.wait_for_death()

        marker.leave(kept)
        assert store.keys() == [key], "what S3 shows of a Complete that was cut off"
        assert store.open_uploads() == [upload_id]
        daemon.start()
        exp = daemon.experiment().run.start()
        exp.files.flush(60)
        assert_whole(daemon, exp, expected)

        daemon.kill()
        marker.leave(kept)
        with contextlib.closing(sqlite3.connect(daemon.state / "journal.sqlite")) as journal, journal:
            journal.execute("UPDATE files SET updated_ms = updated_ms - 90000000")
        daemon.start()
        eventually(lambda: daemon.rows("SELECT 1 FROM files") == [])
        assert_whole(daemon, exp, expected)


@pytest.mark.slow
def test_an_upload_that_comes_late_is_ended_with_its_file(s3_double: S3Double, tmp_path: Path) -> None:
    """Its request was on the way when the daemon was killed, and had not arrived when the next one looked."""
    store = Bucket(s3_double)
    with DaemonProcess(
        tmp_path / "daemon", store, settings=f"part_size = {PART}\n", faults="upload.before_begin=kill"
    ) as daemon:
        with daemon.experiment(wait=False).run as exp:
            exp.files.save_blob(CONTENT, to="model.pt")
        daemon.wait_for_death()
        daemon.start(faults="upload.before_completing=hang")
        daemon.wait_until_hung()
        with contextlib.closing(s3_double.client()) as s3:
            ((key,),) = daemon.rows("SELECT key FROM files")
            s3.create_multipart_upload(Bucket=store.bucket, Key=key)
        daemon.resume()
        exp = daemon.experiment().run.start()
        exp.files.flush(60)
        assert_whole(daemon, exp, {"model.pt": hashlib.sha256(CONTENT).hexdigest()})
