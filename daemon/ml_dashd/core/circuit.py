"""Circuits: while the store is away or refuses, one file asks now and then, and all others wait for it.

A circuit is the store's, for what holds up every file, or an experiment's, for what a policy or a folder may refuse to
one and grant to another. It opens after failures in a row, and closes with the first answer. Time is an argument, in
seconds that never step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_dash.errors import Code
from ml_dashd.core.model import Experiment, Trouble
from ml_dashd.core.retry import Fault, backoff_ms

Extent = Experiment | None
"""Whose files a circuit holds up: an experiment's; None is the store, for everybody's."""
STORE: Extent = None

OF_THE_STORE = {
    Fault.NOT_MOUNTED: 1,
    Fault.UNREACHABLE: 3,
    Fault.CREDENTIALS: 3,
    Fault.TRANSIENT: 10,
    Fault.THROTTLED: 10,
}
"""After how many failures in a row. A server that sheds half of its load refuses ten in a row once in 1,000 times."""
OF_AN_EXPERIMENT = {Fault.DENIED: 3, Fault.NO_BUCKET: 3, Fault.FULL: 3}
_CODES_OF_THE_STORE = (
    Code.STORE_NOT_MOUNTED,
    Code.STORE_UNREACHABLE,
    Code.STORE_CREDENTIALS,
    Code.STORE_UNAVAILABLE,
)
_CODES_OF_AN_EXPERIMENT = (Code.STORE_DENIED, Code.STORE_NO_BUCKET, Code.STORE_FULL)

PROBE_FLOOR_S = 0.2
PROBE_CAP_S = 5.0
"""A probe costs one request: every few seconds it troubles nobody, and what is mended is seen soon."""
CATALOG_PROBE_CAP_S = 15.0
"""The same of a fleet's catalog: of 10,000 nodes, 1,300 ask in a second then; and one that is back is noticed after
8 s on average."""
HOLD_MS = 600_000
"""For so long a file behind an open circuit is put off in the journal. It is let go when the circuit closes; should
that be lost, it asks again after this."""


@dataclass(slots=True)
class Circuit:
    """One circuit. `trouble` is why it is open, None while it is closed."""

    failures: int = 0
    probes: int = 0
    next_s: float = 0.0
    trouble: Trouble | None = None


class Circuits:
    """Those that have failures, by their extent: there is none while all is well."""

    def __init__(self) -> None:
        self._circuits: dict[Extent, Circuit] = {}

    def holds(self, experiment: Experiment) -> tuple[Extent, Trouble] | None:
        """The open circuit behind which this experiment's files wait."""
        for extent in (STORE, experiment):
            circuit = self._circuits.get(extent)
            if circuit is not None and circuit.trouble is not None:
                return extent, circuit.trouble
        return None

    def is_open(self, extent: Extent) -> bool:
        """Whether files wait behind this one."""
        circuit = self._circuits.get(extent)
        return circuit is not None and circuit.trouble is not None

    def opened(self) -> list[Extent]:
        """Every open one."""
        return [extent for extent, circuit in self._circuits.items() if circuit.trouble is not None]

    def failed(
        self, experiment: Experiment, fault: Fault, trouble: Trouble, now_s: float, jitter: float
    ) -> list[Extent]:
        """A file has failed, once more in a row. Returns the circuits that have closed: a refusal is an answer, too.

        One that is open already keeps its time for the next probe.
        """
        extent = STORE if fault in OF_THE_STORE else experiment
        closed = [] if extent is None else self._close(STORE)
        least = (OF_THE_STORE | OF_AN_EXPERIMENT).get(fault)
        if least is None:
            return closed
        circuit = self._circuits.setdefault(extent, Circuit())
        circuit.failures += 1
        if circuit.trouble is None and circuit.failures >= least:
            circuit.trouble = trouble
            circuit.next_s = now_s + pause_s(1, jitter)
        return closed

    def answered(self, experiment: Experiment) -> list[Extent]:
        """The store has taken something of this experiment. Returns the circuits that have closed."""
        return [*self._close(STORE), *self._close(experiment)] if self._circuits else []

    def ripe(self, now_s: float) -> Extent | bool:
        """The extent whose time for a probe has come, the one that waits longest; False where there is none."""
        extents = [extent for extent in self.opened() if self._circuits[extent].next_s <= now_s]
        return min(extents, key=lambda extent: self._circuits[extent].next_s) if extents else False

    def next_s(self) -> float | None:
        """When the next probe is due; None while all are closed."""
        return min((self._circuits[extent].next_s for extent in self.opened()), default=None)

    def probed(self, extent: Extent, now_s: float, jitter: float) -> None:
        """A probe has ended. Where the circuit is still open, the next follows later, with full jitter."""
        if self.is_open(extent):
            circuit = self._circuits[extent]
            circuit.probes += 1
            circuit.next_s = now_s + pause_s(circuit.probes + 1, jitter)

    def hasten(self, now_s: float) -> None:
        """All open circuits are probed now."""
        for extent in self.opened():
            self._circuits[extent].next_s = now_s

    def drop(self, extent: Extent) -> None:
        """Nobody waits behind it any more."""
        self._circuits.pop(extent, None)

    def _close(self, extent: Extent) -> list[Extent]:
        circuit = self._circuits.pop(extent, None)
        return [] if circuit is None or circuit.trouble is None else [extent]


def codes_of(extent: Extent) -> tuple[Code, ...]:
    """What files that wait behind such a circuit are in trouble for."""
    return _CODES_OF_THE_STORE if extent is None else _CODES_OF_AN_EXPERIMENT


def pause_s(probe: int, jitter: float, cap_s: float = PROBE_CAP_S) -> float:
    """How long after a probe, 1 the first, the next one comes: with full jitter, up to ever more seconds."""
    return max(PROBE_FLOOR_S, min(cap_s, backoff_ms(probe + 1, 1.0) / 1000) * jitter)
