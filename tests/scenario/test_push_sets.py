"""`push` of sets: whole in the service or not seen there, whatever breaks off; what is not complete stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash import Experiment, MLDashError
from tests.crash.test_kill_daemon import revived
from tests.harness import PREFIX, DaemonProcess, Folder
from tests.scenario.embedded import Root
from tests.scenario.shell import Shell

pytestmark = pytest.mark.slow


def save(exp: Experiment, name: str, ranks: list[int], attempt: str = "a", world_size: int = 3) -> None:
    for rank in ranks:
        with exp.files("ckpt").checkpoint(name, world_size=world_size, rank=rank, attempt=attempt) as ck:
            if rank != 2:  # a rank that has nothing to save
                ck.save_text(f"{attempt} {rank}", to=f"deep/{rank}.txt")
    exp.files.flush(60)


def test_sets_go_whole_and_stay_sets(root: Root, tmp_path: Path) -> None:
    with (
        DaemonProcess(tmp_path / "daemon", Folder(tmp_path / "store")) as daemon,
        root.experiment(wait=True).run as exp,
    ):
        save(exp, "step_1", [0, 1, 2])
        save(exp, "step_1", [0, 1, 2])  # once more: its next round
        save(exp, "step_2", [0, 1, 2])
        save(exp, "step_3", [0, 2])
        single = exp.files.save_text("single", to="ckpt/step_2/single.txt")
        exp.files.flush(60)
        damaged = exp.files("ckpt").latest_checkpoint()
        assert damaged is not None
        exp.files(file_id=damaged.files[0]["id"]).delete()
        shell = Shell(tmp_path, ["--socket", str(daemon.socket)])
        assert "1 incomplete set left in the root" in shell("push", str(root.path), "--dry-run").out
        assert daemon.store.keys() == []
        daemon.kill()
        daemon.start(faults="sets.before_journal=kill@3")
        with revived(daemon):  # in the middle of a set's shares
            said = shell.json("push", str(root.path))
        assert (said["failed"], said["incompleteSetsInRoot"]) == ([], 1)
        with daemon.experiment(PREFIX).run as there:
            assert [one["id"] for one in there.files().list()] == [one["id"] for one in exp.files().list()]
            assert single["id"] in {one["id"] for one in there.files().list()}
            assert [(one.name, one.attempt, one.size_bytes) for one in there.files("ckpt").checkpoints()] == [
                (one.name, one.attempt, one.size_bytes) for one in exp.files("ckpt").checkpoints()[1:]
            ]
            newest = there.files("ckpt").latest_checkpoint()
            assert newest is not None
            assert (newest.name, [one["checkpoint"]["rank"] for one in newest.files]) == ("step_1", [0, 1])
            assert shell("push", str(root.path)).out.startswith("0 files pushed, 6 there already")
            assert len(there.files().list(pending=True)) == 6
            with pytest.raises(MLDashError):
                there.files("ckpt/step_3/deep/0.txt").read_text()
