"""What an earlier library did wrong, in the words of its users' scripts: each of these scripts failed there."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from ml_dash import Experiment, StorageError
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.faults import Refuse, Reset, Rule, Script, Side
from tests.doubles.s3_double import S3Double
from tests.harness import Bucket, DaemonProcess, Folder, assert_whole, eventually, file_sha256, make_file
from tests.scenario.conftest import Held, path_in_store
from tests.scenario.embedded import Root, run_trainer

pytestmark = pytest.mark.slow

MIB = 1 << 20
DESCRIBED = {"description": "Best model from epoch 50", "tags": ["checkpoint", "best"], "metadata": {"epoch": 50}}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def path_of(record: dict[str, Any]) -> str:
    return f"{record['path']}/{record['filename']}".strip("/")


# ---- 1: the result was {"id": "pending", "status": "queued"}


def test_1_a_result_has_its_id_and_its_checksum_at_once(held: Held, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x" * 100_000)
    exp = held.exp
    for result, content in (
        (exp.files("models").upload(tmp_path / "model.pt"), b"x" * 100_000),
        (exp.files("configs").save_json({"lr": 1e-3}, to="config.json"), b'{"lr": 0.001}'),
        (exp.files("data").save_blob(b"\x00\x01", to="data.bin"), b"\x00\x01"),
    ):
        assert result["id"].isdecimal()
        assert (result["sizeBytes"], result["checksum"]) == (len(content), sha256(content))
        assert {"id", "filename", "path", "sizeBytes", "checksum"} <= {**result}.keys()
        assert [each["id"] for each in exp.files(path_of(result)).list()] == [result["id"]]


def test_1_the_id_of_a_result_can_be_updated(exp: Experiment) -> None:
    result = exp.files("models").save_blob(b"x", to="model.pt")
    exp.files(file_id=result["id"], description="the best").update()
    assert exp.files("models").list()[0]["description"] == "the best"


# ---- 2: save_*(description=…) was a TypeError

SAVERS: dict[str, Callable[[Any, Path], Any]] = {
    "upload": lambda files, folder: files.upload(str(folder / "source.bin"), to="a.bin", **DESCRIBED),
    "save_json": lambda files, _: files.save_json({"a": 1}, to="a.json", **DESCRIBED),
    "save_text": lambda files, _: files.save_text("content", to="a.txt", **DESCRIBED),
    "save_blob": lambda files, _: files.save_blob(b"blob", to="a.bin", **DESCRIBED),
    "save": lambda files, _: files.save({"a": 1}, to="a.json", **DESCRIBED),
    "save_pkl": lambda files, _: files.save_pkl([1, 2], to="a.pkl", **DESCRIBED),
    "save_image": lambda files, _: files.save_image(np.zeros((8, 8, 3), np.uint8), to="a.png", **DESCRIBED),
    "save_video": lambda files, _: files.save_video(
        [np.zeros((32, 32, 3), np.uint8)] * 5, to="a.mp4", fps=30, **DESCRIBED
    ),
}


@pytest.mark.parametrize("saver", SAVERS)
def test_2_every_saver_takes_a_description_tags_and_metadata(exp: Experiment, tmp_path: Path, saver: str) -> None:
    (tmp_path / "source.bin").write_bytes(b"uploaded")
    made = SAVERS[saver](exp.files("models"), tmp_path)
    (listed,) = exp.files("models").list()
    for each in (made, listed):
        assert {name: each[name] for name in DESCRIBED} == DESCRIBED


# ---- 3: the upload of a file under the temp directory deleted it


def test_3_a_users_temporary_file_stays(exp: Experiment) -> None:
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(os.urandom(200_000))
        file.flush()
        before = Path(file.name).stat()
        exp.files("checkpoints").upload(file.name, to="model.pt").wait(30)
        after = Path(file.name).stat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
        eventually(lambda: Path(file.name).stat().st_nlink == 1)
        (stored,) = exp.files("checkpoints").list()
        assert file_sha256(Path(file.name)) == stored["checksum"]


# ---- 4: one value that is not JSON emptied the whole index


def test_4_metadata_that_is_not_json_harms_no_other_file(exp: Experiment) -> None:
    for number in range(20):
        exp.files("metrics").save_json({"step": number}, to=f"{number}.json", metadata={"loss": np.float32(0.5)})
        with pytest.raises(TypeError, match="object"):
            exp.files("metrics").save_json({"step": number}, to="bad.json", metadata={"model": object()})
    listed = exp.files("metrics").list()
    assert len(listed) == 20
    assert {each["metadata"]["loss"] for each in listed} == {0.5}


# ---- 5: a 5xx, a lost connection or a SIGTERM lost the file for good; a forked child's never came


FAILING = (
    Rule(Refuse(503, "ServiceUnavailable"), probability=0.3, times=2),
    Rule(Refuse(500, "InternalError"), probability=0.3, times=2),
    Rule(Reset(Side.REQUEST), probability=0.3, times=2),
    Rule(Reset(Side.ANSWER), probability=0.3, times=2),
)


def test_5_a_store_that_fails_for_a_while_loses_nothing(s3_double: S3Double, tmp_path: Path) -> None:
    with FaultProxy(s3_double.endpoint, Script("for a while", FAILING)) as proxy:
        store = Bucket(s3_double, endpoint=proxy.endpoint)
        with (
            DaemonProcess(tmp_path / "daemon", store, 'checksum = "crc64nvme"\n') as daemon,
            daemon.experiment().run as exp,
        ):
            expected = {}
            for number in range(10):
                content = f"{number} ".encode() * (40_000 if number % 3 == 0 else 1)
                exp.files("checkpoints").save_blob(content, to=f"{number}.bin")
                expected[f"checkpoints/{number}.bin"] = sha256(content)
            exp.files.flush(120)
            assert proxy.injected
            assert_whole(daemon, exp, expected)


TERMINATED = """
import os, signal, sys
from ml_dash import Experiment
exp = Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run.start()
for number in range(200):
    exp.files("steps").save_json({"step": number}, to=f"{number}.json")
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_5_sigterm_right_after_two_hundred_saves_loses_none(root: Root) -> None:
    assert run_trainer(TERMINATED, str(root.path))[2] == -signal.SIGTERM
    with root.experiment().run as exp:
        exp.files.flush(60)
        assert {each["filename"] for each in exp.files("steps").list()} == {f"{number}.json" for number in range(200)}
    assert len(root.files()) == 200


