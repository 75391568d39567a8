"""The way of a file from the queue to the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_dashd.app.base import Base
from ml_dashd.app.storage import Storage
from ml_dashd.edge.buffers import BufferPool
from ml_dashd.flow.adopt import Adopting
from ml_dashd.flow.batch import Batch
from ml_dashd.flow.checksums import Checksums
from ml_dashd.flow.circuit import Breaker
from ml_dashd.flow.copying import Copier
from ml_dashd.flow.finish import Finish
from ml_dashd.flow.outbox import Outbox
from ml_dashd.flow.pace import FairBuffers, Pace
from ml_dashd.flow.scratch import Scratch
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.single import Single
from ml_dashd.flow.upload import Uploader
from ml_dashd.flow.verify import Verify
from ml_dashd.flow.worker import Worker


@dataclass(frozen=True, slots=True)
class Sending:
    """What others need of it."""

    worker: Worker
    finish: Finish
    checksums: Checksums
    verify: Verify
    scratch: Scratch
    breaker: Breaker
    pace: Pace
    buffers: BufferPool


def build_sending(base: Base, storage: Storage, settle: Settle) -> Sending:
    """Nothing is sent before its worker is started."""
    journal, store, clock, faults = storage.journal, storage.store, base.clock, base.faults
    limits, part_bytes = base.limits, base.config.store.part_size
    buffers = BufferPool(limits.memory, part_bytes)
    breaker = Breaker(journal, clock)
    outbox = Outbox(journal, storage.catalog, clock)
    pace = Pace(clock, limits.connections, limits.bandwidth, breaker.answered)
    verify = Verify(store, base.threads, buffers, clock)
    common: dict[str, Any] = {
        "journal": journal,
        "store": store,
        "pins": storage.pins,
        "bell": base.bell,
        "clock": clock,
        "faults": faults,
        "meter": base.meter,
    }
    finish = Finish(catalog=storage.catalog, threads=base.disk, outbox=outbox, **common)
    scratch = Scratch(journal, store, clock)
    checksums = Checksums(journal, store, scratch, clock, storage.of_store.prober)
    shared: dict[str, Any] = {"finish": finish, "checksums": checksums}
    sending: dict[str, Any] = {
        "buffers": FairBuffers(buffers, limits.memory, part_bytes),
        "threads": base.threads,
        "verify": verify,
        "pace": pace,
    }
    single = Single(journal=journal, store=store, pins=storage.pins, faults=faults, meter=base.meter, **sending)
    copier = Copier(journal=journal, store=store, faults=faults, verify=verify, pace=pace, **shared)
    adopting = Adopting(store, storage.pins, base.threads, settle)
    uploader = Uploader(
        copier=copier, adopting=adopting, single=single, part_bytes=part_bytes, **sending, **shared, **common
    )
    batch = Batch(journal=journal, store=store, single=single, faults=faults, **shared)
    worker = Worker(
        journal, uploader, batch, finish, clock, base.meter, breaker=breaker, outbox=outbox, large=limits.threads
    )
    return Sending(worker, finish, checksums, verify, scratch, breaker, pace, buffers)
