"""Saves of a real GPU's tensors, where there is one: by a Python that has torch and sees it, else they skip."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("cuda_checks.py")
ROOT = PROGRAM.parents[2]
SEES_ONE = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def test_saves_of_a_gpus_tensors(tmp_path: Path) -> None:
    if (
        importlib.util.find_spec("torch") is None
        or subprocess.run([sys.executable, "-c", SEES_ONE], check=False).returncode
    ):
        pytest.skip("this Python has no torch that sees a GPU")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'client'}:{ROOT / 'daemon'}", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "3 checks held" in ended.stdout
