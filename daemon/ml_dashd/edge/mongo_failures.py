"""What PyMongo raises, told apart and put into words: away, denied, full, or a defect."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ml_dash.errors import Code
from ml_dashd.core.redact import redact
from ml_dashd.ports import JournalError

LONGEST = 500
"""Characters of what a server says."""

# By the names of MongoDB's error_codes.yml.
_DENIED = {13, 18, 8000}
"""Unauthorized, AuthenticationFailed, Atlas's own."""
_FULL = {14031, 12501}
"""OutOfDiskSpace, quota exceeded."""
_PASSING = {
    *(6, 7, 89, 202, 262),  # HostUnreachable, HostNotFound, NetworkTimeout, …ExceededTimeLimit: among its members
    134,  # ReadConcernMajorityNotAvailableYet: it was just started
    211,  # KeyNotFound: it asks for users, was just started, and has not read the keys of the set's clock yet
    *(239, 246),  # SnapshotTooOld, SnapshotUnavailable: a moment that was read before may be gone by a fail-over
}
_SENT = re.compile(r"(not authorized on \S+ to execute command) \{ (\w+): (?:\"([^\"]+)\")?.*", re.DOTALL)
"""What was denied, and of which collection: the rest of the command is long, and nobody's concern."""
_REFUSED = re.compile(r"\[Errno (\d+)\] Connect call failed \([^)]*\)")
_NOISE = re.compile(r" \(configured timeouts: [^)]*\)")


def named(failure: Exception, where: str, members: Mapping[str, Exception] | None = None) -> JournalError | None:
    """PyMongo's exception as a JournalError that names the place; None for what no operator could mend.

    `members` are the set's that can't be asked, by `host:port`, with the reason.
    """
    from pymongo.errors import ServerSelectionTimeoutError  # noqa: PLC0415 optional

    words = _words(failure)
    if members and isinstance(failure, ServerSelectionTimeoutError):  # which says of a denial only that nobody is left
        failure = next((each for each in members.values() if _code(each) in _DENIED), failure)
        words = _words_of(members, failure)
    code = _code(failure)
    if code in _DENIED:
        kind = Code.CATALOG_DENIED
    elif code in _FULL:
        kind = Code.CATALOG_FULL
    elif _is_away(failure):
        kind = Code.CATALOG_UNREACHABLE
    else:
        return None
    return JournalError(f"the catalog {where}: {words}", kind)


def _is_away(failure: Exception) -> bool:
    """Whether it may be there again by itself: no connection, no primary, no majority, too slow."""
    from pymongo import errors  # noqa: PLC0415 optional

    away = (
        errors.ConfigurationError,  # a name that DNS does not have now
        errors.ConnectionFailure,
        errors.WTimeoutError,
        errors.ExecutionTimeout,
        errors.WaitQueueTimeoutError,
    )
    if isinstance(failure, away) or _code(failure) in _PASSING:
        return True
    details: Mapping[str, Any] = getattr(failure, "details", None) or {}
    if isinstance(failure, errors.BulkWriteError):
        return bool(details.get("writeConcernErrors")) and not details.get("writeErrors")
    if isinstance(failure, errors.WriteConcernError):
        return True
    return isinstance(failure, errors.PyMongoError) and (
        failure.has_error_label("RetryableWriteError") or failure.has_error_label("TransientTransactionError")
    )


def _code(failure: Exception) -> int:
    """The server's number; of a bulk write, of the first that failed."""
    details: Mapping[str, Any] = getattr(failure, "details", None) or {}
    for entry in details.get("writeErrors") or []:
        return int(entry.get("code") or 0)
    return int(getattr(failure, "code", None) or 0)


def _words_of(members: Mapping[str, Exception], failure: Exception) -> str:
    """Why there is no primary to be asked, each reason once."""
    if _code(failure) in _DENIED:
        return _words(failure)
    whose: dict[str, list[str]] = {}
    for member, reason in sorted(members.items()):
        whose.setdefault(_words(reason).removeprefix(f"{member}: "), []).append(member)
    return "no primary; " + "; ".join(f"{', '.join(hosts)}: {words}" for words, hosts in whose.items())[:LONGEST]


def _words(failure: Exception) -> str:
    """What it says, in one line, without the description of the whole topology, timeouts and the command."""
    text = str(failure).partition(", Timeout:")[0].partition(", full error:")[0]
    text = _REFUSED.sub(lambda found: os.strerror(int(found[1])), _NOISE.sub("", text))
    text = _SENT.sub(lambda found: f"{found[1]} {found[2]}" + (f" in {found[3]}" if found[3] else ""), text)
    return redact(text)[:LONGEST] or type(failure).__name__
