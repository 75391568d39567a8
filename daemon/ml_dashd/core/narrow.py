"""What a glob says of every path that fits it: what an index can look up, before core/names.py decides."""

from __future__ import annotations

import re
import sys
import unicodedata

from ml_dashd.core.names import only_name

WHOLE = ""
"""The pattern of a Selection whose prefix is the path itself."""
_LAST = chr(sys.maxunicode)


def split(pattern: str) -> tuple[str, str]:
    """The names that a glob begins with, as a path, and the rest, which is WHOLE where only one path fits."""
    segments = unicodedata.normalize("NFC", pattern).split("/")
    literal: list[str] = []
    for segment in segments:
        if (name := only_name(segment)) is None:
            break
        literal.append(name)
    return "/".join(literal), "/".join(segments[len(literal) :])


def depth(pattern: str) -> int | None:
    """How many segments a path has that fits; None where that may differ."""
    segments = pattern.split("/")
    return None if "**" in segments else len(segments)


def is_of_one_folder(pattern: str | None) -> bool:
    """Whether whatever fits lies in one folder, that of the Selection's prefix."""
    return pattern is not None and pattern != WHOLE and depth(pattern) == 1


def ending(filename: str) -> str:
    """What follows the last dot of a filename; all of it where it has none."""
    return filename.rpartition(".")[2]


def ending_of_all(pattern: str) -> str | None:
    """The ending that every path has that fits; None where it may differ."""
    last = pattern.rpartition("/")[2]
    if (name := only_name(last)) is not None:
        return ending(name)
    literal = last[max(last.rfind(mark) for mark in "*?[]") + 1 :]
    return ending(literal) if "." in literal else None


def may_leap(pattern: str | None) -> bool:
    """Whether `leap` may ever pass over anything."""
    return False if not pattern else pattern.partition("/")[0] != "**"


def leap(pattern: str, path: str) -> str | None:
    """What comes behind `path` and fits the glob comes behind this text, too; None where nothing is left that could.

    It is `path` itself where the very next one may fit. Neither needs to be the path of a file.
    """
    start, behind = "", None
    """The folder that is looked at, and what follows the last one whose name may differ."""
    segments = pattern.split("/")
    for at, glob in enumerate(segments):
        rest = path[len(start) :]
        name, is_last = only_name(glob), at == len(segments) - 1
        head = _head(glob) if name is None else name if is_last else f"{name}/"
        if glob == "**":
            return path
        if rest < head:
            return max(path, start + _before(head))
        here, below, _ = rest.partition("/")
        if not rest.startswith(head) or (is_last and name is not None):
            return behind
        if name is None:
            behind = f"{start}{here}/{_LAST}"
            if not below:  # names that begin with this one come before what lies in it
                return path
        start += f"{here}/"
    return behind


def _head(glob: str) -> str:
    """What every name begins with that fits this segment."""
    return re.split(r"[*?[]", glob, maxsplit=1)[0]


def _before(text: str) -> str:
    """A text before this one, with little between."""
    previous = chr(max(ord(text[-1]) - 1, 0))
    return text[:-1] + (f"{previous}{_LAST}" if text[-1] > "\0" and unicodedata.category(previous) != "Cs" else "")
