"""Counts and sizes as people say them, wherever the client speaks; and the word that it says aside."""

from __future__ import annotations

import sys


def counted(count: int, what: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def files(count: int) -> str:
    """1 file, 2 files."""
    return counted(count, "file")


def files_are(count: int) -> str:
    """1 file is, 2 files are."""
    return f"{files(count)} {'is' if count == 1 else 'are'}"


def say(line: str) -> None:
    """A word to whoever started the script, on stderr."""
    print(f"ml-dash: {line}", file=sys.stderr)  # noqa: T201


def size(count: float) -> str:
    """Bytes by powers of 1,000: 512 bytes, 1.5 kB, 2.0 TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
