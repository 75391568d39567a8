"""Where the daemon runs: the machine, its boot, and the state folder itself, whatever it is called."""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from ml_dashd.core.lease import Place

MACHINE = Path("/etc/machine-id")
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Here:
    """The port `Whereabouts`, for a daemon with that state folder."""

    def __init__(self, state_dir: Path, machine: Path = MACHINE, boot: Path = BOOT) -> None:
        folder = state_dir.stat()
        self.host = socket.gethostname()
        # A container may have no machine-id: boot and folder tell machines apart. Without a boot's name each start
        # counts as one: a daemon then asks the catalog before it goes on with what it has kept.
        words = (_word(machine), _word(boot) or secrets.token_hex(16))
        self.place = Place(*words, f"{folder.st_dev}:{folder.st_ino}")

    def boottime_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def token(self) -> str:
        return secrets.token_hex(8)


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
