"""docs/saving.md: every example runs, and its files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.media import encoding, image
from tests.harness import DaemonProcess
from tests.scenario import api_page_checks
from tests.scenario.test_files import paths

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "saving.md"


def test_every_example_runs(
    service: DaemonProcess,
    exp: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 10
    exec("\n".join(examples), {"exp": exp})  # noqa: S102 our own page
    exp.files.flush(60)
    assert paths(exp.files().list()) == [
        "any/config.json", "any/data.bin", "any/model.pt", "any/noise.png", "configs/config.json",
        "data/batch.npz", "data/data.bin", "data/more.npz",
        "frames/0.txt", "frames/1.txt", "frames/2.txt", "frames/last/0.txt", "models/best.pt",
        "models/model.pt", "models/model.pt", "models/model.safetensors",
        "notes/view.yaml", "plots/accuracy.pdf", "plots/loss.png", "samples/black.webp", "samples/noise.jpg",
        "samples/noise.png", "videos/exact.mp4", "videos/line.webm", "videos/rollout.mp4", "videos/small.mp4",
    ]  # fmt: skip
    assert [line for line in capsys.readouterr().out.splitlines() if line not in PAGE.read_text()] == []
    monkeypatch.setenv("ML_DASH_SOCKET", str(service.socket))
    api_page_checks.check("files.save_fig")


def test_every_format_is_named() -> None:
    text = PAGE.read_text()
    assert {suffix for suffix in (*image.FORMATS, *encoding.FORMATS) if suffix not in text} == set()
