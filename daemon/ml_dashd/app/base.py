"""What everything is built with: settings, clock, points of failure, counts, threads, and the bell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ml_dash.release import release
from ml_dashd.config import Config, LimitsConfig, fault_plan
from ml_dashd.core.plan import at_once, buffers_bytes, fitting
from ml_dashd.edge.allowance import cores, memory_bytes
from ml_dashd.edge.faults import NoFaults, NoMeter, TestFaults
from ml_dashd.edge.politeness import Politeness
from ml_dashd.edge.threads import Pool
from ml_dashd.flow.bell import Bell
from ml_dashd.ports import Clock, Faults, Meter

if TYPE_CHECKING:
    from ml_dashd.core.figures import Figures

QUICK_THREADS = 4
"""For pins and slots: a hand-off waits behind no read, hash or fsync."""
DISK_THREADS = 4
"""For fsyncs, copies and removals, which may take seconds each."""
LEASE_THREADS = 2
"""For copies that a writer waits for, behind nobody else's."""


Counted = Mapping[str, Mapping[str, int]]
"""Retries by fault, failures by code."""


class Base:
    """Made once a daemon has its state folder for itself: its threads begin here."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        plan = fault_plan()
        self.faults: Faults = NoFaults() if plan is None else TestFaults(*plan)
        self.meter, self.render, self.counted = _meter(config)
        self.limits = limits_here(config)
        self.polite = Politeness(config.limits.nice, config.limits.io_class)
        self.threads = Pool(self.limits.threads, "work", self.polite)
        self.quick = Pool(QUICK_THREADS, "quick")
        self.disk = Pool(DISK_THREADS, "disk", self.polite)
        self.warming = Pool(1, "warm", self.polite)
        self.leasing = Pool(LEASE_THREADS, "lease")
        self.bell = Bell()

    def close(self) -> None:
        """Ends the threads, once they have done what was asked of them. Blocks."""
        for pool in (self.threads, self.quick, self.disk, self.warming, self.leasing):
            pool.close()


def limits_here(config: Config) -> LimitsConfig:
    """The settings' limits, with what they leave to the machine."""
    limits, part_bytes = config.limits, config.store.part_size
    allowed = memory_bytes()
    threads = limits.threads or at_once(cores(), allowed, part_bytes)
    files = min(threads, fitting(allowed, part_bytes))
    return replace(limits, threads=threads, memory=limits.memory or buffers_bytes(files, part_bytes))


def _meter(config: Config) -> tuple[Meter, Callable[[Figures], bytes], Callable[[], Counted]]:
    """What counts; what makes Prometheus' page of it where somebody can ask for one; and what it has counted."""
    if not config.http.listen:
        return NoMeter(), lambda _: b"", lambda: {"retries": {}, "failures": {}}
    from ml_dashd.edge.metrics import PrometheusMeter  # noqa: PLC0415 an embedded daemon does without

    meter = PrometheusMeter(release())
    return meter, meter.render, meter.counted
