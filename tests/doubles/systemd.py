"""What a service sees of systemd: messages are taken, descriptors are kept, and the next start gets them back."""

from __future__ import annotations

import array
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from tests.harness import DaemonProcess

PATIENCE_S = 30.0
# In the child, between fork and exec: LISTEN_PID is its own, and the descriptors are numbered from 3 on.
LAUNCH = """
import fcntl, os, sys
numbers = [int(number) for number in sys.argv[1].split(",") if number]
passed = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 500) for number in numbers]
for number in numbers:
    os.close(number)
for number, descriptor in enumerate(passed, start=3):
    os.dup2(descriptor, number)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class ServiceManager:
    """Listens at a socket, as PID 1 does at $NOTIFY_SOCKET. `messages` are those that came, as lists of lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[list[str]] = []
        self.store: list[tuple[str, int]] = []
        self._marks: set[str] = set()
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
        for _, descriptor in self.store:
            os.close(descriptor)

    def lines(self) -> list[str]:
        with self._changed:
            return [line for message in self.messages for line in message]

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def wait_for(self, start: str, after: int = 0) -> str:
        """The first line that begins so, among those after so many."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while True:
                seen = [line for message in self.messages for line in message][after:]
                if found := next((line for line in seen if line.startswith(start)), None):
                    return found
                assert self._changed.wait(max(0.0, deadline - time.monotonic())), f"no {start} among {seen}"

    def kept(self) -> list[str]:
        """The names of the descriptors that are kept, once everything that was sent before is read."""
        mark = f"MARK={secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mine:
            mine.sendto(mark.encode(), self._socket.getsockname())
        with self._changed:
            assert self._changed.wait_for(lambda: mark in self._marks, PATIENCE_S)
            return sorted(name for name, _ in self.store)

    def _serve(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 16), socket.MSG_CMSG_CLOEXEC)
            came = array.array("i")
            for _, _, content in ancillary:
                came.frombytes(content)
            if not data:
                return
            with self._changed:
                lines = data.decode().split("\n")
                if lines[0].startswith("MARK="):
                    self._marks.add(lines[0])
                else:
                    self.messages.append(lines)
                    self._keep(lines, came)
                self._changed.notify_all()

    def _keep(self, lines: list[str], came: Sequence[int]) -> None:
        name = next((line.partition("=")[2] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            self.store += [(name, descriptor) for descriptor in came]
        elif "FDSTOREREMOVE=1" in lines:
            for entry in [entry for entry in self.store if entry[0] == name]:
                self.store.remove(entry)
                os.close(entry[1])


class SupervisedDaemon(DaemonProcess):
    """ml-dashd as a unit of Type=notify starts it; `listener` is the socket unit's, where there is one."""

    def __init__(self, systemd: ServiceManager, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.systemd = systemd
        self.listener: socket.socket | None = None

    def listen(self) -> None:
        """The socket unit: made once, and given to every daemon that starts."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.socket))
        self.listener.listen(64)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if self.listener is not None:
            self.listener.close()

    def start(self, faults: str = "") -> None:
        """Starts it and returns when it has said READY=1."""
        seen = len(self.systemd.lines())
        self.spawn(faults)
        with contextlib.suppress(AssertionError):
            self.systemd.wait_for("READY=1", seen)
            return
        raise RuntimeError(f"the daemon did not start: {self.log()[-2000:]}")

    def spawn(self, faults: str = "") -> subprocess.Popen[bytes]:
        passed = [("ml-dashd.socket", self.listener.fileno())] if self.listener is not None else []
        passed += self.systemd.store
        environment = (
            {"PATH": os.environ["PATH"], "HOME": str(self.folder), "NOTIFY_SOCKET": self.systemd.address}
            | {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
            | {"ML_DASHD_FAULTS": faults, "ML_DASHD_FAULT_LOG": str(self.folder / "faults")}
            | self.environment
        )
        numbers = [descriptor for _, descriptor in passed]
        command = [sys.executable, "-c", LAUNCH, ",".join(map(str, numbers)), "-m", "ml_dashd", "run"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", self._config()], env=environment, stdout=log, stderr=log, pass_fds=numbers
            )
        return self.process
