"""What keeps things: store, journal, catalog and spool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_dashd.app.base import Base
from ml_dashd.app.catalog import OpenCatalog, open_catalog
from ml_dashd.app.store import OpenStore, open_store
from ml_dashd.app.tasks import Tasks
from ml_dashd.core.schedule import lane
from ml_dashd.edge.descriptors import DescriptorBudget
from ml_dashd.edge.file_leases import FileLeases
from ml_dashd.edge.journal import SqliteJournal
from ml_dashd.edge.pin import SpoolPins
from ml_dashd.edge.room import Room
from ml_dashd.edge.slots import SlotFiles
from ml_dashd.edge.systemd import Systemd
from ml_dashd.edge.witness import Witness
from ml_dashd.embedded import Embedded
from ml_dashd.flow.mount import Mount
from ml_dashd.ports import Catalog, Runs, Store


@dataclass(frozen=True, slots=True)
class Storage:
    """All of it. `spools` are the folders of the spool; `descriptors` the budget of what clients make it hold."""

    of_store: OpenStore
    of_catalog: OpenCatalog
    journal: SqliteJournal
    slots: SlotFiles
    pins: SpoolPins
    spools: list[Path]
    descriptors: DescriptorBudget
    mount: Mount

    @property
    def store(self) -> Store:
        return self.of_store.store

    @property
    def catalog(self) -> Catalog:
        return self.of_catalog.catalog

    @property
    def runs(self) -> Runs:
        return self.of_catalog.runs


async def open_storage(base: Base, systemd: Systemd, embedded: Embedded | None, chores: Tasks) -> Storage:
    """Opens what is on this machine. Raises JournalError where that can't be."""
    config = base.config
    of_store = open_store(base)
    single_bytes = of_store.store.single_bytes
    journal = SqliteJournal(
        config.state_dir / "journal.sqlite",
        base.clock,
        base.faults,
        lambda kind, size: lane(kind, size, single_bytes),
        base.meter.committing,
    )
    await journal.open()
    of_catalog = await open_catalog(base, journal, embedded, chores)
    spools = [config.state_dir / "spool", *config.pool_folders]
    room, descriptors = Room(config.spool.quota), DescriptorBudget()
    slots = SlotFiles(spools[0], room, descriptors, config.spool.warm_bytes)
    uncached_from = config.limits.uncached_from
    leases = FileLeases(descriptors, config.spool.touch_leases, spare=True)
    witness = Witness(leases=leases, small=config.spool.copy_below)
    pins = SpoolPins(
        spools, slots, base.faults, room, systemd, descriptors, witness=witness, uncached_from=uncached_from
    )
    mount = Mount(
        folder=of_store.folder,
        url=of_store.store.url,
        journal=journal,
        catalog=of_catalog.catalog,
        threads=base.disk,
        clock=base.clock,
    )
    return Storage(of_store, of_catalog, journal, slots, pins, spools, descriptors, mount)
