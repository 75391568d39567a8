"""What an examination finds, judged and put into words: a line a check, and what to do where something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ml_dash.errors import TABLE, Code
from ml_dashd.core.capabilities import Capabilities, Trial
from ml_dashd.core.model import Algorithm, Trouble
from ml_dashd.core.retry import Fault, StoreError, decide

GIB = 1024**3
LONGEST = 1000
"""Characters of what is shown: a server's own words may be longer."""
SKEW_S = 300.0
"""S3 refuses what was signed with a clock that is 15 minutes off; a third of that is told in time."""
ROOM_BYTES = 10 * GIB
"""Of its disk the spool leaves so much to others, or a tenth: with less, nothing is copied in the background."""
SLOW_COMMIT_S = 0.1
"""Of the journal: the limit of the alert in docs/operations.md."""
DESCRIPTORS = {"service": 65536, "embedded": 1024}
"""What the units ask for; a trainer's ranks and their files, where the daemon is one user's."""
SPARE_MEMORY = 256 * 1024**2
"""What the daemon takes beside its buffers."""


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    BAD = "bad"
    NONE = "none"
    """It is not to be had here and not needed, or it could not be tried."""


@dataclass(frozen=True, slots=True)
class Check:
    """A line: what was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    hint: str = ""

    @property
    def failed(self) -> bool:
        """Whether something is wrong."""
        return self.verdict is Verdict.BAD


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, Verdict.OK, found[:LONGEST])


def bad(name: str, found: str, hint: str) -> Check:
    """Something has to be mended."""
    return Check(name, Verdict.BAD, found[:LONGEST], hint)


def none(name: str, found: str) -> Check:
    """Nothing is known, or it is not needed."""
    return Check(name, Verdict.NONE, found[:LONGEST])


# ---- the store


class Operation(NamedTuple):
    """A call of S3: the permission that it needs, on the bucket or on the objects in it."""

    action: str
    on_bucket: bool = False


OPERATIONS = {
    "ListMultipartUploads": Operation("s3:ListBucketMultipartUploads", on_bucket=True),
    "ListBucket": Operation("s3:ListBucket", on_bucket=True),
    "PutObject": Operation("s3:PutObject"),
    "HeadObject": Operation("s3:GetObject"),
    "GetObject": Operation("s3:GetObject"),
    "CreateMultipartUpload": Operation("s3:PutObject"),
    "UploadPart": Operation("s3:PutObject"),
    "ListParts": Operation("s3:ListMultipartUploadParts"),
    "CompleteMultipartUpload": Operation("s3:PutObject"),
    "AbortMultipartUpload": Operation("s3:AbortMultipartUpload"),
    "DeleteObject": Operation("s3:DeleteObject"),
}
"""Every call that the daemon makes, in the order in which they are tried."""
FOLDER_CALLS = {
    "PutObject": "store write",
    "HeadObject": "store look",
    "GetObject": "store read",
    "DeleteObject": "store delete",
}
"""Those that a folder has, too."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How a server was reached. `skew_s` is how far this machine's clock is ahead of the server's."""

    endpoint: str
    provider: str | None
    """Where credentials were found."""
    answered: bool = False
    failure: StoreError | None = None
    skew_s: float | None = None
    trusts: str = ""
    """Whose certificates are believed, where there is TLS."""

    @property
    def untrusted(self) -> bool:
        """Whether the failure is of TLS."""
        return self.failure is not None and self.failure.fault is Fault.UNTRUSTED


def reach_checks(reach: Reach) -> list[Check]:
    """Whether the server answers, and is the one that it says it is; and the clock."""
    name, said = "store", "" if reach.failure is None else reach.failure.message
    if reach.answered:
        checks = [ok(name, f"{reach.endpoint} answers")]
    elif reach.provider is None:
        checks = [none(name, f"{reach.endpoint} was not asked: there are no credentials")]
    else:
        checks = [bad(name, said, "mend the line below" if reach.untrusted else TABLE[Code.STORE_UNREACHABLE].hint)]
    checks.append(_tls_check(reach, said))
    if reach.skew_s is not None:
        checks.append(clock_check(reach.skew_s))
    return checks


