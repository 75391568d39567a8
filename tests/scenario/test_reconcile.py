"""Store and catalog that do not go together, on a folder and in a fleet: what is mended, and what is left alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.errors import Code
from tests.doubles.forgetting import forget
from tests.doubles.nodes import assert_one_each, node
from tests.doubles.s3_double import S3Double
from tests.harness import PREFIX, Bucket, DaemonProcess, Folder, eventually
from tests.scenario.shell import Shell, put

pytestmark = pytest.mark.slow

HOUR_S = 3600
RULE = "orphan_age = 3600\nreconcile_every = 0\n"
Findings = dict[str, tuple[str, str]]


def reconciled(daemon: DaemonProcess, *words: str, status: int = 0) -> dict[str, Any]:
    shell = Shell(daemon.folder, ["--socket", str(daemon.socket)])
    found: dict[str, Any] = json.loads(shell("doctor", "--reconcile", "--json", *words, status=status).out)
    return found


def findings(found: dict[str, Any]) -> Findings:
    """What and outcome, by the last part of the key."""
    return {each["key"].rpartition("/")[2]: (each["what"], each["outcome"]) for each in found["findings"]}


def save(exp: Experiment, *names: str) -> dict[str, Any]:
    """Each is stored, and was described."""
    return {name: exp.files("a").save_text(name, to=f"{name}.txt", tags=["said"]).wait(60) for name in names}


def make_old(path: Path) -> None:
    then_s = time.time() - 2 * HOUR_S
    os.utime(path, (then_s, then_s))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "store")


@pytest.fixture
def daemon(tmp_path: Path, folder: Folder) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", folder, settings=RULE) as daemon:
        yield daemon


def test_a_folder_and_its_catalog(daemon: DaemonProcess, folder: Folder, tmp_path: Path) -> None:
    """Everything that may go wrong there, at once; then once more, and once more with the missing file restored."""
    with daemon.experiment(wait=False).run as exp:
        files = save(exp, "lost", "young", "gone", "kept", "deleted", "cut", "theirs", "damaged")
        at = {name: folder.root / folder.key_of(file) for name, file in files.items()}
        exp.files("a/deleted.txt").delete()
        daemon.kill()
        forget(daemon, *(files[name]["id"] for name in ("lost", "young", "theirs", "damaged")))
        at["damaged"].write_text("dAmaged")
        at["cut"].write_text("c")
        os.removexattr(at["theirs"], "user.ml-dash.about")
        temporary = folder.root / ".ml-dash-tmp"
        (temporary / "777").write_text("begun")
        (temporary / "778.put").write_text("young")
        for path in (*at.values(), temporary / "777"):
            if path != at["young"]:
                make_old(path)
        bytes_of_gone = at["gone"].read_bytes()
        at["gone"].unlink()
        daemon.start()

        # One is on its way meanwhile, held up at its end, and older than anything that is left alone for its age.
        gate = folder.root / "alice/cv/held/files"
        gate.parent.mkdir()
        gate.touch()
        (tmp_path / "moving.bin").write_bytes(b"m" * (17 << 20))
        moving = daemon.experiment("alice/cv/held", wait=False).run.start().files.upload(tmp_path / "moving.bin")
        eventually(lambda: daemon.status().blocked)
        make_old(temporary / moving["id"])

        expected = {
            "lost.txt": ("unlisted", "recorded"),
            "theirs.txt": ("unlisted", "kept"),
            "damaged.txt": ("unlisted", "kept"),
            "gone.txt": ("missing", "marked"),
            "cut.txt": ("resized", "kept"),
            "777": ("upload", "aborted"),
        }
        before = folder.keys()
        tried = reconciled(daemon, "--dry-run", status=1)
        assert findings(tried) == {**expected, "damaged.txt": ("unlisted", "recorded")}, "it does not read the bytes"
        assert folder.keys() == before
        assert (temporary / "777").exists()
        assert len(exp.files("a").list()) == 3

        done = reconciled(daemon, status=1)
        assert findings(done) == expected
        assert (done["objects"], done["records"], done["uploads"], done["waiting"]) == (7, 4, 3, 3)
        assert folder.keys() == before, "no object is removed"
        assert sorted(path.name for path in temporary.iterdir()) == sorted([moving["id"], "778.put"])
        (lost,) = exp.files("a").list("lost.txt")
        same = ("id", "path", "filename", "sizeBytes", "checksum", "contentType", "experimentId", "state")
        assert {key: lost[key] for key in same} == {key: files["lost"][key] for key in same}
        assert lost["tags"] == []
        assert exp.files("a/lost.txt").read_text() == "lost"
        shown = Shell(tmp_path, ["--socket", str(daemon.socket)])("ls", "a", "--prefix", exp.prefix).out
        states = {line.split()[-1]: line.split()[1] for line in shown.splitlines()[1:]}
        assert states == {"a/cut.txt": "DONE", "a/gone.txt": "MISSING", "a/kept.txt": "DONE", "a/lost.txt": "DONE"}
        with pytest.raises(MLDashError) as missing:
            exp.files("a/gone.txt").read_text()
        assert missing.value.code is Code.OBJECT_MISSING

        for key in ("lost.txt", "777"):
            del expected[key]
        assert findings(reconciled(daemon, status=1)) == expected, "what was mended is not found again"
        at["gone"].write_bytes(bytes_of_gone)
        at["cut"].write_text("cut")
        again = findings(reconciled(daemon, status=1))
        assert again["gone.txt"] == ("found", "unmarked")
        assert "cut.txt" not in again
        assert exp.files("a/gone.txt").read_text() == "gone"
        gate.unlink()
        moving.wait(60)


def test_what_it_says_to_people(daemon: DaemonProcess, folder: Folder, tmp_path: Path) -> None:
    shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
    with daemon.experiment().run as exp:
        files = save(exp, "lost", "gone")
        assert shell("doctor", "--reconcile").out == "2 objects and 2 records compared: 0 findings\n"
        daemon.kill()
        forget(daemon, files["lost"]["id"])
        (folder.root / folder.key_of(files["gone"])).unlink()
        make_old(folder.root / folder.key_of(files["lost"]))
        daemon.start()
        tried = shell("doctor", "--reconcile", "--dry-run", status=1).out
        assert "object without a record  file" in tried
        assert "a/lost.txt  would be recorded" in tried
        done = shell("doctor", "--reconcile", status=1).out
        assert f"record without its object  file {files['gone']['id']}  a/gone.txt  marked" in done
        assert f"OBJECT_MISSING: the store has no object {folder.key_of(files['gone'])}" in done
        assert "hint: the store no longer has the bytes; restore them there" in done
        assert "description, tags and metadata are lost" in done
        assert done.endswith("1 object and 1 record compared: 2 findings\n")
        assert shell("doctor", "--dry-run", status=2).err.startswith("usage:")


def test_the_daemon_of_a_root(shell: Shell, tmp_path: Path) -> None:
    kept, lost = (put(shell, name, b"abc", "--wait") for name in ("kept.txt", "lost.txt"))
    assert shell("doctor", "--reconcile").out == "2 objects and 2 records compared: 0 findings\n"
    (tmp_path / "root" / PREFIX / "files" / lost["id"] / "lost.txt").unlink()
    found = json.loads(shell("doctor", "--reconcile", "--json", status=1).out)
    assert (found["objects"], found["records"]) == (1, 2)
    assert findings(found) == {"lost.txt": ("missing", "marked")}
    assert "/proc/" not in found["findings"][0]["message"]
    assert [each["id"] for each in shell.json("ls", "--prefix", PREFIX)] == [kept["id"], lost["id"]]


def test_it_is_done_by_itself(daemon: DaemonProcess, folder: Folder) -> None:
    with daemon.experiment().run as exp:
        files = save(exp, "lost", "gone")
        daemon.kill()
        forget(daemon, files["lost"]["id"])
        (folder.root / folder.key_of(files["gone"])).unlink()
        make_old(folder.root / folder.key_of(files["lost"]))
        daemon.settings = "orphan_age = 3600\nreconcile_every = 0.2\n"
        daemon.start()
        eventually(lambda: "reconciled" in daemon.log())
        assert exp.files("a/lost.txt").read_text() == "lost"
        assert [found["outcome"] for found in reconciled(daemon, status=1)["findings"]] == ["marked"]
        log = daemon.log()
        assert f"mismatch kind=unlisted outcome=recorded id={files['lost']['id']}" in log
        assert f"mismatch kind=missing outcome=marked id={files['gone']['id']}" in log


# ---- a fleet


def make_object_old(bucket: Bucket, double: S3Double, key: str) -> None:
    objects = double.buckets[bucket.bucket].objects
    objects[key] = replace(objects[key], modified=datetime.now(UTC) - timedelta(hours=2))


def test_a_bucket_and_the_catalog_of_a_fleet(tmp_path: Path, s3_double: S3Double, mongodb_url: str) -> None:
    bucket = Bucket(s3_double)
    one, two = (node(tmp_path / name, bucket, mongodb_url) for name in ("one", "two"))
    one.settings, two.settings = RULE + one.settings, RULE + two.settings
    with one, two, pymongo.MongoClient[Any](mongodb_url) as client, bucket._client() as s3:
        exp = one.experiment(wait=False).run.start()
        files = save(exp, "lost", "gone", "kept", "deleted", "late", "left")
        keys = {name: bucket.key_of(file) for name, file in files.items()}
        for name in ("deleted", "left"):
            exp.files(f"a/{name}.txt").delete()
        catalog = client.get_default_database()["files"]
        for name in ("lost", "late"):
            catalog.delete_one({"_id": int(files[name]["id"])})
        long_ago = {"deleted_ms": 1, "reclaimed_ms": 2}
        catalog.update_one({"_id": int(files["left"]["id"])}, {"$set": long_ago, "$unset": {"reclaimable": ""}})
        one.kill()
        forget(one, *(files[name]["id"] for name in ("lost", "late", "left")), databases=("journal",))
        s3.delete_object(Bucket=bucket.bucket, Key=keys["gone"])

        # The other node has stored two files, and not listed them: it is killed in that moment, and away since.
        two.kill()
        two.start("finish.before_catalog=kill")
        theirs = two.experiment(wait=False).run.start()
        waiting = theirs.files("a").save_text("waiting", to="waiting.txt", tags=["said"])
        two.wait_for_death()
        of_two = bucket.key_of(waiting)
        assert of_two in set(bucket.keys())

        begun = {}
        for name in ("old", "new"):
            key = f"{bucket.key_prefix}files/alice/cv/resnet/a/4611686018427387904/{name}.bin"
            begun[name] = s3.create_multipart_upload(Bucket=bucket.bucket, Key=key)["UploadId"]
        s3_double.uploads[begun["old"]].begun -= timedelta(hours=2)
        for name in ("lost", "kept", "deleted", "left"):
            make_object_old(bucket, s3_double, keys[name])
        one.start()

        done = reconciled(one, status=1)
        assert findings(done) == {
            "lost.txt": ("unlisted", "recorded"),
            "gone.txt": ("missing", "marked"),
            "left.txt": ("left", "removed"),
            "old.bin": ("upload", "aborted"),
        }
        assert done["waiting"] == 3  # late, the other node's, and the upload that was begun just now
        assert bucket.open_uploads() == [begun["new"]]
        assert bucket.keys() == sorted([of_two, *(keys[name] for name in ("lost", "kept", "deleted", "late"))])
        assert catalog.find_one({"_id": int(files["gone"]["id"])})["missing_ms"]

        # An upload beside its object, as a server leaves it that dies within Complete: they may share their parts.
        beside = s3.create_multipart_upload(Bucket=bucket.bucket, Key=keys["lost"])["UploadId"]
        s3_double.uploads[beside].begun -= timedelta(hours=2)

        # Weeks later; then the other node comes back after all, and says what it knows of its file.
        for key in (keys["late"], of_two):
            make_object_old(bucket, s3_double, key)
        assert findings(reconciled(one, status=1)) == {
            "late.txt": ("unlisted", "recorded"),
            "waiting.txt": ("unlisted", "recorded"),
            "gone.txt": ("missing", "marked"),
            "lost.txt": ("upload", "kept"),
        }
        assert sorted(bucket.open_uploads()) == sorted([begun["new"], beside])
        s3.abort_multipart_upload(Bucket=bucket.bucket, Key=keys["lost"], UploadId=beside)
        assert exp.files("a").list("waiting.txt")[0]["tags"] == []
        two.start()
        waiting.wait(60)
        assert exp.files("a").list("waiting.txt")[0]["tags"] == ["said"]
        s3.put_object(Bucket=bucket.bucket, Key=keys["gone"], Body=b"gone")
        assert findings(reconciled(two)) == {"gone.txt": ("found", "unmarked")}
        s3.abort_multipart_upload(
            Bucket=bucket.bucket,
            Key=f"{bucket.key_prefix}files/alice/cv/resnet/a/4611686018427387904/new.bin",
            UploadId=begun["new"],
        )
        s3.delete_object(Bucket=bucket.bucket, Key=keys["deleted"])
        expected = {f"a/{name}.txt": files[name]["checksum"] for name in ("lost", "gone", "kept", "late")}
        assert_one_each(exp, bucket, {**expected, "a/waiting.txt": waiting["checksum"]})
