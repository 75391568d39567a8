"""Starts daemons and commands from a process that has loaded their code: loading it is most of what a start costs.

What runs is the same: the process forks, and the child goes into the command's own `main` with the arguments, the
environment, the folder and the descriptors that it was given. At full size (`make long`) each start is one of a fresh
interpreter, as a user's are; so is any whose environment has something to say to the interpreter itself.
"""

from __future__ import annotations

import atexit
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
from pathlib import Path
from typing import Any, Self

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

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.prefork", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name.startswith((*INTERPRETERS, "PATH"))},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._turn = threading.Lock()
        atexit.register(self._end)

    @classmethod
    def begun(cls) -> Self:
        """The one of this process."""
        if cls._one is None:
            cls._one = cls()
        return cls._one

    @staticmethod
    def takes(environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment may be forked: what it says to an interpreter was said to ours."""
        said = ((name, value) for name, value in environment.items() if name.startswith(INTERPRETERS))
        return not FULL_SIZE and all(os.environ.get(name) == value for name, value in said)

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

    def _end(self) -> None:
        self._line.shutdown(socket.SHUT_RDWR)  # though a child of a test may still have it open
        self._line.close()
        self._process.wait()


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
    """Until nobody asks any more. In a child: what it is to do."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 8)
        if not request:
            return None
        facts = json.loads(request)
        if "reap" in facts:
            answer = os.waitpid(facts["reap"], 0)[1]
        elif "stopped" in facts:
            look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            answer = int(os.waitid(os.P_PID, facts["stopped"], look) is not None)
        else:
            answer = os.fork()
            if not answer:
                return become(facts, line, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        line.send(str(answer).encode())


def become(facts: dict[str, Any], line: socket.socket, descriptors: Sequence[int]) -> Callable[[], int]:
    """Makes this process what was asked for, but for its work."""
    line.close()
    numbers = dict(zip(facts["numbers"], descriptors, strict=True))
    above = max([*numbers, *numbers.values()]) + 1
    aside = {number: above + at for at, number in enumerate(numbers)}
    for number, descriptor in numbers.items():
        os.dup2(descriptor, aside[number])
    for number in numbers:
        os.dup2(aside[number], number, inheritable=True)
    kept = sorted({0, 1, 2, *numbers})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    os.chdir(facts["folder"])
    os.environ.clear()
    os.environ.update(facts["environment"])
    time.tzset()
    if facts["strict"]:
        warnings.simplefilter("error")
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
