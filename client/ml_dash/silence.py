"""A daemon that is there and says nothing: stopped (SIGSTOP), frozen, or waiting for a disk.

Whoever hands a file over waits for it, and says so once; whoever asks a question is told after a while.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from ml_dash import messages, wire
from ml_dash.address import reachable
from ml_dash.errors import Code, NetworkError

log = logging.getLogger("ml_dash")

LOOK_S = 10
"""After so long without an answer the daemon is looked at, and a warning is due."""
ANSWER_S = 30.0
"""How long a question waits for a daemon that answers nobody: as long as one that is gone is looked for."""
PROBE_S = 2
"""A daemon that does not greet within this time does nothing at all: it greets in a millisecond."""


class SilentError(NetworkError):
    """It answers nobody. Asking again would wait as long."""


class Silence:
    """Watches one connection. `patience_s` is for the request that is asked now; None waits for ever.

    `find` says where the daemon listens.
    """

    def __init__(self, find: Callable[[], Path], patience_s: float | None) -> None:
        self._find = find
        self._since = time.monotonic()
        self._warned = False
        self.patience_s = patience_s

    def heard(self) -> None:
        """There was an answer, or a request is about to be sent."""
        self._since = time.monotonic()

    def look(self) -> None:
        """The connection has been silent for LOOK_S. One that answers others is only busy with what it was asked.

        Warns once. Raises SilentError when the patience is at its end.
        """
        path = self._find()
        if _greets(path):
            self.heard()
            return
        silent_s = time.monotonic() - self._since
        if self.patience_s is not None and silent_s >= self.patience_s:
            raise SilentError(
                Code.DAEMON_UNAVAILABLE,
                f"the daemon at {path} has not answered anybody for {silent_s:.0f} s",
                "see whether it is stopped (state T in `ps`, SIGCONT lets it go on) or waits for a disk (state D)",
            )
        if not self._warned:
            self._warned = True
            log.warning("the daemon at %s has not answered anybody for %.0f s; still waiting", path, silent_s)


def limit(peer: socket.socket, seconds: int) -> None:
    """Sends and receives raise BlockingIOError after so long; the socket stays a blocking one."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        peer.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))


def _greets(path: Path) -> bool:
    """Whether the daemon says anything to one who comes now. One that is gone is not silent."""
    hello = messages.Hello(request=1, min_version=wire.VERSION, max_version=wire.VERSION, client="ml-dash")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        limit(probe, PROBE_S)
        try:
            with reachable(path) as address:
                probe.connect(address)
            probe.send(messages.encode(hello), socket.MSG_NOSIGNAL)
            probe.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True
