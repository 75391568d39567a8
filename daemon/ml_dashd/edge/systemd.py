"""systemd: what it passed to this process, and what it is told (sd_notify(3), sd_listen_fds(3)).

Without it every call does nothing. Its store of descriptors outlives the process: what is in it comes back with the
next start, after a kill -9 too, though not after a reboot.
"""

from __future__ import annotations

import array
import logging
import os
import re
import socket
import stat
import threading
from collections.abc import Mapping, Sequence

from ml_dash.errors import Code, error

log = logging.getLogger("ml_dashd.systemd")

FIRST_PASSED = 3
"""SD_LISTEN_FDS_START."""
STORE_MAX = 4096
"""Pins in the store at once; FileDescriptorStoreMax= of the units is the same.

Each comes back with its name in one environment variable, and the kernel runs no program with one of 128 KiB
(MAX_ARG_STRLEN): twice as many, and the daemon could not be started any more.
"""
STATUS_S = 15.0
PATIENCE_S = 2.0
"""How long a message waits for systemd to read those before it; a hand-off goes on without it then."""
_PIN = re.compile(r"pin-(\d{1,19})")


class Systemd:
    """The port `Supervisor`, the listening socket, and the `Keeper` of descriptors.

    `said` are its environment variables. Safe among threads.
    """

    def __init__(self, said: Mapping[str, str]) -> None:
        notify = said.get("NOTIFY_SOCKET", "")
        self._address = f"\0{notify[1:]}" if notify.startswith("@") else notify
        mine = str(os.getpid())
        watched = said.get("WATCHDOG_PID") in (None, "", mine)
        self._watchdog_s = _number(said.get("WATCHDOG_USEC", "")) / 1_000_000 if watched else 0.0
        self.pause_s = min(self._watchdog_s / 2 or STATUS_S, STATUS_S)
        self._failing = False
        self._full = False
        self._lock = threading.Lock()
        self._listeners: list[int] = []
        self._kept: dict[int, int] = {}
        if said.get("LISTEN_PID") == mine:
            self._sort(_number(said.get("LISTEN_FDS", "")), said.get("LISTEN_FDNAMES", "").split(":"))
        self._stored = set(self._kept)

    @property
    def present(self) -> bool:
        """Whether there is one that listens."""
        return bool(self._address)

    # ---- what it passed

    def listener(self) -> socket.socket | None:
        """The socket that it listens at for us; it stays systemd's, its name too. None where it passed none.

        Raises CONFIG for any other socket.
        """
        sockets = [socket.socket(fileno=descriptor) for descriptor in self._listeners]
        self._listeners = []
        if not sockets:
            return None
        if len(sockets) > 1 or not _listens(sockets[0]):
            what = ", ".join(f"{each.family.name} {each.type.name} {each.getsockname()!r}" for each in sockets)
            for each in sockets:
                each.close()
            raise error(
                Code.CONFIG, f"systemd passed {what}", "pass one ListenStream= with a path, and leave out Accept="
            )
        return sockets[0]

    def kept(self) -> dict[int, int]:
        """The descriptors that it kept, by file id, for the caller to close. Once: they are not here afterwards."""
        kept, self._kept = self._kept, {}
        return kept

    def _sort(self, count: int, names: Sequence[str]) -> None:
        """Pins are known by their name, sockets by their kind; anything else in the store is nobody's any more."""
        for descriptor in range(FIRST_PASSED, FIRST_PASSED + count):
            name = names[descriptor - FIRST_PASSED] if descriptor - FIRST_PASSED < len(names) else ""
            try:
                os.set_inheritable(descriptor, False)
            except OSError as failure:
                raise error(Code.CONFIG, f"descriptor {descriptor} of LISTEN_FDS: {failure.strerror}") from None
            if (pin := _PIN.fullmatch(name)) and int(pin[1]) not in self._kept:
                self._kept[int(pin[1])] = descriptor
            elif stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                self._listeners.append(descriptor)
            else:
                os.close(descriptor)
                if not pin:
                    self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    # ---- what it is told

    def ready(self) -> None:
        """Recovered, and listening."""
        self._send("READY=1", "STATUS=listening")

    def stopping(self, within_s: float) -> None:
        """The daemon ends, and may take this long over it, whatever the unit's TimeoutStopSec= says."""
        self._send("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={int(within_s * 1_000_000)}")

    def report(self, text: str) -> None:
        line = "".join(char if char.isprintable() else "?" for char in text)[:1000]
        alive = ["WATCHDOG=1"] if self._watchdog_s else []
        self._send(f"STATUS={line}", *alive, patience_s=0)

    # ---- the store

    def keep(self, file_id: int, descriptor: int) -> None:
        """Gives it a duplicate, to be had back at the next start. What was sent is kept, though we die at once."""
        if not self._address:
            return
        with self._lock:
            if len(self._stored) >= STORE_MAX:
                if not self._full:
                    log.warning("descriptor_not_kept", extra={"id": file_id, "kept": STORE_MAX})
                self._full = True
                return
            self._stored.add(file_id)
        self._send("FDSTORE=1", f"FDNAME=pin-{file_id}", "FDPOLL=0", descriptors=[descriptor])

    def drop(self, file_id: int) -> None:
        """Takes it out of the store. Idempotent."""
        with self._lock:
            if file_id not in self._stored:
                return
            self._stored.remove(file_id)
            self._full = False
        self._send("FDSTOREREMOVE=1", f"FDNAME=pin-{file_id}")

    def _send(self, *lines: str, descriptors: Sequence[int] = (), patience_s: float = PATIENCE_S) -> None:
        """One datagram. A failure is logged once, until the next success: the daemon does its work without systemd."""
        if not self._address:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.settimeout(patience_s)
                peer.sendmsg(["\n".join(lines).encode(errors="replace")], rights, socket.MSG_NOSIGNAL, self._address)
        except OSError as failure:
            if not self._failing:
                log.warning("notify_failed", extra={"said": lines[0], "error": failure})
            self._failing = True
        else:
            self._failing = False


def _listens(passed: socket.socket) -> bool:
    return (
        passed.family is socket.AF_UNIX
        and passed.type is socket.SOCK_STREAM
        and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
