"""Bytes that are damaged: on the way to the store, in the store, and by a daemon that dies while it asks the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash.errors import Code
from tests.doubles.counting_proxy import CountingProxy
from tests.doubles.meddling_proxy import Answer, MeddlingProxy, Request
from tests.harness import Bucket, DaemonProcess, Folder, assert_whole, file_sha256, make_file
from tests.servers.s3server import S3Server
from tests.servers.swift import Swift

MIB = 1 << 20
SIZES = {"one-request.bin": 2 * MIB, "parts.bin": 20 * MIB}
ALONE = (Code.CHECKSUM_MISMATCH, Code.OBJECT_MISSING, Code.STORE_REFUSED, Code.STORE_UNAVAILABLE)
"""Swift finds such damage itself while it sends, breaks off, and has the object no more when it is asked again."""

pytestmark = pytest.mark.slow


@pytest.fixture(params=["swift", "localstack"])
def server(request: pytest.FixtureRequest) -> S3Server:
    started: S3Server = request.getfixturevalue(request.param)
    return started


def test_a_bit_flipped_on_the_way_is_refused_and_sent_again(server: S3Server, tmp_path: Path) -> None:
    """One of every file's bodies: an object in one request, a part, the last part."""
    damaged: list[str] = []

    def damage(request: Request) -> None:
        which = request.target.partition("&uploadId")[0]
        if ".ml-dash-probe" in which or request.operation not in ("PutObject", "UploadPart") or which in damaged:
            return
        damaged.append(which)
        body = bytearray(request.body)
        body[len(body) // 2] ^= 0x10
        request.body = bytes(body)

    with MeddlingProxy(server.endpoint, damage) as proxy:
        store = Bucket(server, proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
            expected = {name: make_file(tmp_path / name, size) for name, size in SIZES.items()}
            for name in expected:
                exp.files.upload(tmp_path / name, to=name)
            exp.files.flush(timeout=120)
            assert_whole(daemon, exp, expected)
        bodies = [operation for operation in proxy.seen if operation in ("PutObject", "UploadPart")]
        assert len(damaged) == 3
        assert bodies.count("UploadPart") >= 4, "a damaged part was not sent again"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["folder", "swift"])
def test_a_bit_flipped_on_the_stores_disk_is_seen_by_whoever_downloads(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, name: str
) -> None:
    store = Folder(tmp_path / "store") if kind == "folder" else Bucket(request.getfixturevalue("swift"))
    make_file(tmp_path / name, SIZES[name], seed=77)
    block = (tmp_path / name).read_bytes()[MIB : MIB + 4096]
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        exp.files.upload(tmp_path / name, to=name).wait(60)
        exp.files(name).download(to=tmp_path / "before")
        assert (tmp_path / "before").read_bytes() == (tmp_path / name).read_bytes()
        assert flip(store.root if isinstance(store, Folder) else store.server.data, block)
        with pytest.raises(MLDashError) as refused:
            exp.files(name).download(to=tmp_path / "after")
        assert refused.value.code in ALONE if kind == "swift" else refused.value.code is Code.CHECKSUM_MISMATCH
        assert name in str(refused.value)
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize("name", SIZES)
def test_what_a_server_gives_back_damaged_is_seen(server: S3Server, tmp_path: Path, name: str) -> None:
    """A server that does not see it itself, or a memory between its disk and here."""
    digest = make_file(tmp_path / name, SIZES[name], seed=77)
    damaging = True

    def damage(request: Request, answer: Answer) -> None:
        if damaging and request.operation == "GetObject" and answer.body:
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])

    with MeddlingProxy(server.endpoint, after=damage) as proxy:
        store = Bucket(server, proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
            exp.files.upload(tmp_path / name, to=name).wait(60)
            with pytest.raises(MLDashError) as refused:
                exp.files(name).download(to=tmp_path / "after")
            assert refused.value.code is Code.CHECKSUM_MISMATCH
            assert not (tmp_path / "after").exists()
            damaging = False
            exp.files(name).download(to=tmp_path / "after")
            assert file_sha256(tmp_path / "after") == digest


def test_a_daemon_killed_while_it_asks_the_server_leaves_nothing_there(swift: Swift, tmp_path: Path) -> None:
    with CountingProxy(swift.endpoint) as proxy:
        store = Bucket(swift, proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store) as daemon:
            with daemon.experiment().run as exp:
                expected = {"small.bin": make_file(tmp_path / "small.bin", 1000)}
                exp.files.upload(tmp_path / "small.bin", to="small.bin")
                assert proxy.wait_for_bytes(2 * MIB, 30), "no large part of the probe was sent"
                daemon.kill()
            assert store.open_uploads(), "the probe's upload was not open yet, or no more"
            daemon.start()
            with daemon.experiment().run as exp:
                exp.files.flush(timeout=60)
                assert_whole(daemon, exp, expected)


def flip(folder: Path, block: bytes) -> int:
    """Turns one bit of every copy of the block that lies in a file below the folder; says how many."""
    found = 0
    for path in folder.rglob("*"):
        if path.is_file() and (at := path.read_bytes().find(block)) >= 0:
            with path.open("r+b") as file:
                found += os.pwrite(file.fileno(), bytes([block[0] ^ 1]), at)
    return found
