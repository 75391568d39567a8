"""Folders of this machine: what is in them, which of it is meant, and whether it is what a daemon has already."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ml_dash.arguments import printable
from ml_dash.errors import Code, MLDashError, error
from ml_dash.home import HOME
from ml_dash.result import FileResult

RESERVED = ".ml-dash"
"""Names that begin so are the daemon's and the library's own."""
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Local(NamedTuple):
    """A regular file; `name` is its path below the folder, "/" between names."""

    name: str
    path: str
    size_bytes: int


class LeftOut(NamedTuple):
    """A folder that is not entered, and what it is."""

    path: str
    what: str


class Unfit(NamedTuple):
    """What can't be handed over, and why."""

    name: str
    failure: MLDashError


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are meant, by globs relative to the folder; one that fits a folder is about all below it."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def skips(self, name: str) -> bool:
        """Whether a file or a folder is left out, with all below it."""
        return name.rpartition("/")[2].startswith(RESERVED) or any(covers(glob, name) for glob in self.exclude)

    def takes(self, name: str) -> bool:
        """Whether a file is meant that nothing leaves out."""
        return not self.include or any(covers(glob, name) for glob in self.include)


Identity = tuple[int, int]
"""A folder's device and inode."""


def walk(root: str, wanted: Wanted, store: Identity | None = None) -> Iterator[Local | Unfit | LeftOut]:
    """All that is in a folder and below, hidden files included, in the order of names.

    Links to files and folders are followed; a folder is not entered again from below itself. Neither is a root, nor the
    `store` that the files go to: with each time that it is walked it would grow by all that is in it.
    """
    top = os.stat(root)  # noqa: PTH116
    above: list[Identity] = [(top.st_dev, top.st_ino)]
    """The folders that are open, from the outermost on."""
    levels = [iter(_entries(root, ""))]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            above.pop()
        elif isinstance(entry, Unfit):
            yield entry
        elif not wanted.skips(entry.name):
            seen = _look(entry, wanted, above, store)
            if isinstance(seen, Local | Unfit | LeftOut):
                yield seen
            elif seen is not None:
                above.append(seen)
                levels.append(iter(_entries(entry.path, entry.name)))


class _Entry(NamedTuple):
    name: str
    path: str


def _entries(folder: str, name: str) -> Sequence[_Entry | Unfit]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as failure:
        return [Unfit(name, error(Code.NOT_READABLE, f"the folder {folder} can't be read: {failure.strerror}"))]
    return [_Entry(f"{name}/{each}" if name else each, f"{folder}/{each}") for each in names]


def alone(path: str) -> Local | Unfit:
    """One file that is named by itself, under its own name."""
    seen = _look(_Entry(own_name(path), path), Wanted(), (), None)
    if isinstance(seen, Local | Unfit):
        return seen
    return Unfit(path, error(Code.NOT_A_FILE, f"{path} is a folder", "with -r, folders are handed over, too"))


def own_name(path: str) -> str:
    """The last name of a path, of "runs/1/" and of "." as well."""
    return Path(os.path.abspath(path)).name  # noqa: PTH100 a link keeps the name that it has


def identity_of(folder: str | Path) -> Identity | None:
    """None where it is not there."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _look(
    entry: _Entry, wanted: Wanted, above: Sequence[Identity], store: Identity | None
) -> Local | Unfit | LeftOut | Identity | None:
    """A file, what is wrong with it, the identity of a folder, or None for what is not meant."""
    try:
        status = os.stat(entry.path)  # noqa: PTH116
    except OSError as failure:
        what = f"{entry.path} can't be opened: {failure.strerror}"
        return Unfit(entry.name, error(Code.FILE_NOT_FOUND, what)) if wanted.takes(entry.name) else None
    identity = status.st_dev, status.st_ino
    if stat.S_ISDIR(status.st_mode):
        if identity in above:
            what = f"{entry.path} is a link to a folder that it is in"
            return Unfit(entry.name, error(Code.NOT_A_FILE, what, "leave it out with --exclude"))
        if identity == store:
            return LeftOut(entry.path, "it is the store that the files go to")
        if os.path.isdir(f"{entry.path}/{HOME}"):  # noqa: PTH112
            return LeftOut(entry.path, "it is a root, whose files `ml-dash push` sends")
        return identity
    return _file(entry, status) if wanted.takes(entry.name) else None


def _file(entry: _Entry, status: os.stat_result) -> Local | Unfit:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        return Unfit(entry.name, error(Code.NOT_A_FILE, f"{entry.path} is {kind}", "leave it out with --exclude"))
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        shown = printable(entry.path)
        return Unfit(shown, error(Code.INVALID_PATH, f"{shown} is not UTF-8", "rename it"))
    if any(unicodedata.category(character) == "Cc" for character in entry.name):
        what = f"{entry.path!r} has a control character"
        return Unfit(entry.name, error(Code.INVALID_PATH, what, "rename it, or leave it out with --exclude"))
    return Local(entry.name, entry.path, status.st_size)


def covers(glob: str, name: str) -> bool:
    """Whether a glob fits a path, or a folder that it is in: `*` stays inside a folder, `**` spans any number."""
    segments, ends = name.split("/"), {0}
    for part in glob.strip("/").split("/"):
        if part == "**":
            ends = set(range(min(ends), len(segments) + 1)) if ends else ends
        else:
            ends = {end + 1 for end in ends if end < len(segments) and fnmatchcase(segments[end], part)}
    return bool(ends - {0})


def sha256_of(path: str | Path) -> str:
    """The hex SHA-256 of a file."""
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_same(path: str | Path, size_bytes: int, there: FileResult) -> bool:
    """Whether a file here is what the daemon has: of its size, then of its SHA-256, which is waited for if need be.

    What failed is not there.
    """
    record: Mapping[str, object] = dict(dict.items(there))
    if record["sizeBytes"] != size_bytes or record["state"] in ("FAILED", "CANCELLED"):
        return False
    try:
        return bool(there["checksum"] == sha256_of(path))
    except (MLDashError, OSError):  # its source has changed, or this file has gone: whoever takes it says so
        return False
