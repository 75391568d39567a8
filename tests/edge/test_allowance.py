"""What control groups allow, read from files such as the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_dashd.edge import allowance


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process's control group, below which none is."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    folder = tmp_path / line.removeprefix("0::/")
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(allowance, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return folder


def test_without_a_limit_all_is_allowed(group: Path) -> None:
    assert (allowance.cores(), allowance.memory_bytes()) == (64, None)
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert (allowance.cores(), allowance.memory_bytes()) == (64, None)


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("250000", 3), ("1600000", 16), ("9900000", 64)])
def test_a_share_of_the_cores_time_counts_as_so_many_cores(group: Path, quota: str, cores: int) -> None:
    (group / "cpu.max").write_text(f"{quota} 100000\n")
    assert allowance.cores() == cores


def test_the_least_on_the_way_up_counts(group: Path, tmp_path: Path) -> None:
    (group / "memory.max").write_text("2000000\n")
    assert allowance.memory_bytes() == 2_000_000
    if group != tmp_path:
        (tmp_path / "memory.max").write_text("1000000\n")
        assert allowance.memory_bytes() == 1_000_000
