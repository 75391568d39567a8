"""Hugging Face's Trainer: `Trainer(…, callbacks=[MLDashCallback(exp)])` hands over its checkpoints and its logs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_dash.arguments import of_kind
from ml_dash.errors import Code, error
from ml_dash.experiment import Experiment

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as failure:
    what = f"ml_dash.huggingface needs transformers, which can't be imported: {failure}"
    raise error(Code.MISSING_LIBRARY, what, "pip install 'transformers[torch]'") from failure

LAST = "trainer_state.json"
"""Without it a folder is none that training can be resumed from: it is handed over last."""
PLAIN = (str, int, float, bool, type(None))


class MLDashCallback(TrainerCallback):  # type: ignore[misc]
    """Each checkpoint's files, by their folder's name below `prefix`; metrics `train`, `eval`; arguments as params.

    What is handed over is pinned: the Trainer may delete the folder at once (`save_total_limit`). The first process
    alone does this, for what lies in its folder then. `described` are words of `upload`, such as tags.
    """

    def __init__(self, experiment: Experiment, prefix: str = "checkpoints", **described: Any) -> None:
        of_kind(experiment, Experiment, "experiment", "pass exp of `with Experiment(prefix=…).run as exp`")
        self._experiment = experiment
        self._prefix = prefix
        self._described = described

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the Trainer's arguments as `args` of the experiment's parameters."""
        if state.is_world_process_zero:
            plain = {key: value for key, value in args.to_dict().items() if isinstance(value, PLAIN)}
            self._experiment.params.set(args=plain)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Logs a row: "eval_loss" is `loss` of the metric `eval`, "loss" that of `train`."""
        if not state.is_world_process_zero or not logs:
            return
        rows: dict[str, Any] = {}
        for key, value in logs.items():
            name, of, rest = key.partition("_")
            metric, name = (name, rest) if of and name in ("eval", "test", "train") else ("train", key)
            if name != "epoch":
                rows.setdefault(metric, {})[name] = value
        self._experiment.metrics.log(epoch=state.epoch, step=state.global_step, **rows)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hands over every file of the checkpoint that was just written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            files = self._experiment.files(f"{self._prefix}/{folder.name}")
            files.upload_many(dict(_files_of(folder)), **self._described)


def _files_of(folder: Path) -> Iterator[tuple[str, str]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(found, key=lambda path: (path.name == LAST, str(path))):
        yield str(path.relative_to(folder)), os.fspath(path)
