"""What to do when a store says no: a pure decision. The delays have full jitter, and the attempts are journaled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ml_dash.errors import TABLE, Code
from ml_dashd.core.model import Trouble

BASE_MS = 200
CAP_MS = 30_000
BLOCKED_FLOOR_MS = 1_000
"""A blocked file asks again at least this much later: nothing mends itself sooner, and the store is spared."""
MAX_CORRUPT = 3
"""As many damaged arrivals in a row are no accident of the network."""
MAX_EXPIRED = 3
"""Where credentials were asked for anew so often, and had ended each time, somebody has to look after them."""


class Fault(StrEnum):
    """Families of what a store can answer; the edge sorts each vendor's answers into them."""

    TRANSIENT = "transient"
    """5xx, a timeout, a dropped connection: the request may or may not have been done."""
    THROTTLED = "throttled"
    CORRUPT = "corrupt"
    """The bytes arrived damaged or cut short, and the store refused them."""
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    """The endpoint's certificate is of no authority that is trusted, or of another host."""
    CREDENTIALS = "credentials"
    EXPIRED = "expired"
    """Temporary credentials have ended; others are asked for."""
    SKEWED = "skewed"
    """This machine's clock is too far off for signatures."""
    DENIED = "denied"
    NO_BUCKET = "no_bucket"
    NOT_MOUNTED = "not_mounted"
    """The store's folder is not there, or another one is in its place."""
    FULL = "full"
    """The store has no room."""
    UNSUPPORTED = "unsupported"
    """The store does not know what the settings ask of it, such as a storage class."""
    GONE = "gone"
    """The multipart upload is not there: aborted, expired or completed."""
    MISSING = "missing"
    """The object is not there."""
    REFUSED = "refused"
    """A refusal that no repetition changes, such as a file larger than the store takes."""


class StoreError(Exception):
    """A store's refusal or failure, sorted into a Fault; the message is the store's own, for people."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(fault, message)
        self.fault = fault
        self.message = message

    def __str__(self) -> str:
        return self.message


class Next(StrEnum):
    """What becomes of the file."""

    RETRY = "retry"
    BLOCK = "block"
    """As retry, but an operator has to mend something first, so it is shown."""
    RESTART = "restart"
    """Back to the queue, for a new upload."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, when, and why."""

    next: Next
    delay_ms: int
    trouble: Trouble


_BLOCKING = {
    Fault.UNREACHABLE: Code.STORE_UNREACHABLE,
    Fault.UNTRUSTED: Code.STORE_UNTRUSTED,
    Fault.SKEWED: Code.STORE_CLOCK,
    Fault.UNSUPPORTED: Code.STORE_UNSUPPORTED,
    Fault.CREDENTIALS: Code.STORE_CREDENTIALS,
    Fault.DENIED: Code.STORE_DENIED,
    Fault.NO_BUCKET: Code.STORE_NO_BUCKET,
    Fault.NOT_MOUNTED: Code.STORE_NOT_MOUNTED,
    Fault.FULL: Code.STORE_FULL,
}


def decide(fault: Fault, message: str, attempt: int, jitter: float) -> Decision:
    """What follows the failure of `attempt` (1 is the first); `jitter` is a random number in [0, 1)."""
    delay = backoff_ms(attempt, jitter)
    if (code := _BLOCKING.get(fault)) is not None:
        return Decision(Next.BLOCK, max(delay, BLOCKED_FLOOR_MS), _trouble(code, message))
    if fault in (Fault.GONE, Fault.MISSING):
        code = Code.STORE_UNAVAILABLE if fault is Fault.GONE else Code.OBJECT_MISSING
        return Decision(Next.RESTART, delay, _trouble(code, message))
    if fault is Fault.REFUSED:
        return Decision(Next.FAIL, 0, _trouble(Code.STORE_REFUSED, message))
    if fault is Fault.CORRUPT and attempt >= MAX_CORRUPT:
        return Decision(Next.BLOCK, max(delay, BLOCKED_FLOOR_MS), _trouble(Code.STORE_CORRUPTED, message))
    if fault is Fault.EXPIRED and attempt >= MAX_EXPIRED:
        return Decision(Next.BLOCK, max(delay, BLOCKED_FLOOR_MS), _trouble(Code.STORE_CREDENTIALS, message))
    return Decision(Next.RETRY, delay, _trouble(Code.STORE_UNAVAILABLE, message))


def backoff_ms(attempt: int, jitter: float) -> int:
    """Full jitter: anything from 0 to BASE_MS doubled with every attempt, at most CAP_MS."""
    ceiling = min(CAP_MS, BASE_MS * 2 ** min(attempt - 1, 20))
    return int(ceiling * jitter)


def _trouble(code: Code, message: str) -> Trouble:
    return Trouble(code, message, TABLE[code].hint)
