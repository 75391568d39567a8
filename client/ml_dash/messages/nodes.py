"""The daemons that share a catalog, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ml_dash.messages.parts import KIB, Message, Name
from ml_dash.schema import Max

NODES = 500
"""Of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListNodes(Message):
    """Asks for a page of the nodes, in the order of their numbers: those that hold one; with `everything`, all."""

    kind: ClassVar[int] = 35
    cursor: Name | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node in a Nodes. `until_ms` is when its lease ends, unless it is renewed; the times are the catalog's.

    A daemon that shares its catalog with no other has the number 0, and no lease.
    """

    number: int
    host: Name
    held: bool
    mine: bool = False
    """Of the daemon that answers."""
    until_ms: int | None = None
    seen_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes(Message):
    """Some nodes, perhaps none; with a cursor there are more. `shared` is whether others can be there at all."""

    kind: ClassVar[int] = 93
    limit: ClassVar[int] = 4096 * KIB
    nodes: Annotated[tuple[NodeRecord, ...], Max(NODES)]
    shared: bool
    cursor: Name | None = None
