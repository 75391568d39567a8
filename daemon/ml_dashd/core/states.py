"""The life of a file, as a table. The journal refuses every move that is not in it; the diagram is drawn from it.

A state means "resume here". Waiting for a retry, being blocked and being asked to cancel are columns, not states.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How far a file has come."""

    QUEUED = "QUEUED"
    SENDING = "SENDING"
    COMPLETING = "COMPLETING"
    VERIFIED = "VERIFIED"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TRANSITIONS: dict[State, dict[State, str]] = {
    State.QUEUED: {
        State.SENDING: "the upload is begun and its id journaled",
        State.FAILED: "the source has changed or is lost",
        State.CANCELLED: "deleted, or superseded by a newer version, before it was sent",
    },
    State.SENDING: {
        State.COMPLETING: "every part is evidenced",
        State.VERIFIED: "stored in one request, and its answer proves it",
        State.QUEUED: "the remote upload is gone",
        State.FAILED: "the source has changed or is lost, or the store refuses it for good",
        State.CANCELLED: "deleted or superseded while it was sent; the remote upload is aborted",
    },
    State.COMPLETING: {
        State.VERIFIED: "the store states our size and checksum",
        State.QUEUED: "the remote upload is gone and there is no object",
        State.FAILED: "the store refuses it for good",
        State.CANCELLED: "deleted or superseded while it was completed; the object is removed",
    },
    State.VERIFIED: {
        State.DONE: "in the catalog",
        State.CANCELLED: "deleted before or while it was listed; the object is removed",
        State.FAILED: "the catalog has another file of its id",
    },
    State.FAILED: {
        State.QUEUED: "tried again on request",
        State.CANCELLED: "deleted",
    },
    State.DONE: {},
    State.CANCELLED: {},
}

UNFINISHED = frozenset({State.QUEUED, State.SENDING, State.COMPLETING, State.VERIFIED})
"""The states in which a file is still on its way."""


def allows(old: State, new: State) -> bool:
    """Whether the table has this move."""
    return new in TRANSITIONS[old]


def diagram() -> str:
    """The table as a Mermaid state diagram, for ARCHITECTURE.md."""
    moves = [f"    {old} --> {new}: {why}" for old, row in TRANSITIONS.items() for new, why in row.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> QUEUED: acknowledged", *moves])
