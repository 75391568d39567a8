"""A program for a Python that has torch: one rank of a job that saves and loads. tests/scenario/test_dcp.py runs it.

`dcp_checks.py RANK RANKS PORT FOLDER`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import api_page_checks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from ml_dash import Experiment, MLDashError
from ml_dash.dcp import FILES, MLDashReader, MLDashWriter

rank, ranks, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
dist.init_process_group("gloo", rank=rank, world_size=ranks)


def state(number: int) -> dict[str, Any]:
    mine = {f"of_{rank}": torch.full((50_000,), float(number * 10 + rank))}
    return {"shared": torch.arange(30_000) + number, "epoch": number, **mine}


def check_loads(number: int, reader: Any) -> None:
    dist.barrier()
    found = {key: torch.zeros_like(value) if torch.is_tensor(value) else 0 for key, value in state(0).items()}
    dcp.load(found, storage_reader=reader)
    expected = state(number)
    assert found["epoch"] == number, found["epoch"]
    assert all(torch.equal(found[key], expected[key]) for key in expected if torch.is_tensor(expected[key]))


class Broken(MLDashWriter):
    """A trainer that is killed before the last step."""

    def finish(self, metadata: object, results: object) -> None:
        raise InterruptedError


def run_the_page() -> None:
    """The first example of docs/frameworks.md, with the job's own state; those of docs/api, by one rank."""
    page = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
    names: dict[str, Any] = {"state": state(4)}
    exec(page.split("```python\n")[1].split("```")[0], names)  # noqa: S102 it is ours
    assert names["state"]["epoch"] == 4
    if ranks == 1:
        api_page_checks.check("dcp.MLDashWriter")
        api_page_checks.check("dcp.MLDashReader")


for hook in (MLDashWriter, MLDashReader):
    try:
        hook("ckpt/step_1")
    except ValueError as refused:
        assert "files is str" in str(refused), refused  # noqa: PT017 a program
    else:
        raise AssertionError(hook)

with Experiment(f"alice/torch/dcp-{ranks}", wait=False).run as exp:
    try:
        MLDashReader(exp.files("ckpt")).read_metadata()
    except MLDashError as none:
        if none.code != "NO_MATCH":
            raise
    dist.barrier()
    dcp.save(state(1), storage_writer=MLDashWriter(exp.files("ckpt/step_1")))
    dcp.async_save(state(2), storage_writer=MLDashWriter(exp.files("ckpt/step_2", tags=["whole"]))).result()
    try:
        dcp.save(state(3), storage_writer=Broken(exp.files("ckpt/step_2")))
    except (dcp.CheckpointException, InterruptedError):
        print("broken off")
    check_loads(2, MLDashReader(exp.files("ckpt")))
    dist.barrier()
    if rank == 0:
        (newest,) = exp.files("ckpt/step_2").list(".metadata")
        exp.files(file_id=newest["metadata"][FILES]["__0_0.distcp"]).delete()
        exp.files("ckpt/step_1").download("**", to=folder)
    check_loads(1, MLDashReader(exp.files("ckpt")))
    check_loads(1, dcp.FileSystemReader(folder))
    with exp.files("sets").checkpoint("step_5", world_size=ranks, rank=rank, attempt="1") as ck:
        dcp.save(state(5), storage_writer=MLDashWriter(ck))
    assert ck.wait(60).is_whole()
    check_loads(5, MLDashReader(exp.files("sets")))
    dist.barrier()
run_the_page()
dist.destroy_process_group()
