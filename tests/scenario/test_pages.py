"""The code on the pages runs as it stands, in its order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_dash import Experiment
from tests.scenario.embedded import Root, run_trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_on_experiments(make_root: Callable[..., Root], tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs/experiments.md").read_text())
    script = tmp_path / "page.py"
    script.write_text("\n".join([*blocks, CLAIMS]))
    root = make_root("work/.dash")
    root.path.parent.mkdir()
    out, err, status = run_trainer(script, cwd=root.path.parent)
    assert (err, status) == ("", 0)
    assert out.count("'_ts'") == 5
    (tree,) = root.path.glob("*/cv/resnet-*")
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*.json*") if "files" not in path.parts) == [
        "experiment.json", "metrics/None/data.jsonl", "metrics/eval/data.jsonl", "metrics/train/data.jsonl",
        "parameters.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("page", "blocks"), [("listing.md", 1), ("results.md", 4)])
def test_the_pages_of_an_open_run(
    exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, blocks: int
) -> None:
    monkeypatch.chdir(tmp_path)
    exp.files("frames").save_text("a", to="a.txt")
    found = BLOCK.findall((ROOT / "docs" / page).read_text())
    assert len(found) == blocks
    exec("\n".join(found), {"exp": exp})  # noqa: S102 they are ours


CLAIMS = """
with experiment.run as exp:
    assert exp.metrics.names() == ["", "eval", "train"]
    assert exp.params.get() == {"model": "resnet50", "opt.lr": 0.05, "opt.name": "adam"}
    assert exp.params.get(flatten=False) == {"model": "resnet50", "opt": {"lr": 0.05, "name": "adam"}}
assert [row["index"] for row in page["data"]] == [2, 3]
assert page | {"data": 0} == {"data": 0, "startIndex": 2, "endIndex": 3, "total": 4, "hasMore": False}
"""
