"""What a save in the background returns: a record that is not there yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_dash.background import Saving
from ml_dash.connection import Connection
from ml_dash.result import FileResult


class BackgroundResult(FileResult):
    """The record of a file that is **not acknowledged** until `acknowledged` says so: until then it is the trainer's.

    A kill -9 of the trainer before that loses it, whole: no part of it is ever listed. Whatever is read of it waits for
    the daemon's answer, and raises what went wrong with it; `acknowledged`, `repr`, `==` and `bool` never wait. From
    the answer on it is as any other result.
    """

    def __init__(self, saving: Saving, connection: Connection | None) -> None:
        dict.__init__(self, id=None)  # not empty, since json.dumps would not ask further
        self._saving = saving
        self._connection = connection
        self._filled = False

    @property
    def acknowledged(self) -> bool:
        return self._saving.acknowledged

    def _identify(self, timeout: float | None = None) -> None:
        if not self._filled:
            self._take_over(self._saving.result(timeout))
            self._filled = True

    def _is_identified(self) -> bool:
        self._identify()
        return True

    # ---- reading it as a dict

    def __getitem__(self, key: str) -> Any:
        self._identify()
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._identify()
        return super().__contains__(key)

    def __len__(self) -> int:
        self._identify()
        return super().__len__()

    def __iter__(self) -> Iterator[str]:
        self._identify()
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._identify()
        return super().__reversed__()

    def keys(self) -> Any:
        self._identify()
        return super().keys()

    # ---- what never waits

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other or (self._known() and super().__eq__(other))

    __hash__ = None  # type: ignore[assignment]  # as a dict's

    def __repr__(self) -> str:
        return super().__repr__() if self._known() else f"<{self._saving.path}: not acknowledged yet>"

    def _known(self) -> bool:
        if self.acknowledged:
            self._identify()
        return self._filled
