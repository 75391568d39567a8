"""What goes on beside the sending: drains, sets, the folders that people read, slots made ready, and what is old."""

from __future__ import annotations

from dataclasses import dataclass

from ml_dashd.app.base import Base
from ml_dashd.app.sending import Sending
from ml_dashd.app.storage import Storage
from ml_dashd.app.store import check_of
from ml_dashd.core import reconcile
from ml_dashd.edge.manifest import ManifestFile
from ml_dashd.edge.tree import FolderTree
from ml_dashd.flow.deliver import Deliver
from ml_dashd.flow.drain import Drain
from ml_dashd.flow.mirror import Mirror
from ml_dashd.flow.reclaim import Reclaim
from ml_dashd.flow.reconcile import Reconcile
from ml_dashd.flow.sweep import Sweep
from ml_dashd.flow.warm import Warm


@dataclass(frozen=True, slots=True)
class Upkeep:
    """All of it."""

    drain: Drain
    deliver: Deliver
    mirror: Mirror
    warm: Warm
    sweep: Sweep
    reclaim: Reclaim
    reconcile: Reconcile


def build_upkeep(base: Base, storage: Storage, sending: Sending) -> Upkeep:
    """None of it runs by itself."""
    config, journal, clock = base.config, storage.journal, base.clock
    shown = not config.bucket and not config.fleet
    check = check_of(storage.of_store.folder)
    tree = FolderTree(config.store_root, int(config.store.mode, 8), check) if shown else None
    return Upkeep(
        drain=Drain(
            journal=journal,
            worker=sending.worker,
            manifest=ManifestFile(config.state_dir),
            threads=base.disk,
            bell=base.bell,
            clock=clock,
        ),
        deliver=Deliver(
            journal=journal,
            catalog=storage.catalog,
            bell=base.bell,
            clock=clock,
            faults=base.faults,
            keep_s=config.retention.incomplete_sets,
        ),
        mirror=Mirror(runs=storage.of_catalog.own_runs, tree=tree, threads=base.disk, clock=clock),
        warm=Warm(storage.slots, base.warming, clock),
        sweep=Sweep(journal, sending.finish, clock),
        reclaim=Reclaim(
            catalog=storage.catalog,
            journal=journal,
            store=storage.store,
            clock=clock,
            faults=base.faults,
            rounds=storage.of_catalog.rounds("reclaim"),
            holder=storage.of_catalog.here.token(),
            grace_s=config.store.delete_grace,
        ),
        reconcile=_reconcile(base, storage, sending),
    )


def _reconcile(base: Base, storage: Storage, sending: Sending) -> Reconcile:
    config = base.config
    rule = reconcile.Rule(
        age_ms=int(config.store.orphan_age * 1000),
        grace_ms=int(config.store.delete_grace * 1000),
        alone=config.fleet or not config.bucket,
    )
    return Reconcile(
        store=storage.store,
        catalog=storage.catalog,
        journal=storage.journal,
        checksums=sending.checksums,
        verify=sending.verify,
        clock=base.clock,
        faults=base.faults,
        meter=base.meter,
        obstacle=storage.mount.trouble,
        rule=rule,
        holder=storage.of_catalog.here.token(),
        every_s=config.store.reconcile_every,
    )
