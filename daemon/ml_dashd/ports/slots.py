"""Spool files that clients write into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ml_dashd.core.model import Pin


@dataclass(frozen=True, slots=True)
class Slot:
    """A spool file that a client writes into. The descriptor is the daemon's own."""

    number: int
    capacity_bytes: int
    descriptor: int


class Slots(Protocol):
    """Spool files for clients to write into, each belonging to one connection. All calls block."""

    def grant(self, connection: int, size_bytes: int) -> Slot:
        """A slot of at least that size, allocated; raises DISK_FULL. One that the connection had is used again."""

    def grow(self, connection: int, number: int, size_bytes: int) -> Slot:
        """A granted slot with at least that size, allocated, and what was in it; raises DISK_FULL. Idempotent."""

    def commit(self, connection: int, number: int, size_bytes: int, file_id: int) -> Pin:
        """The pin of a granted slot, that file's until `Pins.release`; it is not granted again before. Idempotent."""

    def give_back(self, connection: int, number: int) -> None:
        """Takes a granted slot back, to be granted again. Idempotent."""

    def prepare(self, connection: int, size_bytes: int) -> None:
        """Has a slot of that size ready for the connection's next save, where there is room for one. Idempotent."""

    def trim(self) -> None:
        """Lets go of slots that wait for a save, where the machine's memory is short. Idempotent."""

    def disconnect(self, connection: int) -> None:
        """Wipes the connection's slots: at once, or when they are released."""
