"""How long the daemon's event loop leaves a question waiting while it sends, beside how late the machine wakes anybody.

    python benchmarks/stall.py [--quick] [--json] [--folder DIR]

Every PAUSE_S a question goes to the daemon that its loop answers by itself, with no thread and no disk, and its round
trip is timed: what the loop was busy with comes on top of what two processes need to hear of each other. The peer is
that sleep itself: it tells how late the kernel wakes a process of this machine at that moment, daemon or no daemon.
Files are handed over by another process; the store is a null S3 server.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rig
from rig import GIB, KIB, MIB, Daemon, NullSink, percentile, write_file

from ml_dash import Experiment
from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.reach import find_service
from ml_dash.request import numbered
from ml_dash.wire import VERSION

PAUSE_S = 0.002
IDLE_S, QUICK_IDLE_S = 10.0, 0.2
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many files of a size, `times` over; none: the daemon is idle."""

    name: str
    files: int
    size_bytes: int
    times: int = 1


FULL = (
    Load("idle", 0, 0),
    Load("one file of 4 GiB", 1, 4 * GIB, times=3),
    Load("2,000 of 1 MiB", 2_000, MIB, times=3),
    Load("10,000 of 4 KiB", 10_000, 4 * KIB, times=3),
)
QUICK = (Load("idle", 0, 0), Load("one file of 24 MiB", 1, 24 * MIB), Load("50 of 4 KiB", 50, 4 * KIB))


def main() -> None:
    options = rig.parser("How long the daemon's loop leaves a question waiting.").parse_args()
    idle_s = QUICK_IDLE_S if options.quick else IDLE_S
    with rig.workplace(options.folder) as folder:
        found = {
            "machine": rig.machine(folder),
            "stalls": [measured(folder, load, idle_s) for load in (QUICK if options.quick else FULL)],
        }
    print(json.dumps(found, indent=2)) if options.json else show(found)


def measured(folder: Path, load: Load, idle_s: float) -> dict[str, Any]:
    """Milliseconds that a question took, and by which a sleep was late, while the files are on their way."""
    rig.tell(load.name)
    source = folder / "source"
    source.mkdir()
    paths = [write_file(source / f"{number}.bin", load.size_bytes, number) for number in range(load.files)]
    rig.settle()
    context = multiprocessing.get_context("spawn")
    answers: list[float] = []
    wakes: list[float] = []
    with ExitStack() as stack:
        sink = stack.enter_context(NullSink())
        daemon = stack.enter_context(Daemon(folder / "daemon", f"s3://bench-{os.getpid()}/stall", sink.endpoint))
        with daemon.experiment().run as exp:
            exp.files.save_text("ready", to="first.txt").wait(TIMEOUT_S)  # the bucket is probed by then
        connection = stack.enter_context(closing(Connection(find_service(daemon.socket))))
        worker = context.Process(target=hand_over, args=(daemon.socket, paths, load.times), daemon=True)
        if paths:
            worker.start()
        end = time.monotonic() + (TIMEOUT_S if paths else idle_s)
        while time.monotonic() < end and (not paths or worker.is_alive()):
            wakes.append(late())
            answers.append(ask(connection))
        if paths:
            worker.join()
            assert worker.exitcode == 0, "the files are not stored"
    rig.remove(source)
    return {"load": load.name, "questions": len(answers), "answers_ms": spread(answers), "wakes_ms": spread(wakes)}


def hand_over(socket: Path, paths: list[Path], times: int) -> None:
    """Another process: until all are stored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    with Experiment(rig.PREFIX, socket=socket).run as exp:
        for _ in range(times):
            exp.files("stall").upload_many(paths)
            exp.files.flush(timeout=TIMEOUT_S)


def late() -> float:
    """By how many seconds a sleep was longer than it was to be."""
    begun = time.perf_counter()
    time.sleep(PAUSE_S)
    return time.perf_counter() - begun - PAUSE_S


def ask(connection: Connection) -> float:
    """Seconds for a question that the loop answers by itself."""
    begun = time.perf_counter()
    connection.call(m.Welcome, numbered(m.Hello(request=0, min_version=VERSION, max_version=VERSION, client="bench")))
    return time.perf_counter() - begun


def spread(seconds: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: percentile(seconds, share) * 1e3 for name, share in shares.items()}


def show(found: dict[str, Any]) -> None:
    print(found["machine"])
    kinds = list(found["stalls"][0]["answers_ms"])
    rig.show(
        "milliseconds for a question, and by which a sleep was late, while files are on their way",
        ["", "questions", *kinds, *(f"late {kind}" for kind in kinds)],
        [
            [
                each["load"],
                f"{each['questions']:,}",
                *(f"{each[of][kind]:.2f}" for of in ("answers_ms", "wakes_ms") for kind in kinds),
            ]
            for each in found["stalls"]
        ],
    )


if __name__ == "__main__":
    rig.run(main)
