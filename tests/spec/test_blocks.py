"""Every block of blocks.md runs as it stands there, in a folder and in S3, and passes a type checker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from tests.doubles.s3_double import S3Double
from tests.harness import Bucket, DaemonProcess
from tests.scenario.api_page_checks import example
from tests.scenario.embedded import Root
from tests.unit.api_pages import calls

pytestmark = pytest.mark.slow

PAGE = Path(__file__).with_name("blocks.md")
FENCED = re.compile(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: dict[str, str] = dict(FENCED.findall(PAGE.read_text()))
OPEN = 'from ml_dash import Experiment\n\nexp = Experiment(prefix="alice/cv/resnet").run.start()\n'
TORCH = "import torch\n\nmodel = torch.nn.Linear(4, 2)\n"
FROM_THE_START = """\
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

obj = {"a": [1, 2, 3]}
fig = pyplot.figure()
frames = [np.full((32, 32, 3), number, np.uint8) for number in range(10)]
"""
TRAINING = """\
from typing import Any

loader: list[int] = []
accuracies = iter([0.1, 0.5, 0.3, *[0.4] * 96, 0.9])


def train_one_epoch(model: Any, loader: list[int]) -> tuple[float, float]:
    return 0.25, next(accuracies)


"""
SAVED = """
for path in ("model.pt", "some.txt", "images/0.png", "images/1.png", "models/a.pt", "configs/c.json"):
    exp.files.save_text(path, to=path)

