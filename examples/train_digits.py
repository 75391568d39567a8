"""A training script that keeps its files with ML-Dash, and shows for how long each hand-over blocks it.

    python examples/train_digits.py                # with the daemon that serves this machine, else in the folder .dash
    python examples/train_digits.py --root runs    # in the folder runs

It ends with the training. Files that are not stored by then are stored without it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import digits

from ml_dash import Experiment

PREFIX = "demo/digits/mlp"
"""namespace/project/experiment: where the files belong."""
EPOCHS = 4
HEADING = "epoch    loss  accuracy   training   np.savez  checkpoint  save_json     upload"


def train(root: str | None) -> None:
    data, model = digits.load_data(), digits.new_model()
    config = {"layers": digits.LAYERS, "batch_size": digits.BATCH_SIZE, "learning_rate": digits.LEARNING_RATE}

    # wait=False: leaving the run waits for nothing. Without it, files that go to a folder are waited for, but not for
    # longer than ten seconds.
    with Experiment(PREFIX, dash_root=root, wait=False).run as exp:
        exp.files("configs").save_json(config, to="config.json")
        print(HEADING)
        blocked_ms = sum(run_epoch(exp, model, data, epoch) for epoch in range(1, EPOCHS + 1))
        print(f"\nThe hand-overs of {EPOCHS} epochs blocked the training for {blocked_ms:.0f} ms in all.")


def run_epoch(exp: Experiment, model: digits.Model, data: digits.Digits, epoch: int) -> float:
    """Trains, and hands over what came of it. Returns the milliseconds that the hand-over took."""
    clock = Clock()
    loss = digits.train_epoch(model, data, seed=epoch)
    metrics = {"epoch": epoch, "loss": loss, "accuracy": digits.accuracy(model, data)}
    trained_ms = clock.lap_ms()

    checkpoint = Path(f"epoch-{epoch}.npz")
    digits.save_model(model, checkpoint)
    written_ms = clock.lap_ms()

    exp.files("metrics").save_json(metrics, to=f"epoch-{epoch}.json")
    json_ms = clock.lap_ms()

    result = exp.files("checkpoints").upload(checkpoint, tags=["checkpoint"], metadata=metrics)
    upload_ms = clock.lap_ms()

    # The daemon has a hold of its own on the bytes, so the file can go at once.
    checkpoint.unlink()

    print(
        f"{epoch:>5}  {loss:6.4f}  {metrics['accuracy']:8.2%}  {trained_ms:6.0f} ms  {written_ms:6.0f} ms  "
        f"{result['sizeBytes'] / 2**20:6.1f} MiB  {json_ms:6.1f} ms  {upload_ms:6.1f} ms"
    )
    return json_ms + upload_ms


class Clock:
    """Measures one thing after another."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        """Milliseconds since it was last asked."""
        last, self._last = self._last, time.perf_counter()
        return (self._last - last) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a network on handwritten digits; ML-Dash keeps its files.")
    parser.add_argument("--root", metavar="DIR", help="the folder to keep them in, served by a daemon of its own")
    options = parser.parse_args()
    try:
        train(options.root)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    main()
