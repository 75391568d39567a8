"""How much memory the machine has to give."""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


def available_bytes() -> int:
    """What programs can still get without swapping, pages of files that can be dropped included; 0 if nobody says."""
    found = _AVAILABLE.search(MEMINFO.read_text())
    return int(found[1]) * 1024 if found else 0