FORKED = """
import os, sys
from ml_dash import Experiment
with Experiment("alice/cv/resnet", dash_root=sys.argv[1]).run as exp:
    exp.files.save_text("parent", to="before.txt")
    if (child := os.fork()) == 0:
        exp.files.save_text("child", to="child.txt")
        os._exit(0)
    os.waitpid(child, 0)
    exp.files.save_text("parent", to="after.txt")
"""


def test_5_a_forked_childs_files_are_there(root: Root) -> None:
    assert run_trainer(FORKED, str(root.path)) == ("", "", 0)
    with root.experiment().run as exp:
        exp.files.flush(60)
        assert [each["filename"] for each in exp.files().list()] == ["after.txt", "before.txt", "child.txt"]


# ---- 6: a file that changed was stored under the old checksum; the older of two saves won


def test_6_a_file_that_changes_is_stored_as_it_was_or_said_to_have_changed(held: Held, tmp_path: Path) -> None:
    for number in range(8):
        source = tmp_path / f"{number}.bin"
        make_file(source, 300_000, seed=number)
        held.exp.files("data").upload(source)
        with source.open("r+b") as file:
            file.write(b"changed")
    held.let_go()
    eventually(lambda: {each["state"] for each in held.exp.files("data").list()} <= {"DONE", "FAILED"})
    for each in held.exp.files("data").list():
        if each["state"] == "DONE":
            back = Path(str(held.exp.files(file_id=each["id"]).download(to=tmp_path / "back")))
            assert file_sha256(back) == each["checksum"]


def test_6_the_last_of_two_saves_is_the_newest(held: Held, tmp_path: Path) -> None:
    for number in range(30):
        for content in ("first", "second"):
            held.exp.files("logs").save_text(f"{content} {number}", to=f"{number}.txt")
    held.let_go()
    held.exp.files.flush(60)
    for number in range(30):
        back = Path(str(held.exp.files(f"logs/{number}.txt").download(to=tmp_path / "back.txt")))
        assert back.read_text() == f"second {number}"


