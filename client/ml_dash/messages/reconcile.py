"""Store and catalog, compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import KIB, Message, Name, Text
from ml_dash.schema import Max

FINDINGS = 256
"""Of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconcile(Message):
    """Asks for a step of it: what follows the cursor, looked at and mended; with `dry_run` only looked at."""

    kind: ClassVar[int] = 37
    cursor: Name | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something in a Reconciled that does not go together: what, and what became of it, or would.

    `what` is unlisted (an object without a record), missing (a record without an object), resized (an object of another
    size), found (marked as missing before, and there again), left (an object of a deleted file) or upload (one that
    nobody goes on with); `outcome` recorded, marked, unmarked, removed, aborted, or kept: somebody has to look at it.
    `id` is 0 where it has none.
    """

    what: Name
    outcome: Name
    key: Name
    size_bytes: int
    message: Text
    hint: Text = ""
    id: int = 0
    path: Name = ""
    upload: Name = ""
    code: Name | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled(Message):
    """What a step has seen, and found; with a cursor there is more.

    `waiting` are left alone: they may be on their way.
    """

    kind: ClassVar[int] = 94
    limit: ClassVar[int] = 4096 * KIB
    objects: int
    records: int
    uploads: int
    waiting: int
    findings: Annotated[tuple[Finding, ...], Max(FINDINGS)] = ()
    cursor: Name | None = None
