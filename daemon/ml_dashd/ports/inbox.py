"""What clients leave while nobody answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ml_dash.messages import Upload
from ml_dashd.core.model import Trouble


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file that lies in the inbox, as the kernel states it: whose it is, and when it was handed over."""

    key: bytes
    uid: int
    handed_ms: int


class Inbox(Protocol):
    """A folder in which clients leave files while nobody answers. All calls but `changed` block: use a thread.

    Whoever the folder lets in may write anything there: nothing is believed but what the kernel says.
    """

    def changed(self) -> bool:
        """Whether something may have come since the last look. Takes microseconds."""

    def look(self) -> list[Dropped]:
        """What lies there whole, in the order in which it was handed over, at most so many; without what was refused.

        Raises OSError where the folder can't be read.
        """

    def open(self, dropped: Dropped) -> tuple[Upload, int]:
        """The message, and a descriptor of its file, which the caller closes. Raises the error of what is no hand-off.

        Raises OSError for what may be readable the next time.
        """

    def remove(self, dropped: Dropped) -> None:
        """It is taken in. Idempotent."""

    def refuse(self, dropped: Dropped, trouble: Trouble) -> None:
        """Notes why it is not taken in; it is not found by `look` any more, and stays for a week. Idempotent."""

    def refusal(self, uid: int, key: bytes) -> Trouble | None:
        """Why that user's file was refused."""

    def tidy(self, now_ms: int) -> int:
        """Removes what has been no hand-off for a day, and what was refused a week ago; returns how many files."""
