"""A newer version of a path drops older ones that are not stored yet, where that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError
from ml_dash.cli import main
from ml_dash.errors import Code
from tests.harness import Bucket, DaemonProcess, Folder, StoreUnderTest, assert_whole, eventually, make_file
from tests.scenario.conftest import Held
from tests.scenario.test_files import refused

pytestmark = pytest.mark.slow

MIB = 1 << 20
SLOW = "[limits]\nbandwidth = 8388608\n"
"""A file of 40 MiB is seconds from its end when the first part is sent."""


def states(exp: Experiment) -> dict[str, str]:
    return {record["id"]: record["state"] for record in exp.files().list()}


def gave_way(old: Any, new: Any) -> bool:
    """Whether whoever waits for the old version is told, and which one took its place."""
    with pytest.raises(RuntimeError) as told:
        old.wait(30)
    assert isinstance(told.value, MLDashError)
    return told.value.code is Code.SUPERSEDED and new["id"] in told.value.message


def save_small(exp: Experiment, number: int, **words: Any) -> Any:
    return exp.files("models").save_text(str(number), to="last.pt", **words)


def save_slot(exp: Experiment, number: int, **words: Any) -> Any:
    return exp.files("models").save_blob(bytes([number]) * MIB, to="last.pt", **words)


@pytest.mark.parametrize("save", [save_small, save_slot])
def test_the_newest_is_all_that_is_stored(held: Held, service: DaemonProcess, save: Any) -> None:
    exp = held.exp
    before = service.status().superseded_files
    first, second = save(exp, 1), save(exp, 2)
    third = save(exp, 3, supersede=True)
    fourth = save(exp, 4, supersede=True)
    assert [*states(exp)] == [fourth["id"]]
    assert gave_way(first, third)
    assert gave_way(second, third)
    assert gave_way(third, fourth)
    assert {one.state for one in (first, second, third)} == {"CANCELLED"}
    held.let_go()
    fourth.wait(30)
    exp.files.flush(30)  # nobody failed
    assert states(exp) == {fourth["id"]: "DONE"}
    let_go = "SELECT count(*) FROM files WHERE superseded_by IS NOT NULL AND state <> 'CANCELLED'"
    eventually(lambda: service.rows(let_go) == [(0,)])  # one that was on the line is taken back when it is through
    keys, place = service.store.keys(), f"{held.exp.files.place.namespace}/"
    assert [key for key in keys if key.startswith(place)] == [service.store.key_of(fourth)]
    assert service.status().superseded_files == before + 3
    assert f"by={fourth['id']}" in service.log()


def test_what_else_there_is_stays(held: Held) -> None:
    """Other paths, other experiments, what was not asked to go, what is deleted, and what is stored."""
    exp = held.exp
    other = exp.files("models").save_text("x", to="best.pt")
    below = exp.files("models/last.pt").save_text("x", to="last.pt")
    deleted = save_small(exp, 0)
    exp.files(file_id=deleted["id"]).delete()
    old = save_small(exp, 1)
    kept = save_small(exp, 2)
    assert {*states(exp)} == {one["id"] for one in (other, below, old, kept)}
    held.let_go()
    exp.files.flush(30)
    new = save_small(exp, 3, supersede=True).wait(30)
    assert {*states(exp)} == {one["id"] for one in (other, below, old, kept, new)}
    assert {*states(exp).values()} == {"DONE"}
    refused(lambda: deleted.wait(30), Code.CANCELLED, RuntimeError)


def test_the_builder_says_it_for_all_and_a_call_for_itself(held: Held) -> None:
    files = held.exp.files("models", supersede=True)
    first = files.save_text("1", to="last.pt")
    second = files.save_text("2", to="last.pt", supersede=False)
    assert {*states(held.exp)} == {first["id"], second["id"]}
    third, fourth = files.upload_many({"last.pt": __file__, "other.py": __file__})
    assert {*states(held.exp)} == {third["id"], fourth["id"]}
    for bad in (1, "yes", None):
        if bad is not None:
            refused(
                lambda bad=bad: files.save_text("5", to="last.pt", supersede=bad), Code.INVALID_ARGUMENT, ValueError
            )
        refused(lambda bad=bad: held.exp.files("models", supersede=bad), Code.INVALID_ARGUMENT, ValueError)


@pytest.mark.parametrize("kind", ["local", "s3_double"])
def test_one_that_is_being_sent(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    """Its upload is aborted, its pin let go."""
    store: StoreUnderTest = (
        Folder(tmp_path / "store") if kind == "local" else Bucket(request.getfixturevalue("s3_double"))
    )
    make_file(tmp_path / "1.bin", 40 * MIB)
    sha256 = make_file(tmp_path / "2.bin", 2 * MIB, seed=1)
    with DaemonProcess(tmp_path / "daemon", store, settings=SLOW) as daemon:
        daemon.kill()
        daemon.start("upload.part_journaled=hang")
        with daemon.experiment().run as exp:
            old = exp.files.upload(tmp_path / "1.bin", to="last.bin")
            daemon.wait_until_hung()
            assert store.open_uploads() != []
            daemon.resume()
            new = exp.files.upload(tmp_path / "2.bin", to="last.bin", supersede=True)
            assert gave_way(old, new)
            new.wait(60)
            eventually(lambda: store.open_uploads() == [])
            eventually(lambda: daemon.rows("SELECT state FROM files ORDER BY id") == [("CANCELLED",), ("DONE",)])
            assert_whole(daemon, exp, {"last.bin": sha256})


def test_the_settings_ask_for_it_and_a_tag_protects(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    settings = '[spool]\nsupersede = ["last.pt", "**/latest.pt"]\n[retention]\nkeep_tags = ["best"]\n'
    store.root.mkdir()
    (store.root / "alice").touch()
    with DaemonProcess(tmp_path / "daemon", store, settings=settings) as daemon, daemon.experiment().run as exp:
        best = exp.files.save_text("1", to="last.pt", tags=["best"])
        tagged_later = exp.files.save_text("2", to="last.pt")
        exp.files(file_id=tagged_later["id"], tags=["best"]).update()
        exp.files.save_text("3", to="last.pt")
        newest = exp.files.save_text("4", to="last.pt")
        exp.files.save_text("1", to="a/b/latest.pt")
        latest = exp.files.save_text("2", to="a/b/latest.pt")
        others = [exp.files.save_text(text, to="a/last.pt") for text in "12"]
        assert {*states(exp)} == {one["id"] for one in (best, tagged_later, newest, latest, *others)}
        client = daemon.status()
        assert client.superseded_files == 2
        (store.root / "alice").unlink()
        exp.files.flush(60)
        assert {*states(exp).values()} == {"DONE"}


def test_from_a_shell(held: Held, service: DaemonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = held.exp.files.place
    prefix = f"{place.namespace}/{place.project}/{place.experiment}"
    (tmp_path / "last.pt").write_text("weights")
    put = [
        "put",
        str(tmp_path / "last.pt"),
        "--prefix",
        prefix,
        "--socket",
        str(service.socket),
        "--json",
        "--supersede",
    ]
    ids = []
    for _ in range(2):
        assert main(put) == 0
        ids.append(json.loads(capsys.readouterr().out)["id"])
    assert [*states(held.exp)] == ids[1:]
    assert main(["status", "--socket", str(service.socket)]) == 0
    assert "gave way to newer versions" in capsys.readouterr().out