def _tls_check(reach: Reach, said: str) -> Check:
    if not reach.trusts:
        return none("tls", "http: nothing is encrypted, and the server is not verified")
    if reach.untrusted:
        hint = TABLE[Code.STORE_UNTRUSTED].hint
        return bad("tls", f"not verified with {reach.trusts}: {said}", hint)
    if not reach.answered:
        return none("tls", "the server was not reached")
    return ok("tls", f"the server is verified with {reach.trusts}")


def clock_check(skew_s: float) -> Check:
    """The machine's clock against the server's."""
    found = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the server's"
    if abs(skew_s) < SKEW_S:
        return ok("clock", found if abs(skew_s) >= 1 else "as the server's")
    return bad("clock", found, "set this machine's clock (NTP): requests are refused beyond 15 minutes")


def credentials_check(provider: str | None, refused: StoreError | None) -> Check:
    """What was found, and whether the server takes it. The secret is shown to nobody."""
    if provider is None:
        return bad("credentials", "none were found", TABLE[Code.STORE_CREDENTIALS].hint)
    if refused is not None:
        return bad("credentials", f"from {provider}: {refused.message}", TABLE[Code.STORE_CREDENTIALS].hint)
    return ok("credentials", f"from {provider}, accepted")


def bucket_check(missing: StoreError | None) -> Check:
    """Whether the bucket is there."""
    if missing is not None:
        return bad("bucket", missing.message, TABLE[Code.STORE_NO_BUCKET].hint)
    return ok("bucket", "is there")


def call_check(operation: str, failure: StoreError | None, url: str) -> Check:
    """A call that was made. A denial is answered with the permission that is missing."""
    name = operation if url.startswith("s3:") else FOLDER_CALLS[operation]
    if failure is None:
        return ok(name, "works")
    if failure.fault is not Fault.DENIED:
        return bad(name, failure.message, decide(failure.fault, failure.message, 1, 0.0).trouble.hint)
    if not url.startswith("s3:"):
        return bad(name, failure.message, "let the daemon's user read and write there")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    needed = OPERATIONS[operation]
    where = bucket if needed.on_bucket else f"{bucket}/{prefix}/*" if prefix else f"{bucket}/*"
    return bad(name, failure.message, f"allow {needed.action} on arn:aws:s3:::{where}")


def untried(operation: str, url: str, because: str) -> Check:
    """A call that was not made."""
    return none(operation if url.startswith("s3:") else FOLDER_CALLS[operation], f"not tried: {because}")


def optional_check(operation: str, failure: StoreError | None) -> Check:
    """A call that the daemon does without, but for duplicates."""
    if failure is None:
        return ok(operation, "works; needed for duplicates alone")
    return none(operation, f"not to be had, and needed for duplicates alone: {failure.message}")


def checksum_check(chosen: Algorithm, named: bool) -> Check:
    """How the store proves what it received."""
    if chosen is Algorithm.NONE:
        if named:
            return ok("checksum", "none, as store.checksum says: every object is read back")
        hint = "nothing has to be done; a server that verifies checksums saves the reading"
        return Check("checksum", Verdict.NONE, "the server verifies none: every object is read back", hint)
    return ok("checksum", f"{chosen}{', as store.checksum says' if named else ''}")


def capabilities_check(found: Capabilities) -> Check:
    """What the server was found to do."""
    words = [_trial_words(trial) for trial in found.trials]
    again = {None: "not tried", "": "succeeds"}.get(found.completed_again, found.completed_again)
    put, complete = _honoured(found.put_if_none_match), _honoured(found.complete_if_none_match)
    words += [f"If-None-Match: {put} for Put, {complete} for Complete", f"Complete again: {again}"]
    return ok("server", "; ".join(words))


