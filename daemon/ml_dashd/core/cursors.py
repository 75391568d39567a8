"""Where a list goes on: a text that the client gives back as it got it. It has a field a line; none holds a newline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_dash.errors import Code, error

MOST = 2**63


def write(*fields: object) -> str:
    """The cursor of these fields."""
    return "\n".join(map(str, fields))


def read(cursor: str, *kinds: Callable[[str], Any]) -> tuple[Any, ...]:
    """The fields of a cursor, each by its kind. Raises INVALID_ARGUMENT for one that was never given out."""
    fields = cursor.split("\n")
    if len(fields) == len(kinds):
        try:
            return tuple(kind(field) for kind, field in zip(kinds, fields, strict=True))
        except ValueError:
            pass
    raise error(Code.INVALID_ARGUMENT, "the cursor is none that was given out", "leave it out to begin anew")


def number(field: str) -> int:
    """A count or an id: decimal digits, 63 bits. Raises ValueError."""
    if not (field.isascii() and field.isdigit() and (value := int(field)) < MOST):
        raise ValueError(field)
    return value


def counts(field: str) -> dict[int, int]:
    """Counts by numbers, as `text_of` writes them: "1000:3,1001:1". Raises ValueError."""
    pairs = (each.partition(":") for each in field.split(",") if field)
    return {number(key): number(value) for key, _, value in pairs}


def text_of(counted: dict[int, int]) -> str:
    """Counts by numbers, as one field."""
    return ",".join(f"{key}:{value}" for key, value in counted.items())
