"""What is asked and answered about sets: files that the ranks of a job save, and that become visible together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import KIB, Key, Message, Name, Place, Share
from ml_dash.schema import Max

SetId = Annotated[str, Max(32)]
SETS = 100
"""Sets of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSet(Message):
    """Says that a rank begins its share of a set at the place; its files are handed over with that share."""

    kind: ClassVar[int] = 40
    place: Place
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class EndShare(Message):
    """Says that a share has all its files, `files` of them at least; those that are handed over later are not in it."""

    kind: ClassVar[int] = 41
    place: Place
    share: Share
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSets(Message):
    """Asks for complete sets at and below the place, the newest first; with `incomplete`, for the others instead.

    With a `share`, for the set that has it, whatever else is asked: the answer comes when it is complete, or time is
    up; `timeout_ms` is at most 60,000.
    """

    kind: ClassVar[int] = 42
    place: Place
    incomplete: bool = False
    cursor: Name | None = None
    page_size: int = SETS
    share: Key | None = None
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFiles(Message):
    """Asks for the files of a set, in the order of their ids; `after` is the cursor of the last Page."""

    kind: ClassVar[int] = 43
    id: SetId
    after: Name | None = None
    page_size: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSet(Message):
    """Deletes a set and all its files together. What comes of its ranks afterwards begins another round of it."""

    kind: ClassVar[int] = 44
    id: SetId


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRecord:
    """A set as the catalog has it. `number` rises with each that is begun; `missing` are the first ranks that are."""

    id: SetId
    namespace: Name
    project: Name
    experiment: Name
    name: Name
    attempt: Name
    number: int
    world_size: int
    state: Name
    opened_ms: int
    updated_ms: int
    files: int
    size_bytes: int
    ranks: int
    completed_ms: int | None = None
    missing: Annotated[tuple[int, ...], Max(16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets(Message):
    """Sets; `cursor` is None on the last page."""

    kind: ClassVar[int] = 95
    limit: ClassVar[int] = 4096 * KIB
    sets: Annotated[tuple[SetRecord, ...], Max(SETS)]
    cursor: Name | None = None
