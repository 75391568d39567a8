"""What goes wrong between the daemon and S3, as data: a script lists rules, a rule what it matches and what happens."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl

BODIES = ("PutObject", "UploadPart")
"""The operations whose requests carry an object's bytes."""


class Side(Enum):
    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answers by itself, after it has taken the body. The server never sees the request."""

    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True, slots=True)
class ErrorIn200:
    """As Refuse, with a status that says success."""

    code: str = "InternalError"


@dataclass(frozen=True, slots=True)
class Reset:
    """RST at a random byte of the request's body, or of the answer, whose request the server has served."""

    side: Side


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """The server has served the request; not a byte of its answer arrives."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """The answer ends at a random byte, and the connection with it, in good order."""


@dataclass(frozen=True, slots=True)
class StopReading:
    """Somewhere in the body nothing more is read: the window shrinks to zero and stays there."""


@dataclass(frozen=True, slots=True)
class NoContinue:
    """Whoever waits for 100 Continue waits for ever."""


@dataclass(frozen=True, slots=True)
class Twice:
    """The request is delivered two times, one after the other; the second answer arrives."""


@dataclass(frozen=True, slots=True)
class Late:
    """The client sees RST; the server gets the request just before the next of that operation."""

    behind: str


@dataclass(frozen=True, slots=True)
class Delay:
    """The request arrives so much later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Bodies pass at this rate, all of them together."""

    bytes_per_s: int


@dataclass(frozen=True, slots=True)
class FlipBit:
    """A random bit of the request's body arrives as its opposite."""


Action = (
    Refuse
    | ErrorIn200
    | Reset
    | LoseAnswer
    | Truncate
    | StopReading
    | NoContinue
    | Twice
    | Late
    | Delay
    | Rate
    | FlipBit
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to which requests. Everything that is said must hold; what is not said holds for all."""

    action: Action
    operations: tuple[str, ...] = ()
    """Names as AWS has them, such as UploadPart."""
    least_body: int = 0
    """Bytes."""
    probability: float = 1.0
    times: int | None = None
    """How often at most."""
    seconds: float | None = None
    """How long, from the first request that the script sees."""


@dataclass(frozen=True, slots=True)
class Script:
    """Of the rules that match a request the first one acts. The seed decides all that is random."""

    name: str
    rules: tuple[Rule, ...] = ()
    seed: int = 0


@dataclass(slots=True)
class Player:
    """A script while it runs: `injected` counts what was done, by the action's name and the operation."""

    script: Script
    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    chance: random.Random = field(init=False)
    _done: Counter[int] = field(default_factory=Counter)
    _began: float | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.script.seed)

    def action(self, operation: str, body_bytes: int) -> Action | None:
        """What happens to this request; None where it just passes."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        for number, rule in enumerate(self.script.rules):
            if self._matches(number, rule, operation, body_bytes, now - self._began):
                self._done[number] += 1
                self.injected[type(rule.action).__name__, operation] += 1
                return rule.action
        return None

    def _matches(self, number: int, rule: Rule, operation: str, body_bytes: int, elapsed_s: float) -> bool:
        return (
            (not rule.operations or operation in rule.operations)
            and body_bytes >= rule.least_body
            and (rule.times is None or self._done[number] < rule.times)
            and (rule.seconds is None or elapsed_s < rule.seconds)
            and self.chance.random() < rule.probability
        )


def operation_of(method: str, target: str) -> str:
    """The operation at AWS that a request of path-style addressing is."""
    path, _, text = target.partition("?")
    query = dict(parse_qsl(text, keep_blank_values=True))
    if "/" not in path.removeprefix("/"):
        return "ListMultipartUploads" if "uploads" in query else "Bucket"
    about = next((name for name in ("uploads", "uploadId") if name in query), "")
    return _OPERATIONS.get((method, about), "Other")


_OPERATIONS = {
    ("PUT", ""): "PutObject",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
    ("DELETE", ""): "DeleteObject",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "uploadId"): "UploadPart",
    ("GET", "uploadId"): "ListParts",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}
