"""The Python of README.md runs as it stands there, in its order, in a folder with a daemon of its own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scenario.embedded import Root
from tests.spec.test_blocks import FROM_THE_START, TORCH, Place, packages_of, run

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BEFORE = f"""{TORCH}{FROM_THE_START}
array, state, shard = frames[0], model.state_dict(), model.state_dict()
paths = ["last.pt", "model.pt"]
"""
RANK_0 = {"RANK": "0", "TORCHELASTIC_RUN_ID": "job-1", "TORCHELASTIC_RESTART_COUNT": "0", "USER": "alice"}


def test_the_blocks_run_as_written(make_root: Callable[..., Root], tmp_path: Path, torch: Path) -> None:
    root = make_root("work/.dash")
    place = Place(tmp_path / "work", RANK_0, {"dash_root": root.path})
    place.folder.mkdir(exist_ok=True)
    for name in ("last.pt", "model.pt"):
        (place.folder / name).write_text(name)
    first, calls, run_of_it = BLOCK.findall(PAGE.read_text())
    within = 'with Experiment(prefix="alice/cv/resnet").run as exp:\n' + textwrap.indent(calls, "    ")
    assert run(place, BEFORE + first + within + run_of_it, [packages_of(torch)]) == ("", "")
    with place.experiment("alice/cv/resnet").run as exp:
        exp.files.flush(60)
        found = exp.files().list()
        assert {each["state"] for each in found} == {"DONE"}
        assert sorted(f"{each['path']}/{each['filename']}".strip("/") for each in found) == [
            "any/b.png", "checkpoints/a.pt", "checkpoints/epoch_3.pt", "configs/config.json", "data/batch.npz",
            "data/data.pkl", "models/last.pt", "plots/loss.png", "release/v1.pt", "samples/a.png", "set/last.pt",
            "set/model.pt", "videos/rollout.mp4",
        ]  # fmt: skip
        assert exp.params.get() == {"model": "resnet50", "opt.name": "adam", "opt.lr": 0.1}
        assert [(row["epoch"], row["loss"], row["accuracy"]) for row in exp.metrics("train")] == [(1, 0.5, 0.8)]
    assert (place.folder / "here.pt").read_text() == "model.pt"
