"""Starts daemons and commands from a process that has loaded their code: loading it is most of what a start costs.

What runs is the same: the process forks, and the child goes into the command's own `main` with the arguments, the
environment, the folder and the descriptors that it was given. So does the daemon of a root that the library starts in
the tests' process, or in such a command. At full size (`make long`) each start is one of a fresh interpreter, as a
user's are; so is any whose environment has something to say to the interpreter itself, and any that a script makes.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]
MAINS = {
    "ml_dashd": "ml_dashd.__main__",
    "ml_dash.cli": "ml_dash.cli",
    "tests.doubles.impatient": "tests.doubles.impatient",
    "tests.doubles.small_copies": "tests.doubles.small_copies",
}
"""What `python -m` is told, and where its `main` is."""
INTERPRETERS = ("PYTHON", "MALLOC_", "LD_", "LC_", "LANG", "GLIBC_")
"""What the interpreter and its libraries read once, as they begin."""
STARTS = "ml_dash.cli"
"""What starts daemons of roots by itself."""
DAEMON = [sys.executable, "-P", "-m", "ml_dashd"]
"""How the library starts one (client/ml_dash/reach.py)."""
FULL_SIZE = "ML_DASH_TEST_LONG" in os.environ
MESSAGE_BYTES = 256 * 1024


class Forked:
    """A process that was forked for us: as much of a subprocess.Popen as tests use. It is not our own child."""

    def __init__(self, prefork: Prefork, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._prefork = prefork
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and self._ended(0):
            self._reap()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not self._ended(timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._reap()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nobody else gets it: until it is asked how it ended, the number of a process is its own."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def stopped(self) -> bool:
        return self.returncode is None and bool(self._prefork.ask({"stopped": self.pid}))

    def _ended(self, timeout: float | None) -> bool:
        look = select.poll()  # select() knows no descriptor above 1023
        look.register(self._handle, select.POLLIN)
        return bool(look.poll(None if timeout is None else timeout * 1000))

    def _reap(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(self._prefork.ask({"reap": self.pid}))
        os.close(self._handle)


class Prefork:
    """The process that forks. It ends with whoever has started it."""

    _one: Self | None = None

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._turn = threading.Lock()
        self._owner = os.getpid()

    @classmethod
    def _begin(cls) -> Self:
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.prefork", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name.startswith((*INTERPRETERS, "PATH"))},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

        def end() -> None:
            line.shutdown(socket.SHUT_RDWR)  # though a child of a test may still have it open
            line.close()
            process.wait()

        atexit.register(end)
        return cls(line)

    @classmethod
    def begun(cls) -> Self:
        """The one of this process."""
        if cls._one is None:
            cls._one = cls._begin()
        return cls._one

    @classmethod
    def given(cls, line: socket.socket) -> None:
        """To a process that was forked, so that what it starts is forked as well."""
        cls._one = cls(line)

    @classmethod
    def takes(cls, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment may be forked: what it says to an interpreter was said to ours."""
        said = ((name, value) for name, value in environment.items() if name.startswith(INTERPRETERS))
        mine = cls._one is None or cls._one._owner == os.getpid()  # a child of a test's has no line of its own
        return mine and not FULL_SIZE and all(os.environ.get(name) == value for name, value in said)

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Mapping[int, int],
        folder: Path | None = None,
        *,
        strict: bool = False,
    ) -> Forked:
        """As `python -m module arguments`. `descriptors`: what each of its numbers is here; it has no others.

        `strict`: as with `-W error`.
        """
        facts = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "numbers": list(descriptors),
            "strict": strict,
        }
        return Forked(self, self.ask(facts, list(descriptors.values())))

    def ask(self, facts: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        with self._turn:
            socket.send_fds(self._line, [json.dumps(facts).encode()], list(descriptors))
            return int(self._line.recv(MESSAGE_BYTES))


def launched(
    command: list[str], *, stdout: IO[bytes], pass_fds: Sequence[int], cwd: Path, **how: Any
) -> subprocess.Popen[bytes] | Forked:
    """In place of the subprocess.Popen by which the library starts the daemon of a root; that leaves its session."""
    if command[: len(DAEMON)] != DAEMON or not Prefork.takes(os.environ) or not cwd.is_dir():
        return subprocess.Popen(command, stdout=stdout, pass_fds=pass_fds, cwd=cwd, **how)
    log = stdout.fileno()
    with Path(os.devnull).open("rb") as nothing:
        descriptors = {0: nothing.fileno(), 1: log, 2: log} | {each: each for each in pass_fds}
        return Prefork.begun().start("ml_dashd", command[len(DAEMON) :], os.environ, descriptors, cwd)


LAUNCHING = SimpleNamespace(Popen=launched, DEVNULL=subprocess.DEVNULL)
"""What stands for `subprocess` in client/ml_dash/reach.py."""


# ---- in the process that forks


def load() -> None:
    """Every module of the daemon, and the command's; what they load when they are first needed, too."""
    packages = [importlib.import_module(name) for name in ("ml_dash.cli", "ml_dashd")]
    for package in packages:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    for name in (*MAINS.values(), "aiobotocore.session", "aiohttp", "pymongo", "rich.console", "rich.progress"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "who has threads must not fork"
    gc.collect()
    gc.freeze()  # else each child would look through all of it, and have a copy of its own of every page


def serve(line: socket.socket) -> Callable[[], int] | None:
    """Until the tests ask no more. In a child: what it is to do."""
    lines = [line]
    while True:
        asking = select.select(lines, [], [])[0][0]
        try:
            request, descriptors, _, _ = socket.recv_fds(asking, MESSAGE_BYTES, 8)
        except ConnectionResetError:  # a command that was killed
            request = b""
        if not request and asking is line:
            return None
        if not request:
            lines.remove(asking)
            asking.close()
            continue
        facts = json.loads(request)
        if "reap" in facts:
            answer = os.waitpid(facts["reap"], 0)[1]
        elif "stopped" in facts:
            look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            answer = int(os.waitid(os.P_PID, facts["stopped"], look) is not None)
        else:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            answer = os.fork()
            if not answer:
                for each in (*lines, ours):
                    each.close()
                return become(facts, theirs, descriptors)
            lines.append(ours)
            theirs.close()
            for descriptor in descriptors:
                os.close(descriptor)
        with suppress(BrokenPipeError):
            asking.send(str(answer).encode())


def become(facts: dict[str, Any], line: socket.socket, descriptors: Sequence[int]) -> Callable[[], int]:
    """Makes this process what was asked for, but for its work. The line is for who starts daemons by itself."""
    numbers = dict(zip(facts["numbers"], descriptors, strict=True))
    above = max([*numbers, *numbers.values()]) + 1
    own = fcntl.fcntl(line, fcntl.F_DUPFD_CLOEXEC, above + len(numbers))
    line.close()
    aside = {number: above + at for at, number in enumerate(numbers)}
    for number, descriptor in numbers.items():
        os.dup2(descriptor, aside[number])
    for number in numbers:
        os.dup2(aside[number], number, inheritable=True)
    starts = facts["module"] == STARTS
    kept = sorted({0, 1, 2, *numbers, *([own] if starts else [])})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    os.chdir(facts["folder"])
    os.environ.clear()
    os.environ.update(facts["environment"])
    time.tzset()
    if facts["strict"]:
        warnings.simplefilter("error")
    if starts:
        Prefork.given(socket.socket(fileno=own))
        importlib.import_module("ml_dash.reach").subprocess = LAUNCHING  # type: ignore[attr-defined]
    module = importlib.import_module(MAINS[facts["module"]])
    sys.argv = [str(module.__file__), *facts["arguments"]]
    return module.main


def end(status: int) -> None:
    """As an interpreter ends, but that it does not take apart what was loaded for it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    inherited = socket.socket(fileno=int(sys.argv[1]))
    load()
    work = serve(inherited)
    if work:
        try:
            status = work()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        end(status)
