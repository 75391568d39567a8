"""A file's verified text, without a file here: its bytes come into memory."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.download import Downloads
from ml_dash.errors import Code, error

MOST_BYTES = 64 * 1024 * 1024
"""Of a file that is read as text: what is larger is downloaded, and read piece by piece."""


class Memory:
    """A destination of a download that has no name and is gone with its descriptor."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ml-dash", os.MFD_CLOEXEC)
        self.content = b""

    def publish(self) -> None:
        """Takes out what was verified."""
        size = os.fstat(self.descriptor).st_size
        self.content = os.pread(self.descriptor, size, 0) if size else b""

    def close(self) -> None:
        """Gives the memory back. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def read_text(connection: Connection, record: m.Record, encoding: str) -> str:
    """The text of a file. Raises TOO_LARGE above 64 MiB, INVALID_ARGUMENT for what is not text in that encoding."""
    name = f"{record.path.rstrip('/')}/{record.filename}"
    _check_encoding(encoding)
    if record.size_bytes > MOST_BYTES:
        what = f"{name} has {record.size_bytes} bytes, at most {MOST_BYTES} are read as text"
        raise error(Code.TOO_LARGE, what, "download() it")
    memory = Memory()
    downloads = Downloads(connection, _unwatched, make=lambda *_: memory)
    for _ in downloads.run(iter([(record, Path(record.filename))])):
        try:
            return memory.content.decode(encoding)
        except UnicodeDecodeError as bad:
            raise error(Code.INVALID_ARGUMENT, f"{name} is not {encoding}: {bad}", "pass its encoding") from None
    raise AssertionError("a download yields its file or raises")


def _check_encoding(encoding: str) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise error(Code.INVALID_ARGUMENT, f"encoding={encoding!r} is not known", "use utf-8") from None


def _unwatched(_: m.Record, done_bytes: int, total_bytes: int) -> None:
    """Nobody asked."""
