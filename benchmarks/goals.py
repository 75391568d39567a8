"""What the daemon is to reach beside its peers, and whether it does: ratios of figures of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from picture import Bar, Mark, Panel

OURS = "ml-dashd"
OURS_QUEUED = "ml-dashd, full queue"
OURS_HANDED_OVER = "ml-dashd, from hand-off"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of ours, over that of a peer where one is named, is at most (or at least) so much."""

    text: str
    workload: str
    client: str
    metric: str
    peer: str
    must: float
    stretch: float
    at_least: bool = False

    def verdict(self, workloads: dict[str, Any]) -> Verdict:
        clients = workloads[self.workload]["clients"]
        value = clients[self.client][self.metric] / (clients[self.peer][self.metric] if self.peer else 1)
        sign = -1 if self.at_least else 1
        return Verdict(self, value, *(sign * value <= sign * bound for bound in (self.must, self.stretch)))

    def mark(self, workloads: dict[str, Any]) -> Mark:
        """Where the must lies on the scale of its figure."""
        peer = workloads[self.workload]["clients"][self.peer][self.metric] if self.peer else 1
        whose = {OURS_QUEUED: " (full queue)", OURS_HANDED_OVER: " (from hand-off)"}.get(self.client, "")
        return Mark(f"must{whose}: {self.must:g} × {self.peer}" if self.peer else "must", self.must * peer)  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured of a goal."""

    goal: Goal
    value: float
    met: bool
    stretch_met: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self.goal) | {"value": self.value, "met": self.met, "stretch_met": self.stretch_met}

    def row(self) -> list[str]:
        goal, sign = self.goal, "≥" if self.goal.at_least else "≤"
        return [
            goal.text,
            f"{self.value:.2f}" if goal.peer else f"{self.value:.0f}",
            f"{sign} {goal.must:g}",
            "met" if self.met else "NOT met",
            f"{sign} {goal.stretch:g}",
            "met" if self.stretch_met else "not met",
        ]


def _small_files(workload: str, files: str) -> tuple[Goal, Goal]:
    rate = "files_per_s"
    text = f"{files}: files/s ÷ s5cmd's"
    return (
        Goal(f"{text}, full queue", workload, OURS_QUEUED, rate, "s5cmd", 1.0, 1.3, at_least=True),
        Goal(f"{text}, from hand-off", workload, OURS_HANDED_OVER, rate, "s5cmd", 0.6, 1.0, at_least=True),
    )


GOALS = (
    Goal("HTTP: CPU ÷ s5cmd's", "http", OURS, "cpu_s_per_gb", "s5cmd", 0.5, 0.4),
    Goal("HTTP: CPU ÷ awscrt's", "http", OURS, "cpu_s_per_gb", "awscrt", 1.0, 0.85),
    Goal("HTTP: time ÷ awscrt's", "http", OURS, "wall_s", "awscrt", 1.1, 0.9),
    Goal("HTTP: peak MB", "http", OURS, "peak_mb", "", 200, 130),
    Goal("TLS: CPU ÷ s5cmd's", "tls", OURS, "cpu_s_per_gb", "s5cmd", 0.6, 0.5),
    Goal("TLS: CPU ÷ obstore's", "tls", OURS, "cpu_s_per_gb", "obstore", 1.15, 1.0),
    Goal("TLS: peak MB", "tls", OURS, "peak_mb", "", 200, 130),
    *_small_files("medium", "1 MiB"),
    Goal("1 MiB: peak MB", "medium", OURS_QUEUED, "peak_mb", "", 200, 130),
    *_small_files("small", "4 KiB"),
    Goal("4 KiB: peak MB", "small", OURS_QUEUED, "peak_mb", "", 200, 130),
)
PANELS = (
    ("http", "cpu_s_per_gb", "CPU, seconds a GB", "less is better"),
    ("http", "wall_s", "time, seconds", "less is better"),
    ("tls", "cpu_s_per_gb", "CPU, seconds a GB", "less is better"),
    ("http", "peak_mb", "peak memory, MB", "less is better"),
    ("medium", "files_per_s", "files a second", "more is better"),
    ("small", "files_per_s", "files a second", "more is better"),
)


def panels(workloads: dict[str, Any]) -> list[Panel]:
    """The figures that are drawn, of what was measured."""
    return [
        Panel(
            f"{workloads[workload]['title']}: {better}",
            axis,
            [Bar(name, each[metric], name.startswith(OURS)) for name, each in workloads[workload]["clients"].items()],
            [goal.mark(workloads) for goal in GOALS if (goal.workload, goal.metric) == (workload, metric)],
        )
        for workload, metric, axis, better in PANELS
        if workload in workloads
    ]
