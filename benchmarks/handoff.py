"""How long `upload()` blocks the training loop, beside what this disk needs for an fsync.

    python benchmarks/handoff.py [--quick] [--json] [--folder DIR]

Files, journal, spool and store are in one folder, on one file system; all settings are the defaults. Times are of the
whole call `exp.files("x").upload(path)`. A file over LARGE is cancelled some time after its hand-off, because no disk
holds a hundred copies of 4 GiB; a smaller one is stored. How the calls follow each other is said by Case.

Just before each call (of a burst: the first) one page of another file is overwritten and brought to the disk: the
least that anything durable takes at that moment, on a disk that may be busy with what was handed over earlier.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import rig
from rig import GIB, KIB, MIB, Daemon, percentile, size_name, write_file

from ml_dash import Experiment
from ml_dash.result import FileResult

LARGE = 16 * MIB
PAGE = 4096
ENDED = ("DONE", "FAILED", "CANCELLED")
CASE_LIMIT_S = 20.0
"""A case and size ends then, after at least LEAST_CALLS: the column `calls` says how many there were."""
LEAST_CALLS = 3
LOOK_S = 0.005
REST_S = 0.03
"""After a file has ended, the daemon still tidies up: it is idle after this."""
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """`window`: earlier files that may be on their way at a call. Older ones are ended; `waits`: before the next call.

    `burst`: once there are more, all are ended. `fresh`: the file was written, and closed, just before.
    """

    name: str
    window: int
    waits: bool
    fresh: bool
    burst: bool = False


CASES = (
    Case("one alone", window=0, waits=True, fresh=False),
    Case("bursts of 10", window=9, waits=True, fresh=False, burst=True),
    Case("daemon busy", window=4, waits=False, fresh=False),
    Case("just written", window=1, waits=True, fresh=True),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. Calls by size; `acks`: files that each of `processes` hands over, by size."""

    calls: dict[int, int]
    disk_calls: dict[int, int]
    processes: int
    acks: dict[int, int]


FULL = Plan(
    calls={KIB: 300, MIB: 300, 64 * MIB: 150, 4 * GIB: 120},
    disk_calls={KIB: 100, MIB: 100, 64 * MIB: 20, 4 * GIB: 3},
    processes=8,
    acks={KIB: 250, MIB: 50},
)
QUICK = Plan(calls={KIB: 10, 20 * MIB: 5}, disk_calls={MIB: 3}, processes=2, acks={KIB: 10})


def main() -> None:
    options = rig.parser("How long upload() blocks the training loop.").parse_args()
    plan = QUICK if options.quick else FULL
    with rig.workplace(options.folder) as folder:
        found = {
            "machine": rig.machine(folder),
            "handoff": [latency(folder, case, size, calls) for case in CASES for size, calls in plan.calls.items()],
            "disk": [durable(folder, size, calls) for size, calls in plan.disk_calls.items()],
            "acks": [throughput(folder, plan.processes, size, calls) for size, calls in plan.acks.items()],
        }
    print(json.dumps(found, indent=2)) if options.json else show_all(found)


# ---- the default acknowledgement


def latency(folder: Path, case: Case, size: int, calls: int) -> dict[str, Any]:
    rig.tell(f"{case.name}, {size_name(size)}")
    under_way: deque[FileResult] = deque()
    took: list[float] = []
    pages: list[float] = []
    sources = fresh_files(folder, size) if case.fresh else settled_files(folder, size)
    page = write_file(folder / "page", PAGE)
    with closing(sources) as files, Daemon(folder / "daemon") as daemon, daemon.experiment().run as exp:
        rig.settle()
        deadline = time.monotonic() + CASE_LIMIT_S
        while len(took) < calls and (len(took) < LEAST_CALLS or time.monotonic() < deadline):
            path = next(files)
            if not (case.burst and under_way):
                pages.append(bare_page(page))
            begun = time.perf_counter()
            result = exp.files("x").upload(path)
            took.append(time.perf_counter() - begun)
            under_way.append(result)
            full = len(under_way) > case.window
            while len(under_way) > case.window or (full and case.burst and under_way):
                end(exp, under_way.popleft(), waits=case.waits)
            if not under_way:
                time.sleep(REST_S)
    bare = {"page_p50_ms": percentile(pages, 0.5) * 1e3, "page_p99_ms": percentile(pages, 0.99) * 1e3}
    return {"case": case.name, "size_bytes": size, **spread(took), **bare}


def bare_page(path: Path) -> float:
    """Seconds for one page, written in place and on the disk."""
    with path.open("r+b", buffering=0) as file:
        begun = time.perf_counter()
        file.write(bytes(PAGE))
        os.fdatasync(file.fileno())
        return time.perf_counter() - begun


def settled_files(folder: Path, size: int) -> Generator[Path, None, None]:
    """Files that are on the disk already, over and over. Several, so that one being stored is not linked meanwhile."""
    paths = [write_file(folder / f"settled-{number}", size) for number in range(1 if size >= GIB else 8)]
    try:
        while True:
            yield from paths
    finally:
        for path in paths:
            path.unlink()


