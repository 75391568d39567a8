"""How much of the machine this process may take: what its control groups allow (cgroup v2), and its set of cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def memory_bytes() -> int | None:
    """The least that a control group on the way up allows; None where none sets a limit."""
    return min((int(text) for (text, *_) in _settings("memory.max") if text.isdigit()), default=None)


def cores() -> int:
    """As many as it may run on, and no more than its share of their time comes to; at least one."""
    shares = [
        math.ceil(int(quota) / int(period)) for quota, period in _settings("cpu.max") if quota.isdigit()
    ]  # fmt: skip
    return max(1, min([len(os.sched_getaffinity(0)), *shares]))


def _settings(name: str) -> Iterator[list[str]]:
    """The words of a file of this process's control group, and of each above it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            group = CGROUP / line.removeprefix("0::/")
            for folder in (group, *group.parents):
                try:
                    yield (folder / name).read_text().split()
                except OSError:
                    continue
