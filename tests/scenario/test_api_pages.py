"""docs/api: the example of every page runs as it stands, against one daemon, and prints what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import DaemonProcess
from tests.scenario import api_page_checks
from tests.unit.api_pages import calls

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "files.save_fig": "test_saving_page.py",
    "files.save_torch": "torch_checks.py",
    "BackgroundResult": "torch_checks.py",
    "dcp.MLDashWriter": "dcp_checks.py",
    "dcp.MLDashReader": "dcp_checks.py",
    "lightning.MLDashCheckpointIO": "framework_checks.py",
    "huggingface.MLDashCallback": "framework_checks.py",
}
"""Who runs those that need what another Python has, or pyplot, which reads all fonts of the machine first."""


@pytest.mark.parametrize("page", sorted({*calls()} - {*ELSEWHERE}))
def test_the_example_of_a_page(
    service: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_DASH_SOCKET", str(service.socket))
    api_page_checks.check(page)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_example_of_a_page_runs_elsewhere(page: str) -> None:
    assert f'api_page_checks.check("{page}")' in Path(__file__).with_name(ELSEWHERE[page]).read_text()
