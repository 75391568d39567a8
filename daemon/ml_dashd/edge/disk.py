"""What a folder's file system says of itself. All calls block."""

from __future__ import annotations

import os
from pathlib import Path

from ml_dashd.core.figures import Disk


def look(folder: Path) -> Disk:
    """The file system under a folder. Raises OSError where the folder can't be reached."""
    state = os.statvfs(folder)
    return Disk(str(folder), state.f_bavail * state.f_frsize, read_only=bool(state.f_flag & os.ST_RDONLY))
