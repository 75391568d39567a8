"""What answers clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ml_dash.messages import Message


@dataclass(frozen=True, slots=True)
class Session:
    """A client's connection, as the kernel states it."""

    number: int
    uid: int
    pid: int


Send = Callable[[Message], Awaitable[None]]


class Service(Protocol):
    """What answers the messages of a connection."""

    async def handle(
        self, session: Session, message: Message, descriptors: Sequence[int], send: Send
    ) -> tuple[Message, Sequence[int]]:
        """The reply to a request, and the descriptors that go with it. `send` is for what comes before the reply.

        The request's descriptors are closed by the caller afterwards. Raises MLDashError for a refusal.
        """

    def disconnected(self, session: Session) -> None:
        """The connection has ended."""
