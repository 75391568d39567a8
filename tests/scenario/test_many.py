"""Many small files at once: each is as whole, as listed and as deletable as one that goes alone."""

from __future__ import annotations

import os
import random
import secrets
import shutil
from pathlib import Path

import pytest

from ml_dash import MLDashError
from ml_dash import messages as m
from ml_dash.errors import Code
from tests.doubles.counting_proxy import CountingProxy
from tests.doubles.raw_client import RawClient
from tests.harness import Bucket, DaemonProcess, Folder, assert_whole, eventually, make_file
from tests.servers.s3server import S3Server

FILES = 300
FEWER = 70
"""More than one of the daemon's chunks, for a server in pure Python, which takes half a second a file beside others."""
MIB = 1 << 20


def folder_of(path: Path, count: int) -> dict[str, Path]:
    """Small files, of which one is empty, some are equal and one is too large to go with the others."""
    path.mkdir()
    made = {f"data/{number:04}.bin": path / str(number) for number in range(count)}
    for number, file in enumerate(made.values()):
        file.write_bytes(random.Random(number % 500).randbytes(number * 7))
    make_file(path / str(count // 2), MIB)
    return made


@pytest.mark.parametrize("server", ["local", "localstack"])
def test_a_folder_goes_up_whole_and_in_its_order(
    server: str, tmp_path: Path, request: pytest.FixtureRequest, full_size: bool
) -> None:
    store = Folder(tmp_path / "store") if server == "local" else Bucket(request.getfixturevalue(server))
    files = folder_of(tmp_path / "source", FILES if server == "local" or full_size else FEWER)
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        results = exp.files("set").upload_many(files, tags=["shard"], priority=3)
        assert [(one["filename"], one["path"]) for one in results] == [(Path(name).name, "/set/data") for name in files]
        assert [int(one["id"]) for one in results] == sorted(int(one["id"]) for one in results)
        assert {one["ack"] for one in results} == {"disk", "memory"}, "the large one goes by its descriptor"
        exp.files.flush(timeout=240)  # a server in pure Python, beside other suites
        expected = {f"set/{name}": results[at]["checksum"] for at, name in enumerate(files)}
        assert_whole(daemon, exp, expected)
        assert {(*one["tags"],) for one in exp.files.list()} == {("shard",)}


def test_paths_alone_keep_their_names(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        results = exp.files("notes").upload_many([tmp_path / "a.txt", str(tmp_path / "b.txt")])
        assert [one["filename"] for one in results] == ["a.txt", "b.txt"]
        assert exp.files.upload_many([]) == []


def test_two_files_of_one_name_are_both_named_and_none_is_taken(tmp_path: Path) -> None:
    """Else one would hide the other: `a/model.pt` and `b/model.pt` are both "model.pt" below a prefix."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pt").write_text(folder)
    first, second = tmp_path / "a/model.pt", tmp_path / "b/model.pt"
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        for paths in ([first, second], iter([first, second])):
            with pytest.raises(ValueError, match=r"would both be 'model\.pt'") as refused:
                exp.files("models").upload_many(paths)
            assert str(first) in str(refused.value)
            assert str(second) in str(refused.value)
        with pytest.raises(ValueError, match="would both be"):
            exp.files.upload_many(
                {"\u00e9.pt": first, "e\u0301.pt": second}
            )  # one name, its accent written in two ways
        assert exp.files.list() == []
        exp.files.upload_many({"a/model.pt": first, "b/model.pt": second})
        assert len(exp.files.list()) == 2


def test_of_many_those_before_a_bad_one_are_taken_and_those_after_it_are_not(tmp_path: Path) -> None:
    """Small ones and large ones, whether the client sees what is wrong or the daemon does; none is taken twice."""
    files = folder_of(tmp_path / "source", 5)
    small, large, nowhere = files["data/0000.bin"], files["data/0002.bin"], tmp_path / "nowhere.txt"
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        for number, (named, bad, code) in enumerate(
            (
                ({"a": small, "b": large, "../bad": small, "after": small}, "../bad", Code.INVALID_PATH),
                ({"a": large, "b": small, "../bad": large, "after": large}, "../bad", Code.INVALID_PATH),
                ({"a": small, "b": large, "gone": nowhere, "after": small}, str(nowhere), Code.FILE_NOT_FOUND),
            )
        ):
            with pytest.raises(MLDashError) as refused:
                exp.files(str(number)).upload_many(named)
            assert refused.value.code is code
            assert bad in str(refused.value)
            assert [one["filename"] for one in exp.files(str(number)).list("*")] == ["a", "b"]


def test_large_files_travel_together_and_their_descriptors_are_let_go(tmp_path: Path) -> None:
    """Sixteen in a message, among small ones, in their order; a refused one and an abandoned call leave none open."""
    files = {f"{number:02}.bin": tmp_path / f"{number:02}.bin" for number in range(40)}
    sums = {name: make_file(path, 5 if name.endswith("3.bin") else 100_000) for name, path in files.items()}
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="first.txt")
        open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        results = exp.files("many").upload_many(files)
        assert [one["filename"] for one in results] == [*files]
        assert {one["pin"] for one in results} == {"inline", "link"}
        with pytest.raises(MLDashError):
            exp.files("bad").upload_many({**files, "../bad": files["00.bin"]})
        abandoned = exp.files("abandoned").each_uploaded(files)
        next(abandoned)
        abandoned.close()
        assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208
        for path in files.values():
            path.unlink()
        exp.files.flush(timeout=60)
        assert {one["filename"]: one["checksum"] for one in exp.files("many").list("*")} == sums


def test_files_with_a_source_and_descriptors_are_the_same_number(tmp_path: Path) -> None:
    """A message that states another is refused, and nothing of it is taken."""
    with DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon, daemon.experiment().run as exp:
        exp.files.save_text("x", to="first.txt")
        place = m.Place(namespace="a", project="b", experiment="c")
        (tmp_path / "a.bin").write_bytes(bytes(100_000))
        with RawClient(daemon.socket).greet() as client, (tmp_path / "a.bin").open("rb") as opened:
            for count, sent in ((0, 1), (2, 1), (1, 2)):
                files = tuple(
                    m.Content(key=secrets.token_bytes(16), file=m.Described(place=place, to=f"{at}"), source="a.bin")
                    for at in range(count)
                )
                answer = client.ask(m.Failed, m.PutMany(request=1, files=files), [opened.fileno()] * sent)
                assert answer.code == Code.PROTOCOL
        assert [one["filename"] for one in exp.files.list()] == ["first.txt"]


def test_one_that_is_refused_stops_none_of_the_others(localstack: S3Server, tmp_path: Path) -> None:
    """The store is away for a while, some files are deleted meanwhile: the others are all there in the end."""
    store = Bucket(localstack, endpoint="http://127.0.0.1:1")
    files = folder_of(tmp_path / "source", 100)
    with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
        results = exp.files.upload_many(files)
        eventually(lambda: daemon.status().blocked)
        for name in ("data/0003.bin", "data/0050.bin", "data/0099.bin"):
            exp.files(name).delete()
        daemon.kill()
        store.endpoint = localstack.endpoint
        daemon.start()
        exp.files.flush(timeout=60)
        kept = [one for one in results if one["filename"] not in ("0003.bin", "0050.bin", "0099.bin")]
        expected = {f"data/{one['filename']}": one["checksum"] for one in kept}
        assert_whole(daemon, exp, expected)


def test_a_deletion_on_the_line_is_kept(localstack: S3Server, tmp_path: Path) -> None:
    """A file that is deleted between its request and its listing is taken back, and the rest of its chunk is not."""
    with CountingProxy(localstack.endpoint) as proxy:
        store = Bucket(localstack, endpoint=proxy.endpoint)
        with DaemonProcess(tmp_path / "daemon", store) as daemon, daemon.experiment().run as exp:
            exp.files.save_text("first", to="first.txt").wait(30)
            files = folder_of(tmp_path / "source", 40)
            proxy.stall()
            before = proxy.received
            results = exp.files.upload_many(files)
            assert proxy.wait_for_bytes(before + 1, 30), "nothing was sent"
            exp.files("data/0007.bin").delete()
            proxy.go_on()
            exp.files.flush(timeout=60)
            expected = {f"data/{one['filename']}": one["checksum"] for one in results if one["filename"] != "0007.bin"}
            expected["first.txt"] = exp.files.list("first.txt")[0]["checksum"]
            assert_whole(daemon, exp, expected)


def test_files_that_find_no_room_together_are_taken_one_by_one(tmp_path: Path, elsewhere: Path) -> None:
    """Each is copied, and waits for the room that those before it free, as when each is handed over by itself."""
    paths = [tmp_path / f"{number}.bin" for number in range(4)]
    sums = {path.name: make_file(path, 3 * MIB, seed) for seed, path in enumerate(paths)}
    quota = f"[spool]\nquota = {8 * MIB}\n"
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store"), quota) as daemon,
        daemon.experiment().run as exp,
    ):
        results = exp.files.upload_many(paths, snapshot="copy")
        assert [one["pin"] for one in results] == ["copy"] * 4
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, sums)
    settings = f'[spool]\nquota = {8 * MIB}\ndurability = "disk"\n'
    held = [Path(shutil.copy(path, elsewhere)) for path in paths]
    with (
        DaemonProcess(tmp_path / "other", Folder(tmp_path / "another"), settings) as daemon,
        daemon.experiment().run as exp,
    ):
        results = exp.files.upload_many(held)
        assert [(one["pin"], one["ack"]) for one in results] == [("copy", "disk")] * 4
        exp.files.flush(timeout=60)
        assert_whole(daemon, exp, sums)
