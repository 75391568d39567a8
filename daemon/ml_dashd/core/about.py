"""What an object says of itself: enough to list it again where its record is lost, and nothing that may change.

    owner=1000;depth=1;set=0;sha256=e3b0…

It is given to the object when it is made, beside its id. A reader takes nothing for granted: who may write to the store
may write anything there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"owner=(\d{1,10});depth=(\d{1,3});set=([01])(?:;sha256=([0-9a-f]{64}))?", re.ASCII)
MAX_UID = 2**32 - 2
"""The last one is the kernel's "no user"."""


@dataclass(frozen=True, slots=True)
class About:
    """Whose it is, and what its key does not tell."""

    owner_uid: int
    depth: int
    """Segments of the experiment's name: where it ends, and the folder within it begins."""
    in_set: bool
    """It belongs to a rank's share of a set: until that is complete, nobody may see it."""
    sha256: str | None = None
    """Of the whole file, where it was known when the object was begun."""


def write(about: About) -> str:
    """As one word of ASCII, for a header or an attribute."""
    text = f"owner={about.owner_uid};depth={about.depth};set={about.in_set:d}"
    return text if about.sha256 is None else f"{text};sha256={about.sha256}"


def read(text: str | None) -> About | None:
    """What was written; None for anything else."""
    found = _FORM.fullmatch(text or "")
    if found is None or int(found[1]) > MAX_UID or not int(found[2]):
        return None
    return About(int(found[1]), int(found[2]), found[3] == "1", found[4])
