"""What a save, a list and a download by name take in an experiment of no, of 10,000 and of 100,000 files.

    python benchmarks/catalog.py [--quick] [--json] [--folder DIR]

The files are rows of catalog and journal, written by the daemon's own modules before it starts: both are as full as
after a day of saves, for the journal keeps what is stored for a day. Most are frames in a hundred folders; one in ten
is a version of one of a hundred checkpoints; a hundred are JSON, of which ten lie in one folder. Times are of whole
calls. What is saved and brought back is a file of 1 KiB, on a disk whose bare fsync is measured beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import rig
from rig import KIB, PREFIX, Daemon, percentile

from ml_dash import Experiment
from ml_dashd.core.model import FileRecord, Job, Pin, PinKind
from ml_dashd.core.schedule import Lane
from ml_dashd.core.states import State
from ml_dashd.edge.catalog_sqlite import SqliteCatalog
from ml_dashd.edge.faults import NoFaults
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.store_folder import MARKER
from ml_dashd.edge.system import SystemClock
from ml_dashd.ports import Handed

PAGE = 500
"""Files of a page, unless a client asks for fewer."""
ROWS = 500
"""Rows of a commit while the catalog is filled."""
JSON_FILES, FOLDERS, CHECKPOINTS = 100, 100, 100
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many files there are, and how often each call is timed."""

    files: tuple[int, ...]
    calls: int


FULL = Plan(files=(0, 10_000, 100_000), calls=200)
QUICK = Plan(files=(0, 2000), calls=5)


def main() -> None:
    options = rig.parser("What listing and saving take as an experiment grows.").parse_args()
    plan = QUICK if options.quick else FULL
    with rig.workplace(options.folder) as folder:
        found = {
            "machine": rig.machine(folder),
            "catalog": [each for files in plan.files for each in measured(folder / str(files), files, plan.calls)],
        }
    print(json.dumps(found, indent=2)) if options.json else show_all(found)


def measured(folder: Path, files: int, calls: int) -> Iterator[dict[str, Any]]:
    """The figures of an experiment of so many files."""
    rig.tell(f"{files:,} files")
    with Daemon(folder, before=lambda state: prepare(state, folder, files)) as daemon, daemon.experiment().run as exp:
        exp.files("mine").save_blob(os.urandom(KIB), to="mine.bin").wait(TIMEOUT_S)
        for name, (call, lists) in calls_on(exp, folder / "mine.bin").items():
            took = [timed(call) for _ in range(calls)]
            yield {
                "files": files,
                "call": name,
                "listed": lists(),
                "calls": calls,
                "p50_ms": percentile(took, 0.5),
                "p99_ms": percentile(took, 0.99),
                "max_ms": max(took),
            }
            exp.files.flush(TIMEOUT_S)  # what was saved is out of the way of the next call


Timed = Callable[[], object]
Lists = Callable[[], int]


def calls_on(exp: Experiment, target: Path) -> dict[str, tuple[Timed, Lists]]:
    """The calls that are timed, each with the number of files that it lists."""

    def first(pattern: str | None = None, *, latest: bool = False) -> tuple[Timed, Lists]:
        def call() -> list[Any]:
            return [*islice(exp.files().each(pattern, latest=latest), PAGE)]

        return call, lambda: len(call())

    content = {"loss": 0.1}
    return {
        "save_json": (lambda: exp.files("mine").save_json(content, to="saved.txt"), lambda: 0),
        "list(), first page": first(),
        'list("**/*.json")': first("**/*.json"),
        'list("configs/*.json")': first("configs/*.json"),
        'list("*")': first("*"),
        'list("models/*", latest=True)': first("models/*", latest=True),
        "download by name": (lambda: exp.files("mine/mine.bin").download(to=target), lambda: 0),
    }


def timed(call: Timed) -> float:
    begun = time.monotonic()
    call()
    return (time.monotonic() - begun) * 1e3


# ---- an experiment that is a day old


def prepare(state: Path, folder: Path, files: int) -> None:
    """Lists so many files; their store is told, as an operator would, that its folder is the right one without them."""
    asyncio.run(fill(state, files))
    (folder / "store").mkdir()
    (folder / "store" / MARKER).touch()


async def fill(state: Path, files: int) -> None:
    """Lists so many files in catalog and journal, without their objects."""
    catalog = SqliteCatalog(state / "catalog.sqlite", NoFaults())
    journal = SqliteJournal(state / "journal.sqlite", SystemClock(), NoFaults(), lambda _, __: Lane.INLINE)
    await journal.open()
    try:
        now = SystemClock().now_ms()
        for start in range(1, files + 1, ROWS):
            records = [record(number, files, now) for number in range(start, min(start + ROWS, files + 1))]
            await catalog.commit(records)
            await journal.accept_all([handed(each) for each in records])
    finally:
        journal.close()
        await catalog.close()


def record(number: int, files: int, now_ms: int) -> FileRecord:
    namespace, project, experiment = PREFIX.split("/")
    prefix, _, filename = path_of(number, files).rpartition("/")
    return FileRecord(
        id=number,
        owner_uid=os.getuid(),
        namespace=namespace,
        project=project,
        experiment=experiment,
        prefix=prefix,
        filename=filename,
        size_bytes=KIB,
        content_type="application/octet-stream",
        created_ms=now_ms,
        updated_ms=now_ms,
        tags=("frame",),
        metadata=json.dumps({"step": number}),
        sha256=f"{number:064x}",
        key=f"files/{number}",
        uploaded_ms=now_ms,
    )


def path_of(number: int, files: int) -> str:
    configs, rest = divmod(number, max(1, files // JSON_FILES))
    if rest == 0:
        return f"configs/{number}.json" if configs % 10 == 0 else f"runs/{number}/config.json"
    if number % 10 == 0:
        return f"models/{number // 10 % CHECKPOINTS}.pt"
    return f"frames/{number % FOLDERS}/{number}.png"


def handed(stored: FileRecord) -> Handed:
    return Handed(Job(stored, Pin(PinKind.NONE), State.DONE, on_disk=True), stored.id.to_bytes(16, "big"))


# ---- the table


def show_all(found: dict[str, Any]) -> None:
    print(found["machine"])
    rig.show(
        "milliseconds that a call takes",
        ["", "files", "lists", "calls", "p50", "p99", "max"],
        [
            [
                each["call"],
                f"{each['files']:,}",
                f"{each['listed']:,}",
                str(each["calls"]),
                *(f"{each[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms")),
            ]
            for each in sorted(found["catalog"], key=lambda each: each["call"])
        ],
    )


if __name__ == "__main__":
    rig.run(main)
