"""What is counted and measured, as Prometheus reads it: the client library, with a registry of our own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from ml_dash.errors import Code
from ml_dashd.core.figures import Figures
from ml_dashd.core.reconcile import Kind
from ml_dashd.core.retry import Fault
from ml_dashd.core.states import State

PREFIX = "ml_dashd"
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds: a commit takes 0.25 ms on an idle NVMe disk, and tens of ms where a trainer writes beside it."""
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
SHOWN = (State.QUEUED, State.SENDING, State.COMPLETING, State.VERIFIED, State.FAILED)
"""States in which the journal still has something to do, or to be asked about."""
FINAL = (Code.SOURCE_CHANGED, Code.SOURCE_LOST, Code.STORE_REFUSED)
"""What a file usually fails with: there from the start, so that the first failure is seen as a rise."""


class Described(NamedTuple):
    """A metric as its page in docs/ shows it."""

    name: str
    kind: str
    labels: Sequence[str]
    meaning: str


class PrometheusMeter:
    """The port `Meter`, and the page that shows what it counted.

    `described` lists the daemon's own metrics; the library adds those of the process.
    """

    def __init__(self, version: str) -> None:
        # A series beside each, with the time at which it began: nobody asks for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.described: list[Described] = []
        ProcessCollector(registry=self._registry)
        Info(PREFIX, "The daemon's release.", registry=self._registry).info({"version": version})
        self._count()
        self._measure()

    def _count(self) -> None:
        self._accepted_files = self._counter("accepted_files", "Files that were acknowledged.")
        self._accepted_bytes = self._counter("accepted_bytes", "Bytes of the files that were acknowledged.")
        self._sent_bytes = self._counter("sent_bytes", "Bytes that the store took, those of parts sent again included.")
        self._stored_files = self._counter("stored_files", "Files that were stored, verified and listed.")
        self._stored_bytes = self._counter("stored_bytes", "Bytes of the files that were stored, verified and listed.")
        self._cancelled_files = self._counter("cancelled_files", "Files that were deleted before they were stored.")
        self._superseded_files = self._counter(
            "superseded_files", "Files that were dropped, before they were stored, for a newer version of their path."
        )
        self._retries = self._counter("retries", "Tries of files and parts that failed and come again.", "fault")
        self._failures = self._counter("failures", "Files that were given up.", "code")
        self._mismatches = self._counter(
            "mismatches", "What was found not to go together in store and catalog, each time that it was.", "kind"
        )
        for kind in Kind:
            self._mismatches.labels(kind)
        for fault in (*Fault, "journal", "defect"):
            self._retries.labels(fault)
        for code in FINAL:
            self._failures.labels(code)
        self._commits = self._histogram("journal_commit_seconds", "A commit of the journal.", COMMIT_BUCKETS)
        self._lag = self._histogram("loop_lag_seconds", "How late the event loop came, twice a second.", LAG_BUCKETS)

    def _measure(self) -> None:
        self._files = self._gauge("files", "Files in the journal that are on their way or failed.", "state")
        self._bytes = self._gauge("bytes", "Bytes of the files that are on their way or failed.", "state")
        self._blocked = self._gauge("blocked_files", "Files that wait for an operator, by what is wrong.", "code")
        self._age = self._gauge("queue_age_seconds", "Age of the oldest file on its way; 0 where there is none.")
        self._spool = self._gauge("spool_bytes", "What the spool takes on disk, without what is only linked.")
        self._free = self._gauge("spool_free_bytes", "Free bytes of the file system under a spool folder.", "folder")
        self._connections = self._gauge("connections", "Clients connected to the daemon's socket.")
        self._requests = self._gauge("requests", "Requests with a body that are being sent to the store.", "lane")
        self._places = self._gauge("requests_limit", "How many of them may be, as the store bears it.")
        self._rate = self._gauge(
            "send_bytes_per_second", "What they bring, as measured last; 0 where that is long ago."
        )
        self._circuits = self._gauge("circuits_open", "Circuits behind which files wait for a probe.", "of")
        self._checks = self._gauge("check_ok", "1 where a check of readiness passes, else 0.", "check")

    def accepted(self, size_bytes: int) -> None:
        self._accepted_files.inc()
        self._accepted_bytes.inc(size_bytes)

    def sent(self, size_bytes: int) -> None:
        self._sent_bytes.inc(size_bytes)

    def stored(self, size_bytes: int) -> None:
        self._stored_files.inc()
        self._stored_bytes.inc(size_bytes)

    def cancelled(self) -> None:
        self._cancelled_files.inc()

    def superseded(self) -> None:
        self._superseded_files.inc()

    def retried(self, fault: str) -> None:
        self._retries.labels(fault).inc()

    def failed(self, code: Code) -> None:
        self._failures.labels(code).inc()

    def found(self, kind: str) -> None:
        self._mismatches.labels(kind).inc()

    def committing(self) -> AbstractContextManager[None]:
        return self._commits.time()

    def lagged(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def counted(self) -> dict[str, dict[str, int]]:
        """Retries by fault and failures by code since the start, as far as there were any."""
        return {"retries": _values(self._retries), "failures": _values(self._failures)}

    def render(self, figures: Figures) -> bytes:
        """Prometheus' text format 0.0.4. What could not be measured is NaN, which no alert takes for zero."""
        backlog, unknown = figures.backlog, float("nan")
        counts = {each.state: each for each in backlog.counts} if backlog else {}
        for state in SHOWN:
            count = counts.get(state)
            self._files.labels(state).set(unknown if backlog is None else count.files if count else 0)
            self._bytes.labels(state).set(unknown if backlog is None else count.size_bytes if count else 0)
        self._blocked.clear()
        for each in backlog.blocked if backlog else ():
            self._blocked.labels(each.trouble.code).set(each.files)
        self._age.set(unknown if figures.queue_age_s is None else figures.queue_age_s)
        self._spool.set(unknown if figures.spool_bytes is None else figures.spool_bytes)
        self._free.clear()
        for disk in figures.disks:
            self._free.labels(disk.folder).set(disk.free_bytes)
        self._connections.set(figures.connections)
        for lane, requests in figures.sending.requests.items():
            self._requests.labels(lane).set(requests)
        self._places.set(figures.sending.places)
        self._rate.set(figures.sending.bytes_per_second)
        for of, circuits in figures.circuits.items():
            self._circuits.labels(of).set(circuits)
        for name, passes in figures.checks.items():
            self._checks.labels(name).set(passes)
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self.described.append(Described(f"{PREFIX}_{name}_total", "counter", labels, meaning))
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self.described.append(Described(f"{PREFIX}_{name}", "gauge", labels, meaning))
        return Gauge(f"{PREFIX}_{name}", meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        self.described.append(Described(f"{PREFIX}_{name}", "histogram", (), meaning))
        return Histogram(f"{PREFIX}_{name}", meaning, buckets=buckets, registry=self._registry)


def _values(counter: Counter) -> dict[str, int]:
    """What a counter with one label has counted, by that."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    return {label: int(sample.value) for sample in samples for label in sample.labels.values() if sample.value}
