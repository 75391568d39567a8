"""What a daemon's process has open, what it takes, and how late its loop comes."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.http_client import HttpClient
from tests.harness import DaemonProcess

LAG = "ml_dashd_loop_lag_seconds"


@dataclass(frozen=True)
class Measured:
    """What a process has open, and what it takes."""

    descriptors: list[str]
    threads: int
    rss_bytes: int


def measured(daemon: DaemonProcess) -> Measured:
    assert daemon.process is not None
    process = Path(f"/proc/{daemon.process.pid}")
    descriptors = []
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            descriptors.append(str(entry.readlink()).partition(":[")[0])
    descriptors.sort()
    threads = len(list((process / "task").iterdir()))
    rollup = (process / "smaps_rollup").read_text()
    return Measured(descriptors, threads, int(rollup.partition("Rss:")[2].split()[0]) * 1024)


@dataclass(frozen=True)
class Lag:
    """How late the event loop came, in so many looks: `within` has the share of them by each limit in seconds."""

    looks: int
    within: dict[float, float]

    def percentile_s(self, share: float) -> float:
        """The least limit within which that share of the looks was."""
        return next((limit for limit, found in sorted(self.within.items()) if found >= share), math.inf)

    def __str__(self) -> str:
        return (
            f"loop lag in {self.looks} looks: p50 ≤ {self.percentile_s(0.5) * 1000:g} ms, "
            f"p99 ≤ {self.percentile_s(0.99) * 1000:g} ms, p99.9 ≤ {self.percentile_s(0.999) * 1000:g} ms; "
            f"{self.within[0.025]:.2%} within 25 ms"
        )


def loop_lag(daemon: DaemonProcess) -> Lag:
    """Since the daemon's start, from its metrics."""
    metrics = HttpClient(daemon.socket.with_name("http.sock")).metrics()
    looks = metrics[f"{LAG}_count"]
    prefix = f"{LAG}_bucket["
    within = {
        float(name.removeprefix(prefix).rstrip("]")): count / max(1, looks)
        for name, count in metrics.items()
        if name.startswith(prefix)
    }
    return Lag(int(looks), within)