def _trial_words(trial: Trial) -> str:
    if trial.verified:
        return f"{trial.algorithm}: verified" + ("" if trial.listed else ", not listed")
    if not trial.put_refused or trial.part_refused is False:
        return f"{trial.algorithm}: not verified"
    if trial.put_stated is False or trial.whole_stated is False:
        return f"{trial.algorithm}: verified, not stated"
    return f"{trial.algorithm}: refuses what is wrong"


def _honoured(yes: bool) -> str:
    return "honoured" if yes else "ignored"


# ---- the machine


def room_check(name: str, folder: str, free_bytes: int, size_bytes: int) -> Check:
    """The room on a disk."""
    found = f"{free_bytes / GIB:.1f} of {size_bytes / GIB:.1f} GiB free in {folder}"
    if free_bytes >= min(ROOM_BYTES, size_bytes // 10):
        return ok(name, found)
    hint = "free space there: nothing is copied in the background with less than 10 GiB or a tenth, "
    return bad(name, found, hint + "and hand-offs are refused when the disk is full")


def quota_check(used_bytes: int, quota_bytes: int) -> Check:
    """What the spool takes, of what it may."""
    if not quota_bytes:
        return ok("spool quota", f"none is set; {used_bytes / GIB:.1f} GiB are used")
    found = f"{used_bytes / GIB:.1f} of {quota_bytes / GIB:.1f} GiB used"
    if used_bytes < quota_bytes * 0.9:
        return ok("spool quota", found)
    return bad("spool quota", found, "savers wait when it is reached: raise spool.quota, or see what holds files up")


def descriptors_check(limit: int, kind: str) -> Check:
    """RLIMIT_NOFILE of the process; `kind` is service or embedded."""
    if limit >= DESCRIPTORS[kind]:
        return ok("descriptors", f"at most {limit}")
    where = "LimitNOFILE= of the unit" if kind == "service" else "`ulimit -Hn` of the user"
    return bad(
        "descriptors", f"at most {limit}", f"raise {where} to {DESCRIPTORS[kind]}: files and clients hold one each"
    )


def memory_check(limit_bytes: int | None, buffers_bytes: int) -> Check:
    """What the control group allows, such as a unit's MemoryMax= or a container's limit."""
    if limit_bytes is None:
        return ok("memory", "no limit of a control group")
    found = f"the control group allows {limit_bytes / GIB:.2f} GiB"
    if limit_bytes >= buffers_bytes + SPARE_MEMORY:
        return ok("memory", found)
    return bad("memory", found, "raise it, or lower limits.memory: the kernel kills what takes more")


def commit_check(seconds: Sequence[float]) -> Check:
    """How long the journal takes to commit: every hand-off waits for one. The median of some."""
    median = sorted(seconds)[len(seconds) // 2]
    found = f"{median * 1000:.1f} ms a commit"
    if median < SLOW_COMMIT_S:
        return ok("journal", found)
    return bad("journal", found, "see what else its disk is busy with, or move daemon.state_dir to a faster one")


def intake_check(trouble: Trouble | None) -> Check:
    """Whether files are taken in."""
    if trouble is None:
        return ok("hand-offs", "are taken")
    return bad("hand-offs", f"{trouble.code}: {trouble.message}", trouble.hint)


def node_check(number: int, left_s: float, trouble: Trouble | None) -> Check:
    """The node number, where the catalog is shared: without one no file can be taken in."""
    if trouble is not None:
        return bad("node number", f"{trouble.code}: {trouble.message}", trouble.hint)
    return ok("node number", f"{number}; without the catalog it lasts for another {left_s / 3600:.0f} h")


def hashing_check(openssl: bool, bytes_per_s: float) -> Check:
    """Python's own SHA-256 takes five times as long as OpenSSL's."""
    found = f"SHA-256 by {'OpenSSL' if openssl else 'Python itself'}, {bytes_per_s / 1e9:.2f} GB/s on a thread"
    if openssl:
        return ok("hashing", found)
    return bad("hashing", found, "use a Python that was built with OpenSSL")
