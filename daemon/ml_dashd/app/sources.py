"""Sources while they are kept: onto stable storage, copied where their owner may overwrite them, superseded."""

from __future__ import annotations

from dataclasses import dataclass

from ml_dashd.app.base import Base
from ml_dashd.app.sending import Sending
from ml_dashd.app.storage import Storage
from ml_dashd.core.overwrite import CopySpeed, longest_wait_s
from ml_dashd.core.supersede import Rule
from ml_dashd.edge.file_leases import break_time_s
from ml_dashd.flow.copies import Copies
from ml_dashd.flow.health import Health
from ml_dashd.flow.overwrites import Overwrites
from ml_dashd.flow.settle import Settle
from ml_dashd.flow.supersede import Supersede
from ml_dashd.flow.touched import Touched
from ml_dashd.flow.write_back import WriteBack


@dataclass(frozen=True, slots=True)
class Settling:
    """What brings them to stable storage, and whether the disk can be trusted."""

    health: Health
    settle: Settle


def build_settling(base: Base, storage: Storage) -> Settling:
    """Nothing is asked of the disk here."""
    health = Health(
        storage.journal, storage.catalog, storage.runs, storage.of_catalog.number_trouble, storage.mount.trouble
    )
    return Settling(health, Settle(storage.pins, base.disk, health, base.faults))


@dataclass(frozen=True, slots=True)
class Sources:
    """What looks after them."""

    health: Health
    settle: Settle
    write_back: WriteBack
    supersede: Supersede
    overwrites: Overwrites
    copies: Copies
    touched: Touched

    def give_way(self) -> None:
        """The kernel asks for leases: whoever waits for nothing to be copied goes first."""
        self.touched.give_way()
        self.overwrites.look()


def build_sources(base: Base, storage: Storage, sending: Sending, settling: Settling) -> Sources:
    """Nothing is copied before `copies` runs."""
    config, journal, pins = base.config, storage.journal, storage.pins
    health, settle = settling.health, settling.settle
    supersede = Supersede(
        journal=journal,
        rule=Rule(config.spool.supersede, frozenset(config.retention.keep_tags)),
        bell=base.bell,
        faults=base.faults,
        cancel=sending.worker.cancel,
    )
    write_back = WriteBack(
        journal=journal,
        settle=settle,
        supersede=supersede,
        bell=base.bell,
        clock=base.clock,
        give_up=sending.worker.give_up,
    )
    speed = CopySpeed()
    overwrites = Overwrites(
        journal=journal,
        pins=pins,
        threads=base.leasing,
        disk=base.disk,
        bell=base.bell,
        clock=base.clock,
        faults=base.faults,
        speed=speed,
        longest_wait_s=longest_wait_s(config.spool.lease_max_delay, break_time_s()),
        sync=write_back.later,
    )
    copies = Copies(
        journal=journal,
        pins=pins,
        settle=settle,
        disk=base.disk,
        bell=base.bell,
        clock=base.clock,
        faults=base.faults,
        below_bytes=config.spool.copy_below,
        after_s=config.spool.copy_after,
        sending=sending.worker.sending,
        kept=supersede.run,
        speed=speed,
    )
    touched = Touched(journal=journal, pins=pins, threads=base.disk, clock=base.clock)
    return Sources(health, settle, write_back, supersede, overwrites, copies, touched)
