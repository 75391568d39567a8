"""The process's descriptors under one budget: what clients make the daemon hold never leaves it without its own."""

from __future__ import annotations

import resource
from collections.abc import Callable

OWN = 256
"""Kept for the daemon itself: databases, log and loop (about 30), connections to the store, files that are read, sent
and downloaded (20, 8 and 64), and, for the moment in which it is refused, what a peer sends beside a frame."""
FOR_CONNECTIONS = 7 / 8
"""The part of the budget up to which connections are let in: those that are there still send files."""
FOR_SLOTS = 3 / 4
"""The part up to which slots are granted: a client that has one keeps it for its next save."""
FOR_PINS = 1 / 2
"""The part up to which sources are kept as open descriptors; then they are copied. Such pins last as long as the store
is away, and connections go before them."""

FOR_LEASES = 1 / 4
"""The part up to which leases are taken that nobody asked for (edge/witness.py); they go where a pin needs room."""


class DescriptorBudget:
    """Counts what is held for clients. Safe among threads, which may overshoot it by as many as they are."""

    def __init__(self, own: int = OWN) -> None:
        """Of the process's limit as it is now, half or `own` descriptors, whichever is less, are not given away."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = limit - min(own, limit // 2)
        self._holders: list[Callable[[], int]] = []
        self._spare: list[Callable[[], None]] = []

    def count(self, holder: Callable[[], int], give_up: Callable[[], None] | None = None) -> None:
        """Adds somebody who holds descriptors, and says how many; `give_up` closes them, where he can do without."""
        self._holders.append(holder)
        if give_up is not None:
            self._spare.append(give_up)

    def make_room(self) -> None:
        """Has everything closed that can be done without."""
        for give_up in self._spare:
            give_up()

    def left(self, part: float = 1.0) -> int:
        """How many more may be held by whom this part of the budget is for; below 0 where others went further."""
        return int(self._most * part) - sum(holder() for holder in self._holders)
