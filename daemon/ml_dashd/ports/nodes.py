"""Which node number is whose, where this node is, and the ids that it makes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ml_dashd.core.lease import Answer, Claim, Node, Place


class Leases(Protocol):
    """Which node number is whose, in the catalog that the nodes share.

    The rules are core/lease.py's, by the catalog's clock; what is changed is changed in one step. A call that raises
    may have been done: the next claim is answered by the tokens that its holder knows. Raises JournalError.
    """

    async def taken(self, claim: Claim) -> list[int]:
        """The numbers that this claim may not take."""

    async def take(self, number: int, claim: Claim) -> Node | None:
        """The number, taken; None where it is not free for this claim, or another was quicker."""

    async def renew(self, number: int, known: Collection[str], claim: Claim) -> tuple[Answer, Node | None]:
        """More time for who knows one of these tokens; the number as it is then, where the answer is KEPT."""

    async def nodes(self, after: int, limit: int) -> list[Node]:
        """Numbers that were ever taken, above `after`, in their order."""


class Whereabouts(Protocol):
    """Where the daemon runs. Nothing here blocks."""

    host: str
    """What people call the machine."""
    place: Place

    def boottime_ms(self) -> int:
        """CLOCK_BOOTTIME: it never steps, and does not stop while the machine sleeps."""

    def token(self) -> str:
        """A random word, another one each time."""


class Ids(Protocol):
    """Hands out file ids, each above all earlier ones."""

    def next(self, now_ms: int) -> int:
        """An id of that time, or later. Raises RETRY_LATER where none may be made now."""

    def pass_over(self, file_id: int) -> None:
        """An id that was given out elsewhere, and came here, is not given out again.

        Raises ID_TAKEN where it is another's to give out.
        """
