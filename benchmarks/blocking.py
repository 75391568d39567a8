"""How long each saver blocks the training loop, beside what it replaces.

    python benchmarks/blocking.py [--quick] [--json] [--folder DIR] [--rounds N] [--seed N]

In each round every saver saves every size once, in an order that is drawn anew, on one client and one daemon whose
settings are the defaults; beside it, of the same object: `torch.save` to a file on the same disk, one copy of the bytes
into memory that is mapped already, ml-dash 0.11 in its local mode, torch.distributed.checkpoint's `async_save` to the
same disk, and wandb's `add_file` of a file, offline. What ml-dash 0.11 and async_save return from is a queue in the
trainer: `with flush` is until the bytes are out of the trainer's hands, as ours are at the return. A file is stored,
and removed, before the next is saved. The median is over all rounds but the first, which is told apart: a first save of
a size gets fresh pages of the disk's, later ones those of the last.

It needs torch, ml-dash 0.11 and wandb: each in an environment of its own below .cache, made by the first run. Without
wandb, where pip finds none, its row is left out. A full run takes 16 GiB of memory and 30 GiB of disk.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import rig
from rig import GIB, KIB, MIB, Daemon, size_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for what the tests share with it

from tests.servers.environments import EnvironmentUnavailableError, library_path, server_python, torch_python  # noqa: E402

WORKER = Path(__file__).with_name("blocking_worker.py")
WANDB_WORKER = Path(__file__).with_name("blocking_wandb.py")
SAVERS = ("save_torch", "save_pkl", "save_blob", "save_safetensors", "upload", "save_json")
OURS, PEER, BY_TORCH, COPY = "ml-dash", "ml-dash 0.11", "torch.save", "memcpy"
DCP, WANDB = "async_save", "wandb"
ONLY_OURS = ("save_safetensors",)
LARGEST = {"save_json": GIB}
"""Nobody has 4 GiB of JSON, and json would take minutes."""
SIZES, QUICK_SIZES = (KIB, 64 * MIB, 100 * MIB, GIB, 4 * GIB), (KIB, MIB)
ROUNDS, QUICK_ROUNDS = 6, 2


class Call(NamedTuple):
    """Something that is measured: `who` does `what` with so many bytes."""

    who: str
    what: str
    size_bytes: int


def main() -> None:
    parser = rig.parser("How long savers block the training loop.")
    parser.add_argument("--rounds", type=int, help="repeats, the first of which is told apart")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the order of the calls")
    options = parser.parse_args()
    sizes, rounds = (QUICK_SIZES, QUICK_ROUNDS) if options.quick else (SIZES, ROUNDS)
    with rig.workplace(options.folder) as folder:
        took = measure(folder, calls(sizes), options.rounds or rounds, random.Random(options.seed))
        found = {"machine": rig.machine(folder), "seed": options.seed, "figures": figures(took)}
    print(json.dumps(found, indent=2)) if options.json else show(found)


def calls(sizes: tuple[int, ...]) -> list[Call]:
    whats = [(OURS, saver) for saver in SAVERS] + [(PEER, saver) for saver in SAVERS if saver not in ONLY_OURS]
    whats += [(one, one) for one in (BY_TORCH, COPY, DCP)] + [(WANDB, "add_file")]
    return [Call(who, what, size) for size in sizes for who, what in whats if size <= LARGEST.get(what, size)]


def measure(folder: Path, every: list[Call], rounds: int, chance: random.Random) -> dict[Call, list[dict[str, float]]]:
    """Seconds of each call, by rounds."""
    took: dict[Call, list[dict[str, float]]] = {call: [] for call in every}
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(folder / "daemon"))
        ours = stack.enter_context(worker(folder / "ours", torch_python(), socket=daemon.socket))
        peer = stack.enter_context(worker(folder / "peer", server_python("ml-dash-0.11", pins=WORKER.parent)))
        others = {PEER: peer} | wandbs(stack, folder)
        every = [call for call in every if call.who != WANDB or WANDB in others]
        for number in range(rounds):
            rig.tell(f"round {number + 1} of {rounds}")
            for call in chance.sample(every, len(every)):
                rig.settle()
                took[call].append(others.get(call.who, ours).ask(call))
                remove_stored(folder)
    return {call: some for call, some in took.items() if some}


def wandbs(stack: ExitStack, folder: Path) -> dict[str, Worker]:
    """A trainer that has wandb, where there is one."""
    try:
        python = server_python("wandb", pins=WORKER.parent)
    except EnvironmentUnavailableError as reason:
        rig.tell(f"without wandb: {reason}")
        return {}
    (folder / "wandb").mkdir()
    environment = rig.environment(folder / "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    command = [str(python), str(WANDB_WORKER), str(folder / "wandb")]
    return {WANDB: Worker(stack.enter_context(rig.started(command, environment)))}


class Worker(NamedTuple):
    """A trainer: it does one call at a time, as it is told to."""

    process: Any

    def ask(self, call: Call) -> dict[str, float]:
        self.process.stdin.write(f"{json.dumps(call._asdict())}\n".encode())
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{call.who} ended in {call.what} of {size_name(call.size_bytes)}: see above")
        return json.loads(answer)


@contextmanager
def worker(folder: Path, python: Path, socket: Path | None = None) -> Iterator[Worker]:
    """A process of that Python. With a socket it is one of ours, else one of what is installed there."""
    (folder / "tmp").mkdir(parents=True)
    more = {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    if socket is not None:
        more |= {"ML_DASH_SOCKET": str(socket), "PYTHONPATH": library_path(folder)}
    else:
        more |= {"PYTHONPATH": str(packages(torch_python()))}  # torch is large: once is enough
    command = [str(python), str(WORKER), str(folder)]
    with rig.started(command, rig.environment(folder, **more)) as process:
        yield Worker(process)


def packages(python: Path) -> Path:
    """Where an environment has its packages."""
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def remove_stored(folder: Path) -> None:
    """The disk does not hold a hundred files of 1 GiB. Nobody reads them any more."""
    for store in (folder / "daemon" / "store", folder / "peer" / ".dash"):
        for path in store.rglob("files/x/*/*"):
            path.unlink()
    shutil.rmtree(folder / "ours" / "dcp", ignore_errors=True)


# ---- the figures


def figures(took: dict[Call, list[dict[str, float]]]) -> list[dict[str, Any]]:
    return [
        call._asdict()
        | {"rounds": len(some), "first_ms": 1000 * some[0]["seconds"]}
        | {f"{name}_ms": 1000 * statistics.median(one[name] for one in some[1:] or some) for name in some[0]}
        for call, some in took.items()
    ]


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}, seed {found['seed']}")
    for size in dict.fromkeys(each["size_bytes"] for each in found["figures"]):
        by = {(each["who"], each["what"]): each for each in found["figures"] if each["size_bytes"] == size}
        copy = by[COPY, COPY]["seconds_ms"]
        rig.show(
            f"{size_name(size)}: milliseconds that the call blocks (medians; one copy in memory {copy:.3f})",
            ["", "it blocks", "÷ copy", "the first", "with flush"],
            [row(each, copy) for each in by.values()],
        )


def row(each: dict[str, Any], copy: float) -> list[str]:
    who, what, took = each["who"], each["what"], each["seconds_ms"]
    name = what if who in (OURS, what) else f"{what} of {who}"
    flushed = f"{each['with_flush_ms']:.2f}" if "with_flush_ms" in each else ""
    return [name, f"{took:.2f}", f"{took / copy:.2f}", f"{each['first_ms']:.2f}", flushed]


if __name__ == "__main__":
    rig.run(main)
