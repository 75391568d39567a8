"""Sets of files from several processes: all of a set is seen, or nothing of it, whatever is killed."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, MLDashError, launcher
from ml_dash.errors import Code
from tests.harness import Bucket, DaemonProcess, Folder, eventually
from tests.scenario.conftest import Held

pytestmark = pytest.mark.slow

RANK = """
import os, sys
from ml_dash import Experiment

socket, prefix, name, size, way = sys.argv[1:6]
rank = int(os.environ["RANK"])
with Experiment(prefix, socket=socket).run as exp:
    try:
        with exp.files("ckpt").checkpoint(name, world_size=4, metadata={"from": rank}) as ck:
            ck.save_blob(bytes([rank]) * int(size), to=f"rank{ck.rank}.bin")
            ck.save_json({"rank": rank}, to=f"meta/{ck.rank}.json", tags=["meta"])
            if way == "raise":
                raise RuntimeError("out of memory")
            if way == "die":
                os.kill(os.getpid(), 9)
    finally:
        print("saved", flush=True)
"""
ALL = sorted([f"ckpt/step_1000/rank{rank}.bin" for rank in range(4)]
             + [f"ckpt/step_1000/meta/{rank}.json" for rank in range(4)])  # fmt: skip


def start(
    daemon: DaemonProcess,
    ranks: Sequence[int],
    *,
    prefix: str,
    way: str = "well",
    size: int = 100_000,
    restart: int = 0,
) -> list[subprocess.Popen[bytes]]:
    """Ranks of a job as processes, as torchrun starts them."""
    said = {"TORCHELASTIC_RUN_ID": "job7", "TORCHELASTIC_RESTART_COUNT": str(restart)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(daemon.socket), prefix, "step_1000", str(size), way],
            env={"PATH": os.environ["PATH"], "HOME": str(daemon.folder), "RANK": str(rank), **said},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in ranks
    ]


def end(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Their exit statuses."""
    outputs = [process.communicate(timeout=60) for process in processes]
    statuses = [process.returncode for process in processes]
    if any(status > 0 for status in statuses):
        print(*(err.decode() for _, err in outputs), sep="\n")
    return statuses


def paths(exp: Experiment, **asked: Any) -> list[str]:
    return sorted(f"{one['path']}/{one['filename']}".strip("/") for one in exp.files().list(**asked))


