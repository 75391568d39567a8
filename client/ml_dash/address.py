"""The paths of Unix sockets, which the kernel takes only up to 107 bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 107
"""sizeof(sockaddr_un.sun_path) less the closing NUL."""


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for the socket that the kernel takes: its own, or one through a descriptor of its folder."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
