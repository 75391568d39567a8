"""The folder of a store, and the small file in it by which it is known again.

While its disk is not mounted there is another folder at its path, or none: nothing may be written there, and what is
not in it is not gone.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ml_dashd.edge.local_listing import objects_below
from ml_dashd.edge.system import sync_content, sync_folder
from ml_dashd.ports import NotMountedError

MARKER = ".ml-dash-store"
"""Beside the namespaces; no user's name can be this (core/names.py)."""
MARKER_MODE = 0o644
"""Daemons of other users may share the folder; what it says is no secret."""
LONGEST = 256


class StoreFolder:
    """The port `Folder`, of the folder at that path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._marker = root / MARKER
        self._known = ""
        self._refused: OSError | None = NotMountedError(f"{root} was not looked at yet")
        self._seen: tuple[int, int, int] | None = None
        """Device, inode and change of the marker when it was read last: the same need not be read again."""

    def read(self) -> str | None:
        try:
            with self._marker.open("rb") as file:
                return file.read(LONGEST).decode(errors="replace").strip()
        except FileNotFoundError:
            return None

    def has_files(self) -> bool:
        return next(objects_below(self._root, ""), None) is not None

    def mark(self) -> str:
        self._root.mkdir(parents=True, exist_ok=True)
        self._write(secrets.token_hex(16))
        return self.read() or ""

    def expect(self, known: str) -> None:
        self._known, self._refused, self._seen = known, None, None

    def refuse(self, failure: OSError) -> None:
        self._refused = failure

    def check(self) -> None:
        if self._refused is not None:
            raise type(self._refused)(*self._refused.args)
        try:
            status = self._marker.stat()
            seen = (status.st_dev, status.st_ino, status.st_ctime_ns)
            if seen == self._seen:
                return
            said = self.read()
        except FileNotFoundError:
            said = None
        except OSError as failure:
            raise NotMountedError(f"{self._root} can't be looked at: {failure.strerror}") from None
        if said is None:
            raise NotMountedError(f"{self._root} is not the folder that it was: it has no {MARKER}")
        if not said:  # an operator's
            self._write(self._known)
        elif said != self._known:
            raise NotMountedError(f"{self._root} is another store's folder: its {MARKER} is not the one that is known")
        else:
            self._seen = seen

    def _write(self, text: str) -> None:
        """Whole, or not at all. Of several daemons that make one, the first is heard."""
        temporary = self._root / f"{MARKER}-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MARKER_MODE)
            try:
                os.write(descriptor, f"{text}\n".encode())
                sync_content(descriptor)
            finally:
                os.close(descriptor)
            self._publish(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self._root)

    def _publish(self, temporary: Path) -> None:
        try:
            os.link(temporary, self._marker)
        except OSError:
            if not self.read():  # an operator's, which is empty; or a file system without links
                temporary.replace(self._marker)
