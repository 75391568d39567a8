"""The examples of docs/files.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_dash import Experiment

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_run(exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = EXAMPLE.findall(PAGE.read_text())
    assert len(examples) == 10
    names: dict[str, object] = {"exp": exp}
    for example in examples:
        exec(example, names)  # noqa: S102 they are ours
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["back/best.pt", "back/models/best.pt", "best.pt", "first.pt"]
    assert exp.files().list() == [], "the last one deletes what the others saved"
