"""A real daemon as a process, and the stores that it sends to, seen from outside."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from botocore.exceptions import ClientError

from ml_dash import Experiment
from ml_dash.connection import Connection
from ml_dash.messages import Status, StatusReport
from ml_dash.reach import Endpoint
from tests.doubles.s3_double import S3Double
from tests.prefork import MAINS, ROOT, Forked, Prefork
from tests.servers.s3server import S3Server

T = TypeVar("T")
PREFIX = "alice/cv/resnet"
SOURCE = Path(__file__).parent.parent / "daemon" / "ml_dashd"


class StoreUnderTest:
    """A store: where the daemon is told to send, and what a user would find there."""

    url: str
    endpoint: str | None = None
    key_prefix = ""
    credentials: ClassVar[dict[str, str]] = {}

    def keys(self) -> list[str]:
        raise NotImplementedError

    def sha256(self, key: str) -> str:
        raise NotImplementedError

    def contents(self, within: str = "") -> dict[str, str]:
        """The SHA-256 of every object whose key has that in it, by its key."""
        return {key: self.sha256(key) for key in self.keys() if within in key}

    def open_uploads(self) -> list[str]:
        """Multipart uploads that nobody has completed or aborted."""
        raise NotImplementedError

    def key_of(self, result: dict[str, Any]) -> str:
        """Where the spec says that a file lies."""
        raise NotImplementedError


class Folder(StoreUnderTest):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()

    def keys(self) -> list[str]:
        """os.walk() passes over folders that are removed meanwhile, which rglob() does not."""
        files = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        names = (str(path.relative_to(self.root)) for path in files)
        return sorted(name for name in names if ".ml-dash" not in name and is_object(name))

    def sha256(self, key: str) -> str:
        return file_sha256(self.root / key)

    def open_uploads(self) -> list[str]:
        temporary = self.root / ".ml-dash-tmp"
        return sorted(path.name for path in temporary.iterdir()) if temporary.is_dir() else []

    def key_of(self, result: dict[str, Any]) -> str:
        parts = (result["experimentId"], "files", result["path"].strip("/"), result["id"], result["filename"])
        return "/".join(part for part in parts if part)


class Bucket(StoreUnderTest):
    key_prefix = "some/where/"

    def __init__(self, server: S3Server | S3Double, endpoint: str | None = None, *, make: bool = True) -> None:
        self.server = server
        self.bucket = f"bucket-{secrets.token_hex(6)}"
        self.url = f"s3://{self.bucket}/{self.key_prefix.rstrip('/')}"
        self.endpoint = endpoint or server.endpoint
        self.credentials = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": server.region,
        }
        if make:
            self.make()

    def make(self) -> None:
        self.server.make_bucket(self.bucket)

    def keys(self) -> list[str]:
        with self._client() as s3:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def sha256(self, key: str) -> str:
        with self._client() as s3:
            return self._sha256(s3, key)

    def contents(self, within: str = "") -> dict[str, str]:
        keys = [key for key in self.keys() if within in key]
        with self._client() as s3:
            return {key: self._sha256(s3, key) for key in keys}

    def _sha256(self, s3: Any, key: str) -> str:
        digest = hashlib.sha256()
        with contextlib.closing(s3.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
            for piece in body.iter_chunks(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def open_uploads(self) -> list[str]:
        with self._client() as s3:
            listed = s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
            return [each["UploadId"] for each in listed if self._knows(s3, each)]

    def _knows(self, s3: Any, upload: dict[str, Any]) -> bool:
        """Swift killed between an upload's end and its listing's lists it for ever, as nothing mends that here."""
        try:
            s3.list_parts(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except ClientError as refused:
            if refused.response["Error"]["Code"] != "NoSuchUpload":
                raise
            return False
        return True

    def key_of(self, result: dict[str, Any]) -> str:
        parts = ("files", result["experimentId"], result["path"].strip("/"), result["id"], result["filename"])
        return self.key_prefix + "/".join(part for part in parts if part)

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        client = self.server.client()
        try:
            yield client
        finally:
            client.close()


class DaemonProcess:
    """ml-dashd as its users run it. `kill` is kill -9; `start` after it is the restart."""

    def __init__(
        self,
        folder: Path,
        store: StoreUnderTest,
        settings: str = "",
        daemon_settings: str = "",
        state: Path | None = None,
        faults: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.store = store
        self.settings = settings
        self.daemon_settings = daemon_settings
        self.socket = folder / "socket"
        self.state = state or folder / "state"
        self.faults = faults
        """Those of the start by which a with block begins."""
        self.environment: dict[str, str] = {}
        self.module = ["ml_dashd"]
        self.under: list[str] = []
        """A command that runs the daemon's, such as one that lowers a limit."""
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def __enter__(self) -> Self:
        self.start(self.faults)
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self, faults: str = "") -> None:
        """Starts it and returns when it is ready, or raises what it says. `faults`: point=action,…"""
        reading, writing = os.pipe()
        environment = (
            {"PATH": os.environ["PATH"], "HOME": str(self.folder), "AWS_EC2_METADATA_DISABLED": "true"}
            | {"ML_DASHD_FAULTS": faults, "ML_DASHD_FAULT_LOG": str(self.folder / "faults")}
            | self.store.credentials
            | self.environment
        )
        arguments = ["run", "--config", self._config(), "--ready-fd", str(writing)]
        with (self.folder / "log").open("ab") as log:
            self.process = self._begun(arguments, environment, log.fileno(), writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        if said != "ready" and not faults:
            self.process.wait()
            raise RuntimeError(f"the daemon did not start: {said or self.log()[-2000:]}")

    def _begun(
        self, arguments: list[str], environment: dict[str, str], log: int, writing: int
    ) -> subprocess.Popen[bytes] | Forked:
        (module, *first) = self.module
        if module in MAINS and not self.under and Prefork.takes(environment):
            descriptors = {1: log, 2: log, writing: writing}
            return Prefork.begun().start(module, [*first, *arguments], environment, descriptors)
        if module.startswith("tests."):
            environment = environment | {"PYTHONPATH": str(ROOT)}
        command = [*self.under, sys.executable, "-m", *self.module, *arguments]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, pass_fds=[writing])

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def wait_until_hung(self, timeout: float = 30) -> None:
        """Returns once a fault point has stopped the process (action "hang")."""
        deadline = time.monotonic() + timeout
        while not self.hangs():
            assert time.monotonic() < deadline, "the daemon did not come to the point at which it hangs"
            time.sleep(0.005)

    def hangs(self) -> bool:
        """Whether a fault point has stopped the process."""
        assert self.process is not None
        if isinstance(self.process, Forked):
            return self.process.stopped()
        return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def let_go_until(self, done: Callable[[], bool], timeout: float = 60) -> None:
        """Lets it go on from wherever it hangs, until that is true."""
        deadline = time.monotonic() + timeout
        while not done():
            if self.hangs():
                self.resume()
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.001)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def wait_for_death(self, timeout: float = 60) -> None:
        assert self.process is not None
        self.process.wait(timeout)
        self.process = None

    def experiment(self, prefix: str = PREFIX, **options: Any) -> Experiment:
        return Experiment(prefix, socket=self.socket, **options)

    def status(self) -> StatusReport:
        connection = Connection(Endpoint(self.socket))
        try:
            return connection.call(StatusReport, lambda number: Status(request=number))
        finally:
            connection.close()

    def rows(self, statement: str, database: str = "journal") -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.state / f"{database}.sqlite")) as connection:
            return connection.execute(statement).fetchall()

    def spool(self) -> list[str]:
        """What lies in the spool, free slots included."""
        return sorted(str(path.relative_to(self.state)) for path in (self.state / "spool").rglob("*") if path.is_file())

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def faults_met(self) -> set[str]:
        path = self.folder / "faults"
        return set(path.read_text().split()) if path.exists() else set()

    def _config(self) -> str:
        path = self.folder / "ml-dashd.toml"
        endpoint = f'endpoint_url = "{self.store.endpoint}"\n' if self.store.endpoint else ""
        path.write_text(
            f'[daemon]\nsocket = "{self.socket}"\nstate_dir = "{self.state}"\n{self.daemon_settings}\n'
            f'[store]\nurl = "{self.store.url}"\n{endpoint}{self.settings}'
        )
        return str(path)


