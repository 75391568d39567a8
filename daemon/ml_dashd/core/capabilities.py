"""What an S3 server was found to do with a bucket, and what follows from it.

If-None-Match is found out and shown, and not used: a key holds its file's id, so whatever is there is that file's, and
HEAD is asked before each Complete. A 412 could only be resolved by the same HEAD, and a 409, which AWS gives to
conditional Completes that meet, asks for every part once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ml_dashd.core.model import Algorithm

RENEW_MS = 24 * 3600 * 1000
"""Servers are updated, and buckets moved: what is older than a day is found out anew."""
CANDIDATES = (Algorithm.CRC64NVME, Algorithm.CRC32C, Algorithm.MD5)
"""Best first: CRC64NVME costs next to nothing and is computed anyway, an MD5 takes 1.3 CPU-s/GB."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """How a server fared with one checksum; None is what was not tried, because what came before had settled it."""

    algorithm: Algorithm
    put_refused: bool
    """An object with a wrong one was refused."""
    put_stated: bool | None = None
    """HEAD stated the right one of an object that was sent in one request; of an MD5, by its ETag."""
    part_refused: bool | None = None
    """A part with a wrong one was refused."""
    listed: bool | None = None
    """ListParts stated the parts' own."""
    whole_stated: bool | None = None
    """Complete took that of the whole object, and HEAD stated it then."""

    @property
    def verified(self) -> bool:
        """Whether it proves what was received, for objects in one request and in parts."""
        return bool(self.put_refused and self.put_stated and self.part_refused and self.whole_stated)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Everything that was found out, and when."""

    found_ms: int
    trials: tuple[Trial, ...]
    put_if_none_match: bool
    """A second Put of a key was refused when it asked for that."""
    complete_if_none_match: bool
    completed_again: str | None
    """The error code of a Complete that came again; "" where it succeeded; None where none was made."""

    def chosen(self) -> Algorithm:
        """The best checksum that the server verifies; NONE means that objects are read back."""
        verified = [trial.algorithm for trial in self.trials if trial.verified]
        return next((algorithm for algorithm in CANDIDATES if algorithm in verified), Algorithm.NONE)

    def is_due(self, now_ms: int) -> bool:
        """Whether it is time to ask again; a clock that was put back is no reason to wait for it."""
        return not self.found_ms <= now_ms < self.found_ms + RENEW_MS


def dumps(found: Capabilities) -> str:
    """The text that the journal keeps."""
    return json.dumps({"format": FORMAT} | asdict(found))


def loads(text: str) -> Capabilities | None:
    """What `dumps` has made; None where another release has."""
    try:
        facts = json.loads(text)
        if facts.pop("format") != FORMAT:
            return None
        trials = tuple(_trial(each) for each in facts.pop("trials"))
        return Capabilities(trials=trials, **facts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _trial(facts: Mapping[str, Any]) -> Trial:
    return Trial(**{**facts, "algorithm": Algorithm(facts["algorithm"])})
