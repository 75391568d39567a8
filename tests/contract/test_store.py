"""What every store must do. A store that passes this is right for the flow; the flow never asks which it has."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ml_dashd.core import about
from ml_dashd.core.about import About
from ml_dashd.core.checksum import Digest, combine, digest, has_part, proves
from ml_dashd.core.model import Algorithm, FileRecord, Stored, Target
from ml_dashd.core.plan import MIB, Part, parts
from ml_dashd.core.retry import Fault, StoreError
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.local_store import LocalStore
from ml_dashd.edge.s3 import S3Store
from ml_dashd.edge.s3_client import S3Settings
from ml_dashd.edge.system import SystemClock
from ml_dashd.edge.threads import Pool
from ml_dashd.ports import Offer, Store
from tests.harness import Bucket

PART = 5 * MIB
FOUND = {"swift": Algorithm.MD5, "localstack": Algorithm.CRC64NVME}
"""What test_probe.py finds each of them to verify."""


@pytest.fixture
def threads() -> Iterator[Pool]:
    pool = Pool(2, "contract")
    yield pool
    pool.close()


@pytest.fixture(params=["local", "s3_double", "swift", "localstack", "ceph"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, threads: Pool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    made = (
        LocalStore(tmp_path, threads, NoFaults())
        if request.param == "local"
        else s3_store(request.getfixturevalue(request.param), monkeypatch)
    )
    await made.prepare(FOUND.get(request.param))
    yield made
    await made.close()


def s3_store(server, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    bucket = Bucket(server)
    for name, value in bucket.credentials.items():
        monkeypatch.setenv(name, value)
    return S3Store(S3Settings(bucket.bucket, "pre/", server.endpoint, "us-east-1", None, None, 4, PART))


def target_of(store: Store, size: int, name: str = "model.pt") -> Target:
    file_id = secrets.randbits(62)
    record = FileRecord(file_id, 0, "ns", "project", "exp", "a/b", name, size, "application/octet-stream", 0, 0)
    return Target(store.key(record), file_id, size, "application/octet-stream")


async def upload(store: Store, target: Target, pieces: list[bytes]) -> tuple[str, Digest]:
    """Sends all parts, completes nothing; returns the upload's id and the whole object's digest."""
    algorithm = await store.prepare()
    upload_id = await store.begin(target)
    digests = []
    for number, piece in enumerate(pieces, start=1):
        view = memoryview(piece)
        digests.append(digest(view, algorithm))
        part = Part(number, (number - 1) * PART, len(piece))
        await store.send_part(target, upload_id, part, view, digests[-1])
    return upload_id, combine(digests, algorithm)


async def body_of(store: Store, key: str, offset: int, size: int) -> bytes:
    body, counts = bytearray(size), []
    await store.read(key, offset, memoryview(body), counts.append)
    assert sum(counts) == size
    return bytes(body)


@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_put_then_head_and_get_state_the_same(store: Store, size: int) -> None:
    body = os.urandom(size)
    target = target_of(store, size)
    sent = digest(memoryview(body), await store.prepare())
    evidence = await store.put(target, memoryview(body), sent)
    stated = await store.head(target.key)
    assert stated is not None
    assert stated.size_bytes == size
    assert stated.file_id == target.file_id
    assert proves(evidence, sent) or proves(stated, sent)
    glanced = await store.head(target.key, glance=True)
    assert glanced is not None
    assert (glanced.size_bytes, glanced.file_id) == (size, target.file_id)
    assert glanced.checksum in (None, stated.checksum)
    assert await body_of(store, target.key, 0, size) == body


async def test_put_again_changes_nothing(store: Store) -> None:
    target, body = target_of(store, 5), memoryview(b"hello")
    sent = digest(body, await store.prepare())
    await store.put(target, body, sent)
    await store.put(target, body, sent)
    assert await body_of(store, target.key, 0, 5) == b"hello"


async def test_there_is_no_object_before_complete_and_a_whole_one_after(store: Store) -> None:
    pieces = [os.urandom(PART), os.urandom(PART), os.urandom(7)]
    target = target_of(store, sum(map(len, pieces)))
    upload_id, whole = await upload(store, target, pieces)
    assert await store.head(target.key) is None
    listed = await store.list_parts(target, upload_id, PART)
    await store.complete(target, upload_id, listed, whole)
    stated = await store.head(target.key)
    assert stated is not None
    assert proves(stated, whole) is True
    assert stated.file_id == target.file_id
    assert await body_of(store, target.key, 0, whole.size_bytes) == b"".join(pieces)
    assert await body_of(store, target.key, PART - 1, 3) == pieces[0][-1:] + pieces[1][:2]


async def test_parts_are_listed_with_what_proves_them(store: Store) -> None:
    algorithm = await store.prepare()
    pieces = [os.urandom(PART), os.urandom(11)]
    target = target_of(store, PART + 11)
    upload_id, _ = await upload(store, target, pieces)
    listed = await store.list_parts(target, upload_id, PART)
    assert [part.number for part in listed] == [1, 2]
    for part, piece in zip(listed, pieces, strict=True):
        assert has_part(part, digest(memoryview(piece), algorithm), None)
        assert not has_part(part, digest(memoryview(piece[:-1] + b"\0\0"), algorithm), None)


async def test_a_part_that_comes_again_replaces_itself(store: Store) -> None:
    algorithm = await store.prepare()
    first, second = os.urandom(PART), os.urandom(PART)
    target = target_of(store, PART)
    upload_id, _ = await upload(store, target, [first])
    view = memoryview(second)
    await store.send_part(target, upload_id, Part(1, 0, PART), view, digest(view, algorithm))
    listed = await store.list_parts(target, upload_id, PART)
    assert len(listed) == 1
    await store.complete(target, upload_id, listed, combine([digest(view, algorithm)], algorithm))
    assert await body_of(store, target.key, 0, PART) == second


async def test_damaged_bytes_are_refused(store: Store) -> None:
    """A store with a checksum refuses what is not what was stated. A folder has no wire to damage it."""
    if isinstance(store, LocalStore):
        pytest.skip("nothing lies between the daemon and a folder")
    target = target_of(store, 6)
    wrong = digest(memoryview(b"right!"), await store.prepare())
    with pytest.raises(StoreError) as refused:
        await store.put(target, memoryview(b"wrong!"), wrong)
    assert refused.value.fault is Fault.CORRUPT
    upload_id = await store.begin(target)
    with pytest.raises(StoreError) as refused:
        await store.send_part(target, upload_id, Part(1, 0, 6), memoryview(b"wrong!"), wrong)
    assert refused.value.fault is Fault.CORRUPT
    await store.abort(target, upload_id)


async def test_abort_leaves_nothing_and_may_be_repeated(store: Store) -> None:
    target = target_of(store, PART)
    upload_id, whole = await upload(store, target, [os.urandom(PART)])
    assert [upload.upload_id async for upload in store.uploads(target.key)] == [upload_id]
    await store.abort(target, upload_id)
    await store.abort(target, upload_id)
    assert [upload async for upload in store.uploads(target.key)] == []
    with pytest.raises(StoreError) as gone:
        await store.list_parts(target, upload_id, PART)
    assert gone.value.fault is Fault.GONE
    with pytest.raises(StoreError):
        await store.complete(target, upload_id, [], whole)
    assert await store.head(target.key) is None


async def test_complete_again_does_no_harm(store: Store) -> None:
    """Whatever a server answers to it, the object stays what it is: the flow asks `head`, never the answer."""
    pieces = [os.urandom(PART), b"end"]
    target = target_of(store, PART + 3)
    upload_id, whole = await upload(store, target, pieces)
    listed = await store.list_parts(target, upload_id, PART)
    await store.complete(target, upload_id, listed, whole)
    try:
        await store.complete(target, upload_id, listed, whole)
    except StoreError as failure:
        assert failure.fault in (Fault.GONE, Fault.TRANSIENT, Fault.REFUSED)  # noqa: PT017 either answer is right
    stated = await store.head(target.key)
    assert stated is not None
    assert proves(stated, whole) is True


async def test_uploads_of_other_keys_are_not_listed(store: Store) -> None:
    mine, other = target_of(store, 1), target_of(store, 1)
    upload_id = await store.begin(mine)
    other_id = await store.begin(other)
    assert [upload.upload_id async for upload in store.uploads(mine.key)] == [upload_id]
    await store.abort(mine, upload_id)
    await store.abort(other, other_id)


async def test_delete_may_be_repeated(store: Store) -> None:
    target = target_of(store, 1)
    await store.put(target, memoryview(b"x"), digest(memoryview(b"x"), await store.prepare()))
    await store.delete(target.key)
    await store.delete(target.key)
    assert await store.head(target.key) is None
    with pytest.raises(StoreError):
        await body_of(store, target.key, 0, 1)


async def test_a_name_of_255_bytes_and_one_beyond_ascii(store: Store) -> None:
    for name in ("n" * 255, "größe 数据 +%&?#.pt"):
        target = target_of(store, 2, name)
        await store.put(target, memoryview(b"ok"), digest(memoryview(b"ok"), await store.prepare()))
        assert await body_of(store, target.key, 0, 2) == b"ok"


# ---- copies within the store


@pytest.mark.parametrize("size", [0, 70_000])
async def test_a_copy_is_an_object_of_its_own(store: Store, size: int) -> None:
    body = os.urandom(size)
    source, target = target_of(store, size), target_of(store, size, "größe +%&.pt")
    sent = digest(memoryview(body), await store.prepare())
    await store.put(source, memoryview(body), sent)
    await store.copy(source.key, target)
    await store.copy(source.key, target)
    stated = await store.head(target.key)
    assert stated is not None
    assert (stated.size_bytes, stated.file_id) == (size, target.file_id)
    assert proves(stated, sent) is not False
    await store.delete(source.key)
    assert await body_of(store, target.key, 0, size) == body


async def test_a_copy_in_parts(store: Store) -> None:
    algorithm = await store.prepare()
    pieces = [os.urandom(PART), os.urandom(PART), os.urandom(7)]
    size = sum(map(len, pieces))
    source, plain = target_of(store, size), target_of(store, size)
    upload_id, whole = await upload(store, source, pieces)
    await store.complete(source, upload_id, await store.list_parts(source, upload_id, PART), whole)
    known = algorithm is Algorithm.CRC64NVME
    target = replace(plain, algorithm=algorithm if known else Algorithm.NONE)
    upload_id = await store.begin(target)
    for part in parts(size, PART):
        await store.copy_part(source.key, target, upload_id, part)
    listed = await store.list_parts(target, upload_id, PART)
    assert [part.size_bytes for part in listed] == [PART, PART, 7]
    expected = whole if known else Digest(size, 0, Algorithm.NONE, None)
    await store.complete(target, upload_id, listed, expected)
    stated = await store.head(target.key)
    assert stated is not None
    assert stated.file_id == target.file_id
    assert proves(stated, whole) is (True if known or isinstance(store, LocalStore) else proves(stated, whole))
    assert await body_of(store, target.key, 0, size) == b"".join(pieces)


async def test_what_is_not_there_is_not_copied(store: Store) -> None:
    target = target_of(store, PART)
    with pytest.raises(StoreError) as missing:
        await store.copy(target_of(store, PART).key, target)
    assert missing.value.fault is Fault.MISSING
    assert await store.head(target.key) is None
    upload_id = await store.begin(target)
    with pytest.raises(StoreError) as missing:
        await store.copy_part(target_of(store, PART).key, target, upload_id, Part(1, 0, PART))
    assert missing.value.fault is Fault.MISSING
    await store.abort(target, upload_id)


# ---- what is there


async def put(store: Store, name: str, size: int = 3, *, prefix: str = "a/b", experiment: str = "exp") -> Target:
    """An object that says of itself whose it is."""
    file_id = secrets.randbits(62)
    record = FileRecord(file_id, 1000, "ns", "project", experiment, prefix, name, size, "text/plain", 0, 0)
    said = about.write(About(1000, experiment.count("/") + 1, in_set=False, sha256="ab" * 32))
    target = Target(store.key(record), file_id, size, "text/plain", about=said)
    body = memoryview(bytes(size))
    await store.put(target, body, digest(body, await store.prepare()))
    return target


async def listed(store: Store, after: str = "") -> list[Stored]:
    return [each async for page in store.objects(after) for each in page]


async def test_objects_are_listed_in_the_order_of_their_keys(store: Store) -> None:
    """As UTF-8, in which "/" stands between "." and "0": that is the order of no folder."""
    names = ["z", "a", "größe +%&?#.pt", "模型", "😀", "b c"]
    made = [await put(store, name, size) for size, name in enumerate(names)]
    made += [await put(store, "x", prefix=prefix) for prefix in ("a", "a.b", "a0", "a-b", "")]
    made += [await put(store, "x", experiment=experiment) for experiment in ("exp/er", "exp.er", "exp0")]
    found = await listed(store)
    assert [each.key for each in found] == sorted((target.key for target in made), key=str.encode)
    sizes = {target.key: target.size_bytes for target in made}
    assert {each.key: each.size_bytes for each in found} == sizes
    now_ms = SystemClock().now_ms()
    assert all(abs(now_ms - each.modified_ms) < 600_000 for each in found)
    for at, each in enumerate(found):
        assert await listed(store, each.key) == found[at + 1 :]
    assert await listed(store, "zz") == []


async def test_only_objects_of_files_are_listed(store: Store) -> None:
    """Not what is made to look at the store, and not what is on its way."""
    target = await put(store, "here.txt")
    probe = Target(store.scratch(7), 7, 1, "text/plain")
    await store.put(probe, memoryview(b"x"), digest(memoryview(b"x"), await store.prepare()))
    begun = target_of(store, 1)
    upload_id = await store.begin(begun)
    assert [each.key for each in await listed(store)] == [target.key]
    await store.delete(probe.key)
    await store.abort(begun, upload_id)


async def test_an_object_says_of_itself_whose_it_is(store: Store) -> None:
    """However it was made: put, copied, or in parts. Its key says where it belongs."""
    put_, copied, sent = await put(store, "größe.pt", experiment="exp/2"), target_of(store, 3), target_of(store, 5)
    copied, sent = replace(copied, about=put_.about), replace(sent, about=put_.about)
    await store.copy(put_.key, copied)
    upload_id, whole = await upload(store, sent, [b"12345"])
    await store.complete(sent, upload_id, await store.list_parts(sent, upload_id, PART), whole)
    for target in (put_, copied, sent):
        stated = await store.head(target.key)
        assert stated is not None
        assert stated.about == About(1000, 2, in_set=False, sha256="ab" * 32)
        assert stated.file_id == target.file_id
        assert stated.content_type in ("", target.content_type)
    assert store.place(put_.key, 2) == ("ns", "project", "exp/2", "a/b", "größe.pt")
    assert store.place("elsewhere/1/x", 2) is None


async def test_an_object_that_says_nothing_is_told_as_that(store: Store) -> None:
    target = target_of(store, 1)
    await store.put(target, memoryview(b"x"), digest(memoryview(b"x"), await store.prepare()))
    stated = await store.head(target.key)
    assert stated is not None
    assert stated.about is None


async def test_open_uploads_of_all_files_are_listed(store: Store) -> None:
    targets = [target_of(store, 1), target_of(store, 1, "größe.pt")]
    begun = {await store.begin(target): target for target in targets}
    found = [each async for page in store.open_uploads() for each in page]
    assert {(each.upload_id, each.file_id) for each in found} == {
        (upload_id, target.file_id) for upload_id, target in begun.items()
    }
    now_ms = SystemClock().now_ms()
    assert all(each.begun_ms is not None and abs(now_ms - each.begun_ms) < 600_000 for each in found)
    for each in found:
        await store.abort(Target(each.key, each.file_id or 0, 0, ""), each.upload_id)
    assert [page async for page in store.open_uploads()] == []


async def test_a_file_that_is_adopted_is_listed_as_its_parts_and_nothing_else_is_changed(
    store: Store, tmp_path: Path
) -> None:
    """Where a store adopts none, it says so, and the upload is as it was."""
    pieces = [os.urandom(PART), os.urandom(10)]
    (tmp_path / "source").write_bytes(b"".join(pieces))
    target, algorithm = target_of(store, PART + 10), await store.prepare()
    upload_id = await store.begin(target)
    with (tmp_path / "source").open("rb") as file:
        adopted = await store.adopt(target, upload_id, Offer(file.fileno(), itself=True))
    assert adopted is (await store.device() is not None)
    listed = await store.list_parts(target, upload_id, PART)
    digests = [digest(memoryview(piece), algorithm) for piece in pieces] if adopted else []
    assert [has_part(one, ours, None) for one, ours in zip(listed, digests, strict=True)] == [True] * len(digests)
    await store.abort(target, upload_id)
    assert (tmp_path / "source").read_bytes() == b"".join(pieces)