"""
LENGTHS = "\nprint(len(all_files), len(model_files), len(pngs), len(configs), paths)\n"


@dataclass(frozen=True)
class Case:
    """What a block needs before it, and what there is after it: versions by their paths."""

    versions: dict[str, int]
    before: str = OPEN
    after: str = ""
    torch: bool = False
    prefix: str = "alice/cv/resnet"
    says: str = ""
    writes: tuple[str, ...] = field(default=())


CASES = {
    "API at a glance": Case(
        {
            "checkpoints/model.pt": 2, "checkpoints/best.pt": 1, "configs/config.json": 1, "configs/view.yaml": 1,
            "data/data.bin": 1, "data/data.pkl": 1, "plots/loss.png": 1, "videos/rollout.mp4": 1,
        },
        before=TORCH + FROM_THE_START,
        torch=True,
        prefix="alice/project/my-experiment",
    ),
    "Save with metadata": Case(
        {"models/best_model.pt": 1},
        before=TORCH + OPEN,
        after='\nprint(*(result[name] for name in ("filename", "path", "description", "tags", "metadata")))\n',
        torch=True,
        says="best_model.pt /models Best model from epoch 50 ['checkpoint', 'best'] "
        "{'epoch': 50, 'val_accuracy': 0.95}\n",
    ),
    "Paths and organization": Case(
        {"models/model.pth": 1, "models/checkpoints/best.pth": 1, "config/config.json": 1, "results/results.csv": 1},
        before=OPEN + 'config = {"lr": 1e-3}\n',
    ),
    "Direct style": Case({"models/checkpoints/best.pt": 1, "configs/config.json": 1, "notes/view.yaml": 1}),
    "Listing, downloading, deleting": Case(
        {"model.pt": 1, "models/a.pt": 1, "configs/c.json": 1},
        before=OPEN + SAVED,
        after=LENGTHS,
        says="6 1 2 1 ['out/0.png', 'out/1.png']\n",
        writes=("local.pt", "model.pt", "out/0.png", "out/1.png"),
    ),
    "Updating metadata": Case({"models/a.pt": 1}),
    "End-to-end example": Case(
        {f"checkpoints/epoch_{number}.pt": 1 for number in range(10, 101, 10)} | {"models/best.pt": 3},
        before=TORCH + TRAINING,
        torch=True,
    ),
}  # fmt: skip
SOURCES = ("model.pt", "model.pth", "best.pth", "results.csv")


@dataclass
class Place:
    """Where a block runs, and how its experiment is looked at afterwards."""

    folder: Path
    environment: dict[str, str]
    options: dict[str, Any]

    def experiment(self, prefix: str) -> Experiment:
        return Experiment(prefix, **self.options)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3_double: S3Double) -> Iterator[Place]:
    folder = tmp_path / "work"
    folder.mkdir()
    if request.param == "folder":
        root: Root = request.getfixturevalue("make_root")("work/.dash")
        yield Place(folder, {}, {"dash_root": root.path})
        return
    with DaemonProcess(tmp_path / "daemon", Bucket(s3_double)) as daemon:
        yield Place(folder, {"ML_DASH_SOCKET": str(daemon.socket)}, {"socket": daemon.socket})


def test_every_block_has_its_case() -> None:
    assert set(CASES) == set(BLOCKS)


@pytest.mark.parametrize("title", CASES)
def test_a_block_runs_as_written(place: Place, title: str, request: pytest.FixtureRequest) -> None:
    case, block = CASES[title], BLOCKS[title]
    for name in SOURCES:
        (place.folder / name).write_text(name)
    with place.experiment(case.prefix).run as exp:
        if title == "Updating metadata":
            made = exp.files("models").save_text("a", to="a.pt")
            block = block.replace("abc123", made["id"])
        paths = [] if not case.torch else [packages_of(request.getfixturevalue("torch"))]
        assert run(place, case.before + block + case.after, paths) == (case.says, "")
        exp.files.flush(60)
        listed = exp.files().list()
        found = [f"{each['path']}/{each['filename']}".strip("/") for each in listed]
        assert {path: found.count(path) for path in found} == case.versions
        assert {each["state"] for each in listed} == {"DONE"}
        for each in listed:  # whole, as a download proves
            exp.files(file_id=each["id"]).download(to=place.folder / "proof")
        if title == "Updating metadata":
            updated = {name: listed[0][name] for name in ("description", "tags", "metadata")}
            assert updated == {
                "description": "Updated description", "tags": ["new", "tags"], "metadata": {"updated": True},
            }  # fmt: skip
        if title == "End-to-end example":
            assert exp.params.get() == {"model": "resnet50", "epochs": 100}
            rows = [*exp.metrics("train")]
            assert [(row["epoch"], row["loss"]) for row in rows] == [(epoch, 0.25) for epoch in range(100)]
            assert [row["epoch"] for row in exp.metrics()] == [*range(100)]
    for name in case.writes:
        assert (place.folder / name).is_file(), name


def test_an_id_that_nobody_has(place: Place) -> None:
    block = textwrap.indent(BLOCKS["Updating metadata"], "    ")
    script = f"{OPEN}try:\n{block}except FileNotFoundError as refused:\n    print(refused)\n"
    assert run(place, script, [])[0].startswith("no file has the id 'abc123'")


def packages_of(python: Path) -> str:
    """Where another Python of this version has its packages."""
    (found,) = python.parent.parent.glob("lib/python*/site-packages")
    return str(found)


def run(place: Place, script: str, paths: list[str]) -> tuple[str, str]:
    """What a script says in its folder."""
    (place.folder / "train.py").write_text(script)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place.folder.parent),
        "PYTHONPATH": os.pathsep.join(paths),
    } | place.environment
    ended = subprocess.run(
        [sys.executable, "train.py"], cwd=place.folder, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return ended.stdout, ended.stderr


RIGHT = (
    'save_json({}, to="a.json", description="d", tags=["a"], bindrs=("b",), metadata={"n": 1}, priority=3)',
    'save_blob(b"", to="a", durability="disk", supersede=True)',
    'upload_many({"a": "b"}, tags=["x"], durability="disk", snapshot="copy")',
    'save_video([], to="a.mp4", fps=24, codec="h265", quality=7.5, tags=["v"])',
    'save_fig(to="a.png", dpi=200, tags=["f"])',
    'duplicate("a", "b", tags=["t"], priority=1)',
)
WRONG = (
    "upload(3)",
    'save_text("x", to=None)',
    'upload("a", tag=["x"])',
    'save_json({}, to="a.json", tag=["x"])',
    'save_text("a", to="a.txt", tags=3)',
    'save_blob(b"", to="a", metadata=["n"])',
    'save_pkl(1, to="a", desc="d")',
    'save_torch({}, to="a.pt", priority="high")',
    'save_image(1, to="a.png", qualty=3)',
    'save_video([], to="a.mp4", crf=20)',
    'save({}, to="a.json", durable=True)',
    'upload_many(["a"], snapshots="copy")',
    'duplicate("a", "b", metadata="m")',
)
"""What a checker has to find; each is one line."""


def test_the_blocks_and_the_examples_of_the_calls_pass_a_type_checker(tmp_path: Path) -> None:
    """By the annotations that are installed (py.typed), as a user's own checker sees them."""
    for number, (title, case) in enumerate(CASES.items()):
        (tmp_path / f"block_{number}.py").write_text(case.before + BLOCKS[title] + case.after)
    for number, page in enumerate(calls()):
        (tmp_path / f"page_{number}.py").write_text(example(page))
    one = 'with open(exp.files("model.pt").download()) as file:\n    print(file, exp.files("a.txt").delete()["ids"])\n'
    (tmp_path / "one.py").write_text(OPEN + one)  # of one file: a path, a receipt
    (tmp_path / "right.py").write_text(OPEN + "".join(f"exp.files.{call}\n" for call in RIGHT))
    (tmp_path / "wrong.py").write_text(OPEN + "".join(f"exp.files.{call}\n" for call in WRONG))
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--check-untyped-defs",
         "--cache-dir", str(tmp_path / "cache"), *sorted(path.name for path in tmp_path.glob("*.py"))],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    errors = [line for line in ended.stdout.splitlines() if ": error: " in line]
    first = OPEN.count("\n") + 1
    found = {tuple(line.split(":", 2)[:2]) for line in errors}
    assert found == {("wrong.py", str(first + number)) for number in range(len(WRONG))}, ended.stdout + ended.stderr
