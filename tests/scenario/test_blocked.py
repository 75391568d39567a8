"""What an operator has to mend: files are kept, status says what is wrong, and once it is right they go on.


On Swift, which checks credentials.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash.connection import Connection
from ml_dash.errors import Code
from ml_dash.messages import Record
from ml_dash.reach import find_endpoint
from ml_dash.result import records_of
from tests.doubles.counting_proxy import CountingProxy
from tests.harness import Bucket, DaemonProcess, assert_whole, eventually, make_file
from tests.servers.swift import Swift

MIB = 1 << 20
SIZES = {"small.bin": MIB, "large.bin": 20 * MIB}

pytestmark = pytest.mark.slow


def blocked_until(daemon: DaemonProcess, folder: Path, code: Code, mend: Callable[[], object]) -> Record:
    """Two files are handed over and become blocked; mended, both are stored whole. Returns what status said of one."""
    with daemon.experiment().run as exp:
        expected = {name: make_file(folder / name, size) for name, size in SIZES.items()}
        results = [exp.files.upload(folder / name, to=name) for name in expected]
        blocked = eventually(lambda: len(seen := daemon.status().blocked) == len(SIZES) and seen)
        assert {record.error_code for record in blocked} == {code}
        assert all(record.error_hint for record in blocked)
        assert [result.state in ("QUEUED", "SENDING") for result in results] == [True, True]
        with pytest.raises(TimeoutError):
            exp.files.flush(timeout=0.1)
        mend()
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, expected)
    assert daemon.status().blocked == ()
    return blocked[0]


def test_a_wrong_endpoint(swift: Swift, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = Bucket(swift, endpoint=f"http://127.0.0.1:{port}")
    with DaemonProcess(tmp_path / "daemon", store) as daemon, ExitStack() as mended:
        said = blocked_until(
            daemon,
            tmp_path,
            Code.STORE_UNREACHABLE,
            lambda: mended.enter_context(CountingProxy(swift.endpoint, port)),
        )
    assert str(port) in (said.error_message or "")


def test_a_missing_bucket(swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift, make=False)
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        said = blocked_until(daemon, tmp_path, Code.STORE_NO_BUCKET, store.make)
    assert "create the bucket" in (said.error_hint or "")


def test_wrong_credentials(swift: Swift, tmp_path: Path) -> None:
    """Mended where they come from, here a profile's file, without a restart."""
    store = Bucket(swift)
    profile = tmp_path / "credentials"
    give(profile, swift.access_key, "guessed")
    store.credentials = {"AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_DEFAULT_REGION": swift.region}
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        said = blocked_until(
            daemon, tmp_path, Code.STORE_CREDENTIALS, lambda: give(profile, swift.access_key, swift.secret_key)
        )
        assert "guessed" not in daemon.log()
    assert "valid credentials" in (said.error_hint or "")


def test_no_credentials_at_all(swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift)
    profile = tmp_path / "credentials"
    store.credentials = {"AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_DEFAULT_REGION": swift.region}
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        blocked_until(daemon, tmp_path, Code.STORE_CREDENTIALS, lambda: give(profile, "test:tester", "testing"))


def test_a_blocked_file_can_be_taken_back(swift: Swift, tmp_path: Path) -> None:
    """Nothing of it is left, though the store never answered."""
    store = Bucket(swift, make=False)
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        make_file(tmp_path / "large.bin", SIZES["large.bin"])
        result = exp.files.upload(tmp_path / "large.bin")
        eventually(lambda: daemon.status().blocked)
        exp.files("large.bin").delete()
        with pytest.raises(MLDashError) as ended:
            result.wait(30)
        assert ended.value.code is Code.CANCELLED
        assert exp.files().list() == []
        eventually(lambda: daemon.spool() == [])


def give(profile: Path, key: str, secret: str) -> None:
    profile.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def test_much_that_is_said_of_files_fits_every_answer(swift: Swift, tmp_path: Path) -> None:
    """Twenty files with a quarter of a MiB of metadata each: more than a frame holds."""
    store = Bucket(swift, make=False)
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        results = [
            exp.files.save_text("x", to=f"{number:02}.txt", metadata={"k": "v" * 250_000}) for number in range(20)
        ]
        eventually(lambda: len(daemon.status().blocked) == 16)
        assert len(exp.files().list()) == 20
        ids = [int(result["id"]) for result in results]
        with closing(Connection(find_endpoint(daemon.socket, None))) as connection:
            assert [record.id for record in records_of(connection, ids)] == ids
        store.make()
        exp.files.flush(timeout=60)
