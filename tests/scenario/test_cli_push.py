"""`push`: a root's files in a service, with their ids, whatever happens on the way; and the old names."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import messages as m
from tests.doubles.raw_client import RawClient
from tests.doubles.s3_double import S3Double
from tests.harness import PREFIX, Bucket, DaemonProcess, Folder, StoreUnderTest, assert_whole, make_file
from tests.scenario.embedded import Root
from tests.scenario.shell import Shell

pytestmark = pytest.mark.slow

KEPT = ("id", "experimentId", "path", "filename", "description", "tags", "bindrs", "contentType", "sizeBytes",
        "checksum", "metadata", "createdAt", "updatedAt")  # fmt: skip
PLACE = m.Place(namespace="alice", project="cv", experiment="resnet")


@pytest.fixture(params=["local", "s3_double"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A service of its own."""
    store: StoreUnderTest = Folder(tmp_path / "store")
    if request.param == "s3_double":
        double: S3Double = request.getfixturevalue("s3_double")
        store = Bucket(double)
    with DaemonProcess(tmp_path / "daemon", store) as daemon:
        yield daemon


@pytest.fixture
def local(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon:
        yield daemon


def train(root: Root, count: int = 4) -> list[dict[str, Any]]:
    """An experiment that was run offline; its records, by path."""
    with root.experiment(wait=True).run as exp:
        exp.files.save_json({"lr": 1}, to="config.json", description="größe", tags=["a", "b"], metadata={"epoch": 3})
        exp.files.save_blob(os.urandom(100_000), to="models/best.pt", bindrs=["run"])
        exp.files.save_blob(os.urandom(50_000), to="models/best.pt")
        exp.files.upload_many({f"many/{each:03}": _small(root, each) for each in range(count)})
        exp.files.flush()
        return exp.files.list()


def _small(root: Root, number: int) -> Path:
    path = root.path.parent / f"small-{number}"
    path.write_bytes(str(number).encode())
    return path


def kept(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(record[name] for name in KEPT) for record in records]


def shell_for(daemon: DaemonProcess, tmp_path: Path) -> Shell:
    return Shell(tmp_path, ["--socket", str(daemon.socket)])


def expected(records: list[dict[str, Any]]) -> dict[str, str]:
    return {f"{each['path']}/{each['filename']}".strip("/"): each["checksum"] for each in records}


def test_everything_that_a_record_says_is_kept(target: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """Pushed twice, nothing is there twice; the root stays as it was, and may then be removed."""
    records = train(root)
    with root.experiment("bob/nlp/bert/deep", wait=True).run as other:
        large = make_file(tmp_path / "large.bin", 20 << 20)
        other.files.upload(tmp_path / "large.bin", to="x/large.bin")
    before = root.files()
    shell = shell_for(target, tmp_path)
    would = shell.json("push", str(root.path), "--dry-run")
    assert len(would["pushed"]) == len(records) + 1
    assert target.store.keys() == []
    said = shell.json("push", str(root.path))
    assert (len(said["pushed"]), said["skipped"], said["failed"]) == (len(records) + 1, 0, [])
    pushed = shell.json("ls", "--prefix", PREFIX)
    assert kept(pushed) == kept(records)
    assert {record["state"] for record in pushed} == {"DONE"}
    for record in pushed:
        assert target.store.sha256(target.store.key_of(record)) == record["checksum"]
    (far,) = shell.json("ls", "--prefix", "bob/nlp/bert/deep")
    assert far["checksum"] == large == target.store.sha256(target.store.key_of(far))
    keys = target.store.keys()
    ended = shell("push", str(root.path))
    assert ended.out == f"0 files pushed, {len(records) + 1} there already\n"
    assert shell.json("push", str(root.path))["experiments"] == []
    assert target.store.keys() == keys
    assert root.files() == before
    new = shell.json("put", "large.bin", "--prefix", PREFIX)["id"]
    assert int(new) > max(int(record["id"]) for record in pushed)


def test_a_push_that_is_killed_goes_on(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """kill -9 of whoever pushes, then of the service in the middle: in the end everything is there once."""
    records = train(root, count=300)
    del records[-1]  # the older version of a path that is there twice
    shell = shell_for(local, tmp_path)
    with subprocess.Popen(
        shell.command("push", str(root.path)), stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.kill()
    local.kill()
    local.start()
    said = shell.json("push", str(root.path))
    assert said["failed"] == []
    assert len(said["pushed"]) + said["skipped"] == 303
    assert said["skipped"] + len(local.rows("SELECT id FROM files")) >= 303
    shell("rm", "--id", shell.json("versions", "models/best.pt", "--prefix", PREFIX)[1]["id"])
    with local.experiment().run as exp:
        found = {f"{each['path']}/{each['filename']}".strip("/"): each["checksum"] for each in exp.files.list()}
    assert found == expected(records)
    assert len(local.store.keys()) == 303


def test_a_pushed_file_survives_every_kill_of_the_service(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """One file for each kill: those that are there already are skipped."""
    shell = shell_for(local, tmp_path)
    for point in ("accept.pinned", "accept.journaled", "finish.before_catalog", "finish.after_catalog"):
        with root.experiment(wait=True).run as exp:
            exp.files.save_blob(os.urandom(300_000), to=point)
            exp.files.flush()
            records = exp.files.list()
        local.kill()
        local.start(f"{point}=kill")
        with subprocess.Popen(shell.command("push", str(root.path)), stdout=subprocess.DEVNULL) as process:
            local.wait_for_death()
            local.start()
            assert process.wait(60) == 0
    with local.experiment().run as exp:
        assert_whole(local, exp, expected(records))
        assert kept(exp.files.list()) == kept(records)


def test_an_id_that_another_file_has_is_refused(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """It is named; the other files go on, and what is there is as it was."""
    records = train(root)
    taken = records[0]
    shell = shell_for(local, tmp_path)
    raw = RawClient(local.socket).greet()
    upload(raw, tmp_path, b"mine", int(taken["id"]), "theirs.txt")
    shell("wait", taken["id"])
    said = json.loads(shell("push", str(root.path), "--json", status=1).out)
    assert [(each["id"], each["code"]) for each in said["failed"]] == [(taken["id"], "ID_TAKEN")]
    assert len(said["pushed"]) == len(records) - 1
    (theirs,) = shell.json("ls", "theirs.txt", "--prefix", PREFIX)
    assert theirs["checksum"] == hashlib.sha256(b"mine").hexdigest()
    refused = upload(raw, tmp_path, b"other", int(taken["id"]), "theirs.txt")
    assert isinstance(refused, m.Failed)
    assert refused.code == "ID_TAKEN"
    again = upload(raw, tmp_path, b"mine", int(taken["id"]), "theirs.txt")
    assert isinstance(again, m.Accepted)
    assert again.record.state == "DONE"
    raw.close()


def upload(raw: RawClient, folder: Path, content: bytes, file_id: int, name: str, **origin: Any) -> m.Message | None:
    path = folder / "source"
    path.write_bytes(content)
    given: dict[str, Any] = {"created_ms": 1, "updated_ms": 2, "sha256": hashlib.sha256(content).hexdigest()} | origin
    message = m.Upload(
        request=5, key=os.urandom(16), file=m.Described(place=PLACE, to=name), source=str(path),
        origin=m.Origin(id=file_id, **given),
    )  # fmt: skip
    descriptor = os.open(path, os.O_RDONLY)
    try:
        raw.send(m.encode(message, 1), [descriptor])
        return raw.reply()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"file_id": 0}, "INVALID_ARGUMENT"),
        ({"file_id": 2**63 - 1}, "INVALID_ARGUMENT"),
        ({"created_ms": 2**50}, "INVALID_ARGUMENT"),
        ({"updated_ms": 2**50}, "INVALID_ARGUMENT"),
        ({"sha256": "AB" * 32}, "INVALID_ARGUMENT"),
        ({"sha256": "ab"}, "INVALID_ARGUMENT"),
        ({"sha256": "ab" * 32}, "CHECKSUM_MISMATCH"),
        ({"name": "../x"}, "INVALID_PATH"),
    ],
    ids=str,
)
def test_what_can_not_be_true_is_refused(
    service: DaemonProcess, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with RawClient(service.socket).greet() as raw:
        given: dict[str, Any] = {"file_id": 77 << 22, "name": "a.txt"} | changes
        answer = upload(raw, tmp_path, b"content", **given)
        assert isinstance(answer, m.Failed)
        assert answer.code == code
    assert service.rows(f"SELECT id FROM files WHERE id = {77 << 22}") == []


def test_damage_in_the_root_is_found_on_the_way(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """A large and a small file whose bytes are not the recorded ones: neither is listed; the others are."""
    records = train(root)
    small, large, lost = records[0], records[-1], records[-2]
    for record in (small, large):
        path = next(root.path.glob(f"**/{record['id']}/*"))
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        content[1] ^= 1
        path.write_bytes(content)
    next(root.path.glob(f"**/{lost['id']}/*")).unlink()
    shell = shell_for(local, tmp_path)
    said = json.loads(shell("push", str(root.path), "--json", status=1).out)
    assert sorted((each["id"], each["code"]) for each in said["failed"]) == sorted(
        [
            (small["id"], "CHECKSUM_MISMATCH"),
            (large["id"], "SOURCE_CHANGED"),
            (lost["id"], "FILE_NOT_FOUND"),
        ]
    )
    listed = [each["id"] for each in shell.json("ls", "--prefix", PREFIX) if each["state"] == "DONE"]
    assert listed == [each["id"] for each in records[1:-2]]


def test_what_was_deleted_in_the_service_stays_deleted(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    records = train(root)
    shell = shell_for(local, tmp_path)
    shell("push", str(root.path))
    shell("rm", "--id", records[0]["id"])
    assert shell("push", str(root.path)).out == f"0 files pushed, {len(records) - 1} there already, 1 deleted there\n"
    assert len(shell.json("ls", "--prefix", PREFIX)) == len(records) - 1


def test_where_experiments_go(local: DaemonProcess, make_root: Callable[..., Root], tmp_path: Path) -> None:
    """Only those that fit, below a target; and from a root into another root."""
    root = make_root()
    for prefix in ("alice/cv/one", "alice/cv/two", "alice/nlp/one"):
        with root.experiment(prefix, wait=True).run as exp:
            exp.files.save_text(prefix, to="a.txt")
    shell = shell_for(local, tmp_path)
    said = shell.json("push", str(root.path), "--prefix", "alice/cv/*", "--target", "team/vision")
    assert len(said["pushed"]) == 2
    shell("get", "a.txt", "--prefix", "team/vision/two", "-o", "two.txt")
    assert (tmp_path / "two.txt").read_text() == "alice/cv/two"
    ended = shell("push", str(root.path), "--prefix", "alice/cv/*", "--target", "team/other", status=1)
    assert ended.out == "0 files pushed, 2 failed\n"
    for name in ("one", "two"):
        what = f"its files are there already, in team/vision/{name}: there is nothing to push to team/other/{name}"
        assert f"ml-dash: alice/cv/{name}: {what}\n" in ended.err
    assert [each["experimentId"] for each in shell.json("experiments")] == ["team/vision/one", "team/vision/two"]
    with root.experiment("alice/cv/one", wait=True).run as exp:
        exp.files.save_text("new", to="b.txt")  # it alone can go there
    shown = shell("push", str(root.path), "--prefix", "alice/cv/*", "--target", "team/other", "--json", status=1)
    said = json.loads(shown.out)
    assert (said["experiments"], len(said["pushed"])) == (["alice/cv/one"], 1)
    assert [each["code"] for each in said["failed"]] == ["ID_TAKEN", "ID_TAKEN"]
    other = make_root("other")
    into = Shell(tmp_path, ["--root", str(other.path)])
    assert len(into.json("push", str(root.path))["pushed"]) == 4
    assert "files/" in other.files()[0]


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("push", "nothing"), 1, "NOT_A_FILE"),
        (("push", "{root}"), 3, "DAEMON_UNAVAILABLE"),
        (("push", "{root}", "--root", "{root}"), 3, "DAEMON_UNAVAILABLE"),
        (("push", "{root}", "--socket", "none"), 3, "DAEMON_UNAVAILABLE"),
        (("push", "{root}", "--target", "x"), 2, "INVALID_PREFIX"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_pushes_that_lead_nowhere(root: Root, tmp_path: Path, words: tuple[str, ...], status: int, code: str) -> None:
    with root.experiment(wait=False).run:
        pass
    shell = Shell(tmp_path, [])
    assert shell.refused(*(word.format(root=root.path) for word in words), status=status)["code"] == code


def test_ctrl_c_says_what_goes_on(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    train(root, count=300)
    shell = shell_for(local, tmp_path)
    with subprocess.Popen(
        shell.command("push", str(root.path)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "handed over so far go on by themselves\nhint: keep the root" in err
    assert "Traceback" not in err


def test_the_old_names(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """Their options: [path] -p PREFIX -t TARGET --dry-run -v."""
    records = train(root)
    make_file(tmp_path / "results/deep/x.csv", 100)
    shell = shell_for(local, tmp_path)
    assert shell("upload", str(root.path), "-p", PREFIX, "--dry-run").out.endswith(
        f"{len(records)} files would be pushed\n"
    )
    shell("upload", str(root.path), "--prefix", "alice/*/*", "-v")
    shell("upload", "results", "-p", PREFIX, "-t", "csv")
    listed = shell.json("list", "-p", PREFIX)
    assert len(listed) == len(records)  # the newest of each path, and one more
    assert len(shell.json("list", "-p", PREFIX, "-v")) == len(records) + 1
    assert shell("list", "--project", PREFIX).out.splitlines()[0].split()[0] == "ID"
    shell("download", "out", "-p", PREFIX)
    got = tmp_path / "out" / PREFIX / "files"
    assert (got / "csv/deep/x.csv").read_bytes() == (tmp_path / "results/deep/x.csv").read_bytes()
    assert sorted(path.name for path in (got / "many").iterdir()) == ["000", "001", "002", "003"]
    assert shell.refused("download", "out", "-p", "alice/*/*", status=2)["code"] == "INVALID_PREFIX"
    assert shell.refused("list", status=2)["code"] == "INVALID_PREFIX"


# ---- what there is beside files


def log(root: Root, first: int, count: int) -> None:
    with root.experiment(readme="größe", tags=["a"], bindrs=["b"], metadata={"k": 1}, wait=True).run as exp:
        exp.params.set(lr=0.1, opt={"name": "adam"})
        for number in range(first, first + count):
            exp.metrics.log(epoch=number, train={"loss": 1 / (number + 1)}, eval={"loss": float("inf")})


def told(shell: Shell) -> list[Any]:
    """All that the command says of an experiment beside its files."""
    (record,) = shell.json("experiments", "alice")
    return [record, shell.json("params", "--prefix", PREFIX), shell.json("metrics", "--prefix", PREFIX)]


def test_runs_parameters_and_rows_are_kept(target: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """What came since is sent by the next push; what is there is not there twice."""
    at_root, shell = Shell(tmp_path, ["--root", str(root.path)]), shell_for(target, tmp_path)
    log(root, 0, 5)
    with pytest.raises(KeyError), root.experiment("alice/cv/failed", wait=True).run:
        raise KeyError("lost")
    assert shell.json("push", str(root.path), "--dry-run")["rows"] == 15
    assert shell.json("experiments") == []
    said = shell.json("push", str(root.path), "--prefix", PREFIX)
    assert (said["experiments"], said["rows"], said["failed"]) == ([PREFIX], 15, [])
    (record,) = at_root.json("experiments", PREFIX)
    assert told(shell) == [record, *told_of_resnet(at_root)]
    log(root, 5, 3)
    assert shell.json("push", str(root.path))["rows"] == 9
    assert told_of_resnet(shell) == told_of_resnet(at_root)
    assert shell.json("experiments") == at_root.json("experiments")
    assert {each["status"] for each in shell.json("experiments")} == {"COMPLETED", "FAILED"}
    again = shell.json("push", str(root.path))
    assert (again["experiments"], again["rows"]) == ([], 0)
    with target.experiment().run as exp:
        assert exp.params.get() == {"lr": 0.1, "opt.name": "adam"}
        exp.metrics("train").log(loss=0)
    assert shell.json("push", str(root.path))["rows"] == 0


def told_of_resnet(shell: Shell) -> list[Any]:
    return [shell.json("params", "--prefix", PREFIX), shell.json("metrics", "--prefix", PREFIX)]


def test_a_push_of_rows_that_is_killed_goes_on(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    """kill -9 of the service once some rows are there, and of the root's daemon: in the end each row is there once."""
    at_root, shell = Shell(tmp_path, ["--root", str(root.path)]), shell_for(local, tmp_path)
    log(root, 0, 700)
    with subprocess.Popen(shell.command("push", str(root.path)), stdout=subprocess.DEVNULL) as process:
        with local.experiment("alice/cv/other").run as watching:
            while not shell.json("experiments", PREFIX):
                watching.metrics.flush()
        local.kill()
        root.end(signal.SIGKILL)
        local.start()
        process.wait(60)
    shell("push", str(root.path))
    assert told_of_resnet(shell) == told_of_resnet(at_root)
    assert shell.json("push", str(root.path))["rows"] == 0


def test_two_pushes_at_once_bring_everything_once(local: DaemonProcess, root: Root, tmp_path: Path) -> None:
    records = train(root, count=40)
    log(root, 0, 50)
    shell = shell_for(local, tmp_path)
    command = shell.command("push", str(root.path))
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert kept(shell.json("ls", "--prefix", PREFIX)) == kept(records)
    assert len(local.store.keys()) == len(records)
    assert len(shell.json("metrics", "--prefix", PREFIX)) == 150
