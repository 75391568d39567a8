"""Commands that take several words: one that fails is said, and holds up none of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ml_dash.cli import show
from ml_dash.errors import MLDashError, NetworkError


class Several:
    """The words of a command, one after the other; `status` is the exit status then."""

    def __init__(self, words: Sequence[str | None], *, as_json: bool) -> None:
        self.words = words
        self.status = 0
        self._as_json = as_json

    @contextmanager
    def one(self) -> Iterator[None]:
        """A block about one word. Raises what is wrong with the only one, and where the daemon went away."""
        try:
            yield
        except NetworkError:
            raise
        except MLDashError as failure:
            if len(self.words) == 1:
                raise
            show.failure(failure, as_json=self._as_json)
            self.status = 1
