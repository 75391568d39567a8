"""A GPU in place of the host's memory: every tensor is on it, and copies from it run on streams, as late as they may.

A copy is made when somebody waits for its stream's event, not before; kernels that wait on the caller's stream run when
a side stream waits for that. So what forgets to wait gets other bytes. For the Python that has torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ml_dash import snapshot

EMPTY = torch.empty


class Stream:
    """What was begun on it, in order."""

    def __init__(self, device: Any = None) -> None:
        self.begun: list[Callable[[], Any]] = []

    def wait_stream(self, other: Stream) -> None:
        self.begun.append(other.finish)

    def record_event(self) -> Event:
        return Event(self, len(self.begun))

    def finish(self, count: int | None = None) -> None:
        while self.begun and count != 0:
            self.begun.pop(0)()
            count = None if count is None else count - 1


class Event:
    """The point of a stream at which it was recorded."""

    def __init__(self, stream: Stream, count: int) -> None:
        self._stream, self._count = stream, count

    def synchronize(self) -> None:
        self._stream.finish(self._count)


class Gpu:
    """What is patched in for it. `callers` is the stream on which the caller's own kernels run."""

    def __init__(self) -> None:
        self.callers = Stream()
        self._current = self.callers
        self.page_locked = 0

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def empty(self, *size: Any, pin_memory: bool = False, **options: Any) -> Any:
        made = EMPTY(*size, **options)
        if not pin_memory:
            return made
        self.page_locked += 1
        into = made.fill_(0xEE).as_subclass(PageLocked)
        into.gpu = self
        return into

    def begin(self, work: Callable[[], Any]) -> None:
        self._current.begun.append(work)


class PageLocked(torch.Tensor):
    """Memory of the host that a copy of the GPU's goes to."""

    gpu: Gpu

    def copy_(self, source: Any, non_blocking: bool = False) -> Any:
        assert non_blocking, "it would hold up the caller"
        plain = self.as_subclass(torch.Tensor)
        self.gpu.begin(lambda: plain.copy_(source))
        return self


@contextmanager
def gpu() -> Iterator[Gpu]:
    """Everything is on a GPU here."""
    made = Gpu()
    with (
        mock.patch.object(snapshot, "ON_GPU", frozenset({"cpu"})),
        mock.patch.object(torch, "empty", made.empty),
        mock.patch.object(torch.cuda, "Stream", Stream),
        mock.patch.object(torch.cuda, "stream", made.stream),
        mock.patch.object(torch.cuda, "current_stream", return_value=made.callers),
    ):
        yield made