# ---- 7: a name that was saved again lost its old version


def test_7_every_version_is_kept(service: DaemonProcess, exp: Experiment, tmp_path: Path) -> None:
    contents = [f"epoch {number}".encode() for number in range(4)]
    made = [exp.files("models").save_blob(content, to="best.pt") for content in contents]
    exp.files.flush(30)
    assert [each["id"] for each in exp.files("models").list("best.pt")] == [each["id"] for each in reversed(made)]
    for result, content in zip(made, contents, strict=True):
        assert path_in_store(service, result).read_bytes() == content
        back = exp.files(file_id=result["id"]).download(to=tmp_path / "back.pt")
        assert Path(str(back)).read_bytes() == content


# ---- 8: paths escaped, and `to="a/b/c"` lost its folders


@pytest.mark.parametrize("to", ["/abs.bin", "../../x", "a/../../x", "..", "a/./b"])
@pytest.mark.parametrize("saver", ["upload", "save_blob", "save_json", "save_text"])
def test_8_nothing_is_written_outside(
    service: DaemonProcess, exp: Experiment, tmp_path: Path, saver: str, to: str
) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    content = {"upload": tmp_path / "x.bin", "save_blob": b"x", "save_json": {}, "save_text": "x"}[saver]
    before = service.store.keys()
    with pytest.raises(ValueError, match=r"segment|absolute"):
        getattr(exp.files, saver)(content, to=to)
    with pytest.raises(ValueError, match="segment"):
        getattr(exp.files("../.."), saver)(content, to="x")
    assert (exp.files().list(), service.store.keys()) == ([], before)
    assert not Path("/abs.bin").exists()


def test_8_a_path_as_a_record_has_it_is_below_the_experiment(exp: Experiment, service: DaemonProcess) -> None:
    """As scripts of 0.11 write it: `files("/models").list()`."""
    made = exp.files("/models").save_blob(b"x", to="a/best.pt")
    top = exp.files("/").save_blob(b"y", to="top.bin")
    exp.files.flush(30)
    assert (made["path"], top["path"]) == ("/models/a", "/")
    assert [each["id"] for each in exp.files("/models").list()] == [made["id"]]
    for one in (made, top):
        assert one["id"] in [each["id"] for each in exp.files(one["path"]).list()]
        assert one["id"] in [each["id"] for each in exp.files(prefix=one["path"]).list()]
    assert exp.files("/models/a/best.pt").read_text() == "x"
    assert path_in_store(service, made).read_bytes() == b"x"


