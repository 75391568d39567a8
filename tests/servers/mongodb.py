"""MongoDB, as single-node replica sets or sets of three on loopback: the catalog of a fleet.

From the wheel of FiftyOne, which carries `mongod` 6.0.5: for tests alone, not to be redistributed.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pymongo
from pymongo.errors import OperationFailure, PyMongoError

from tests.servers.environments import server_python
from tests.servers.s3server import free_ports

_GUARD = Path(__file__).with_name("guard.py")
_READY_TIMEOUT_S = 300.0
"""One that has died is found out at once; a machine that others want, too, may take a minute to start one."""
_POLL_S = 0.05
_ALREADY_INITIALIZED = 23
_TRANSACTION_S = 5
"""How long what a killed daemon has begun holds its documents: a minute as the server is shipped."""
_SET = "rs0"


class MongoError(RuntimeError):
    """A mongod did not start; the message holds the end of its log."""


class MongoDB:
    """A replica set whose members live below one directory; data outlive kill(). Ports stay the same.

    `secured`: it asks for users, of whom the first may be made on loopback by anybody. `certificate`: a file with a
    key and a chain, by which it speaks TLS with whoever wants it.
    """

    def __init__(
        self, state: Path, members: int = 1, *, secured: bool = False, certificate: Path | None = None
    ) -> None:
        self.state = state.resolve()
        self._secured = secured
        self._certificate = certificate
        self.ports = free_ports(members)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._guards: dict[int, subprocess.Popen[bytes]] = {}

    def url(self, database: str, options: str = "") -> str:
        """The catalog.url of a database in this set."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"mongodb://{hosts}/{database}?replicaSet={_SET}{options}"

    @property
    def pids(self) -> dict[int, int]:
        """The process ids of the members that run, by port."""
        return {port: process.pid for port, process in self._processes.items()}

    def start(self) -> None:
        """Starts the members that do not run; returns when the set has a primary."""
        try:
            for port in self.ports:
                if port not in self._processes:
                    self._spawn(port)
            self._initiate()
        except BaseException:
            self.kill()
            raise

    def kill(self, port: int | None = None) -> None:
        """SIGKILLs one member, or all, as a crash would; returns when they are gone."""
        for each in [port] if port is not None else list(self._processes):
            for processes in (self._processes, self._guards):
                process = processes.pop(each)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def primary(self) -> int:
        """The port of the member that takes writes, as soon as there is one."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            for port in list(self._processes):
                with self._member(port) as client, contextlib.suppress(PyMongoError):
                    if client.admin.command("hello").get("isWritablePrimary"):
                        return port
            time.sleep(_POLL_S)
        raise MongoError(f"no primary after {_READY_TIMEOUT_S:g} s\n{self._log_tails()}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for port in self.ports:  # pytest keeps the folders of three runs: the logs are worth it, the data are not
            shutil.rmtree(self.state / str(port), ignore_errors=True)

    def _spawn(self, port: int) -> None:
        data = self.state / str(port)
        data.mkdir(parents=True, exist_ok=True)
        command = [
            _mongod(), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--replSet", _SET,
            "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64", "--nounixsocket",
            "--setParameter", "diagnosticDataCollectionEnabled=false", "--setParameter", "ttlMonitorSleepSecs=1",
            "--setParameter", f"transactionLifetimeLimitSeconds={_TRANSACTION_S}",
            "--logpath", str(self.state / f"{port}.log"), "--logappend",
        ]  # fmt: skip
        if self._certificate is not None:
            command += ["--tlsMode", "allowTLS", "--tlsCertificateKeyFile", str(self._certificate)]
        if self._secured:
            key = self.state / "key"
            key.unlink(missing_ok=True)
            key.touch(0o600)
            key.write_text("the members know each other by this")
            command += ["--auth", "--keyFile", str(key)]
        quiet: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "start_new_session": True,
        }
        process = subprocess.Popen(command, env={"HOME": str(self.state), "PATH": "/usr/bin:/bin"}, **quiet)
        self._processes[port] = process
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(process.pid)]
        self._guards[port] = subprocess.Popen(guard, env={}, **quiet)

    def _initiate(self) -> None:
        members = [{"_id": at, "host": f"127.0.0.1:{port}"} for at, port in enumerate(self.ports)]
        # A failed primary is missed after 2 s, not 10.
        settings = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500}
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with self._member(self.ports[0]) as client:
            while True:
                try:
                    client.admin.command("replSetInitiate", {"_id": _SET, "members": members, "settings": settings})
                    break
                except OperationFailure as refused:
                    if refused.code == _ALREADY_INITIALIZED:
                        break
                    problem: PyMongoError = refused  # a member does not listen yet
                except PyMongoError as not_yet:
                    problem = not_yet
                dead = [port for port, process in self._processes.items() if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    raise MongoError(f"mongod at {dead or self.ports}: {problem}\n{self._log_tails()}")
                time.sleep(_POLL_S)
        self.primary()

    def _member(self, port: int) -> pymongo.MongoClient[Any]:
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        return pymongo.MongoClient(url, serverSelectionTimeoutMS=2000, connectTimeoutMS=2000, socketTimeoutMS=20000)

    def _log_tails(self) -> str:
        logs = (self.state / f"{port}.log" for port in self.ports)
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())


def _mongod() -> str:
    """The one of the wheel, else one on the PATH."""
    python = server_python("mongodb")
    found = next(iter(python.parents[1].glob("lib/python3*/site-packages/fiftyone/db/bin/mongod")), None)
    return str(found) if found is not None else shutil.which("mongod") or "mongod"
