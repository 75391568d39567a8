"""How much slower a training loop's steps are while a checkpoint goes up beside it.

    python benchmarks/interference.py [--size 10G] [--rounds 3] [--quick] [--json] [--folder DIR]

The loop is a step of gradient descent on a mini-batch that is read from a data set in the page cache, by numpy, and by
torch where this Python has it; both use as many threads as they like. In turns it runs alone, beside an upload by a
daemon with the default settings, and by one that does not step back for others: nice 0, I/O as any, reads that fill the
page cache. The store is a null S3 server on this machine: what it costs, a real one's kernel would, too, but for the
receiving half. The file's pages are dropped from memory before each upload, so it comes from the disk; steps are those
between the hand-off and the moment in which the file is stored.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rig
from rig import GIB, MIB, Daemon, NullSink, percentile, size_name

from ml_dash import Experiment

IMPOLITE = '[limits]\nnice = 0\nio_class = "normal"\nuncached_from = 0\n'
ALONE, POLITE, OTHER = "alone", "default settings", "not stepping back"
WIDTH, BATCH, DATA_ROWS = 1024, 256, 32 * 1024
"""A step takes some 10 ms on two cores; the data set 128 MiB."""
LEAST_STEPS, QUICK_STEPS = 100, 10
SIZE, QUICK_SIZE = 10 * GIB, 32 * MIB
ROUNDS, QUICK_ROUNDS = 3, 1
TIMEOUT_S = 900.0

Step = Callable[[], object]


@dataclass(slots=True)
class Beside:
    """What was measured beside one thing: each step, and how long each upload took."""

    steps_s: list[float] = field(default_factory=list)
    uploads_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = rig.parser("How much slower a training loop's steps are while a checkpoint goes up beside it.")
    parser.add_argument("--size", type=rig.size_of, help=f"of the file (default: {size_name(SIZE)})")
    parser.add_argument("--rounds", type=int, help=f"of each (default: {ROUNDS})")
    options = parser.parse_args()
    size = options.size or (QUICK_SIZE if options.quick else SIZE)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    least = QUICK_STEPS if options.quick else LEAST_STEPS
    with rig.workplace(options.folder) as folder:
        loops = {name: loop(folder) for name, loop in LOOPS.items() if importlib.util.find_spec(name)}
        checkpoint = rig.write_file(folder / "model.pt", size)
        rig.settle()
        found = {name: measured(step, checkpoint, folder, rounds, least) for name, step in loops.items()}
        machine = rig.machine(folder)
    figures = [figure(name, what, found[name], size) for name in found for what in found[name]]
    if options.json:
        print(json.dumps({"machine": machine, "size_bytes": size, "rounds": rounds, "interference": figures}))
        return
    rows = [
        (
            f"{each['loop']}, {each['beside']}",
            str(each["steps"]),
            f"{each['p50_ms']:.1f}",
            f"{each['p99_ms']:.1f}",
            f"{each['slower_p50']:.2f}",
            f"{each['slower_p99']:.2f}",
            f"{each['slower_mean']:.2f}",
            f"{each['mb_per_s']:.0f}" if each["mb_per_s"] else "",
        )
        for each in figures
    ]
    title = (
        f"{size_name(size)} going up beside a training loop; milliseconds a step; times slower than alone; {machine}"
    )
    rig.show(title, ("loop", "steps", "p50", "p99", "x p50", "x p99", "x mean", "MB/s"), rows)


# ---- the loops


def numpy_loop(folder: Path) -> Step:
    """Least squares through one hidden layer, batch by batch out of a file that is mapped."""
    random = np.random.default_rng(0)
    data = data_set(folder / "numpy.data", random)
    first = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH
    second = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH

    def step() -> None:
        nonlocal first, second
        rows = np.array(data[random.integers(0, DATA_ROWS, BATCH)])
        hidden = np.maximum(rows @ first, 0)
        wrong = (hidden @ second - rows) / BATCH
        back = (wrong @ second.T) * (hidden > 0)
        second -= 1e-3 * (hidden.T @ wrong)
        first -= 1e-3 * (rows.T @ back)

    return step


def torch_loop(folder: Path) -> Step:
    """The same with autograd and an optimizer."""
    import torch

    random = np.random.default_rng(0)
    data = data_set(folder / "torch.data", random)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        rows = torch.from_numpy(np.array(data[random.integers(0, DATA_ROWS, BATCH)]))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(rows), rows).backward()
        optimizer.step()

    return step


LOOPS: dict[str, Callable[[Path], Step]] = {"numpy": numpy_loop, "torch": torch_loop}


def data_set(path: Path, random: np.random.Generator) -> np.ndarray:
    """A data set on the disk, whose pages are in memory: what the page cache is for."""
    rows = np.memmap(path, np.float32, "w+", shape=(DATA_ROWS, WIDTH))
    for start in range(0, DATA_ROWS, BATCH):
        rows[start : start + BATCH] = random.standard_normal((BATCH, WIDTH), dtype=np.float32)
    rows.flush()
    return rows


# ---- measuring


def measured(step: Step, checkpoint: Path, folder: Path, rounds: int, least: int) -> dict[str, Beside]:
    """In turns, so that whatever else the machine does is shared."""
    found = {ALONE: Beside(), POLITE: Beside(), OTHER: Beside()}
    for _ in range(least // 10):
        step()
    for number in range(rounds):
        for what, settings in ((POLITE, ""), (OTHER, IMPOLITE)):
            rig.tell(f"round {number + 1} of {rounds}: {what}")
            took_s = beside_upload(step, checkpoint, folder, settings, found[what])
            alone(step, took_s / 2, least, found[ALONE])
    return found


def alone(step: Step, at_least_s: float, least: int, found: Beside) -> None:
    end = time.perf_counter() + at_least_s
    steps = timed(step)
    for count, took_s in enumerate(steps, start=1):
        found.steps_s.append(took_s)
        if count >= least and time.perf_counter() >= end:
            return


def beside_upload(step: Step, checkpoint: Path, folder: Path, settings: str, found: Beside) -> float:
    """Hands the checkpoint over, and takes steps until it is stored; returns how long that was."""
    evict(checkpoint)
    with ExitStack() as stack:
        sink = stack.enter_context(NullSink())
        store = f"s3://bench-{os.getpid()}/marks"
        daemon = stack.enter_context(Daemon(folder / "daemon", store, sink.endpoint, settings=settings))
        exp: Experiment = stack.enter_context(daemon.experiment().run)
        exp.files.save_text("ready", to="first.txt").wait(TIMEOUT_S)  # the bucket is probed by then
        begun = time.perf_counter()
        result = exp.files.upload(checkpoint)
        steps, look_at = timed(step), begun
        while True:
            found.steps_s.append(next(steps))
            if time.perf_counter() >= look_at:
                if result.refresh()["state"] == "DONE":
                    break
                look_at = time.perf_counter() + 0.25
                assert look_at - begun < TIMEOUT_S, "it is not stored"
        took_s = time.perf_counter() - begun
    found.uploads_s.append(took_s)
    return took_s


def timed(step: Step) -> Iterator[float]:
    while True:
        begun = time.perf_counter()
        step()
        yield time.perf_counter() - begun


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def figure(loop: str, what: str, found: dict[str, Beside], size: int) -> dict[str, object]:
    steps, base = found[what].steps_s, found[ALONE].steps_s
    uploads = found[what].uploads_s
    return {
        "loop": loop,
        "beside": what,
        "steps": len(steps),
        "p50_ms": percentile(steps, 0.5) * 1000,
        "p99_ms": percentile(steps, 0.99) * 1000,
        "slower_p50": percentile(steps, 0.5) / percentile(base, 0.5),
        "slower_p99": percentile(steps, 0.99) / percentile(base, 0.99),
        "slower_mean": statistics.fmean(steps) / statistics.fmean(base),
        "mb_per_s": size / statistics.median(uploads) / 1e6 if uploads else None,
    }


if __name__ == "__main__":
    rig.run(main)
