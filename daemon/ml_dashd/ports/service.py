"""What answers clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ml_dash.messages import Message


@dataclass(frozen=True, slots=True)
class Session:
    """A client's connection, as the kernel states it."""

    number: int
    uid: int
    pid: int


class Line(Protocol):
    """What goes to a client while its request is handled."""

    async def report(self, message: Message) -> None:
        """What comes before the reply."""

    def early(self, reply: Message) -> Callable[[], None]:
        """Makes the reply ready; who calls what is returned sends it, once, from any thread, before `handle` returns.

        What `handle` returns, or raises, afterwards is told to nobody.
        """


class Service(Protocol):
    """What answers the messages of a connection."""

    async def handle(
        self, session: Session, message: Message, descriptors: Sequence[int], line: Line
    ) -> tuple[Message, Sequence[int]]:
        """The reply to a request, and the descriptors that go with it. `line` is for what is said before that.

        The request's descriptors are closed by the caller afterwards. Raises MLDashError for a refusal.
        """

    def disconnected(self, session: Session) -> None:
        """The connection has ended."""
