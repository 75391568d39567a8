"""What the benchmarks share: a daemon to measure, files to hand over, and how the figures are shown."""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import platform
import random
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ml_dash import Experiment

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB}
PREFIX = "bench/marks/run"
FOLDER = Path(__file__).resolve().parent.parent / ".cache"
NULL_SINK = Path(__file__).with_name("null_sink.py")
LOOK_S = 0.02
"""How often a child's memory is looked at. ru_maxrss would not do: it holds what this process had when it forked."""
BLOCK = memoryview(random.Random(0).randbytes(MIB))
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


class Daemon:
    """ml-dashd as its users run it; what is not set is the default. It and its folder are gone afterwards."""

    def __init__(
        self,
        folder: Path,
        store_url: str = "",
        endpoint: str = "",
        ca_bundle: str = "",
        before: Callable[[Path], None] | None = None,
        settings: str = "",
    ) -> None:
        """`settings` are tables of TOML. `before` is called with its state folder, before its first start."""
        self._folder = folder
        self._before = before
        self._socket = folder / "socket"
        self._settings = (
            f'[daemon]\nsocket = "{self._socket}"\nstate_dir = "{folder / "state"}"\nlog_level = "warning"\n'
            f'[store]\nurl = "{store_url or (folder / "store").as_uri()}"\nendpoint_url = "{endpoint}"\n'
            f'ca_bundle = "{ca_bundle}"\n{settings}'
        )

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        (self._folder / "ml-dashd.toml").write_text(self._settings)
        if self._before:
            (self._folder / "state").mkdir(mode=0o700)
            self._before(self._folder / "state")
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        shutil.rmtree(self._folder)

    def restart(self) -> None:
        """Kills it, and returns once another one is ready to go on."""
        self._kill()
        self._start()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        config = str(self._folder / "ml-dashd.toml")
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "ml_dashd", "run", "--config", config, "--ready-fd", str(writing)]
        self._process = subprocess.Popen(command, env=environment(self._folder), pass_fds=[writing])
        os.close(writing)
        try:
            self._wait_until_ready(reading)
        except BaseException:
            self.__exit__()
            raise

    def _wait_until_ready(self, reading: int) -> None:
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        if said != "ready":
            raise RuntimeError(f"the daemon did not start: {said or 'see above'}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def socket(self) -> Path:
        return self._socket

    def experiment(self) -> Experiment:
        return Experiment(PREFIX, socket=self._socket)


class NullSink:
    """A null S3 server as a process of its own. With `ca_file` it speaks TLS, and writes its authority there."""

    def __init__(self, *, verify: bool = False, ca_file: Path | None = None) -> None:
        self._ca_file = ca_file
        self._options = ["--verify"] * verify + (["--tls", str(ca_file)] if ca_file else [])

    def __enter__(self) -> Self:
        command = [sys.executable, str(NULL_SINK), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self._process.stdout.readline())
        self.endpoint = f"{'https' if self._ca_file else 'http'}://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin, which ends it

    @property
    def pids(self) -> list[int]:
        """Of its process, and of those that it shares its work with."""
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    @property
    def cpu_s(self) -> float:
        """All the CPU time that it has taken."""
        return sum(map(cpu_seconds, self.pids))

    @property
    def ca_file(self) -> str:
        return str(self._ca_file or "")

    @contextmanager
    def held(self) -> Iterator[None]:
        """It answers nobody: what is sent to it waits."""
        for pid in (pids := self.pids):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stored(self, name: str) -> Counter[tuple[int, str | None]]:
        """Sizes and CRC64NVMEs (None: not known) of what lies below a folder of that name, wherever it is."""
        if self._ca_file:
            context = ssl.create_default_context(cafile=self.ca_file)
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with closing(connection):
            connection.request("GET", "/_objects")
            objects = json.load(connection.getresponse())
        return Counter((size, crc64) for key, (size, crc64) in objects.items() if f"/{name}/" in key)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


class Meter:
    """What a process uses from now on; of memory the most that it has had resident."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        with suppress(OSError):  # it is reset where the kernel lets us; else it holds the process's whole life
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._cpu_s = cpu_seconds(pid)
        self._begun = time.monotonic()

    def read(self) -> Usage:
        wall_s = time.monotonic() - self._begun
        return Usage(wall_s, cpu_seconds(self._pid) - self._cpu_s, peak_bytes(self._pid))

    def until_end(self, child: subprocess.Popen[bytes]) -> Usage:
        """Until a child ends, with its own children. Raises where it failed; it has said why on stderr."""
        peak = peak_bytes(child.pid)
        with os.fdopen(os.pidfd_open(child.pid), "rb", buffering=0) as ended:
            while not select.select([ended], [], [], LOOK_S)[0]:
                peak = max(peak, peak_bytes(child.pid))
        wall_s = time.monotonic() - self._begun
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
        return Usage(wall_s, usage.ru_utime + usage.ru_stime - self._cpu_s, peak)


@contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive us."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as child:
        try:
            yield child
        finally:
            child.kill()


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a measured process gets: nothing of the user's own AWS settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "AWS_EC2_METADATA_DISABLED": "true"} | CREDENTIALS | more


def cpu_seconds(pid: int) -> float:
    """A process's CPU time, with its ended threads'. By its CPU clock (clock_getcpuclockid): /proc counts in 10 ms."""
    return time.clock_gettime((~pid << 3) | 2)


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident; 0 once it has ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * KIB if found else 0


def write_file(path: Path, size: int, number: int = 0) -> Path:
    """A file that does not compress, and in which every MiB is another, so that mixed-up parts are found.

    Those of different numbers differ, too.
    """
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            left = size - start
            file.write((number << 44 | start).to_bytes(8, "big")[:left])
            file.write(BLOCK[8 : max(8, min(left, MIB))])
    return path


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def settle() -> None:
    """Waits until the disk has taken everything, so that one measurement does not slow the next."""
    os.sync()


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: of few values the 99th percentile is the worst."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# ---- how a benchmark is called, and what it prints


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it work at all?")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    made.add_argument("--folder", type=Path, default=FOLDER, help="a folder on a local disk (default: %(default)s)")
    return made


def size_of(text: str) -> int:
    """A size in words: 4096, 64M, 4GiB."""
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(i?B)?", text, re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64M or 4GiB")
    return int(found[1]) * UNITS[found[2].upper()]


def size_name(size: int) -> str:
    unit = next((unit for unit in "GMK" if size % UNITS[unit] == 0), "")
    return f"{size // UNITS[unit]} {unit}iB" if unit else f"{size} B"


def machine(folder: Path) -> str:
    return (
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"files on {file_system(folder)}"
    )


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on: the numbers of a tmpfs say nothing about a disk."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next((words[words.index("-") + 1] for words in lines if words[2] == number), "unknown file system")


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: the first column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    print(f"\n{title}")
    for row in (headings, *rows):
        first, *figures = (
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([f"  {first}", *figures]))


def tell(text: str) -> None:
    """What is going on, for who waits: on stderr, so that --json stays JSON."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, whatever ended it: an error, Ctrl-C, SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as name:
        yield Path(name)


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark; ends with a word where it is interrupted."""
    try:
        main()
    except KeyboardInterrupt:
        tell("interrupted; everything that was written is removed")
        sys.exit(130)
