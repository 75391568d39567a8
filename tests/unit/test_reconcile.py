"""What becomes of what does not go together: each of them, and above all of what is to be left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.errors import Code
from ml_dashd.core.about import About
from ml_dashd.core.checksum import Digest, encode_crc
from ml_dashd.core.ids import EPOCH_MS, time_of
from ml_dashd.core.model import Algorithm, Evidence, FileRecord, OpenUpload, Stored
from ml_dashd.core.reconcile import (
    UNSAID,
    Finding,
    Kind,
    Outcome,
    Rule,
    is_damaged,
    of_object,
    of_record,
    of_upload,
    recorded,
    suspect,
    why_not,
)

DAY = 24 * 3600 * 1000
NOW = EPOCH_MS + 1000 * DAY
RULE = Rule(age_ms=14 * DAY, grace_ms=7 * DAY, alone=True)
OLD, YOUNG = NOW - 14 * DAY, NOW - 14 * DAY + 1
ID = 7_123_456_789_012_345_678
KEY = f"files/ns/project/exp/a/{ID}/x.pt"
SHA = "ab" * 32
RECORD = FileRecord(ID, 1000, "ns", "project", "exp", "a", "x.pt", 5, "t", 1, 2, sha256=SHA, key=KEY, uploaded_ms=OLD)
STORED = Stored(KEY, 5, OLD)
UPLOAD = OpenUpload(KEY, "u", OLD, ID)
ABOUT = About(1000, 1, in_set=False, sha256=SHA)
STATED = Evidence(5, "etag", encode_crc(3, 8), ID, ABOUT, "text/plain")
READ = Digest(5, 3, Algorithm.CRC64NVME, encode_crc(3, 8))
PLACE = ("ns", "project", "exp", "a", "x.pt")


@pytest.mark.parametrize(
    ("stored", "record", "kind"),
    [
        (STORED, RECORD, None),
        (STORED, None, Kind.UNLISTED),
        (None, RECORD, Kind.MISSING),
        (None, replace(RECORD, missing_ms=1), Kind.MISSING),
        (replace(STORED, size_bytes=6), RECORD, Kind.RESIZED),
        (STORED, replace(RECORD, missing_ms=1), Kind.FOUND),
        (STORED, replace(RECORD, deleted_ms=1), None),
        (replace(STORED, size_bytes=6), replace(RECORD, deleted_ms=1), None),
        (None, replace(RECORD, deleted_ms=1), None),
    ],
)
def test_what_may_be_wrong(stored: Stored | None, record: FileRecord | None, kind: Kind | None) -> None:
    assert suspect(stored, record) is kind


def of(stored: Stored = STORED, record: FileRecord | None = None, *, known: bool = False) -> Finding | None:
    return of_object(stored, record, known=known, rule=RULE, now_ms=NOW)


def test_an_object_that_no_record_names_is_recorded_once_it_is_old() -> None:
    found = of()
    assert found is not None
    assert (found.kind, found.outcome, found.file_id) == (Kind.UNLISTED, Outcome.RECORDED, ID)


@pytest.mark.parametrize(
    ("stored", "record", "known"),
    [
        (STORED, None, True),
        (replace(STORED, modified_ms=YOUNG), None, False),
        (replace(STORED, modified_ms=NOW + DAY), None, False),
        (STORED, RECORD, False),
        (STORED, replace(RECORD, pending=True), False),
        (STORED, replace(RECORD, deleted_ms=NOW - 21 * DAY + 1), False),
        (replace(STORED, modified_ms=YOUNG), replace(RECORD, deleted_ms=1), False),
        (replace(STORED, key="files/other", modified_ms=YOUNG), None, False),
    ],
    ids=[
        "in this journal",
        "young",
        "clocks differ",
        "listed by now",
        "pending",
        "in its grace",
        "just come",
        "foreign",
    ],
)
def test_an_object_that_is_left_alone(stored: Stored, record: FileRecord | None, known: bool) -> None:
    assert of(stored, record, known=known) is None


def test_an_object_of_a_file_that_was_deleted_long_ago_is_removed() -> None:
    found = of(STORED, replace(RECORD, deleted_ms=NOW - 21 * DAY))
    assert found is not None
    assert (found.kind, found.outcome, found.path) == (Kind.LEFT, Outcome.REMOVED, "a/x.pt")


@pytest.mark.parametrize(
    ("stored", "record"),
    [(replace(STORED, key="files/ns/other"), None), (STORED, replace(RECORD, key="files/elsewhere", deleted_ms=1))],
)
def test_an_object_of_nobody_knows_whom_is_kept(stored: Stored, record: FileRecord | None) -> None:
    found = of(stored, record)
    assert found is not None
    assert (found.kind, found.outcome) == (Kind.UNLISTED, Outcome.KEPT)
    assert found.hint


@given(
    modified_ms=st.integers(0, 2 * NOW),
    deleted_ms=st.none() | st.integers(0, 2 * NOW),
    other=st.booleans(),
    known=st.booleans(),
)
def test_nothing_is_removed_that_a_record_names(
    modified_ms: int, deleted_ms: int | None, other: bool, known: bool
) -> None:
    record = replace(RECORD, deleted_ms=deleted_ms, key="files/elsewhere" if other else KEY)
    found = of(replace(STORED, modified_ms=modified_ms), record, known=known)
    if found is not None and found.outcome is Outcome.REMOVED:
        assert deleted_ms is not None
        assert deleted_ms + RULE.grace_ms + RULE.age_ms <= NOW
        assert not known
        assert not other


@pytest.mark.parametrize(
    ("record", "size", "kind", "outcome", "code"),
    [
        (RECORD, None, Kind.MISSING, Outcome.MARKED, Code.OBJECT_MISSING),
        (replace(RECORD, missing_ms=1), None, Kind.MISSING, Outcome.MARKED, Code.OBJECT_MISSING),
        (RECORD, 6, Kind.RESIZED, Outcome.KEPT, Code.CHECKSUM_MISMATCH),
        (replace(RECORD, missing_ms=1), 5, Kind.FOUND, Outcome.UNMARKED, None),
    ],
)
def test_a_record_whose_object_is_not_as_it_should_be(
    record: FileRecord, size: int | None, kind: Kind, outcome: Outcome, code: Code | None
) -> None:
    found = of_record(record, size)
    assert found is not None
    assert (found.kind, found.outcome, found.code) == (kind, outcome, code)
    assert (found.file_id, found.key, found.path) == (ID, KEY, "a/x.pt")
    assert bool(found.hint) is (code is not None)


@pytest.mark.parametrize(
    ("record", "size"), [(RECORD, 5), (replace(RECORD, deleted_ms=1), None), (replace(RECORD, deleted_ms=1), 6)]
)
def test_a_record_with_which_all_is_well_by_now(record: FileRecord, size: int | None) -> None:
    assert of_record(record, size) is None


SHARED = replace(RULE, alone=False)


@pytest.mark.parametrize(
    ("upload", "record", "rule", "outcome"),
    [
        (UPLOAD, None, RULE, Outcome.ABORTED),
        (UPLOAD, RECORD, RULE, Outcome.ABORTED),
        (UPLOAD, RECORD, SHARED, Outcome.ABORTED),
        (UPLOAD, replace(RECORD, deleted_ms=1), RULE, Outcome.ABORTED),
        (UPLOAD, None, SHARED, Outcome.KEPT),
        (UPLOAD, replace(RECORD, key="files/elsewhere"), SHARED, Outcome.KEPT),
        (replace(UPLOAD, file_id=None), None, RULE, Outcome.KEPT),
    ],
)
def test_an_upload_that_nobody_goes_on_with(
    upload: OpenUpload, record: FileRecord | None, rule: Rule, outcome: Outcome
) -> None:
    found = of_upload(upload, record, known=False, rule=rule, now_ms=NOW)
    assert found is not None
    assert (found.kind, found.outcome, found.upload_id) == (Kind.UPLOAD, outcome, "u")
    assert found.message


@pytest.mark.parametrize(
    ("upload", "known"),
    [(UPLOAD, True), (replace(UPLOAD, begun_ms=YOUNG), False), (replace(UPLOAD, begun_ms=None), False)],
)
def test_an_upload_that_is_left_alone(upload: OpenUpload, known: bool) -> None:
    assert of_upload(upload, RECORD, known=known, rule=RULE, now_ms=NOW) is None


@pytest.mark.parametrize(
    ("stated", "rule", "word"),
    [
        (STATED, SHARED, "another catalog"),
        (replace(STATED, file_id=9), RULE, "the file 9"),
        (replace(STATED, about=None), RULE, "whose it is"),
        (replace(STATED, about=replace(ABOUT, in_set=True)), RULE, "a set"),
    ],
)
def test_why_an_object_is_not_listed_by_what_it_says(stated: Evidence, rule: Rule, word: str) -> None:
    why = why_not(STORED, stated, rule)
    assert why is not None
    assert word in why[0]
    assert why[1]


@pytest.mark.parametrize("file_id", [ID, None])
def test_an_object_that_says_enough(file_id: int | None) -> None:
    assert why_not(STORED, replace(STATED, file_id=file_id), RULE) is None


@pytest.mark.parametrize(
    ("stated", "sha256", "damaged"),
    [
        (STATED, SHA, False),
        (replace(STATED, about=replace(ABOUT, sha256=None)), "cd" * 32, False),
        (replace(STATED, about=None), "cd" * 32, False),
        (STATED, "cd" * 32, True),
        (replace(STATED, checksum=encode_crc(4, 8)), SHA, True),
        (replace(STATED, checksum=None), SHA, False),
    ],
)
def test_bytes_are_compared_with_all_that_is_said_of_them(stated: Evidence, sha256: str, damaged: bool) -> None:
    assert is_damaged(stated, READ, sha256) is damaged


def test_a_record_tells_what_is_known_and_nothing_else() -> None:
    made = recorded(STORED, STATED, PLACE, READ, SHA, NOW)
    assert made.identity == RECORD.identity
    assert (made.path, made.group, made.size_bytes) == ("a/x.pt", ("ns", "project", "exp"), 5)
    assert (made.created_ms, made.uploaded_ms, made.updated_ms) == (time_of(ID), OLD, NOW)
    assert (made.content_type, made.crc64nvme, made.etag) == ("text/plain", 3, "etag")
    assert (made.description, made.tags, made.metadata, made.revision) == (None, (), None, UNSAID)
    folder = recorded(replace(STORED, key="x"), Evidence(5, ""), PLACE, READ, SHA, NOW)
    assert (folder.id, folder.owner_uid, folder.content_type) == (0, 0, "application/octet-stream")


# ---- whose turn it is
