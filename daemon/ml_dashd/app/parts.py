"""All that a daemon is made of before it answers anybody."""

from __future__ import annotations

from dataclasses import dataclass

from ml_dashd.app.base import Base
from ml_dashd.app.sending import Sending, build_sending
from ml_dashd.app.sources import Sources, build_settling, build_sources
from ml_dashd.app.storage import Storage, open_storage
from ml_dashd.app.tasks import Tasks
from ml_dashd.app.upkeep import Upkeep, build_upkeep
from ml_dashd.edge.systemd import Systemd
from ml_dashd.embedded import Embedded


@dataclass(frozen=True, slots=True)
class Parts:
    """In the order in which each needs those before it."""

    base: Base
    storage: Storage
    sending: Sending
    sources: Sources
    upkeep: Upkeep


async def build(base: Base, systemd: Systemd, embedded: Embedded | None, chores: Tasks) -> Parts:
    """Opens what is on this machine, and wires the flow to it. Nothing of the flow runs yet."""
    storage = await open_storage(base, systemd, embedded, chores)
    settling = build_settling(base, storage)
    sending = build_sending(base, storage, settling.settle)
    sources = build_sources(base, storage, sending, settling)
    return Parts(base, storage, sending, sources, build_upkeep(base, storage, sending))
