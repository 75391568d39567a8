"""A note in the root that says which daemon holds it, for those that can't see its lock: daemons on other hosts.

On one machine the lock decides. Locks of network file systems may be missing, be local to a host, or outlive it, so
between hosts it is a file that only one can make (O_EXCL, which NFS has from version 3 on), and whose time its holder
renews. Times are compared on the file server's clock: hosts need not agree.

A holder that stood still past STALE_S and finds another's note has lost the root and ends. What it stored meanwhile is
whole all the same: every file has a name of its own, and each host its own journal.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ml_dash.errors import Code, MLDashError, error

NAME = "holder.json"
RENEW_S = 30.0
STALE_S = 300.0
"""Ten renewals missed; more than an NFS client keeps old attributes (acdirmax, 60 s), and a server takes to restart."""
_TRIES = 5
"""Others may take and leave the root in between."""
TOKEN = "token"  # noqa: S105 it names a state folder and opens nothing


@dataclass(frozen=True, slots=True)
class _Note:
    facts: Mapping[str, object]
    mtime_ns: int


class Holder:
    """A daemon's claim on a root. `state_dir` is its own, under its lock: the earlier daemons of that are dead."""

    def __init__(self, folder: Path, state_dir: Path, facts: Mapping[str, object], root: Path) -> None:
        self._root = root
        self._folder = folder
        self._path = folder / NAME
        self._token = _token(state_dir)
        self._facts = {**facts, "token": self._token}

    def take(self) -> None:
        """Makes the note, in place of one that is our own or stale. Raises ROOT_HELD, which names the other host."""
        for _ in range(_TRIES):
            if self._create():
                return
            note = self._read()
            if note is None:
                continue
            if note.facts.get("token") == self._token:
                self._path.unlink(missing_ok=True)
                continue
            age_s = (self._server_now_ns() - note.mtime_ns) / 1e9
            if age_s < STALE_S:
                raise _held(note, age_s, self._root)
            self._remove_stale(note)
        note = self._read()
        raise _held(note or _Note({}, 0), 0.0, self._root)

    def renew(self) -> MLDashError | None:
        """Says that we are alive; returns the error of a root that is another's by now. Raises OSError."""
        if (note := self._read()) is None:
            if self._create():
                return None
            note = self._read()
        if note is None or note.facts.get("token") != self._token:
            return _held(note or _Note({}, 0), 0.0, self._root)
        os.utime(self._path)  # without times: the server's own clock
        return None

    def release(self) -> None:
        """Lets the root go. Idempotent."""
        note = self._read()
        if note is not None and note.facts.get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(self._facts, indent=2) + "\n")
            file.flush()
            os.fsync(descriptor)
        return True

    def _read(self) -> _Note | None:
        """The note as the server has it: opening it asks anew. One that is still being written has no facts."""
        try:
            with self._path.open() as file:
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
                text = file.read()
        except FileNotFoundError:
            return None
        with suppress(ValueError):
            facts = json.loads(text)
            if isinstance(facts, dict):
                return _Note(facts, mtime_ns)
        return _Note({}, mtime_ns)

    def _server_now_ns(self) -> int:
        """What time it is where the root lies: the time of a file that is written now."""
        probe = self._folder / f"now.{self._token}"
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b".")
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)

    def _remove_stale(self, stale: _Note) -> None:
        """Takes a dead holder's note away. Two may do so at once: one that turns out to be live is put back."""
        aside = self._folder / f"stale.{self._token}"
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        with aside.open() as file:
            moved_ns = os.fstat(file.fileno()).st_mtime_ns
        if moved_ns > stale.mtime_ns:
            with suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)


def _token(state_dir: Path) -> str:
    """Names a state folder; made once, under its lock."""
    path = state_dir / TOKEN
    with suppress(FileNotFoundError):
        if token := path.read_text().strip():
            return token
    token = secrets.token_hex(16)
    temporary = path.with_name(f".{TOKEN}")
    temporary.write_text(f"{token}\n")
    temporary.replace(path)
    return token


def _held(note: _Note, age_s: float, root: Path) -> MLDashError:
    host, pid = note.facts.get("host", "another host"), note.facts.get("pid", "not known")
    return error(Code.ROOT_HELD, f"{root} is held by the daemon on {host} (pid {pid}, last heard of {age_s:.0f} s ago)")
