"""What a glob says of every path that fits it: what an index can look up, before core/names.py decides."""

from __future__ import annotations

import unicodedata

from ml_dashd.core.names import only_name

WHOLE = ""
"""The pattern of a Selection whose prefix is the path itself."""


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
