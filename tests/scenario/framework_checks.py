"""A program for a Python that has Lightning and transformers. tests/scenario/test_frameworks.py runs it."""

# ruff: noqa: PLC0415 each check imports its own framework

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import api_page_checks
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ml_dash import Experiment

warnings.simplefilter("ignore")


def run_the_page(number: int, **names: object) -> None:
    """An example of docs/frameworks.md as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
    exec(page.split("```python\n")[number].split("```")[0], names)  # noqa: S102 it is ours


def check_refused(call: Callable[[], object], *said: str) -> None:
    """Where it is passed, not in the midst of training."""
    try:
        call()
    except ValueError as refused:
        assert all(each in str(refused) for each in said), refused  # noqa: PT017 a program
    else:
        raise AssertionError(said)


def check_lightning(exp: Experiment) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ml_dash.lightning import MLDashCheckpointIO

    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def trainer(epochs: int) -> Trainer:
        return Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[MLDashCheckpointIO(exp.files("checkpoints"))],
            callbacks=[ModelCheckpoint(dirpath="runs", filename="{epoch}", save_top_k=1, every_n_epochs=1)],
        )

    data = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)
    model = Line()
    trainer(3).fit(model, data)
    assert not [*Path.cwd().rglob("*.ckpt")], "nothing is written here"
    (kept,) = exp.files("checkpoints").list()
    assert (kept["path"], kept["filename"]) == ("/checkpoints/runs", "epoch=2.ckpt")
    assert kept["metadata"] == {"epoch": 2, "global_step": 6}
    again = Line()
    resumed = trainer(4)
    resumed.fit(again, data, ckpt_path="runs/epoch=2.ckpt", weights_only=False)
    assert resumed.global_step == 8
    assert torch.allclose(again.layer.weight, model.layer.weight - 0.1 * 4)
    check_refused(lambda: MLDashCheckpointIO("checkpoints"), "files is str", 'exp.files("checkpoints")')
    run_the_page(2, model=Line(), data=data)
    api_page_checks.check("lightning.MLDashCheckpointIO")


def check_huggingface(exp: Experiment) -> None:
    from transformers import Trainer, TrainingArguments

    from ml_dash.huggingface import MLDashCallback

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(x).sum()}

    def trainer(steps: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir="out", max_steps=steps, save_steps=1, logging_steps=1, save_total_limit=1, use_cpu=True,
            report_to=[], per_device_train_batch_size=2, disable_tqdm=True,
        )  # fmt: skip
        data = [{"x": row} for row in torch.ones(8, 2)]
        return Trainer(Line(), arguments, train_dataset=data, callbacks=[MLDashCallback(exp, tags=["hf"])])

    trainer(3).train()
    assert [path.name for path in Path("out").iterdir()] == ["checkpoint-3"], "the Trainer has deleted the others"
    exp.files.flush(60)
    saved = exp.files("checkpoints").list("*/trainer_state.json", tags=["hf"])
    assert [one["path"] for one in saved] == [f"/checkpoints/checkpoint-{step}" for step in (1, 2, 3)]
    exp.files("checkpoints/checkpoint-2").download("**", to="back")
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint="back")
    assert resumed.state.global_step == 4
    rows = [*exp.metrics("train")]
    assert [row["step"] for row in exp.metrics()][:3] == [1, 2, 3]
    assert "loss" in rows[0]
    assert exp.params.get(flatten=True)["args.save_steps"] == 1
    check_refused(lambda: MLDashCallback(exp.files), "experiment is Files, not Experiment")
    run_the_page(3, model=Line(), data=[{"x": row} for row in torch.ones(8, 2)])
    shutil.rmtree("out")
    api_page_checks.check("huggingface.MLDashCallback")


with Experiment("alice/torch/frameworks", wait=False).run as exp:
    {"lightning": check_lightning, "huggingface": check_huggingface}[sys.argv[1]](exp)
