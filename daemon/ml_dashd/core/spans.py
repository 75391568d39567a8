"""A Selection as spans of paths, in their order: each is one range of an index, so that a page costs what it lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ml_dashd.core import narrow
from ml_dashd.core.model import Selection
from ml_dashd.core.names import below


@dataclass(frozen=True, slots=True)
class Span:
    """Paths above `low` and below `high`; or the one path `low`, of its versions those below `id`."""

    low: str
    high: str | None = None
    only: bool = False
    id: int | None = None


def spans(selection: Selection) -> Iterator[Span]:
    """What follows the cursor of the paths that are asked for, in order."""
    if selection.cursor is None:
        yield from _all(selection)
        return
    at, last = selection.cursor
    for span in _all(selection):
        if span.only:
            holds, is_behind = span.low == at, span.low > at
        else:
            holds, is_behind = span.low < at and (span.high is None or at < span.high), span.low >= at
        if is_behind:
            yield span
        elif holds:
            if not selection.latest:
                yield Span(at, only=True, id=last)
            if not span.only:
                yield Span(at, span.high)


def _all(selection: Selection) -> Iterator[Span]:
    prefix, pattern = selection.prefix, selection.pattern
    if not prefix:
        yield Span("")
        return
    if not pattern:  # the prefix itself may be a file's path
        yield Span(prefix, only=True)
    if pattern != narrow.WHOLE:
        yield Span(*below(prefix))