@contextlib.contextmanager
def away(
    folder: Path, spool: str = "", faults: str = "", daemon_settings: str = ""
) -> Iterator[tuple[DaemonProcess, Path]]:
    """A daemon whose store can take nothing in until the gate is removed. `spool` is settings of that table."""
    store = Folder(folder / "store")
    store.root.mkdir()
    gate = store.root / ".ml-dash-tmp"
    gate.touch()
    settings = f"[spool]\n{spool}"
    daemon = DaemonProcess(folder / "daemon", store, settings=settings, daemon_settings=daemon_settings)
    try:
        daemon.start(faults)
        yield daemon, gate
    finally:
        daemon.kill()


def is_object(name: str) -> bool:
    """Whether a file below a store's folder is one that was handed over: not what the daemon tells of an experiment."""
    folder, _, filename = name.rpartition("/")
    return "files" in folder.split("/") or filename not in ("experiment.json", "parameters.json", "data.jsonl")


def assert_whole(daemon: DaemonProcess, experiment: Experiment, expected: dict[str, str]) -> None:
    """The oracle: every file of `expected` (path → SHA-256) is stored once and whole, and nothing else is anywhere."""
    store = daemon.store
    records = experiment.files().list()
    by_path = {f"{record['path'].strip('/')}/{record['filename']}".strip("/"): record for record in records}
    assert sorted(by_path) == sorted(expected)
    assert len(records) == len(expected), "a file is listed twice"
    assert {record["state"] for record in records} <= {"DONE"}
    assert store.keys() == sorted(store.key_of(record) for record in records)
    for path, record in by_path.items():
        assert record["checksum"] == expected[path]
        assert store.sha256(store.key_of(record)) == expected[path]
    assert store.open_uploads() == []
    eventually(lambda: [name for name in daemon.spool() if "slots" not in name] == [])  # let go after it is listed


def eventually(look: Callable[[], T], timeout: float = 30) -> T:
    """The first true answer; for what nobody can be asked to wait for, such as a file that becomes blocked."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return seen


def make_file(path: Path, size: int, seed: int = 0) -> str:
    """Writes a file of that size, other bytes in every 64 KiB, and returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = hashlib.shake_256(str(seed).encode()).digest(1 << 16)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            piece = (start.to_bytes(8, "big") + block[8:])[: size - start]
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault_points() -> list[str]:
    """Every fault point, read from the daemon's code."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for point in re.findall(r'faults\.at\(f?"([^"]+)"\)', path.read_text()):
            names = ("journal", "catalog", "runs") if "{" in point else ("",)
            found.update(point.replace("{self._name}", name) for name in names)
    return sorted(found)


def free_tree(path: Path) -> None:
    """Removes what a large test wrote, before the next one runs."""
    shutil.rmtree(path, ignore_errors=True)
