"""Golden frames: a change of the wire format is seen here first.

`python tests/unit/test_vectors.py` writes the file anew; releases that are out there do not change with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_dash import messages as m
from ml_dash import wire

FILE = Path(__file__).parents[1] / "vectors" / "frames.json"
KINDS = {**m.REQUESTS, **m.REPLIES}

PLACE = m.Place(namespace="alice", project="cv", experiment="resnet/seed 1", prefix="models/größe")
SHARE = m.Share(key=bytes(range(16)), name="step_1000", attempt="job7.0", rank=3, world_size=4)
DESCRIBED = m.Described(
    place=PLACE,
    to="best.pt",
    description="the best so far",
    tags=("best", "eval"),
    bindrs=("run",),
    metadata='{"epoch":12}',
    priority=-100,
    share=SHARE,
)
RECORD = m.Record(
    id=7_123_456_789_012_345_678,
    namespace="alice",
    project="cv",
    experiment="resnet",
    path="models",
    filename="best.pt",
    size_bytes=100_000_000_000,
    content_type="application/octet-stream",
    created_ms=1_750_000_000_000,
    updated_ms=1_750_000_000_001,
    state="FAILED",
    ack="disk",
    pin="link",
    description="the best so far",
    tags=("best",),
    bindrs=("run",),
    metadata="{}",
    sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    uploaded_ms=1_750_000_000_002,
    deleted_ms=1_750_000_000_003,
    sent_bytes=16_777_216,
    attempt=2,
    error_code="SOURCE_CHANGED",
    error_message="it changed",
    error_hint="upload it again",
    share=SHARE,
    pending=True,
)
SET = m.SetRecord(
    id="0123456789abcdef" * 2,
    namespace="alice",
    project="cv",
    experiment="resnet",
    name="ckpt/step_1000",
    attempt="job7.0",
    number=7,
    world_size=4,
    state="OPEN",
    opened_ms=1_750_000_000_000,
    updated_ms=1_750_000_000_001,
    files=6,
    size_bytes=7,
    ranks=3,
    completed_ms=1_750_000_000_002,
    missing=(3,),
)
LEAST_RECORD = m.Record(
    id=1,
    namespace="a",
    project="b",
    experiment="c",
    path="",
    filename="d",
    size_bytes=0,
    content_type="text/plain",
    created_ms=2,
    updated_ms=3,
    state="QUEUED",
    ack="memory",
    pin="fd",
)
KEY = bytes(range(16))
ORIGIN = m.Origin(id=7, created_ms=1_750_000_000_000, updated_ms=1_750_000_000_001, sha256="ab" * 32)
REFUSAL = m.Refusal(id=1, path="models/best.pt", code="CHECKSUM_MISMATCH", message="other bytes", hint="restore it")
RUN = m.ExperimentRecord(
    namespace="alice",
    project="cv",
    experiment="resnet",
    owner_uid=1000,
    status="FAILED",
    host="node-1",
    user="alice",
    created_ms=1_750_000_000_000,
    started_ms=1_750_000_000_001,
    updated_ms=1_750_000_000_003,
    ended_ms=1_750_000_000_002,
    error="ValueError: loss",
    readme="# größe",
    tags=("best",),
    bindrs=("run",),
    metadata="{}",
)

EXAMPLES: dict[str, tuple[m.Message, int]] = {
    type(message).__name__: (message, descriptors)
    for message, descriptors in (
        (m.Hello(request=0, min_version=1, max_version=1, client="ml-dash 1.0"), 0),
        (
            m.OpenExperiment(
                request=1, place=PLACE, readme="# größe", tags=("a",), bindrs=("b",), metadata="{}", host="h", user="u"
            ),
            0,
        ),
        (m.EndRun(request=23, place=PLACE, status="FAILED", error="ValueError: loss"), 0),
        (m.SetParams(request=24, place=PLACE, values='{"lr": 0.1}'), 0),
        (
            m.LogRows(
                request=25,
                place=PLACE,
                writer=2**63 - 1,
                number=1,
                durability="disk",
                rows=(m.NewRow(metric="train", data='{"loss": 0.5}'),),
            ),
            0,
        ),
        (
            m.ListExperiments(
                request=26, prefix="alice/cv", cursor="[]", page_size=10, details=True, seen_rows=3, timeout_ms=1000
            ),
            0,
        ),
        (m.ReadRows(request=27, place=PLACE, metric="train", start=5, count=10, origins=True), 0),
        (m.BringExperiment(request=30, run=RUN, params='{"lr": 0.1}'), 0),
        (
            m.BringRows(
                request=31,
                place=PLACE,
                rows=(m.BroughtRow(metric="train", writer=2**63 - 1, number=1, created_ms=5, data="{}"),),
            ),
            0,
        ),
        (m.Brought(request=31, new=1), 0),
        (m.FindHanded(request=31, key=KEY), 0),
        (m.ListNodes(request=32, cursor="500", everything=True), 0),
        (m.Reconcile(request=33, cursor="objects\nfiles/gr%C3%B6%C3%9Fe", dry_run=True), 0),
        (
            m.Reconciled(
                request=33,
                objects=10_000,
                records=9_999,
                uploads=2,
                waiting=3,
                findings=(
                    m.Finding(
                        what="missing",
                        outcome="marked",
                        key="files/alice/cv/resnet/7/a.pt",
                        size_bytes=5,
                        message="the store has no object",
                        hint="restore it",
                        id=7,
                        path="a.pt",
                        upload="u",
                        code="OBJECT_MISSING",
                    ),
                ),
                cursor="uploads\n0",
            ),
            0,
        ),
        (
            m.Nodes(
                request=32,
                nodes=(
                    m.NodeRecord(number=16_383, host="gpu-1", held=True, mine=True, until_ms=2, seen_ms=1),
                    m.NodeRecord(number=0, host="", held=False),
                ),
                shared=True,
                cursor="16383",
            ),
            0,
        ),
        (m.OpenSet(request=40, place=PLACE, share=SHARE), 0),
        (m.EndShare(request=41, place=PLACE, share=SHARE, files=2), 0),
        (
            m.ListSets(
                request=42, place=PLACE, incomplete=True, cursor="7", page_size=10, share=KEY, timeout_ms=60_000
            ),
            0,
        ),
        (m.SetFiles(request=43, id="0123456789abcdef" * 2, after="7", page_size=10), 0),
        (m.DropSet(request=44, id="0123456789abcdef" * 2), 0),
        (m.Sets(request=42, sets=(SET,), cursor="7"), 0),
        (
            m.Experiments(
                request=26, experiments=(RUN,), cursor="[]", params="{}", metrics=(m.Metric(name="train", rows=7),)
            ),
            0,
        ),
        (
            m.Rows(
                request=27, rows=(m.Row(created_ms=1_750_000_000_000, data="{}", writer=1, number=2),), start=5, total=6
            ),
            0,
        ),
        (
            m.Upload(
                request=2,
                key=KEY,
                file=DESCRIBED,
                source="/data/best.pt",
                durability="disk",
                snapshot="copy",
                origin=ORIGIN,
            ),
            1,
        ),
        (m.Put(request=3, key=KEY, file=DESCRIBED, content=b"\x00\xff", sha256=bytes(32)), 0),
        (
            m.PutMany(
                request=13,
                files=(
                    m.Content(key=KEY, file=DESCRIBED, content=b"\x00\xff", sha256=bytes(32)),
                    m.Content(key=KEY, file=DESCRIBED, source="/data/best.pt"),
                ),
            ),
            1,
        ),
        (m.RequestSlot(request=4, size_bytes=1 << 30, held=(1, 2)), 0),
        (m.CommitSlot(request=5, key=KEY, slot=1, file=DESCRIBED, size_bytes=4096, durability="memory", seal=True), 0),
        (m.GrowSlot(request=14, slot=1, size_bytes=1 << 31), 0),
        (m.ReleaseSlot(request=6, slot=1), 0),
        (
            m.List(
                request=7,
                place=PLACE,
                pattern="**/*.pt",
                latest=True,
                cursor="a\n1",
                page_size=10,
                everywhere=True,
                tags=("best",),
                pending=True,
            ),
            0,
        ),
        (m.Get(request=8, ids=(1, 2**63 - 1)), 0),
        (m.Wait(request=9, until="stored", timeout_ms=60_000, ids=(1,), place=PLACE), 0),
        (m.Delete(request=10, ids=(1, 2), unless_stored=True), 0),
        (m.Fetch(request=11, id=1, have=(0, 16, 32, 48)), 1),
        (m.Status(request=2**63 - 1), 0),
        (m.Drain(request=12, deadline_ms=90_000, stop=True), 0),
        (m.Branch(request=13), 0),
        (m.Retry(request=14, ids=(1, 2), everything=True), 0),
        (m.Verify(request=15, ids=(1, 2)), 0),
        (m.Branched(request=13), 1),
        (m.Examine(request=13), 0),
        (
            m.Update(request=14, id=1, description="", tags=(), bindrs=("run",), metadata='{"epoch":13}'),
            0,
        ),
        (m.Duplicate(request=15, key=KEY, source=2**63 - 1, file=DESCRIBED), 0),
        (
            m.Prune(
                request=16,
                place=PLACE,
                keep_last=3,
                pattern="**/*.pt",
                keep_tags=("best",),
                dry_run=True,
                cursor="1\na\n2",
            ),
            0,
        ),
        (m.Pruned(request=16, records=(RECORD,), cursor="3\nmodels/best.pt\n1"), 0),
        (m.Welcome(request=0, version=1, daemon="ml-dashd 1.0", embedded=True, store="file:///data"), 0),
        (m.Done(request=6), 0),
        (m.Failed(request=2, code="DISK_FULL", message="no space", hint="free some"), 0),
        (m.Accepted(request=3, record=RECORD), 0),
        (m.AcceptedMany(request=13, records=(RECORD, LEAST_RECORD)), 0),
        (m.SlotGranted(request=4, slot=1, capacity_bytes=1 << 30), 1),
        (m.Page(request=7, records=(RECORD, LEAST_RECORD), cursor="models/best.pt\n1"), 0),
        (m.Waited(request=9, reached=1, pending=2, failed=(RECORD,)), 0),
        (m.Deleted(request=10, ids=(1, 2), deleted_ms=1_750_000_000_000), 0),
        (
            m.Progress(request=11, done_bytes=1, total_bytes=2, have=(0, 1), done_files=3, total_files=5, held_files=1),
            0,
        ),
        (
            m.Drained(
                request=12, left_files=2, left_bytes=3, failed_files=1, manifest="/state/drain.json", files=(RECORD,)
            ),
            0,
        ),
        (
            m.Examined(
                request=13,
                checks=(
                    m.Check(name="PutObject", verdict="bad", found="AccessDenied", hint="allow s3:PutObject"),
                    m.Check(name="clock", verdict="ok", found="0.2 s ahead of the server's"),
                ),
            ),
            0,
        ),
        (m.Retried(request=14, tried_files=2, refused=(REFUSAL,)), 0),
        (m.Verified(request=15, read_files=2, read_bytes=3, damaged=(REFUSAL,)), 0),
        (m.Fetched(request=11, size_bytes=2, sha256="00ff"), 0),
        (
            m.StatusReport(
                request=12,
                version="1.0",
                pid=4321,
                embedded=False,
                store="s3://bucket/runs/",
                state_dir="/var/lib/ml-dash",
                started_ms=1_750_000_000_000,
                connections=3,
                spool_bytes=1 << 40,
                counts=(m.Count(state="QUEUED", files=2, size_bytes=3),),
                oldest_ms=1_750_000_000_001,
                blocked=(LEAST_RECORD,),
                failed=(RECORD,),
                moving=(LEAST_RECORD,),
                sets=(SET,),
                bytes_per_second=1 << 30,
                limits=m.Limits(threads=4, nice=10, io_class="low", uncached_from=1 << 26, bandwidth=0),
            ),
            0,
        ),
    )
}


def frames() -> dict[str, str]:
    """The bytes of every example, in hexadecimal."""
    return {name: m.encode(message, descriptors).hex() for name, (message, descriptors) in EXAMPLES.items()}


def golden() -> dict[str, str]:
    return json.loads(FILE.read_text())


def test_every_message_has_a_golden_frame():
    assert set(golden()) == set(EXAMPLES) == {schema.__name__ for schema in KINDS.values()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_gives_its_golden_frame(name: str):
    assert frames()[name] == golden()[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_golden_frame_gives_its_message(name: str):
    message, descriptors = EXAMPLES[name]
    decoder = wire.Decoder(m.REQUEST_LIMITS | m.REPLY_LIMITS)
    (frame,) = decoder.feed(bytes.fromhex(golden()[name]), range(descriptors))
    assert frame.descriptors == tuple(range(descriptors))
    assert m.decode(frame, KINDS) == message


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(frames(), indent=2) + "\n")
