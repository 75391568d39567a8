"""Files that were left in a service's inbox while it was down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ml_dash.messages.parts import Key, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class FindHanded(Message):
    """Asks for the caller's file that was handed over with this key; one that lies in the inbox is waited for.

    It is answered with Accepted. Fails with what the file was refused for, TIMEOUT where it takes longer than 20
    seconds, or UNKNOWN_FILE, also where it was handed over a month ago.
    """

    kind: ClassVar[int] = 36
    key: Key
