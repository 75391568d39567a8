"""Lightning's and Hugging Face's trainers, the real ones in a Python of their own, over the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.test_files import refused
from tests.scenario.test_torch import run
from tests.servers.environments import server_python

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("framework_checks.py")
ARRAY_PROGRAM = Path(__file__).with_name("array_framework_checks.py")


@pytest.mark.parametrize("framework", ["lightning", "huggingface"])
def test_a_trainer(frameworks: Path, service: DaemonProcess, tmp_path: Path, framework: str) -> None:
    """What it asserts is in the program."""
    run(frameworks, tmp_path, service.socket, str(PROGRAM), framework)


def test_jax_and_keras_by_plain_savers(service: DaemonProcess, tmp_path: Path, full_size: bool) -> None:
    """What it asserts is in the program; what needs no jax of it, numpy's own tests hold."""
    if not full_size:
        pytest.skip("jax and keras are large: make long installs them")
    jax = server_python("jax")
    assert run(jax, tmp_path, service.socket, str(ARRAY_PROGRAM)) == "held\n"


def test_without_the_library() -> None:
    def lightning() -> None:
        import ml_dash.lightning  # noqa: PLC0415, F401

    def huggingface() -> None:
        import ml_dash.huggingface  # noqa: PLC0415, F401

    refused(lightning, Code.MISSING_LIBRARY, ImportError)
    refused(huggingface, Code.MISSING_LIBRARY, ImportError)
