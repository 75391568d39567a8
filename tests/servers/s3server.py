"""What the real S3 servers of the tests have in common: processes, ports, readiness, a boto3 client."""

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_GUARD = Path(__file__).with_name("guard.py")
_READY_TIMEOUT_S = 300.0
"""One that has died is found out at once; a machine that others want, too, may take a minute to start one."""
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_LOG_TAIL_CHARS = 4000
# Below Linux' ephemeral range (32768 and up): no outgoing connection can take a port while its server is
# down between kill() and start().
_PORTS = range(15000, 32000)


class ServerError(RuntimeError):
    """A test server did not start, or is not in the state that the call needs."""


def free_ports(count: int) -> list[int]:
    """Find `count` different loopback ports that nobody listens on."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"no {count} free ports on 127.0.0.1 in {_PORTS}")


_MAKING = threading.Lock()
"""A session makes one client at a time."""


def s3_client(endpoint: str, access_key: str, secret_key: str, region: str, **options: Any) -> Any:
    """Make a boto3 client; the caller closes it. `options` are botocore Config's.

    One attempt and no proxies: a test sees each answer of this very server. Checksums only where the
    test gives them, else boto3 would add its own to every request.
    """
    settings: dict[str, Any] = {
        "signature_version": "s3v4",
        "s3": {"addressing_style": "path"},
        "retries": {"total_max_attempts": 1},
        "proxies": {},  # not None, which would mean those of the environment
        "connect_timeout": 10,
        "read_timeout": 60,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    with _MAKING:
        return _session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=region,
            config=Config(**(settings | options)),
        )


@functools.cache
def _session() -> boto3.session.Session:
    """One for all clients: the description of S3 takes ten times as long to read as a client to make.

    It outlives the test that made it, so it reads nobody's settings.
    """
    session = botocore.session.Session()
    session.set_config_variable("config_file", os.devnull)
    session.set_config_variable("credentials_file", os.devnull)
    return boto3.session.Session(botocore_session=session)


class S3Server(ABC):
    """A real S3 server on 127.0.0.1 with its state below one directory.

    The endpoint is fixed when the object is made and stays the same over stop(), kill() and start().
    """

    name: ClassVar[str]
    access_key: ClassVar[str] = "test"
    secret_key: ClassVar[str] = "test"
    region: ClassVar[str] = "us-east-1"
    port_count: ClassVar[int] = 1

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        self.data = self.state / "data"
        self.ports = free_ports(self.port_count)
        self.endpoint = f"http://127.0.0.1:{self.ports[0]}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._prepared = False

    @abstractmethod
    def prepare(self) -> None:
        """Build the environment and write what the processes read; called before the first start."""

    @abstractmethod
    def commands(self) -> dict[str, list[str]]:
        """Give the processes to run, in the order of their start: name of the log, and argument list."""

    def variables(self) -> dict[str, str]:
        """Give environment variables beyond the bare minimum that each process gets."""
        return {}

    def listeners(self) -> dict[str, int]:
        """Give the port of each process that must listen before the S3 endpoint may be asked."""
        return dict.fromkeys(self.commands(), self.ports[0])

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the running server, by name, to measure or to freeze them."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self) -> None:
        """Start the server and return once it answers S3 requests."""
        if self._processes:
            raise ServerError(f"{self.name} is already running")
        try:
            if not self._prepared:
                for directory in (self.data, self.state / "log", self.state / "tmp"):
                    directory.mkdir(parents=True, exist_ok=True)
                self.prepare()
                self._prepared = True
            for name, command in self.commands().items():
                self._processes[name] = self._spawn(name, command)
            self._guard = self._watch()
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server in good order; what has not ended after 10 s is killed. Stopping twice is fine."""
        for process in self._processes.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline and not all(map(_ended, self._processes.values())):
            time.sleep(_POLL_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL every process of the server, as a crash would; return when they are gone."""
        processes = list(self._processes.values())
        if self._guard is not None:
            processes.append(self._guard)
        for process in processes:
            _signal_group(process, signal.SIGKILL)
        for process in processes:
            process.wait()
        self._processes.clear()
        self._guard = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, **options: Any) -> Any:
        """Make a boto3 client for this server; the caller closes it. `options` are botocore Config's."""
        return s3_client(self.endpoint, self.access_key, self.secret_key, self.region, **options)

    def make_bucket(self, name: str) -> str:
        """Create bucket `name` and return the name."""
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        # A minimal environment: no AWS_*, proxy or Python variable of the caller reaches a server.
        base = {
            "PATH": f"{Path(command[0]).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.state),
            "TMPDIR": str(self.state / "tmp"),
            "LANG": "C.UTF-8",
        }
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.state,
                env=base | self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its own group, to end with its children; Ctrl-C is not for it
            )

    def _watch(self) -> subprocess.Popen[bytes]:
        groups = [str(pid) for pid in self.pids.values()]
        command = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *groups]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={}, start_new_session=True)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with contextlib.closing(self.client(connect_timeout=2, read_timeout=10)) as client:
            while (problem := self._probe(client)) is not None:
                dead = [name for name, process in self._processes.items() if _ended(process)]
                if dead or time.monotonic() > deadline:
                    state = f"ended: {', '.join(dead)}" if dead else f"not ready after {_READY_TIMEOUT_S:g} s"
                    raise ServerError(f"{self.name} at {self.endpoint} {state} ({problem})\n{self._log_tails()}")
                time.sleep(_POLL_S)

    def _probe(self, client: Any) -> str | None:
        for name, port in self.listeners().items():
            if not _listens(self.pids[name], port):
                return f"{name} does not listen on port {port}, or is not alone there"
        try:
            client.list_buckets()
        except (BotoCoreError, ClientError) as problem:
            return str(problem)
        return None

    def _log(self, name: str) -> Path:
        return self.state / "log" / f"{name}.log"

    def _log_tails(self) -> str:
        tails = []
        for name in self._processes:
            text = self._log(name).read_text(errors="replace")
            tails.append(f"--- {self._log(name)}\n{text[-_LOG_TAIL_CHARS:]}")
        return "\n".join(tails)


def _listens(pid: int, port: int) -> bool:
    # Connecting would not do: a stranger who took the port meanwhile, perhaps a server of another test run,
    # would be mistaken for ours. The columns are those of proc_net_tcp(5); 0A is LISTEN.
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    own = set()
    with contextlib.suppress(FileNotFoundError):  # it may end, and its files close, while we look
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            own.add(os.readlink(entry))  # noqa: PTH115 - not a path: "socket:[inode]"
    return bool(listening) and listening <= own


def _ended(process: subprocess.Popen[bytes]) -> bool:
    # WNOWAIT leaves the dead process unreaped, so that its group's number cannot pass to a stranger
    # before kill() has signalled the group.
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
