"""The least CPU that one file can take here, piece by piece, and where the daemon's goes.

Each piece is one thread's work on every byte of the file, 1 MiB at a time in memory that is used again, as the daemon
reads: the page cache into memory, SHA-256, CRC64NVME; and to a null sink over loopback, in requests as large as a part.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import rig
from awscrt.checksums import crc64nvme
from rig import MIB, NullSink

PART = 16 * MIB
PIECES = ("read", "SHA-256", "CRC64NVME", "send")


def measure(source: Path, rounds: int) -> dict[str, float]:
    """CPU-s/GB of each piece: medians."""
    found: dict[str, list[float]] = {name: [] for name in PIECES}
    gb = source.stat().st_size / 1e9
    with NullSink() as sink:
        for _ in range(rounds):
            for name, seconds in zip(PIECES, once(source, sink), strict=True):
                found[name].append(seconds / gb)
    return {name: median(values) for name, values in found.items()}


def once(source: Path, sink: NullSink) -> tuple[float, float, float, float]:
    """Thread seconds of the four pieces."""
    room, sha256, crc = memoryview(bytearray(MIB)), hashlib.sha256(), 0
    read_s = sha256_s = crc_s = 0.0
    with source.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, MIB):
            begun = time.thread_time()
            piece = room[: os.preadv(file.fileno(), [room], offset)]
            read = time.thread_time()
            sha256.update(piece)
            hashed = time.thread_time()
            crc = crc64nvme(piece, crc)
            read_s += read - begun
            sha256_s += hashed - read
            crc_s += time.thread_time() - hashed
    return read_s, sha256_s, crc_s, send(sink, room, size)


def send(sink: NullSink, room: memoryview, size: int) -> float:
    with closing(socket.create_connection(("127.0.0.1", sink.port))) as peer:
        begun = time.thread_time()
        for start in range(0, size, PART):
            left = min(PART, size - start)
            peer.sendall(b"PUT /bench/floor HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                count = min(MIB, left)
                peer.sendall(room[:count])
                left -= count
            if not peer.recv(MIB).startswith(b"HTTP/1.1 200"):
                raise RuntimeError("the null sink has refused a part")
        return time.thread_time() - begun


# ---- the daemon's threads

LOOP, WORK, OTHERS = "event loop", "threads that read and hash, sync and copy (nice 10)", "other threads"


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a daemon's threads that live, by what they do."""
    found = {LOOP: 0.0, WORK: 0.0, OTHERS: 0.0}
    for task, seconds in _tasks(pid):
        nice = os.getpriority(os.PRIO_PROCESS, task)
        found[LOOP if task == pid else WORK if nice else OTHERS] += seconds
    return found


def _tasks(pid: int) -> Iterator[tuple[int, float]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = (task / "schedstat").read_text().split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        yield int(task.name), int(nanoseconds) / 1e9


def show(floor: dict[str, float], ours: dict[str, Any]) -> None:
    total, cell = sum(floor.values()), "{:.2f}".format
    rows = [[name, cell(value)] for name, value in floor.items()]
    rows += [["the floor: their sum", cell(total)], ["ml-dashd", cell(ours["cpu_s_per_gb"])]]
    rows += [[f"  {name}", cell(value)] for name, value in ours["threads_s_per_gb"].items()]
    rows += [["ml-dashd ÷ the floor", cell(ours["cpu_s_per_gb"] / total)]]
    rig.show("where the CPU goes", ["", "CPU-s/GB"], rows)