def test_8_folders_in_to_are_kept_by_every_saver(exp: Experiment, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    exp.files("p").upload(tmp_path / "x.bin", to="a/b/0")
    exp.files("p").save_blob(b"x", to="a/b/1")
    exp.files("p").save_json({}, to="a/b/2")
    exp.files("p").save_text("x", to="a/b/3")
    exp.files("p").save(b"x", to="a/b/4")
    assert [path_of(each) for each in exp.files().list()] == [f"p/a/b/{number}" for number in range(5)]
    assert {each["path"] for each in exp.files().list()} == {"/p/a/b"}


# ---- 9: a damaged download destroyed what was there, and globs flattened folders


def test_9_a_damaged_download_leaves_the_users_file_alone(
    service: DaemonProcess, exp: Experiment, tmp_path: Path
) -> None:
    made = exp.files("models").save_blob(b"x" * 200_000, to="model.pt").wait(30)
    stored = path_in_store(service, made)
    stored.chmod(0o640)
    stored.write_bytes(b"y" * 200_000)
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(StorageError):
        exp.files("models/model.pt").download(to=tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_9_a_glob_keeps_folders(exp: Experiment, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        exp.files("images").save_text(folder, to=f"{folder}/0.png")
    got = exp.files("images").download("**/*.png", to=tmp_path / "out")
    assert got == [str(tmp_path / "out" / "a" / "0.png"), str(tmp_path / "out" / "b" / "0.png")]
    assert [Path(each).read_text() for each in got] == ["a", "b"]


# ---- 10: prefixes and patterns


def test_10_prefixes_and_patterns(exp: Experiment) -> None:
    for path in ("model/a.pt", "models/b.pt", "models/old/c.pt", "config.json", "configs/c.json", "configs/x/d.json"):
        exp.files.save_text(path, to=path)

    def listed(prefix: str, pattern: str | None = None) -> list[str]:
        return [path_of(each) for each in exp.files(prefix).list(pattern)]

    assert listed("model") == ["model/a.pt"]
    assert listed("models", "*.pt") == ["models/b.pt"]
    assert listed("models", "models/*.pt") == []
    assert listed("", "**/*.json") == ["config.json", "configs/c.json", "configs/x/d.json"]
    assert listed("configs", "**/*.json") == ["configs/c.json", "configs/x/d.json"]
    assert listed("", "*.json") == ["config.json"]


# ---- 11: ids came twice, update reset tags, a reader's list came back empty


def test_11_ids_are_unique_and_follow_the_saves(exp: Experiment, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    made = exp.files("many").upload_many({f"{number}.txt": tmp_path / "x.txt" for number in range(3000)})
    ids = [int(each["id"]) for each in made]
    assert ids == sorted(set(ids))


def test_11_an_update_leaves_what_it_was_not_given(exp: Experiment) -> None:
    made = exp.files("models").save_blob(b"x", to="model.pt", **DESCRIBED)
    exp.files(file_id=made["id"], description="new").update()
    (listed,) = exp.files("models").list()
    assert {name: listed[name] for name in DESCRIBED} == DESCRIBED | {"description": "new"}


def test_11_a_list_is_never_empty_while_others_save(service: DaemonProcess, exp: Experiment) -> None:
    exp.files("logs").save_text("first", to="first.txt")
    ended = Event()

    def save() -> None:
        for number in range(100):
            exp.files("logs").save_text(str(number), to=f"{number}.txt")
        ended.set()

    writer = Thread(target=save)
    writer.start()
    counts = []
    with service.experiment(exp.prefix).run as reader:
        while not ended.is_set():
            counts.append(len(reader.files("logs").list()))
    writer.join()
    assert min(counts) >= 1
    assert counts == sorted(counts), "no file goes missing again"


# ---- 12: a large file held the caller up, and each file cost more than the last


def test_12_a_large_file_is_not_read_by_its_caller(held: Held, tmp_path: Path) -> None:
    """Nor by the daemon before it answers: nothing that takes as long as the file is large is done first."""
    source = tmp_path / "model.pt"
    with source.open("wb") as file:
        file.truncate(1 << 30)
    before = read_bytes("self")
    result = held.exp.files("checkpoints").upload(source)
    assert result["sizeBytes"] == 1 << 30
    assert read_bytes("self") - before < MIB
    held.exp.files("checkpoints/model.pt").delete()


def test_12_the_thousandth_file_costs_what_the_first_did(tmp_path: Path) -> None:
    """Counted in bytes that the daemon writes and reads, for a save and for the list of one file."""
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        pid = daemon.process.pid if daemon.process else 0

        def cost(number: int) -> int:
            exp.files.flush(60)
            before = read_bytes(pid) + written_bytes(pid)
            exp.files("steps").save_json({"step": number}, to=f"{number}.json").wait(30)
            assert len(exp.files("steps").list(f"{number}.json")) == 1
            return read_bytes(pid) + written_bytes(pid) - before

        first = min(cost(number) for number in range(4))
        (tmp_path / "x.json").write_text("{}")
        exp.files("steps").upload_many({f"more-{number}.json": tmp_path / "x.json" for number in range(1000)})
        exp.files.flush(60)
        assert min(cost(number) for number in range(4, 8)) < 2 * first


def read_bytes(pid: int | str) -> int:
    return counter(pid, "rchar")


def written_bytes(pid: int | str) -> int:
    return counter(pid, "wchar")


def counter(pid: int | str, name: str) -> int:
    """What a process has read or written so far, pages and sockets alike."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines[name])