def fresh_files(folder: Path, size: int) -> Generator[Path, None, None]:
    """A new file each time, none of it on the disk yet; the last one is removed, as trainers do."""
    path = folder / "fresh"
    try:
        while True:
            yield write_file(path, size)
            path.unlink()
    finally:
        path.unlink(missing_ok=True)


def end(exp: Experiment, result: FileResult, *, waits: bool) -> None:
    """Cancels a file that is large; waits until the daemon is through with it."""
    if result["sizeBytes"] > LARGE:
        exp.files(file_id=result["id"]).delete()
    deadline = time.monotonic() + TIMEOUT_S
    while waits and result.state not in ENDED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{result} is still on its way after {TIMEOUT_S} s")
        time.sleep(LOOK_S)


def spread(took: list[float]) -> dict[str, Any]:
    return {
        "calls": len(took),
        "p50_ms": percentile(took, 0.5) * 1e3,
        "p99_ms": percentile(took, 0.99) * 1e3,
        "max_ms": max(took) * 1e3,
    }


# ---- durability="disk"


def durable(folder: Path, size: int, calls: int) -> dict[str, Any]:
    """`upload(durability="disk")` and a bare fsync, in turn, each of a file that was written just before."""
    rig.tell(f"on disk, {size_name(size)}")
    uploads: list[float] = []
    fsyncs: list[float] = []
    with (
        closing(fresh_files(folder, size)) as files,
        Daemon(folder / "daemon") as daemon,
        daemon.experiment().run as exp,
    ):
        rig.settle()
        deadline = time.monotonic() + CASE_LIMIT_S
        while len(fsyncs) < calls and (len(fsyncs) < LEAST_CALLS or time.monotonic() < deadline):
            path = next(files)
            begun = time.perf_counter()
            result = exp.files("x").upload(path, durability="disk")
            uploads.append(time.perf_counter() - begun)
            end(exp, result, waits=True)
            fsyncs.append(bare_fsync(next(files)))
    bare_ms = percentile(fsyncs, 0.5) * 1e3
    return {"size_bytes": size, **spread(uploads), "ack": result["ack"], "fsync_p50_ms": bare_ms}


def bare_fsync(path: Path) -> float:
    with path.open("rb") as file:
        begun = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - begun


# ---- many clients


def throughput(folder: Path, processes: int, size: int, calls: int) -> dict[str, Any]:
    """Acknowledgements a second when several processes hand over at the same time, each its own file."""
    rig.tell(f"{processes} processes, {size_name(size)}")
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(processes), context.Queue()
    sources = [write_file(folder / f"source-{number}", size) for number in range(processes)]
    with Daemon(folder / "daemon") as daemon:
        rig.settle()
        workers = [
            context.Process(target=hand_over, args=(daemon.socket, path, calls, gate, answers), daemon=True)
            for path in sources
        ]
        for worker in workers:
            worker.start()
        spans = [answers.get(timeout=TIMEOUT_S) for _ in workers]
        for worker in workers:
            worker.join()
    seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"size_bytes": size, "processes": processes, "acks": processes * calls, "seconds": seconds}


def hand_over(socket: Path, source: Path, calls: int, gate: Barrier, answers: Queue[tuple[float, float]]) -> None:
    """One client process. All begin together, connected already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    with Experiment(rig.PREFIX, socket=socket).run as exp:
        files = exp.files("acks")
        gate.wait(TIMEOUT_S)
        begun = time.monotonic()
        for _ in range(calls):
            files.upload(source)
        answers.put((begun, time.monotonic()))


# ---- the tables


def show_all(found: dict[str, Any]) -> None:
    print(found["machine"])
    rig.show(
        "upload(path), default acknowledgement: milliseconds that the call blocks",
        ["", "file", "calls", "p50", "p99", "max", "bare page p50", "p99"],
        [
            [
                each["case"],
                size_name(each["size_bytes"]),
                *milliseconds(each),
                f"{each['page_p50_ms']:.2f}",
                f"{each['page_p99_ms']:.2f}",
            ]
            for each in found["handoff"]
        ],
    )
    rig.show(
        'upload(path, durability="disk") of a file just written, beside a bare fsync of such a file: milliseconds',
        ["file", "calls", "p50", "p99", "max", "fsync p50", "upload ÷ fsync"],
        [
            [
                size_name(each["size_bytes"]),
                *milliseconds(each),
                f"{each['fsync_p50_ms']:.2f}",
                f"{each['p50_ms'] / each['fsync_p50_ms']:.2f}",
            ]
            for each in found["disk"]
        ],
    )
    rig.show(
        "acknowledgements from processes that hand over at the same time",
        ["file", "processes", "files", "acks/s"],
        [
            [size_name(each["size_bytes"]), str(each["processes"]), str(each["acks"]), f"{rate(each):,.0f}"]
            for each in found["acks"]
        ],
    )


def milliseconds(each: dict[str, Any]) -> list[str]:
    return [str(each["calls"]), *(f"{each[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms"))]


def rate(each: dict[str, Any]) -> float:
    return each["acks"] / each["seconds"]


if __name__ == "__main__":
    rig.run(main)
