"""Lists that come a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class Paged(Protocol):
    """A part of a list; `cursor` is where the next one begins, None on the last."""

    @property
    def cursor(self) -> str | None: ...


P = TypeVar("P", bound=Paged)


def pages(ask: Callable[[str | None], P]) -> Iterator[P]:
    """All pages, from the first on; each is asked for when it is wanted."""
    page = ask(None)
    yield page
    while page.cursor is not None:
        page = ask(page.cursor)
        yield page
