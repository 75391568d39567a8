"""`ml-dash doctor`: what a user reads where all is well, and where each thing is wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from ml_dashd.core.checkup import FOLDER_CALLS, OPERATIONS
from tests.doubles.disks import fill, tmpfs
from tests.doubles.meddling_proxy import Answer, MeddlingProxy, Request, refusal
from tests.harness import Bucket, DaemonProcess, Folder, make_file
from tests.scenario.embedded import Root
from tests.servers.localstack import LocalStack
from tests.servers.s3server import S3Server
from tests.servers.swift import Swift

MIB = 1 << 20
RUN = [sys.executable, "-W", "error", "-m", "ml_dash.cli", "doctor"]
Lines = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


def doctor(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Its exit status and what it prints; it says nothing on stderr."""
    done = subprocess.run(
        [*RUN, *words], env=os.environ | (env or {}), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def examined(daemon: DaemonProcess) -> Lines:
    """The checks by their names. Its exit status is by what it says, and each problem comes with what to do."""
    status, out = doctor("--socket", str(daemon.socket), "--json")
    said = json.loads(out)
    problems = [check for check in said["checks"] if check["verdict"] == "bad"]
    assert all(check["hint"] for check in problems)
    assert said["ok"] is (not problems)
    assert status == (1 if problems else 0)
    return {check["name"]: check for check in said["checks"]}


def bad(lines: Lines) -> set[str]:
    """What is wrong, without what is this machine's own: its disks and how busy they are."""
    own = {"spool's disk", "journal's disk", "journal", "descriptors", "memory", "hashing"}
    return {name for name, check in lines.items() if check["verdict"] == "bad"} - own


@contextmanager
def examining(
    folder: Path,
    server: S3Server,
    before: Callable[[Request], Answer | None] = lambda _: None,
    after: Callable[[Request, Answer], None] = lambda _, __: None,
) -> Iterator[tuple[DaemonProcess, Bucket, MeddlingProxy]]:
    """A daemon whose way to the server is meddled with."""
    with MeddlingProxy(server.endpoint, before, after) as proxy:
        bucket = Bucket(server, proxy.endpoint)
        with DaemonProcess(folder / "daemon", bucket) as daemon:
            yield daemon, bucket, proxy


@pytest.fixture(params=["swift", "localstack"])
def server(request: pytest.FixtureRequest) -> S3Server:
    started: S3Server = request.getfixturevalue(request.param)
    return started


# ---- where all is well


def test_a_server_that_does_all(server: S3Server, tmp_path: Path) -> None:
    with examining(tmp_path, server) as (daemon, bucket, proxy):
        lines = examined(daemon)
        assert bad(lines) == set()
        assert {name for name in OPERATIONS if lines[name]["verdict"] != "ok"} == set()
        assert set(OPERATIONS) - {"ListBucket"} <= set(proxy.seen), "a call was not made"
        assert lines["store"]["found"] == f"{proxy.endpoint} answers"
        assert lines["credentials"]["found"] == "from env, accepted"
        assert lines["clock"]["found"] == "as the server's"
        assert lines["checksum"]["found"] == ("md5" if server.name == "swift" else "crc64nvme")
        assert "If-None-Match: honoured for Put, honoured for Complete" in lines["server"]["found"]
        assert lines["tls"]["verdict"] == "none"
        for optional in ("CopyObject", "UploadPartCopy"):
            assert lines[optional]["found"] == "works; needed for duplicates alone"
        if server.name == "swift":  # LocalStack's is a word that stands in every path
            assert server.secret_key not in json.dumps(lines) + daemon.log()
        assert (bucket.keys(), bucket.open_uploads()) == ([], [])
        before = len(proxy.seen)
        assert bad(examined(daemon)) == set()
        assert proxy.seen[before:].count("UploadPart") == 1, "what the server does was found out twice"


def test_a_folder(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    with DaemonProcess(tmp_path / "daemon", store, settings="[spool]\nquota = 1073741824\n") as daemon:
        lines = examined(daemon)
        assert bad(lines) == set()
        assert {lines[name]["verdict"] for name in FOLDER_CALLS.values()} == {"ok"}
        assert lines["hard links"]["verdict"] == "ok"
        assert lines["spool quota"]["found"] == "0.0 of 1.0 GiB used"
        assert lines["catalog"]["verdict"] == lines["hand-offs"]["verdict"] == "ok"
        assert "a service" in lines["daemon"]["found"]
        assert {path.name for path in store.root.iterdir()} == {".ml-dash-store", ".ml-dash-tmp"}
        assert list((store.root / ".ml-dash-tmp").iterdir()) == []
        assert daemon.spool() == []


def test_a_person_reads_a_line_a_check(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        _, out = doctor("--socket", str(daemon.socket))
        _, plain = doctor("--socket", str(daemon.socket), env={"PYTHONIOENCODING": "ascii"})
    lines = out.splitlines()
    assert any(line.startswith("✓ store write") and line.endswith("works") for line in lines)
    assert any(line.startswith(("✓ reflink", "– reflink")) for line in lines)  # noqa: RUF001 a dash is meant
    assert "+ store write" in plain
    assert "✓" not in plain


def test_a_checksum_that_the_settings_name_is_used_and_nothing_is_found_out(swift: Swift, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon", Bucket(swift), settings='checksum = "none"\n') as daemon:
        lines = examined(daemon)
    assert lines["checksum"]["found"] == "none, as store.checksum says: every object is read back"
    assert "server" not in lines


# ---- where something is wrong


def test_calls_that_are_denied(localstack: LocalStack, tmp_path: Path) -> None:
    """One after the other: it is told which permission is missing, and no other call is blamed."""
    operation = ""

    def deny(request: Request) -> Answer | None:
        return refusal(403, "AccessDenied") if request.operation == operation else None

    with examining(tmp_path, localstack, deny) as (daemon, bucket, _):
        for operation in set(OPERATIONS) - {"ListBucket"}:
            lines = examined(daemon)
            denied = lines[operation]
            where = bucket.bucket if operation == "ListMultipartUploads" else f"{bucket.bucket}/some/where/*"
            assert denied["verdict"] == "bad", operation
            assert denied["hint"] == f"allow {OPERATIONS[operation].action} on arn:aws:s3:::{where}"
            alike = {operation, "ListBucket"} if operation == "HeadObject" else {operation}
            assert bad(lines) == alike
            assert lines["credentials"]["verdict"] == "ok"
        operation = ""
        assert bad(examined(daemon)) == set()
        assert (bucket.keys(), bucket.open_uploads()) == ([], []), "what it made was not removed once it could be"


def test_what_the_server_does_is_found_out_once_the_calls_work(localstack: LocalStack, tmp_path: Path) -> None:
    denying = True

    def deny(request: Request) -> Answer | None:
        return refusal(403, "AccessDenied") if denying and request.operation == "UploadPart" else None

    with examining(tmp_path, localstack, deny) as (daemon, _, _):
        assert examined(daemon)["checksum"]["found"] == "not tried: the calls above come first"
        denying = False
        assert examined(daemon)["checksum"]["found"] == "crc64nvme"


def test_optional_calls_that_are_not_to_be_had(localstack: LocalStack, tmp_path: Path) -> None:
    def refuse(request: Request) -> Answer | None:
        return refusal(501, "NotImplemented") if request.operation in ("CopyObject", "UploadPartCopy") else None

    with examining(tmp_path, localstack, refuse) as (daemon, _, _):
        lines = examined(daemon)
    assert lines["CopyObject"]["verdict"] == lines["UploadPartCopy"]["verdict"] == "none"
    assert "needed for duplicates alone" in lines["CopyObject"]["found"]
    assert bad(lines) == set()


def test_a_wrong_secret(swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift)
    store.credentials |= {"AWS_SECRET_ACCESS_KEY": "guessed-by-somebody"}
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        lines = examined(daemon)
    assert bad(lines) == {"credentials"}
    assert lines["store"]["verdict"] == "ok"
    assert "from env: " in lines["credentials"]["found"]
    assert "SignatureDoesNotMatch" in lines["credentials"]["found"]
    assert "guessed-by-somebody" not in json.dumps(lines)
    assert lines["PutObject"] == {
        "name": "PutObject",
        "verdict": "none",
        "found": "not tried: the store has to be mended first",
        "hint": None,
    }


def test_no_credentials(swift: Swift, tmp_path: Path) -> None:
    store = Bucket(swift)
    store.credentials = {"AWS_DEFAULT_REGION": "us-east-1"}
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        lines = examined(daemon)
    assert bad(lines) == {"credentials"}
    assert lines["credentials"]["found"] == "none were found"
    assert lines["store"]["verdict"] == "none"


def test_a_missing_bucket(swift: Swift, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "daemon", Bucket(swift, make=False)) as daemon:
        lines = examined(daemon)
    assert bad(lines) == {"bucket"}
    assert "create the bucket" in lines["bucket"]["hint"]
    assert lines["credentials"]["verdict"] == "ok"


def test_a_wrong_endpoint(swift: Swift, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with DaemonProcess(tmp_path / "daemon", Bucket(swift, f"http://127.0.0.1:{port}")) as daemon:
        lines = examined(daemon)
    assert bad(lines) == {"store"}
    assert str(port) in lines["store"]["found"]
    assert "store.endpoint_url" in lines["store"]["hint"]


def test_a_server_whose_certificate_nobody_knows(localstack: LocalStack, tmp_path: Path) -> None:
    """LocalStack speaks TLS on the same port, with a certificate that it signed itself."""
    store = Bucket(localstack, localstack.endpoint.replace("http:", "https:"))
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        lines = examined(daemon)
    assert bad(lines) == {"store", "tls"}
    assert "the system's certificates" in lines["tls"]["found"]
    assert "store.ca_bundle" in lines["tls"]["hint"]


@pytest.mark.parametrize(("ahead_s", "words"), [(-1000, "behind"), (1000, "ahead of")])
def test_a_clock_that_is_off(localstack: LocalStack, tmp_path: Path, ahead_s: int, words: str) -> None:
    def shift(_: Request, answer: Answer) -> None:
        answer.headers = {name: value for name, value in answer.headers.items() if name.lower() != "date"}
        answer.headers["Date"] = formatdate(time.time() - ahead_s, usegmt=True)

    with examining(tmp_path, localstack, after=shift) as (daemon, _, _):
        lines = examined(daemon)
    assert bad(lines) == {"clock"}
    assert f"s {words} the server's" in lines["clock"]["found"]
    assert 990 < int(lines["clock"]["found"].split()[0]) < 1100
    assert "NTP" in lines["clock"]["hint"]


def test_a_server_that_verifies_nothing(localstack: LocalStack, tmp_path: Path) -> None:
    def drop(request: Request) -> None:
        ignored = ("x-amz-checksum-crc64nvme", "x-amz-checksum-crc32c", "content-md5")
        request.headers = {name: value for name, value in request.headers.items() if name.lower() not in ignored}

    with examining(tmp_path, localstack, drop) as (daemon, _, _):
        lines = examined(daemon)
    assert "read back" in lines["checksum"]["found"]
    assert "crc64nvme: not verified" in lines["server"]["found"]


def test_a_folder_that_is_gone_and_a_full_disk(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    with (
        tmpfs(tmp_path / "disk", 64 * MIB) as disk,
        DaemonProcess(tmp_path / "daemon", store, state=disk / "state") as daemon,
    ):
        fill(disk)
        lines = examined(daemon)
        for name in ("spool's disk", "journal's disk"):
            assert lines[name]["verdict"] == "bad"
            assert lines[name]["found"].startswith("0.0 of 0.1 GiB free")
            assert "free space" in lines[name]["hint"]
        assert lines["spool"]["verdict"] == "bad"
        (disk / "filler").unlink()
        shutil.rmtree(store.root)
        store.root.touch()
        lines = examined(daemon)
        assert lines["store write"]["verdict"] == "bad"
        assert lines["store read"]["found"] == "not tried: PutObject failed"


def test_few_descriptors(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"))
    daemon.under = ["prlimit", "--nofile=512:512", "--"]
    with daemon:
        lines = examined(daemon)
    assert lines["descriptors"]["found"] == "at most 512"
    assert "LimitNOFILE=" in lines["descriptors"]["hint"]


# ---- which daemon, and none


def test_the_daemon_of_a_root(root: Root, tmp_path: Path) -> None:
    status, out = doctor("--root", str(root.path), "--json")
    lines = {check["name"]: check for check in json.loads(out)["checks"]}
    assert status == 3
    assert lines["which daemon"]["found"] == f"the one of the root {root.path}: its root is named"
    assert lines["installed"]["verdict"] == "ok"
    assert lines["socket"]["found"].endswith("socket is not there")
    assert lines["daemon"]["verdict"] == "bad"
    assert "started with the next file" in lines["daemon"]["hint"]
    assert not root.path.exists()
    make_file(tmp_path / "a.bin", 10)
    with root.experiment().run as exp:
        exp.files.upload(tmp_path / "a.bin").wait(30)
        lines = {check["name"]: check for check in json.loads(doctor("--root", str(root.path), "--json")[1])["checks"]}
    assert bad(lines) == set()
    assert "embedded" in lines["daemon"]["found"]
    assert lines["store write"]["found"] == "works"


def test_a_socket_where_nobody_is(tmp_path: Path) -> None:
    status, out = doctor("--json", env={"ML_DASH_SOCKET": str(tmp_path / "socket")})
    lines = {check["name"]: check for check in json.loads(out)["checks"]}
    assert status == 3
    assert lines["which daemon"]["found"].endswith("ML_DASH_SOCKET names it")
    assert "no daemon answers" in lines["daemon"]["found"]
    (tmp_path / "socket").touch()
    status, out = doctor("--socket", str(tmp_path / "socket"), "--json")
    lines = {check["name"]: check for check in json.loads(out)["checks"]}
    assert status == 3
    assert lines["socket"]["verdict"] == "bad"
    assert "no socket" in lines["socket"]["found"]
