from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from ml_dashd.core import about
from ml_dashd.core.about import About
from ml_dashd.core.model import MAX_FILE_BYTES, Algorithm, FileRecord, Fingerprint, Job, Pin, PinKind, Target
from ml_dashd.core.states import State

RECORD = FileRecord(5, 1000, "ns", "project", "exp", "a/b", "c.pt", 9, "text/plain", 1, 2)
FINGERPRINT = Fingerprint(device=1, inode=2, size_bytes=3, mtime_ns=4, ctime_ns=5)


def test_the_largest_file_is_the_specs():
    assert MAX_FILE_BYTES == 100 * 10**9


def test_a_records_path():
    assert RECORD.path == "a/b/c.pt"
    assert replace(RECORD, prefix="").path == "c.pt"


def test_what_is_said_of_a_file_makes_no_other_file_of_it():
    stored = replace(RECORD, key="files/5", sha256="ab")
    assert replace(stored, description="the best", revision=3, updated_ms=9).identity == stored.identity
    assert len({stored.identity, RECORD.identity, replace(stored, owner_uid=1).identity}) == 3


def test_a_job_has_its_records_id_and_starts_queued():
    job = Job(RECORD, Pin(PinKind.LINK))
    assert (job.id, job.state, job.on_disk, job.blocked) == (5, State.QUEUED, False, False)


def test_a_file_that_was_elsewhere_keeps_its_time_until_it_is_changed_here():
    job = Job(RECORD, Pin(PinKind.LINK))
    assert job.listed is RECORD
    assert replace(job, said_ms=3).listed == replace(RECORD, updated_ms=3)
    changed = replace(RECORD, revision=1)
    assert Job(changed, Pin(PinKind.LINK), said_ms=3).listed is changed


def test_a_jobs_object_goes_to_its_key_by_its_checksum():
    job = Job(replace(RECORD, key="files/5"), Pin(PinKind.LINK), algorithm=Algorithm.MD5)
    said = about.write(About(RECORD.owner_uid, 1, in_set=False))
    assert job.target == Target("files/5", 5, 9, "text/plain", Algorithm.MD5, said)


@pytest.mark.parametrize("field", ["device", "inode", "size_bytes", "mtime_ns"])
def test_another_content(field: str):
    assert not FINGERPRINT.same_content(replace(FINGERPRINT, **{field: 9}))


def test_the_same_content_under_another_ctime():
    assert FINGERPRINT.same_content(replace(FINGERPRINT, ctime_ns=9))


def test_values_do_not_change():
    with pytest.raises(FrozenInstanceError):
        RECORD.size_bytes = 10


def test_of_a_stored_file_nothing_is_kept_here() -> None:
    stored, gone = Job.stored(RECORD), Job.stored(RECORD, gone=True)
    assert (stored.record, stored.state, stored.pin, stored.on_disk) == (RECORD, State.DONE, Pin(PinKind.NONE), True)
    assert (stored.cancel_requested, gone.cancel_requested) == (False, True)


def test_what_tells_two_files_of_one_id_apart():
    one = FileRecord(7, 1000, "a", "b", "c", "", "d", 1, "text/plain", 1, 1, sha256="ab", key="files/7")
    assert replace(one, revision=3, tags=("best",), deleted_ms=5).identity == one.identity
    for other in (replace(one, owner_uid=1001), replace(one, key="files/8"), replace(one, sha256="cd")):
        assert other.identity != one.identity
