"""What becomes of an object without a record, of a record without an object, and of an upload that nobody goes on with.

Nodes share a store and a catalog, and one of them looks for all. It knows its own journal alone: what another node has
on its way, or waits to list, is known by its age. So nothing is touched that may still come to its end by itself, an
object is never removed unless its record says that the file is deleted, and a record never.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ml_dash.errors import Code
from ml_dashd.core.checksum import Digest, proves
from ml_dashd.core.ids import time_of
from ml_dashd.core.model import Evidence, FileRecord, OpenUpload, Stored, missing
from ml_dashd.core.names import content_type, id_of

UNSAID = -1
"""The revision of a record that was made from its object: whatever its own node says of the file later counts."""
RESTORE = "restore the object there, or delete this version"
SHARES_PARTS = "its object is there, and on some servers its parts would go with the upload"
LIFECYCLE = "leave it to a lifecycle rule of the server, which knows, or abort it there (docs/s3-servers.md)"
OLDER = "it was stored by an earlier release, or by another program: look at it, and hand it over again or remove it"


class Kind(StrEnum):
    """What does not go together."""

    UNLISTED = "unlisted"
    """An object that no record names."""
    MISSING = "missing"
    """A record whose object is gone, though nobody deleted the file."""
    RESIZED = "resized"
    """A record whose object has another size."""
    FOUND = "found"
    """A record that was marked as missing, and whose object is there."""
    LEFT = "left"
    """An object of a file that was deleted long ago."""
    UPLOAD = "upload"
    """A multipart upload that nobody goes on with."""


class Outcome(StrEnum):
    """What was done about it."""

    RECORDED = "recorded"
    MARKED = "marked"
    UNMARKED = "unmarked"
    REMOVED = "removed"
    ABORTED = "aborted"
    KEPT = "kept"
    """Nothing: somebody has to look at it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not go together, and what becomes of it; `message` says what and why, `hint` what to do."""

    kind: Kind
    outcome: Outcome
    key: str
    size_bytes: int
    message: str
    hint: str = ""
    file_id: int = 0
    path: str = ""
    upload_id: str = ""
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be touched.

    `age_ms` is how long an object or an upload is left alone, `grace_ms` how long bytes of deleted files stay.
    `alone`: whether no other catalog lists what is in this store. A folder belongs to its daemon, a bucket to a fleet;
    what several machines send to one bucket, each with a catalog of its own, only they know.
    """

    age_ms: int
    grace_ms: int
    alone: bool


def suspect(stored: Stored | None, record: FileRecord | None) -> Kind | None:
    """What may be wrong with an object and the record of its key, as both were read; None where all is well.

    The two were not read at one moment: whoever acts on it looks again. A deleted file's bytes go by their own way
    (flow/reclaim.py), whether they are gone already or not.
    """
    if record is None:
        return Kind.UNLISTED
    if record.deleted_ms is not None:
        return None
    if stored is None:
        return Kind.MISSING
    if stored.size_bytes != record.size_bytes:
        return Kind.RESIZED
    return Kind.FOUND if record.missing_ms is not None else None


def of_object(stored: Stored, record: FileRecord | None, *, known: bool, rule: Rule, now_ms: int) -> Finding | None:
    """Of an object whose key no record had: what it is. `record` is that of its id, now.

    None leaves it alone: it is this node's (`known` to its journal), may be another's that is on its way or waits to be
    listed, was listed meanwhile, or was deleted and is not due.
    """
    if known or stored.modified_ms + rule.age_ms > now_ms:
        return None
    finding = Finding(Kind.UNLISTED, Outcome.KEPT, stored.key, stored.size_bytes, "", file_id=id_of(stored.key) or 0)
    if not finding.file_id:
        return replace(finding, message="its key is no file's", hint="move it out of the store's folder of files")
    if record is None:
        return replace(finding, outcome=Outcome.RECORDED, message="no record names it")
    if record.key != stored.key:
        what = f"another file has its id: {record.key}"
        return replace(finding, message=what, hint="look at both, and hand this one over again or remove it")
    if record.deleted_ms is None or record.deleted_ms + rule.grace_ms + rule.age_ms > now_ms:
        return None
    message = "its file was deleted, and its bytes came, or stayed, all the same"
    return replace(finding, kind=Kind.LEFT, outcome=Outcome.REMOVED, message=message, path=record.path)


