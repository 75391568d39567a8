"""save_safetensors, read back by the real library, in a Python of its own."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.harness import DaemonProcess
from tests.scenario.test_torch import run

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("safetensors_checks.py")
CHECKS = [
    node.name.removeprefix("check_")
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def said(frameworks: Path, service: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check of the program has to say: nothing, if it holds."""
    folder = tmp_path_factory.mktemp("checks")
    return json.loads(run(frameworks, folder, service.socket, str(PROGRAM), str(folder)).splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_the_library_reads_it(said: dict[str, str], check: str) -> None:
    assert said[check] == "", said[check]
