"""torch.distributed.checkpoint over the daemon, by one process and by two, with a real torch in a Python of its own."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from ml_dash.errors import Code
from tests.harness import DaemonProcess
from tests.scenario.test_files import refused
from tests.scenario.test_torch import start

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("dcp_checks.py")


def run_job(torch: Path, folder: Path, daemon: DaemonProcess, ranks: int) -> list[str]:
    """What each rank says."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    back = str(folder / "back")
    running = [
        start(torch, folder, daemon.socket, str(PROGRAM), str(rank), str(ranks), port, back) for rank in range(ranks)
    ]
    said = []
    for process in running:
        with process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(out.strip())
    return said


@pytest.mark.parametrize("ranks", [1, 2])
def test_saved_and_loaded(torch: Path, service: DaemonProcess, tmp_path: Path, ranks: int) -> None:
    """The newest whole checkpoint is loaded: not the one that broke off, nor one of which a file was deleted."""
    assert run_job(torch, tmp_path, service, ranks) == ["broken off"] * ranks
    with service.experiment(f"alice/torch/dcp-{ranks}").run as exp:
        exp.files.flush(60)
        metadata = exp.files("ckpt").list("**/.metadata")
        assert [one["path"] for one in metadata] == ["/ckpt/step_1", "/ckpt/step_2"]
        assert [one["tags"] for one in metadata] == [[], ["whole"]]
        first = {one["id"] for one in exp.files("ckpt/step_1").list("*.distcp")}
        assert {*metadata[0]["metadata"]["dcp_files"].values()} == first
        assert len(first) == ranks


def test_without_torch() -> None:
    def without() -> None:
        import ml_dash.dcp  # noqa: PLC0415, F401

    refused(without, Code.MISSING_LIBRARY, ImportError)