def of_record(record: FileRecord, stored_bytes: int | None) -> Finding | None:
    """Of a record, read after its object was looked at, which has so many bytes, or None if it is gone: what is wrong.

    None where nothing is.
    """
    if record.deleted_ms is not None:
        return None
    finding = Finding(
        Kind.FOUND, Outcome.UNMARKED, record.key or "", record.size_bytes, "", file_id=record.id, path=record.path
    )
    if stored_bytes is None:
        said = missing(record)
        finding = replace(finding, kind=Kind.MISSING, outcome=Outcome.MARKED, code=said.code)
        return replace(finding, message=said.message, hint=said.hint)
    if stored_bytes != record.size_bytes:
        what = f"it has {stored_bytes} bytes in the store, recorded are {record.size_bytes}"
        finding = replace(finding, kind=Kind.RESIZED, outcome=Outcome.KEPT, code=Code.CHECKSUM_MISMATCH)
        return replace(finding, message=what, hint=RESTORE)
    return None if record.missing_ms is None else replace(finding, message="its object is there again")


def of_upload(upload: OpenUpload, record: FileRecord | None, *, known: bool, rule: Rule, now_ms: int) -> Finding | None:
    """Of an open upload: whether nobody goes on with it. `record` is that of its file's id.

    None leaves it alone. A node that comes back after all finds its upload gone, and begins another.
    """
    if known or upload.begun_ms is None or upload.begun_ms + rule.age_ms > now_ms:
        return None
    finding = Finding(
        Kind.UPLOAD, Outcome.ABORTED, upload.key, 0, "", file_id=upload.file_id or 0, upload_id=upload.upload_id
    )
    if record is not None and (rule.alone or record.key == upload.key):
        return replace(finding, message="its file came to its end without it", path=record.path)
    if rule.alone and upload.file_id is not None:
        return replace(finding, message="nobody has gone on with it")
    message = "another catalog's daemon may have begun it"
    return replace(finding, outcome=Outcome.KEPT, message=message, hint="abort it, or have a lifecycle rule do so")


def why_not(stored: Stored, stated: Evidence, rule: Rule) -> tuple[str, str] | None:
    """Why an object without a record is not listed by what it says of itself, and what to do; None where it can be."""
    about, mine = stated.about, id_of(stored.key)
    if not rule.alone:
        return "another catalog may list it", "look for it in the catalogs of the others that use this bucket"
    if stated.file_id not in (None, mine):
        return f"it says that it is the file {stated.file_id}", OLDER
    if about is None:
        return "it does not say whose it is", OLDER
    if about.in_set:
        return "it belongs to a set of which no record tells", "save the set again, or hand this file over by itself"
    return None


def recorded(
    stored: Stored, stated: Evidence, place: tuple[str, str, str, str, str], read: Digest, sha256: str, now_ms: int
) -> FileRecord:
    """The record of an object that says enough of itself, and of which every byte was read.

    What was said of the file is lost, unless its node comes back. When it was handed over is in its id.
    """
    file_id = id_of(stored.key) or 0
    namespace, project, experiment, prefix, filename = place
    return FileRecord(
        id=file_id,
        owner_uid=0 if stated.about is None else stated.about.owner_uid,
        namespace=namespace,
        project=project,
        experiment=experiment,
        prefix=prefix,
        filename=filename,
        size_bytes=stored.size_bytes,
        content_type=stated.content_type or content_type(filename),
        created_ms=time_of(file_id),
        updated_ms=now_ms,
        sha256=sha256,
        crc64nvme=read.crc64nvme,
        key=stored.key,
        etag=stated.etag,
        uploaded_ms=stored.modified_ms,
        revision=UNSAID,
    )


def is_damaged(stated: Evidence, read: Digest, sha256: str) -> bool:
    """Whether the bytes that were read are not those that the store, or the object itself, tells of."""
    told = None if stated.about is None else stated.about.sha256
    return proves(stated, read) is False or told not in (None, sha256)