@pytest.fixture(params=["local", "s3_double"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon as a service, whose store is a folder, or a bucket."""
    if request.param == "local":
        yield request.getfixturevalue("service")
        return
    with DaemonProcess(tmp_path / "daemon", Bucket(request.getfixturevalue("s3_double"))) as daemon:
        yield daemon


@pytest.fixture
def run(node: DaemonProcess) -> Iterator[Experiment]:
    """An open run on either."""
    with node.experiment(f"alice/cv/{secrets.token_hex(4)}").run as run:
        yield run


def test_four_ranks_make_one_checkpoint(node: DaemonProcess, run: Experiment, tmp_path: Path) -> None:
    """Nothing of it is seen before the last one has left its block, and then all of it."""
    assert end(start(node, [0, 1, 2], prefix=run.prefix)) == [0, 0, 0]
    run.files.flush(30)
    assert paths(run) == []
    assert not run.files("ckpt/step_1000/rank0.bin").exists()
    with pytest.raises(MLDashError, match="rank0"):
        run.files("ckpt/step_1000/rank0.bin").download(to=tmp_path / "no")
    with pytest.raises(MLDashError):
        run.files("ckpt").download("**/*.bin", to=tmp_path / "no")
    assert run.files.latest_checkpoint() is None
    assert len(paths(run, pending=True)) == 6
    (waiting,) = run.files("ckpt").checkpoints(incomplete=True)
    assert (waiting.name, waiting.attempt, waiting.missing, waiting.state) == ("step_1000", "job7.0", [3], "OPEN")
    assert end(start(node, [3], prefix=run.prefix)) == [0]
    run.files.flush(30)
    assert paths(run) == ALL
    found = run.files.latest_checkpoint()
    assert found is not None
    assert (found.name, found.attempt, found.step, found.world_size) == ("ckpt/step_1000", "job7.0", 1000, 4)
    assert [(one["filename"], one["state"]) for one in found.files[:2]] == [("0.json", "DONE"), ("1.json", "DONE")]
    assert found.files[0]["checkpoint"] == {
        "name": "ckpt/step_1000", "attempt": "job7.0", "rank": 0, "worldSize": 4, "pending": False,
    }  # fmt: skip
    assert found.files[0]["metadata"] == {"from": 0}
    assert len(found.download(to=tmp_path / "all")) == 8
    assert (tmp_path / "all/rank2.bin").read_bytes() == bytes([2]) * 100_000
    assert found.download(tmp_path / "one", rank=1) == [
        str(tmp_path / "one/meta/1.json"),
        str(tmp_path / "one/rank1.bin"),
    ]
    assert run.files.checkpoints(incomplete=True) == []
    assert {node.store.key_of(one) for one in found.files} <= {*node.store.keys()}
    found.delete()
    assert paths(run, pending=True) == []


def test_ranks_on_two_nodes_of_a_fleet(mongodb_url: str, tmp_path: Path) -> None:
    """Two daemons with one catalog and one store; one of them is killed with a share in its journal."""
    store, settings = Folder(tmp_path / "store"), f'[catalog]\nurl = "{mongodb_url}"\n'
    with (
        DaemonProcess(tmp_path / "a", store, settings=settings) as first,
        DaemonProcess(tmp_path / "b", store, settings=settings) as second,
        first.experiment().run as here,
        second.experiment().run as there,
    ):
        assert end(start(first, [0, 1, 2], prefix=here.prefix)) == [0, 0, 0]
        second.kill()
        second.start(faults="sets.before_deliver=kill")
        ranks = start(second, [3], prefix=here.prefix)
        second.wait_for_death()
        assert paths(here) == []
        second.start()
        assert end(ranks) == [0]
        there.files.flush(30)
        assert paths(here) == paths(there) == ALL
        found = here.files.latest_checkpoint()
        assert found is not None
        assert len(found.download(tmp_path / "all")) == 8


def test_a_rank_that_is_killed_or_raises_completes_nothing(service: DaemonProcess, exp: Experiment) -> None:
    """Its files stay pending; the next attempt is complete without them, and wins."""
    assert end(start(service, [0, 1], prefix=exp.prefix)) == [0, 0]
    assert end(start(service, [2], prefix=exp.prefix, way="die")) == [-9]
    assert end(start(service, [3], prefix=exp.prefix, way="raise")) == [1]
    exp.files.flush(30)
    assert paths(exp) == []
    assert paths(exp, pending=True) == ALL
    assert end(start(service, range(4), prefix=exp.prefix, restart=1)) == [0] * 4
    exp.files.flush(30)
    found = exp.files.latest_checkpoint()
    assert found is not None
    assert found.attempt == "job7.1"
    assert paths(exp) == ALL
    assert len(paths(exp, pending=True)) == 16
    (open_one,) = exp.files.checkpoints(incomplete=True)
    assert (open_one.attempt, open_one.missing) == ("job7.0", [2, 3])
    assert end(start(service, [2, 3], prefix=exp.prefix)) == [0, 0]  # the older attempt, complete after all
    exp.files.flush(30)
    newest = exp.files.latest_checkpoint()
    assert newest is not None
    assert newest.attempt == "job7.1"
    assert {one["checkpoint"]["attempt"] for one in exp.files().list(latest=True)} == {"job7.1"}


def test_a_rank_that_counts_others_is_refused(exp: Experiment) -> None:
    with exp.files.checkpoint("step_1", world_size=2, rank=0, attempt="x") as ck:
        ck.save_text("0", to="0.txt")
    with (
        pytest.raises(ValueError, match="world_size=3") as refused,
        exp.files.checkpoint("step_1", world_size=3, rank=1, attempt="x"),
    ):
        pass
    assert refused.value.code is Code.SET_MISMATCH
    assert "attempt=" in refused.value.hint
    with exp.files.checkpoint("step_1", world_size=2, rank=1, attempt="x") as ck:
        ck.save_text("1", to="1.txt")
    assert ck.wait(30).is_whole()
    assert paths(exp) == ["step_1/0.txt", "step_1/1.txt"]


def test_a_rank_saves_again(exp: Experiment) -> None:
    """Within the attempt it replaces its share; at a complete set it begins another round, which mixes with nothing."""
    for text in ("first", "second"):
        with exp.files.checkpoint("s", world_size=2, rank=0, attempt=1) as first:
            first.save_text(text, to="0.txt")
    assert paths(exp) == []
    with exp.files.checkpoint("s", world_size=2, rank=1, attempt=1) as ck:
        ck.save_text("1", to="1.txt")
    ck.wait(30)
    assert exp.files("s/0.txt").read_text() == "second"
    assert len(exp.files().list(pending=True)) == 2
    with exp.files.checkpoint("s", world_size=2, rank=0, attempt=1) as ck:
        ck.save_text("third", to="0.txt")
    exp.files.flush(30)
    assert exp.files("s/0.txt").read_text() == "second"
    with pytest.raises(TimeoutError, match="ranks 1 are missing"):
        ck.wait(0.1)


def test_a_single_rank_needs_nothing_else(exp: Experiment, tmp_path: Path) -> None:
    """Every saver, `upload`, `upload_many`; each call is a version."""
    (tmp_path / "a.bin").write_bytes(b"a" * 70_000)
    for text in ("one", "two"):
        with exp.files("best").checkpoint("last", tags=["t"]) as ck:
            ck.save_text(text, to="note.txt")
            ck.upload(tmp_path / "a.bin")
            ck.upload_many({f"many/{number}.bin": tmp_path / "a.bin" for number in range(2)})
            ck.save_pkl({"a": 1}, to="a.pkl")
            ck.save({"a": 1}, to="b.json", supersede=True)
            with ck.writing("c.bin") as written:
                written.out.write(b"c" * 100_000)
        saved = ck.wait(30)
    assert [one["filename"] for one in saved.files] == [
        "a.bin",
        "a.pkl",
        "b.json",
        "c.bin",
        "0.bin",
        "1.bin",
        "note.txt",
    ]
    assert {tuple(one["tags"]) for one in saved.files} == {("t",)}
    assert len(exp.files("best/last").list("note.txt")) == 2
    assert exp.files("best/last/note.txt").read_text() == "two"
    latest = exp.files("best").latest_checkpoint()
    assert latest is not None
    assert (latest.id, latest.name, latest.step) == (saved.id, "last", None)
    exp.files(file_id=saved.files[0]["id"]).delete()
    older = exp.files.latest_checkpoint()
    assert older is not None
    assert older.id != saved.id, "a set that lacks a file is none"


def test_what_is_passed_wrongly(exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for wrong, match in (
        ({"world_size": 2}, "which rank"),
        ({"world_size": 0}, "world_size=0"),
        ({"world_size": True}, "world_size=True"),
        ({"world_size": 2, "rank": -1}, "rank=-1"),
        ({"world_size": 2, "rank": 2}, "rank=2"),
        ({"world_size": 70_000, "rank": 2}, "world_size=70000"),
        ({"attempt": 1.5}, "attempt=1.5"),
        ({"attempt": ""}, "attempt is empty"),
    ):
        with pytest.raises(ValueError, match=match), exp.files.checkpoint("x", **wrong):
            pass
    for name in ("", "/x", "../x"):
        with pytest.raises(ValueError), exp.files.checkpoint(name):
            pass
    ck = exp.files.checkpoint("x")
    with pytest.raises(ValueError, match="outside of the with block"):
        ck.save_text("a", to="a.txt")
    with pytest.raises(ValueError, match="is not ended"):
        ck.wait()


def test_a_set_protects_its_files_from_newer_versions(held: Held) -> None:
    """In either direction: neither gives a file of a set way, nor does it take another's place before it is seen."""
    exp = held.exp
    with exp.files.checkpoint("s", world_size=1) as ck:
        ck.save_text("in the set", to="a.txt")
    plain = exp.files.save_text("plain", to="s/a.txt", supersede=True)
    held.let_go()
    exp.files.flush(30)
    assert [one["state"] for one in exp.files("s").list("a.txt")] == ["DONE", "DONE"]
    assert ck.wait(30).is_whole()
    assert exp.files("s/a.txt").read_text() == "plain"
    assert plain.refresh()["state"] == "DONE"


def test_prune_keeps_a_set_or_drops_it(exp: Experiment) -> None:
    """By its name, as one: a file that only one attempt has goes with it."""
    for attempt in range(4):
        with exp.files("c").checkpoint("s", world_size=1, attempt=str(attempt)) as ck:
            ck.save_text(str(attempt), to="a.txt", tags=["keep"] if attempt == 0 else [])
            ck.save_text(str(attempt), to=f"only{attempt}.txt")
        ck.wait(30)
        exp.files.save_text(str(attempt), to="c/s/plain.txt")
    exp.files.flush(30)
    asked = {"keep_last": 1, "keep_tags": ["keep"]}
    assert exp.files("c").prune("**/a.txt", keep_last=1) == [], "not all of a set fits"
    would = [one["filename"] for one in exp.files("c").prune(**asked, dry_run=True)]
    assert sorted(would) == ["a.txt"] * 2 + ["only1.txt", "only2.txt"] + ["plain.txt"] * 3
    assert [one["filename"] for one in exp.files("c").prune(**asked)] == would
    assert paths(exp) == [
        "c/s/a.txt", "c/s/a.txt", "c/s/only0.txt", "c/s/only3.txt", "c/s/plain.txt",
    ]  # fmt: skip
    assert [one.attempt for one in exp.files.checkpoints()] == ["3", "0"]


def test_the_command_shows_what_is_missing(service: DaemonProcess, exp: Experiment) -> None:
    with exp.files.checkpoint("step_7", world_size=3, rank=1, attempt="x") as ck:
        ck.save_text("1", to="1.txt")
    exp.files.flush(30)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "ml_dash.cli", *words, "--socket", str(service.socket)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert run("ls", "--prefix", exp.prefix) == ""
    assert "step_7/1.txt" in run("ls", "--pending", "--prefix", exp.prefix)
    (line,) = [line for line in run("status").splitlines() if exp.prefix in line]
    assert "step_7 attempt x" in line
    assert "1 of 3 ranks" in line
    assert "missing: 0, 2" in line
    assert '"missing": [\n        0,\n        2\n      ]' in run("status", "--json")


def test_a_share_waits_for_a_file_that_failed(tmp_path: Path) -> None:
    """flush raises what it failed with, and does not wait for the set; saved again, the set is complete."""
    source, store = tmp_path / "a.bin", Folder(tmp_path / "store")
    source.write_bytes(b"a" * 200_000)
    store.root.mkdir()
    (store.root / ".ml-dash-tmp").touch()  # nothing can be sent while a plain file stands there
    with (
        DaemonProcess(tmp_path / "daemon", store, settings="[spool]\ncopy_below = 0\n") as daemon,
        daemon.experiment().run as exp,
    ):
        with exp.files.checkpoint("s", world_size=1, attempt="x") as ck:
            ck.save_text("1", to="1.txt")
            failed = ck.upload(source, to="a.bin")
        source.write_bytes(b"b" * 200_001)
        (store.root / ".ml-dash-tmp").unlink()
        with pytest.raises(MLDashError, match=r"a\.bin") as refused:
            exp.files.flush(30)
        assert refused.value.code is Code.SOURCE_CHANGED
        assert paths(exp) == []
        assert "share_stuck" in daemon.log()
        with exp.files.checkpoint("s", world_size=1, attempt="x") as again:
            again.upload(source, to="a.bin")
        assert again.wait(30).is_whole()
        assert paths(exp) == ["s/a.bin"]
        with pytest.raises(MLDashError, match="saved again"):
            ck.wait(30)
        exp.files(file_id=failed["id"]).delete()


def test_what_is_given_up_is_deleted(tmp_path: Path) -> None:
    """After [retention] incomplete_sets: the set is no longer shown, and the bytes of its files are reclaimed."""
    store = Folder(tmp_path / "store")
    with DaemonProcess(
        tmp_path / "daemon", store, settings="delete_grace = 0\n[retention]\nincomplete_sets = 1\n"
    ) as daemon:
        with daemon.experiment().run as exp:
            with exp.files.checkpoint("s", world_size=2, rank=0, attempt="x") as ck:
                ck.save_text("0", to="0.txt")
            with suppress(RuntimeError), exp.files.checkpoint("t") as left:
                left.save_text("1", to="1.txt")
                raise RuntimeError
            kept = exp.files.save_text("kept", to="kept.txt").wait(30)
            exp.files.flush(30)
            eventually(lambda: store.keys() == [store.key_of(kept)])
            assert paths(exp, pending=True) == ["kept.txt"]
            assert exp.files.checkpoints(incomplete=True) == []
            with pytest.raises(MLDashError) as refused:
                ck.wait(1)
            assert refused.value.code is Code.SET_INCOMPLETE
        assert "set_dropped" in daemon.log()


def test_the_page_on_checkpoints(service: DaemonProcess, tmp_path: Path) -> None:
    """Its example of several ranks, as torchrun would start it: each sees the whole set."""
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    (example,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "world_size" in one]
    said = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "ML_DASH_SOCKET": str(service.socket)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", example],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RANK": str(rank), **said},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == [b"step_1000 x.0 1000 2\n"] * 2
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert (tmp_path / "back1/rank1.pkl").exists()
    assert not (tmp_path / "back1/rank0.pkl").exists()


def test_the_launcher_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun, Slurm, both, neither: what tells one start of a job from the next."""
    names = [*launcher.RANKS, *(name for names in launcher.ATTEMPTS for name in names)]
    for said, rank, attempt in (
        ({"RANK": "3", "TORCHELASTIC_RUN_ID": "a/b", "TORCHELASTIC_RESTART_COUNT": "2"}, 3, "a-b.2"),
        ({"SLURM_PROCID": "5", "SLURM_JOB_ID": "77"}, 5, "77.0"),
        ({"SLURM_PROCID": "5", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "4"}, 5, "77.1.4"),
        ({"RANK": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "77", "TORCHELASTIC_RUN_ID": "x"}, 1, "77.0.x.0"),
        ({"OMPI_COMM_WORLD_RANK": "2"}, 2, "0"),
    ):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        assert (launcher.rank_of("s", 8), launcher.attempt_of()) == (rank, attempt)
        assert launcher.rank_of("s", 1) == 0
